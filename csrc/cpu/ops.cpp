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
  static void soft_histogram_sums(const SoftHistogramSums& job, const Tensor&) {
    kernels().soft_histogram_sums(job);
  }
  static void soft_histogram_sums_backward(const SoftHistogramBackward& job, const Tensor&) {
    kernels().soft_histogram_sums_backward(job);
  }
  static void joint_histogram_sums(const JointHistogramSums& job, const Tensor&) {
    kernels().joint_histogram_sums(job);
  }
  static void joint_histogram_sums_backward(const JointHistogramBackward& job, const Tensor&) {
    kernels().joint_histogram_sums_backward(job);
  }
};

// On a GPU plain PyTorch does the following.

std::tuple<Tensor, Tensor, Tensor> nearest_bins(const Tensor& points, const Tensor& bins, const Tensor& a,
                                                const Tensor& b, double low_a, double low_b, double step,
                                                int64_t neighbours, double sigma) {
  STD_TORCH_CHECK(points.dim() == 3, "histloss: points must have shape (B, 2, S)");
  const int64_t images = points.size(0), pixels = points.size(2);
  check_like(points, "points", points, {images, 2, pixels}, accumulation_type(points));
  STD_TORCH_CHECK(bins.dim() == 3, "histloss: bins must have shape (rows, columns, candidates)");
  const int64_t rows = bins.size(0), columns = bins.size(1), candidates = bins.size(2);
  check_like(bins, "bins", points, {rows, columns, candidates}, ScalarType::Long);
  const auto fits = [](int64_t size) { return size >= 1 && size < (int64_t{1} << 24); };
  STD_TORCH_CHECK(fits(rows) && fits(columns) && fits(candidates), "histloss: bins has the wrong shape");
  STD_TORCH_CHECK(neighbours >= 1 && neighbours <= candidates, "histloss: neighbours out of range");
  const Tensor x = torch::stable::contiguous(points), table = torch::stable::contiguous(bins);
  const Values bins_a(a, "a", points, {rows, columns, candidates});
  const Values bins_b(b, "b", points, {rows, columns, candidates});
  const Tensor indices = torch::stable::new_empty(points, {images, neighbours, pixels}, ScalarType::Long);
  const Tensor weights = new_values(points, {images, neighbours, pixels});
  const Tensor squares = new_values(points, {images, pixels});
  kernels().nearest_bins({images,
                          pixels,
                          neighbours,
                          points.scalar_type() == ScalarType::Double,
                          x.const_data_ptr(),
                          {low_a, low_b},
                          step,
                          rows,
                          columns,
                          candidates,
                          static_cast<const int64_t*>(table.const_data_ptr()),
                          bins_a.data,
                          bins_b.data,
                          0.5 / (sigma * sigma),
                          static_cast<int64_t*>(indices.mutable_data_ptr()),
                          weights.mutable_data_ptr(),
                          squares.mutable_data_ptr()});
  return {indices, weights, squares};
}

std::tuple<Tensor, Tensor> color_cross_entropy(const Tensor& x, const Tensor& indices, const Tensor& z,
                                               const Tensor& v, bool need_x) {
  STD_TORCH_CHECK(x.dim() == 3 && x.size(1) >= 1, "histloss: x must have shape (B, Q, S), Q >= 1");
  STD_TORCH_CHECK(indices.dim() == 3, "histloss: indices must have shape (B, n, S)");
  const int64_t images = x.size(0), bins = x.size(1), pixels = x.size(2), neighbours = indices.size(1);
  check_like(indices, "indices", x, {images, neighbours, pixels}, ScalarType::Long);
  const Input in(x);
  const Tensor bin = torch::stable::contiguous(indices);
  const Values share(z, "z", x, {images, neighbours, pixels}), weight(v, "v", x, {images, pixels});
  const Tensor values = new_values(x, {images, pixels});
  const Gradient grad(x, need_x, x.scalar_type());
  const bool valid =
      kernels().color_cross_entropy({images, bins, pixels, neighbours, x.scalar_type() == ScalarType::Double,
                                     in.image, static_cast<const int64_t*>(bin.const_data_ptr()), share.data,
                                     weight.data, values.mutable_data_ptr(), grad.image});
  STD_TORCH_CHECK(valid, "histloss: indices must be from 0 to ", bins - 1);
  return {values, grad.tensor};
}

}  // namespace
}  // namespace histloss::cpu

STABLE_TORCH_LIBRARY_IMPL(histloss, CPU, m) {
  histloss::implement_ops<histloss::cpu::Backend>(m);
  m.impl("nearest_bins", TORCH_BOX(&histloss::cpu::nearest_bins));
  m.impl("color_cross_entropy", TORCH_BOX(&histloss::cpu::color_cross_entropy));
}
