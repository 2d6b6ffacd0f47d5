// The launchers of csrc/cuda/kernels.h as Python functions of NumPy arrays, with the arguments of the ops of
// the same names, see csrc/ops.cpp. Arrays are contiguous (planes, pixels); uint16 holds bfloat16.
#include <cuda_runtime.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/cuda/kernels.h"
#include "emulator.h"

namespace py = pybind11;

namespace histloss {
namespace {

constexpr std::size_t kAlignment = 256;  // that device memory starts at
constexpr unsigned char kGarbage = 0xff;

// Of exactly as many bytes, which AddressSanitizer sees to.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes, std::size_t offset = 0)
      : memory_(::operator new(offset + bytes, std::align_val_t{kAlignment})), offset_(offset) {
    std::memset(memory_.get(), kGarbage, offset + bytes);
  }

  void* data() const { return static_cast<unsigned char*>(memory_.get()) + offset_; }

 private:
  struct Delete {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{kAlignment}); }
  };

  std::unique_ptr<void, Delete> memory_;
  std::size_t offset_;
};

std::size_t scratch_bytes;  // that the last op asked for

struct EmulatedLaunch final : cuda::Launch {
  EmulatedLaunch() {
    stream = nullptr;
    shared_bytes = static_cast<int>(emulation::options().shared_bytes);
  }

  void* scratch(std::size_t bytes) override {
    scratch_bytes += bytes;
    memory_.emplace_back(bytes);
    return memory_.back().data();
  }

 private:
  std::vector<DeviceMemory> memory_;
};

template <class Job>
void run(cudaError_t (*op)(const Job&, cuda::Launch&), const Job& job) {
  scratch_bytes = 0;
  emulation::error().clear();
  EmulatedLaunch launch;
  const cudaError_t status = op(job, launch);
  if (status == cudaSuccess) return;
  const std::string& error = emulation::error();
  throw std::runtime_error(error.empty() ? cudaGetErrorString(status) : error);
}

Scalar scalar(const py::array& array) {
  switch (array.dtype().char_()) {
    case 'e': return Scalar::f16;
    case 'H': return Scalar::bf16;
    case 'f': return Scalar::f32;
    case 'd': return Scalar::f64;
  }
  throw std::invalid_argument("arrays are float16, uint16 for bfloat16, float32 or float64");
}

// An array's copy on the device, as far from an aligned address as the array is.
class Input {
 public:
  explicit Input(const py::array& array)
      : type_(scalar(array)),
        memory_(static_cast<std::size_t>(array.nbytes()),
                reinterpret_cast<std::uintptr_t>(array.data()) % 16) {
    if ((array.flags() & py::array::c_style) == 0) throw std::invalid_argument("arrays are contiguous");
    std::memcpy(memory_.data(), array.data(), static_cast<std::size_t>(array.nbytes()));
  }

  Image image() const { return {memory_.data(), type_}; }

 private:
  Scalar type_;
  DeviceMemory memory_;
};

using Shape = std::vector<py::ssize_t>;

class Output {
 public:
  Output(const py::dtype& dtype, const Shape& shape)
      : array_(dtype, shape), memory_(static_cast<std::size_t>(array_.nbytes())) {}

  void* data() const { return memory_.data(); }
  MutableImage image() const { return {data(), scalar(array_)}; }

  py::array array() {
    std::memcpy(array_.mutable_data(), memory_.data(), static_cast<std::size_t>(array_.nbytes()));
    return std::move(array_);
  }

 private:
  py::array array_;
  DeviceMemory memory_;
};

// A gradient that is not needed is null, and comes back with no elements.
class Gradient {
 public:
  Gradient(bool needed, const py::dtype& dtype, const Shape& shape) : empty_(dtype, Shape{0}) {
    if (needed) output_.emplace(dtype, shape);
  }

  MutableImage image() const { return output_ ? output_->image() : MutableImage{nullptr, scalar(empty_)}; }
  py::array array() { return output_ ? output_->array() : empty_; }

