#pragma once

#include "../problem.h"

namespace histloss::cpu {

// Every kernel is compiled once for each SIMD level and chosen when the library loads.
#define HISTLOSS_DECLARE_KERNELS(SIMD)                               \
  namespace SIMD {                                                   \
  void soft_histogram(const SoftHistogram&);                         \
  void soft_histogram_backward(const SoftHistogramBackward&);        \
  void joint_histogram(const JointHistogram&);                       \
  void joint_histogram_backward(const JointHistogramBackward&);      \
  void activation_maps(const ActivationMaps&);                       \
  void activation_maps_backward(const ActivationMapsBackward&);      \
  void soft_histogram_sums(const SoftHistogramSums&);                \
  void soft_histogram_sums_backward(const SoftHistogramBackward&);   \
  void joint_histogram_sums(const JointHistogramSums&);              \
  void joint_histogram_sums_backward(const JointHistogramBackward&); \
  void nearest_bins(const NearestBins&);                             \
  bool color_cross_entropy(const ColorCrossEntropy&);                \
  }

#if HISTLOSS_X86
HISTLOSS_DECLARE_KERNELS(sse)
HISTLOSS_DECLARE_KERNELS(avx2)
HISTLOSS_DECLARE_KERNELS(avx512)
#else
HISTLOSS_DECLARE_KERNELS(generic)
#endif

struct Kernels {
  const char* simd;
  void (*soft_histogram)(const SoftHistogram&);
  void (*soft_histogram_backward)(const SoftHistogramBackward&);
  void (*joint_histogram)(const JointHistogram&);
  void (*joint_histogram_backward)(const JointHistogramBackward&);
  void (*activation_maps)(const ActivationMaps&);
  void (*activation_maps_backward)(const ActivationMapsBackward&);
  void (*soft_histogram_sums)(const SoftHistogramSums&);
  void (*soft_histogram_sums_backward)(const SoftHistogramBackward&);
  void (*joint_histogram_sums)(const JointHistogramSums&);
  void (*joint_histogram_sums_backward)(const JointHistogramBackward&);
  void (*nearest_bins)(const NearestBins&);
  bool (*color_cross_entropy)(const ColorCrossEntropy&);  // whether all indices are valid
};

// The widest kernels this processor runs, or those that HISTLOSS_SIMD names if it runs them.
const Kernels& kernels();

inline const char* simd_name() { return kernels().simd; }

}  // namespace histloss::cpu
