#include "parzen.cuh"

namespace histloss::cuda {
namespace {

template <class T>
struct GatherSums {
  ParzenAxis<T> x;
  Pixels pixels;
  Image image;
  Image grad;  // (planes, K)
  MutableImage grad_x, grad_mass;

  // to_x is with respect to the distance in bins.
  __device__ __forceinline__ void finish(int64_t i, bool placed, const TapPlace<T>& at, T to_x,
                                         T to_mass) const {
    const T weight = pixels.mass == nullptr ? T(1) : load<T>(values(pixels.mass, pixels.is_double), i);
    store_wanted(grad_x, i,
                 placed ? to_x * static_cast<T>(x.position.inverse_width) * weight * at.sign : T(0));
    store_wanted(grad_mass, i, placed ? to_mass : T(0));
  }
};

// ---- few taps: a thread a pixel

template <class T>
__global__ void __launch_bounds__(kThreads, 1) gather_taps(const __grid_constant__ GatherSums<T> job) {
  for (int64_t i = first_item(); i < job.pixels.planes * job.pixels.count; i += item_step()) {
    const int64_t plane = i / job.pixels.count * job.x.bins;
    TapPlace<T> at;
    const bool placed = job.x.place(load<double>(job.image, i), at);
    T to_x = 0, to_mass = 0;
    for (int tap = 0; placed && tap < job.x.taps; ++tap) {
      const int k = job.x.bin(at.first + tap);
      if (k < 0) continue;
      T value, slope;
      job.x.evaluate(at, tap, value, slope);
      const T g = load<T>(job.grad, plane + k);
      to_x += g * slope;
      to_mass += g * value;
    }
    job.finish(i, placed, at, to_x, to_mass);
  }
}

// ---- many: a warp a pixel

__global__ void __launch_bounds__(kThreads, 1) gather_items(const __grid_constant__ GatherSums<double> job) {
  const Warps warps;
  for (int64_t i = warps.first; i < job.pixels.planes * job.pixels.count; i += warps.step) {
    const int64_t plane = i / job.pixels.count * job.x.bins;
    TapPlace<double> at;
    const bool placed = job.x.place<true>(load<double>(job.image, i), at);
    double to_x = 0, to_mass = 0;
    for (int item = lane_of_thread(); placed && item < job.x.items(); item += kWarp) {
      double value, slope;
      const int k = job.x.item(at, item, value, slope);
      if (k < 0) continue;
      const double g = load<double>(job.grad, plane + k);
      to_x += g * slope;
      to_mass += g * value;
    }
    to_x = sum_of_warp(to_x);
    to_mass = sum_of_warp(to_mass);
    if (lane_of_thread() == 0) job.finish(i, placed, at, to_x, to_mass);
  }
}

template <class T>
cudaError_t launch_gather(void (*kernel)(GatherSums<T>), int64_t threads, const SoftHistogramBackward& job,
                          Launch& on) {
  const Pixels& pixels = job.pixels;
  return launch_items(
      kernel, pixels.planes * pixels.count * threads, on,
      GatherSums<T>{ParzenAxis<T>(job.axis, pixels.is_double), pixels, job.x,
                    values(job.grad, pixels.is_double), job.grad_x, values(job.grad_mass, pixels.is_double)});
}

}  // namespace

cudaError_t soft_histogram_sums_backward(const SoftHistogramBackward& job, Launch& on) {
  switch (tap_method(job.pixels.is_double, job.axis)) {
    case TapMethod::thread_float: return launch_gather(gather_taps<float>, 1, job, on);
    case TapMethod::thread_double: return launch_gather(gather_taps<double>, 1, job, on);
    case TapMethod::warp: break;
  }
  return launch_gather(gather_items, kWarp, job, on);
}

}  // namespace histloss::cuda