 private:
  py::array empty_;
  std::optional<Output> output_;
};

// What the ops have in common: images, mass, and what follows from them.
struct Operands {
  Input x;
  std::optional<Input> y, mass;
  Pixels pixels;
  Shape shape;
  py::dtype image_type, value_type;

  Operands(const py::array& x, const py::array* y, const std::optional<py::array>& mass)
      : x(x),
        shape{x.shape(0), x.shape(1)},
        image_type(x.dtype()),
        value_type(scalar(x) == Scalar::f64 ? py::dtype::of<double>() : py::dtype::of<float>()) {
    if (y != nullptr) this->y.emplace(*y);
    if (mass) this->mass.emplace(*mass);
    pixels = {x.shape(0), x.shape(1), mass ? this->mass->image().data : nullptr, scalar(x) == Scalar::f64};
  }

  Output values(const Shape& shape) const { return {value_type, shape}; }
  // (levels, planes, ...)
  Output integers(int64_t levels, Shape shape) const {
    shape.insert(shape.begin(), {static_cast<py::ssize_t>(levels), this->shape[0]});
    return {py::dtype::of<std::int64_t>(), shape};
  }
  Gradient image_gradient(bool needed) const { return {needed, image_type, shape}; }
  Gradient mass_gradient(bool needed) const { return {needed, value_type, shape}; }
};

Axis parzen_axis(int64_t bins, double lo, double hi, double bandwidth, int boundary, int kernel,
                 int normalization) {
  return {bins,
          lo,
          hi,
          bandwidth,
          static_cast<Boundary>(boundary),
          static_cast<Kernel>(kernel),
          static_cast<Normalization>(normalization)};
}

py::array activation_maps(const py::array& x, int64_t bins, double lo, double hi, double bandwidth,
                          int boundary, int kernel) {
  const Operands on(x, nullptr, {});
  Output maps = on.values({x.shape(0), bins, x.shape(1)});
  run(cuda::activation_maps, ActivationMaps{parzen_axis(bins, lo, hi, bandwidth, boundary, kernel, 0),
                                            on.pixels, on.x.image(), maps.data()});
  return maps.array();
}

py::array activation_maps_backward(const py::array& grad, const py::array& x, int64_t bins, double lo,
                                   double hi, double bandwidth, int boundary, int kernel) {
  const Operands on(x, nullptr, {});
  const Input upstream(grad);
  Gradient grad_x = on.image_gradient(true);
  run(cuda::activation_maps_backward,
      ActivationMapsBackward{parzen_axis(bins, lo, hi, bandwidth, boundary, kernel, 0), on.pixels,
                             on.x.image(), upstream.image().data, grad_x.image()});
  return grad_x.array();
}

py::array soft_histogram(const py::array& x, const std::optional<py::array>& mass, int64_t bins, double lo,
                         double hi, double bandwidth, int boundary) {
  const Operands on(x, nullptr, mass);
  Output histogram = on.values({x.shape(0), bins});
  run(cuda::soft_histogram, SoftHistogram{{bins, lo, hi, bandwidth, static_cast<Boundary>(boundary)},
                                          on.pixels,
                                          on.x.image(),
                                          histogram.image().data});
  return histogram.array();
}

py::tuple soft_histogram_backward(const py::array& grad, const py::array& x,
                                  const std::optional<py::array>& mass, int64_t bins, double lo, double hi,
                                  double bandwidth, int boundary, bool need_x, bool need_mass) {
  const Operands on(x, nullptr, mass);
  const Input upstream(grad);
  Gradient grad_x = on.image_gradient(need_x), grad_mass = on.mass_gradient(need_mass);
  run(cuda::soft_histogram_backward,
      SoftHistogramBackward{{bins, lo, hi, bandwidth, static_cast<Boundary>(boundary)},
                            on.pixels,
                            on.x.image(),
                            upstream.image().data,
                            grad_x.image(),
                            grad_mass.image().data});
  return py::make_tuple(grad_x.array(), grad_mass.array());
}

