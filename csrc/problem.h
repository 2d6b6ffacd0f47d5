// What the boundary hands to the kernels: plain pointers and sizes, already valid.
#pragma once

#include <cstdint>

#include "bin_kernel.h"

namespace histloss {

struct Axis {
  int64_t bins;
  double lo, hi, bandwidth;  // bandwidth in bin widths
  Boundary boundary;

  double width() const { return (hi - lo) / static_cast<double>(bins); }
};

enum class Scalar { f16, bf16, f32, f64 };

// Contiguous (planes, pixels).
struct Image {
  const void* data;
  Scalar type;
};

struct MutableImage {
  void* data;  // null: not wanted
  Scalar type;
};

// Histograms, mass and their gradients are float32, or float64 where is_double: the type the images widen to.
struct Pixels {
  int64_t planes, count;
  const void* mass;  // (planes, count), or null for 1 / count
  bool is_double;

  // What a histogram's sums are multiplied by: the mass is a share already.
  HISTLOSS_HOST_DEVICE double share() const {
    return mass != nullptr || count == 0 ? 1.0 : 1.0 / static_cast<double>(count);
  }
};

// Mass, histograms and their gradients are of the image's arithmetic type.
HISTLOSS_HOST_DEVICE Image values(const void* data, bool is_double) {
  return {data, is_double ? Scalar::f64 : Scalar::f32};
}
HISTLOSS_HOST_DEVICE MutableImage values(void* data, bool is_double) {
  return {data, is_double ? Scalar::f64 : Scalar::f32};
}

struct SoftHistogram {
  Axis axis;
  Pixels pixels;
  Image x;
  void* histogram;  // (planes, K)
};

struct SoftHistogramBackward {
  Axis axis;
  Pixels pixels;
  Image x;
  const void* grad;     // (planes, K)
  MutableImage grad_x;  // (planes, count)
  void* grad_mass;      // (planes, count) or null
};

struct JointHistogram {
  Axis axis_x, axis_y;
  Pixels pixels;
  Image x, y;
  void* joint;  // (planes, Kx, Ky)
};

struct JointHistogramBackward {
  Axis axis_x, axis_y;
  Pixels pixels;
  Image x, y;
  const void* grad;  // (planes, Kx, Ky)
  MutableImage grad_x, grad_y;
  void* grad_mass;
};

struct ActivationMaps {
  Axis axis;
  Pixels pixels;  // mass unused
  Image x;
  void* maps;  // (planes, K, count)
};

struct ActivationMapsBackward {
  Axis axis;
  Pixels pixels;
  Image x;
  const void* grad;  // (planes, K, count)
  MutableImage grad_x;
};

}  // namespace histloss
