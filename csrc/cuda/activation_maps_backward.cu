#include "activation_maps.cuh"

namespace histloss::cuda {
namespace {

template <class T>
struct MapsBackward {
  ParzenAxis<T> axis;
  Pixels pixels;
  Image image;
  Image grad;  // (planes, K, count)
  MutableImage grad_x;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) gather_maps(const __grid_constant__ MapsBackward<T> job) {
  const ParzenAxis<T>& axis = job.axis;
  const int64_t count = job.pixels.count;
  for (int64_t i = first_item(); i < job.pixels.planes * count; i += item_step()) {
    const int64_t plane = i / count, pixel = i % count;
    TapPlace<T> at;
    const bool placed = axis.place(load<double>(job.image, i), at);
    T sum = 0;
    for (int tap = 0; placed && tap < axis.taps; ++tap) {
      const int k = axis.bin(at.first + tap);
      if (k < 0) continue;
      T value, slope;
      axis.evaluate(at, tap, value, slope);
      sum += slope * load<T>(job.grad, (plane * axis.bins + k) * count + pixel);
    }
    store(job.grad_x, i, placed ? sum * static_cast<T>(axis.position.inverse_width) * at.sign : T(0));
  }
}

template <class T>
cudaError_t launch_gather(const ActivationMapsBackward& job, Launch& on) {
  return launch_items(gather_maps<T>, job.pixels.planes * job.pixels.count, on,
                      MapsBackward<T>{ParzenAxis<T>(job.axis, job.pixels.is_double), job.pixels, job.x,
                                      values(job.grad, job.pixels.is_double), job.grad_x});
}

}  // namespace

cudaError_t activation_maps_backward(const ActivationMapsBackward& job, Launch& on) {
  return in_double(job.axis, job.pixels) ? launch_gather<double>(job, on) : launch_gather<float>(job, on);
}

}  // namespace histloss::cuda