py::array joint_histogram(const py::array& x, const py::array& y, const std::optional<py::array>& mass,
                          int64_t bins_x, double lo_x, double hi_x, double bandwidth_x, int boundary_x,
                          int64_t bins_y, double lo_y, double hi_y, double bandwidth_y, int boundary_y) {
  const Operands on(x, &y, mass);
  Output joint = on.values({x.shape(0), bins_x, bins_y});
  run(cuda::joint_histogram,
      JointHistogram{{bins_x, lo_x, hi_x, bandwidth_x, static_cast<Boundary>(boundary_x)},
                     {bins_y, lo_y, hi_y, bandwidth_y, static_cast<Boundary>(boundary_y)},
                     on.pixels,
                     on.x.image(),
                     on.y->image(),
                     joint.image().data});
  return joint.array();
}

py::tuple joint_histogram_backward(const py::array& grad, const py::array& x, const py::array& y,
                                   const std::optional<py::array>& mass, int64_t bins_x, double lo_x,
                                   double hi_x, double bandwidth_x, int boundary_x, int64_t bins_y,
                                   double lo_y, double hi_y, double bandwidth_y, int boundary_y, bool need_x,
                                   bool need_y, bool need_mass) {
  const Operands on(x, &y, mass);
  const Input upstream(grad);
  Gradient grad_x = on.image_gradient(need_x), grad_y = on.image_gradient(need_y);
  Gradient grad_mass = on.mass_gradient(need_mass);
  run(cuda::joint_histogram_backward,
      JointHistogramBackward{{bins_x, lo_x, hi_x, bandwidth_x, static_cast<Boundary>(boundary_x)},
                             {bins_y, lo_y, hi_y, bandwidth_y, static_cast<Boundary>(boundary_y)},
                             on.pixels,
                             on.x.image(),
                             on.y->image(),
                             upstream.image().data,
                             grad_x.image(),
                             grad_y.image(),
                             grad_mass.image().data});
  return py::make_tuple(grad_x.array(), grad_y.array(), grad_mass.array());
}

py::tuple soft_histogram_sums(const py::array& x, const std::optional<py::array>& weight, int64_t bins,
                              double lo, double hi, double bandwidth, int boundary, int kernel,
                              int normalization) {
  const Operands on(x, nullptr, weight);
  SoftHistogramSums job{parzen_axis(bins, lo, hi, bandwidth, boundary, kernel, normalization), on.pixels,
                        on.x.image(), nullptr, nullptr};
  Output sums = on.integers(job.levels(), {bins}), totals = on.integers(job.levels(), {});
  job.sums = static_cast<int64_t*>(sums.data());
  job.totals = static_cast<int64_t*>(totals.data());
  run(cuda::soft_histogram_sums, job);
  return py::make_tuple(sums.array(), totals.array());
}

py::tuple soft_histogram_sums_backward(const py::array& grad, const py::array& x,
                                       const std::optional<py::array>& weight, int64_t bins, double lo,
                                       double hi, double bandwidth, int boundary, int kernel,
                                       int normalization, bool need_x, bool need_weight) {
  const Operands on(x, nullptr, weight);
  const Input upstream(grad);
  Gradient grad_x = on.image_gradient(need_x), grad_weight = on.mass_gradient(need_weight);
  run(cuda::soft_histogram_sums_backward,
      SoftHistogramBackward{parzen_axis(bins, lo, hi, bandwidth, boundary, kernel, normalization), on.pixels,
                            on.x.image(), upstream.image().data, grad_x.image(), grad_weight.image().data});
  return py::make_tuple(grad_x.array(), grad_weight.array());
}

