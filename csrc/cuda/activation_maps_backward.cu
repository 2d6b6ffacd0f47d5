#include "activation_maps.cuh"

namespace histloss::cuda {
namespace {

template <class T>
struct MapsBackward {
  Position<T> axis;
  PointKernel<T> kernel;
  Pixels pixels;
  Image image;
  Image grad;  // (planes, K, count)
  MutableImage grad_x;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) gather_maps(const __grid_constant__ MapsBackward<T> job) {
  const Position<T>& axis = job.axis;
  const int bins = static_cast<int>(axis.bins), radius = static_cast<int>(axis.radius);
  const int64_t count = job.pixels.count;
  for (int64_t i = first_item(); i < job.pixels.planes * count; i += item_step()) {
    const int64_t plane = i / count, pixel = i % count;
    const Place<T> place(axis, load<T>(job.image, i));
    T sum = 0;
    for (int e = place.nearest - radius; place.valid && e <= place.nearest + radius; ++e) {
      const int k = fold_bin(e, bins, axis.boundary);
      if (k < 0) continue;
      T pi, slope;
      job.kernel.evaluate(place.distance(e), &pi, &slope);
      sum += slope * load<T>(job.grad, (plane * bins + k) * count + pixel);
    }
    store(job.grad_x, i, place.valid ? sum * axis.inverse_width * place.sign : T(0));
  }
}

template <class T>
cudaError_t launch_gather(const ActivationMapsBackward& job, Launch& on) {
  return launch_items(
      gather_maps<T>, job.pixels.planes * job.pixels.count, on,
      MapsBackward<T>{Position<T>(job.axis, job.pixels.is_double), PointKernel<T>(job.axis.bandwidth),
                      job.pixels, job.x, values(job.grad, job.pixels.is_double), job.grad_x});
}

}  // namespace

cudaError_t activation_maps_backward(const ActivationMapsBackward& job, Launch& on) {
  return in_double(job.axis, job.pixels) ? launch_gather<double>(job, on) : launch_gather<float>(job, on);
}

}  // namespace histloss::cuda
