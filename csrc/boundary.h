// The boundary between tensors and kernels, the same for every device. Python has checked every argument;
// what is checked here again is what memory safety rests on, so that no caller of a raw op can read out of
// bounds.
//
// A Backend has a function for each op, which does the job; x tells it the device.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <initializer_list>
#include <optional>
#include <tuple>

#include "problem.h"

namespace histloss {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Scalar scalar_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Half: return Scalar::f16;
    case ScalarType::BFloat16: return Scalar::bf16;
    case ScalarType::Float: return Scalar::f32;
    case ScalarType::Double: return Scalar::f64;
    default: break;
  }
  STD_TORCH_CHECK(false, "histloss: expected a tensor of float16, bfloat16, float32 or float64");
}

inline ScalarType accumulation_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Axis make_axis(int64_t bins, double lo, double hi, double bandwidth, int64_t boundary,
                      int64_t kernel = 0, int64_t normalization = 0) {
  STD_TORCH_CHECK(bins >= 1 && bins < (int64_t{1} << 24), "histloss: bins out of range: ", bins);
  STD_TORCH_CHECK(std::isfinite(lo) && std::isfinite(hi) && lo < hi, "histloss: range out of order");
  STD_TORCH_CHECK(bandwidth >= 1e-3 && bandwidth <= 1e3, "histloss: bandwidth out of range: ", bandwidth);
  STD_TORCH_CHECK(boundary >= 0 && boundary <= 2, "histloss: no such boundary: ", boundary);
  STD_TORCH_CHECK(kernel >= 0 && kernel <= 3, "histloss: no such kernel: ", kernel);
  STD_TORCH_CHECK(normalization >= 0 && normalization <= 2,
                  "histloss: no such normalization: ", normalization);
  STD_TORCH_CHECK(kernel < 2 || bandwidth >= 0.5,
                  "histloss: bandwidth too narrow for its kernel: ", bandwidth);
  return {bins,
          lo,
          hi,
          bandwidth,
          static_cast<Boundary>(boundary),
          static_cast<Kernel>(kernel),
          static_cast<Normalization>(normalization)};
}

// What arrives along with x: on its device, of this shape and type.
inline void check_like(const Tensor& values, const char* name, const Tensor& x,
                       std::initializer_list<int64_t> shape, ScalarType type) {
  bool same = values.dim() == static_cast<int64_t>(shape.size());
  int64_t d = 0;
  for (const int64_t size : shape) same = same && values.size(d++) == size;
  STD_TORCH_CHECK(same, "histloss: ", name, " has the wrong shape");
  STD_TORCH_CHECK(values.scalar_type() == type, "histloss: ", name, " has the wrong dtype");
  STD_TORCH_CHECK(values.device() == x.device(), "histloss: ", name, " is not on the device of x");
}

struct Input {
  Tensor tensor;  // contiguous; keeps the data alive
  Image image;
  Input(const Tensor& x)
      : tensor(torch::stable::contiguous(x)), image{tensor.const_data_ptr(), scalar_of(tensor)} {}
};

inline Input image_of(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2, "histloss: ", name, " must have shape (P, N)");
  return Input(x);
}

// Mass and gradients.
struct Values {
  static constexpr double nothing = 0;
  std::optional<Tensor> tensor;
  const void* data = nullptr;
  Values(const std::optional<Tensor>& values, const char* name, const Tensor& x,
         std::initializer_list<int64_t> shape) {
    if (!values.has_value()) return;
    check_like(*values, name, x, shape, accumulation_type(x));
    tensor = torch::stable::contiguous(*values);
    data = tensor->const_data_ptr();
    if (data == nullptr) data = &nothing;  // of an empty tensor, which is not the same as none
  }
};

inline Tensor new_values(const Tensor& x, std::initializer_list<int64_t> shape) {
  return torch::stable::new_empty(x, shape, accumulation_type(x));
}

// A gradient like x, or one without elements if it is not needed.
struct Gradient {
  Tensor tensor;
  MutableImage image;
  Gradient(const Tensor& x, bool needed, ScalarType type)
      : tensor(needed ? torch::stable::new_empty(x, x.sizes(), type)
                      : torch::stable::new_empty(x, {0}, type)),
        image{needed ? tensor.mutable_data_ptr() : nullptr, scalar_of(tensor)} {}
};