py::tuple joint_histogram_sums(const py::array& x, const py::array& y, const std::optional<py::array>& weight,
                               int64_t bins_x, double lo_x, double hi_x, double bandwidth_x, int boundary_x,
                               int kernel_x, int normalization_x, int64_t bins_y, double lo_y, double hi_y,
                               double bandwidth_y, int boundary_y, int kernel_y, int normalization_y) {
  const Operands on(x, &y, weight);
  JointHistogramSums job{parzen_axis(bins_x, lo_x, hi_x, bandwidth_x, boundary_x, kernel_x, normalization_x),
                         parzen_axis(bins_y, lo_y, hi_y, bandwidth_y, boundary_y, kernel_y, normalization_y),
                         on.pixels,
                         on.x.image(),
                         on.y->image(),
                         nullptr,
                         nullptr};
  Output sums = on.integers(job.levels(), {bins_x, bins_y}), totals = on.integers(job.levels(), {});
  job.sums = static_cast<int64_t*>(sums.data());
  job.totals = static_cast<int64_t*>(totals.data());
  run(cuda::joint_histogram_sums, job);
  return py::make_tuple(sums.array(), totals.array());
}

py::tuple joint_histogram_sums_backward(const py::array& grad, const py::array& x, const py::array& y,
                                        const std::optional<py::array>& weight, int64_t bins_x, double lo_x,
                                        double hi_x, double bandwidth_x, int boundary_x, int kernel_x,
                                        int normalization_x, int64_t bins_y, double lo_y, double hi_y,
                                        double bandwidth_y, int boundary_y, int kernel_y, int normalization_y,
                                        bool need_x, bool need_y, bool need_weight) {
  const Operands on(x, &y, weight);
  const Input upstream(grad);
  Gradient grad_x = on.image_gradient(need_x), grad_y = on.image_gradient(need_y);
  Gradient grad_weight = on.mass_gradient(need_weight);
  run(cuda::joint_histogram_sums_backward,
      JointHistogramBackward{
          parzen_axis(bins_x, lo_x, hi_x, bandwidth_x, boundary_x, kernel_x, normalization_x),
          parzen_axis(bins_y, lo_y, hi_y, bandwidth_y, boundary_y, kernel_y, normalization_y), on.pixels,
          on.x.image(), on.y->image(), upstream.image().data, grad_x.image(), grad_y.image(),
          grad_weight.image().data});
  return py::make_tuple(grad_x.array(), grad_y.array(), grad_weight.array());
}

void set_order(const std::string& order) {
  using emulation::Order;
  if (order != "random" && order != "forward" && order != "backward")
    throw std::invalid_argument("the order is random, forward or backward");
  emulation::options().order = order == "random"    ? Order::random
                               : order == "forward" ? Order::forward
                                                    : Order::backward;
}

}  // namespace
}  // namespace histloss

PYBIND11_MODULE(emulated_kernels, m) {
  using namespace histloss;
  using py::arg;
  m.def("activation_maps", activation_maps, arg("x"), arg("bins"), arg("lo"), arg("hi"), arg("bandwidth"),
        arg("boundary"), arg("kernel") = 0);
  m.def("activation_maps_backward", activation_maps_backward, arg("grad"), arg("x"), arg("bins"), arg("lo"),
        arg("hi"), arg("bandwidth"), arg("boundary"), arg("kernel") = 0);
  m.def("soft_histogram", soft_histogram);
  m.def("soft_histogram_backward", soft_histogram_backward);
  m.def("joint_histogram", joint_histogram);
  m.def("joint_histogram_backward", joint_histogram_backward);
  m.def("soft_histogram_sums", soft_histogram_sums);
  m.def("soft_histogram_sums_backward", soft_histogram_sums_backward);
  m.def("joint_histogram_sums", joint_histogram_sums);
  m.def("joint_histogram_sums_backward", joint_histogram_sums_backward);
  m.def("seed", [](unsigned seed) { emulation::options().seed = seed; });
  m.def("order", set_order);
  m.def("shared_bytes", [](std::size_t bytes) { emulation::options().shared_bytes = bytes; });
  m.def("scratch_bytes", [] { return scratch_bytes; });
}
