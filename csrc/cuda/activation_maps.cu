#include "activation_maps.cuh"

namespace histloss::cuda {
namespace {

template <class T>
struct Maps {
  Position<T> axis;
  PointKernel<T> kernel;
  Pixels pixels;
  Image image;
  MutableImage maps;  // (planes, K, count)
};

// A thread for every pixel and every kBins bins, so that neighbouring threads write neighbouring pixels.
constexpr int kBins = 32;

template <class T>
__global__ void __launch_bounds__(kThreads, 1) compute_maps(const __grid_constant__ Maps<T> job) {
  const Position<T>& axis = job.axis;
  const int bins = static_cast<int>(axis.bins), radius = static_cast<int>(axis.radius);
  const int64_t count = job.pixels.count, runs = ceil_div(bins, kBins);
  for (int64_t i = first_item(); i < job.pixels.planes * runs * count; i += item_step()) {
    const int64_t pixel = i % count, plane = i / count / runs;
    const int first = static_cast<int>(i / count % runs) * kBins;
    const Place<T> place(axis, load<T>(job.image, plane * count + pixel));
    const int begin = place.nearest - radius, end = place.nearest + radius + 1;
    const bool one_image = axis.boundary == Boundary::open || (begin >= 0 && end <= bins);
    for (int k = first; k < min(first + kBins, bins); ++k) {
      T value = 0;
      const auto add = [&](int e) {
        T pi, slope;
        job.kernel.evaluate(place.distance(e), &pi, &slope);
        value += pi;
      };
      if (place.valid) {
        if (!one_image)
          each_unfolded(k, bins, axis.boundary, begin, end, add);
        else if (k >= begin && k < end)
          add(k);
      }
      store(job.maps, (plane * bins + k) * count + pixel, value);
    }
  }
}

template <class T>
cudaError_t launch_maps(const ActivationMaps& job, Launch& on) {
  const int64_t items = job.pixels.planes * job.pixels.count * ceil_div(job.axis.bins, int64_t{kBins});
  return launch_items(compute_maps<T>, items, on,
                      Maps<T>{Position<T>(job.axis, job.pixels.is_double), PointKernel<T>(job.axis.bandwidth),
                              job.pixels, job.x, values(job.maps, job.pixels.is_double)});
}

}  // namespace

cudaError_t activation_maps(const ActivationMaps& job, Launch& on) {
  return in_double(job.axis, job.pixels) ? launch_maps<double>(job, on) : launch_maps<float>(job, on);
}

}  // namespace histloss::cuda