inline Pixels pixels_of(const Tensor& x, const void* mass = nullptr) {
  return {x.size(0), x.size(1), mass, x.scalar_type() == ScalarType::Double};
}

template <class Backend>
Tensor activation_maps(const Tensor& x, int64_t bins, double lo, double hi, double bandwidth,
                       int64_t boundary, int64_t kernel) {
  const Axis axis = make_axis(bins, lo, hi, bandwidth, boundary, kernel);
  const Input in = image_of(x, "x");
  Tensor maps = new_values(x, {x.size(0), bins, x.size(1)});
  Backend::activation_maps({axis, pixels_of(x), in.image, maps.mutable_data_ptr()}, x);
  return maps;
}

template <class Backend>
Tensor activation_maps_backward(const Tensor& grad, const Tensor& x, int64_t bins, double lo, double hi,
                                double bandwidth, int64_t boundary, int64_t kernel) {
  const Axis axis = make_axis(bins, lo, hi, bandwidth, boundary, kernel);
  const Input in = image_of(x, "x");
  const Values g(grad, "grad", x, {x.size(0), bins, x.size(1)});
  const Gradient grad_x(x, true, x.scalar_type());
  Backend::activation_maps_backward({axis, pixels_of(x), in.image, g.data, grad_x.image}, x);
  return grad_x.tensor;
}

template <class Backend>
Tensor soft_histogram(const Tensor& x, const std::optional<Tensor>& mass, int64_t bins, double lo, double hi,
                      double bandwidth, int64_t boundary) {
  const Axis axis = make_axis(bins, lo, hi, bandwidth, boundary);
  const Input in = image_of(x, "x");
  const Values m(mass, "mass", x, {x.size(0), x.size(1)});
  Tensor histogram = new_values(x, {x.size(0), bins});
  Backend::soft_histogram({axis, pixels_of(x, m.data), in.image, histogram.mutable_data_ptr()}, x);
  return histogram;
}

template <class Backend>
std::tuple<Tensor, Tensor> soft_histogram_backward(const Tensor& grad, const Tensor& x,
                                                   const std::optional<Tensor>& mass, int64_t bins, double lo,
                                                   double hi, double bandwidth, int64_t boundary, bool need_x,
                                                   bool need_mass) {
  const Axis axis = make_axis(bins, lo, hi, bandwidth, boundary);
  const Input in = image_of(x, "x");
  const Values g(grad, "grad", x, {x.size(0), bins});
  const Values m(mass, "mass", x, {x.size(0), x.size(1)});
  const Gradient grad_x(x, need_x, x.scalar_type()), grad_mass(x, need_mass, accumulation_type(x));
  if (need_x || need_mass)
    Backend::soft_histogram_backward(
        {axis, pixels_of(x, m.data), in.image, g.data, grad_x.image, grad_mass.image.data}, x);
  return {grad_x.tensor, grad_mass.tensor};
}

