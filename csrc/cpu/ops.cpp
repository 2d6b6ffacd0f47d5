#include "../boundary.h"
#include "dispatch.h"

namespace histloss::cpu {
namespace {

struct Backend {
  static void activation_maps(const ActivationMaps& job, const Tensor&) { kernels().activation_maps(job); }
  static void activation_maps_backward(const ActivationMapsBackward& job, const Tensor&) {
    kernels().activation_maps_backward(job);
  }
  static void soft_histogram(const SoftHistogram& job, const Tensor&) { kernels().soft_histogram(job); }
  static void soft_histogram_backward(const SoftHistogramBackward& job, const Tensor&) {
    kernels().soft_histogram_backward(job);
  }
  static void joint_histogram(const JointHistogram& job, const Tensor&) { kernels().joint_histogram(job); }
  static void joint_histogram_backward(const JointHistogramBackward& job, const Tensor&) {
    kernels().joint_histogram_backward(job);
  }
};

}  // namespace
}  // namespace histloss::cpu

STABLE_TORCH_LIBRARY_IMPL(histloss, CPU, m) { histloss::implement_ops<histloss::cpu::Backend>(m); }
