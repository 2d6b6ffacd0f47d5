// The op schemas, and the Python module whose import loads this library.
//
// Images come as planes: x (P, N) is P = B C channels of N pixels. mass (P, N) is each pixel's share of the
// whole, or nothing for 1 / N. An axis is (bins K, lo, hi, bandwidth in bin widths, boundary code), where the
// code indexes binning.py's BOUNDARIES, and where other kernels are known, their codes index KERNELS and
// NORMALIZATIONS. A gradient that is not needed comes back with no elements. Sums are integers with the
// totals of the weights, see kGrid, and their gradients those of the numbers they stand for.
#include <torch/csrc/stable/library.h>

#include "cpu/dispatch.h"
#include "module.h"

STABLE_TORCH_LIBRARY(histloss, m) {
  m.def(
      "activation_maps(Tensor x, int bins, float lo, float hi, float bandwidth, int boundary, int kernel=0) "
      "-> Tensor");
  m.def(
      "activation_maps_backward(Tensor grad, Tensor x, int bins, float lo, float hi, float bandwidth, "
      "int boundary, int kernel=0) -> Tensor");
  m.def(
      "soft_histogram(Tensor x, Tensor? mass, int bins, float lo, float hi, float bandwidth, "
      "int boundary) -> Tensor");
  m.def(
      "soft_histogram_backward(Tensor grad, Tensor x, Tensor? mass, int bins, float lo, float hi, "
      "float bandwidth, int boundary, bool need_x, bool need_mass) -> (Tensor, Tensor)");
  m.def(
      "joint_histogram(Tensor x, Tensor y, Tensor? mass, "
      "int bins_x, float lo_x, float hi_x, float bandwidth_x, int boundary_x, "
      "int bins_y, float lo_y, float hi_y, float bandwidth_y, int boundary_y) -> Tensor");
  m.def(
      "joint_histogram_backward(Tensor grad, Tensor x, Tensor y, Tensor? mass, "
      "int bins_x, float lo_x, float hi_x, float bandwidth_x, int boundary_x, "
      "int bins_y, float lo_y, float hi_y, float bandwidth_y, int boundary_y, "
      "bool need_x, bool need_y, bool need_mass) -> (Tensor, Tensor, Tensor)");
  m.def(
      "soft_histogram_sums(Tensor x, Tensor? weight, int bins, float lo, float hi, float bandwidth, "
      "int boundary, int kernel, int normalization) -> (Tensor, Tensor)");
  m.def(
      "soft_histogram_sums_backward(Tensor grad, Tensor x, Tensor? weight, int bins, float lo, float hi, "
      "float bandwidth, int boundary, int kernel, int normalization, bool need_x, bool need_weight) "
      "-> (Tensor, Tensor)");
  m.def(
      "joint_histogram_sums(Tensor x, Tensor y, Tensor? weight, "
      "int bins_x, float lo_x, float hi_x, float bandwidth_x, int boundary_x, int kernel_x, int "
      "normalization_x, "
      "int bins_y, float lo_y, float hi_y, float bandwidth_y, int boundary_y, int kernel_y, int "
      "normalization_y) "
      "-> (Tensor, Tensor)");
  m.def(
      "joint_histogram_sums_backward(Tensor grad, Tensor x, Tensor y, Tensor? weight, "
      "int bins_x, float lo_x, float hi_x, float bandwidth_x, int boundary_x, int kernel_x, int "
      "normalization_x, "
      "int bins_y, float lo_y, float hi_y, float bandwidth_y, int boundary_y, int kernel_y, int "
      "normalization_y, "
      "bool need_x, bool need_y, bool need_weight) -> (Tensor, Tensor, Tensor)");
  m.def(
      "nearest_bins(Tensor points, Tensor bins, Tensor a, Tensor b, float low_a, float low_b, float step, "
      "int neighbours, float sigma) -> (Tensor, Tensor, Tensor)");
  m.def("color_cross_entropy(Tensor x, Tensor indices, Tensor z, Tensor v, bool need_x) -> (Tensor, Tensor)");
}

extern "C" {
static PyModuleDef histloss_module = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C(void) {
  return histloss::make_module(histloss_module,
                               {{"simd", histloss::cpu::simd_name()}, {"compiler", __VERSION__}});
}
}