template <class Backend>
Tensor joint_histogram(const Tensor& x, const Tensor& y, const std::optional<Tensor>& mass, int64_t bins_x,
                       double lo_x, double hi_x, double bandwidth_x, int64_t boundary_x, int64_t bins_y,
                       double lo_y, double hi_y, double bandwidth_y, int64_t boundary_y) {
  const Axis axis_x = make_axis(bins_x, lo_x, hi_x, bandwidth_x, boundary_x);
  const Axis axis_y = make_axis(bins_y, lo_y, hi_y, bandwidth_y, boundary_y);
  const Input in_x = image_of(x, "x"), in_y = image_of(y, "y");
  check_like(y, "y", x, {x.size(0), x.size(1)}, x.scalar_type());
  const Values m(mass, "mass", x, {x.size(0), x.size(1)});
  Tensor joint = new_values(x, {x.size(0), bins_x, bins_y});
  Backend::joint_histogram(
      {axis_x, axis_y, pixels_of(x, m.data), in_x.image, in_y.image, joint.mutable_data_ptr()}, x);
  return joint;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> joint_histogram_backward(
    const Tensor& grad, const Tensor& x, const Tensor& y, const std::optional<Tensor>& mass, int64_t bins_x,
    double lo_x, double hi_x, double bandwidth_x, int64_t boundary_x, int64_t bins_y, double lo_y,
    double hi_y, double bandwidth_y, int64_t boundary_y, bool need_x, bool need_y, bool need_mass) {
  const Axis axis_x = make_axis(bins_x, lo_x, hi_x, bandwidth_x, boundary_x);
  const Axis axis_y = make_axis(bins_y, lo_y, hi_y, bandwidth_y, boundary_y);
  const Input in_x = image_of(x, "x"), in_y = image_of(y, "y");
  check_like(y, "y", x, {x.size(0), x.size(1)}, x.scalar_type());
  const Values g(grad, "grad", x, {x.size(0), bins_x, bins_y});
  const Values m(mass, "mass", x, {x.size(0), x.size(1)});
  const Gradient grad_x(x, need_x, x.scalar_type()), grad_y(x, need_y, x.scalar_type());
  const Gradient grad_mass(x, need_mass, accumulation_type(x));
  if (need_x || need_y || need_mass)
    Backend::joint_histogram_backward({axis_x, axis_y, pixels_of(x, m.data), in_x.image, in_y.image, g.data,
                                       grad_x.image, grad_y.image, grad_mass.image.data},
                                      x);
  return {grad_x.tensor, grad_y.tensor, grad_mass.tensor};
}

// Integers (levels, ...), and where they are.
struct Integers {
  Tensor tensor;
  int64_t* data;
  Integers(const Tensor& x, std::initializer_list<int64_t> shape)
      : tensor(torch::stable::new_empty(x, shape, ScalarType::Long)),
        data(static_cast<int64_t*>(tensor.mutable_data_ptr())) {}
};

template <class Backend>
std::tuple<Tensor, Tensor> soft_histogram_sums(const Tensor& x, const std::optional<Tensor>& weight,
                                               int64_t bins, double lo, double hi, double bandwidth,
                                               int64_t boundary, int64_t kernel, int64_t normalization) {
  const Axis axis = make_axis(bins, lo, hi, bandwidth, boundary, kernel, normalization);
  const Input in = image_of(x, "x");
  const Values w(weight, "weight", x, {x.size(0), x.size(1)});
  SoftHistogramSums job{axis, pixels_of(x, w.data), in.image, nullptr, nullptr};
  const Integers sums(x, {job.levels(), x.size(0), bins}), totals(x, {job.levels(), x.size(0)});
  job.sums = sums.data;
  job.totals = totals.data;
  Backend::soft_histogram_sums(job, x);
  return {sums.tensor, totals.tensor};
}

template <class Backend>
std::tuple<Tensor, Tensor> soft_histogram_sums_backward(const Tensor& grad, const Tensor& x,
                                                        const std::optional<Tensor>& weight, int64_t bins,
                                                        double lo, double hi, double bandwidth,
                                                        int64_t boundary, int64_t kernel,
                                                        int64_t normalization, bool need_x,
                                                        bool need_weight) {
  const Axis axis = make_axis(bins, lo, hi, bandwidth, boundary, kernel, normalization);
  const Input in = image_of(x, "x");
  const Values g(grad, "grad", x, {x.size(0), bins});
  const Values w(weight, "weight", x, {x.size(0), x.size(1)});
  const Gradient grad_x(x, need_x, x.scalar_type()), grad_weight(x, need_weight, accumulation_type(x));
  if (need_x || need_weight)
    Backend::soft_histogram_sums_backward(
        {axis, pixels_of(x, w.data), in.image, g.data, grad_x.image, grad_weight.image.data}, x);
  return {grad_x.tensor, grad_weight.tensor};
}

template <class Backend>
std::tuple<Tensor, Tensor> joint_histogram_sums(const Tensor& x, const Tensor& y,
                                                const std::optional<Tensor>& weight, int64_t bins_x,
                                                double lo_x, double hi_x, double bandwidth_x,
                                                int64_t boundary_x, int64_t kernel_x, int64_t normalization_x,
                                                int64_t bins_y, double lo_y, double hi_y, double bandwidth_y,
                                                int64_t boundary_y, int64_t kernel_y,
                                                int64_t normalization_y) {
  const Axis axis_x = make_axis(bins_x, lo_x, hi_x, bandwidth_x, boundary_x, kernel_x, normalization_x);
  const Axis axis_y = make_axis(bins_y, lo_y, hi_y, bandwidth_y, boundary_y, kernel_y, normalization_y);
  const Input in_x = image_of(x, "x"), in_y = image_of(y, "y");
  check_like(y, "y", x, {x.size(0), x.size(1)}, x.scalar_type());
  const Values w(weight, "weight", x, {x.size(0), x.size(1)});
  JointHistogramSums job{axis_x, axis_y, pixels_of(x, w.data), in_x.image, in_y.image, nullptr, nullptr};
  const Integers sums(x, {job.levels(), x.size(0), bins_x, bins_y}), totals(x, {job.levels(), x.size(0)});
  job.sums = sums.data;
  job.totals = totals.data;
  Backend::joint_histogram_sums(job, x);
  return {sums.tensor, totals.tensor};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> joint_histogram_sums_backward(
    const Tensor& grad, const Tensor& x, const Tensor& y, const std::optional<Tensor>& weight, int64_t bins_x,
    double lo_x, double hi_x, double bandwidth_x, int64_t boundary_x, int64_t kernel_x,
    int64_t normalization_x, int64_t bins_y, double lo_y, double hi_y, double bandwidth_y, int64_t boundary_y,
    int64_t kernel_y, int64_t normalization_y, bool need_x, bool need_y, bool need_weight) {
  const Axis axis_x = make_axis(bins_x, lo_x, hi_x, bandwidth_x, boundary_x, kernel_x, normalization_x);
  const Axis axis_y = make_axis(bins_y, lo_y, hi_y, bandwidth_y, boundary_y, kernel_y, normalization_y);
  const Input in_x = image_of(x, "x"), in_y = image_of(y, "y");
  check_like(y, "y", x, {x.size(0), x.size(1)}, x.scalar_type());
  const Values g(grad, "grad", x, {x.size(0), bins_x, bins_y});
  const Values w(weight, "weight", x, {x.size(0), x.size(1)});
  const Gradient grad_x(x, need_x, x.scalar_type()), grad_y(x, need_y, x.scalar_type());
  const Gradient grad_weight(x, need_weight, accumulation_type(x));
  if (need_x || need_y || need_weight)
    Backend::joint_histogram_sums_backward({axis_x, axis_y, pixels_of(x, w.data), in_x.image, in_y.image,
                                            g.data, grad_x.image, grad_y.image, grad_weight.image.data},
                                           x);
  return {grad_x.tensor, grad_y.tensor, grad_weight.tensor};
}

template <class Backend>
void implement_ops(torch::stable::detail::StableLibrary& library) {
  library.impl("activation_maps", TORCH_BOX(&activation_maps<Backend>));
  library.impl("activation_maps_backward", TORCH_BOX(&activation_maps_backward<Backend>));
  library.impl("soft_histogram", TORCH_BOX(&soft_histogram<Backend>));
  library.impl("soft_histogram_backward", TORCH_BOX(&soft_histogram_backward<Backend>));
  library.impl("joint_histogram", TORCH_BOX(&joint_histogram<Backend>));
  library.impl("joint_histogram_backward", TORCH_BOX(&joint_histogram_backward<Backend>));
  library.impl("soft_histogram_sums", TORCH_BOX(&soft_histogram_sums<Backend>));
  library.impl("soft_histogram_sums_backward", TORCH_BOX(&soft_histogram_sums_backward<Backend>));
  library.impl("joint_histogram_sums", TORCH_BOX(&joint_histogram_sums<Backend>));
  library.impl("joint_histogram_sums_backward", TORCH_BOX(&joint_histogram_sums_backward<Backend>));
}

}  // namespace histloss
