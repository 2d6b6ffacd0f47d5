#include "activation_maps.cuh"

namespace histloss::cuda {
namespace {

template <class T>
struct Maps {
  ParzenAxis<T> axis;
  Pixels pixels;
  Image image;
  int run;            // bins of a thread
  MutableImage maps;  // (planes, K, count)
};

// A thread for every pixel and run of bins, so that neighbouring threads write neighbouring pixels.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) compute_maps(const __grid_constant__ Maps<T> job) {
  const ParzenAxis<T>& axis = job.axis;
  const Boundary boundary = axis.position.boundary;
  const int bins = axis.bins;
  const int64_t count = job.pixels.count, runs = ceil_div(bins, job.run);
  for (int64_t i = first_item(); i < job.pixels.planes * runs * count; i += item_step()) {
    const int64_t pixel = i % count, plane = i / count / runs;
    const int first = static_cast<int>(i / count % runs) * job.run;
    TapPlace<T> at;
    const bool placed = axis.place(load<double>(job.image, plane * count + pixel), at);
    const int begin = placed ? at.first + at.begin : 0, end = placed ? at.first + at.end : 0;
    const bool one_image = boundary == Boundary::open || (begin >= 0 && end <= bins);
    for (int k = first; k < min(first + job.run, bins); ++k) {
      T value = 0;
      const auto add = [&](int e) {
        T of_tap, slope;
        axis.evaluate(at, e - at.first, of_tap, slope);
        value += of_tap;
      };
      if (!one_image)
        each_unfolded(k, bins, boundary, begin, end, add);
      else if (k >= begin && k < end)
        add(k);
      store(job.maps, (plane * bins + k) * count + pixel, value);
    }
  }
}

template <class T>
cudaError_t launch_maps(const ActivationMaps& job, Launch& on) {
  const ParzenAxis<T> axis(job.axis, job.pixels.is_double);
  const int run = axis.scale == 0 && axis.taps > kMostTapsAgain ? axis.bins : kBins;
  const int64_t items = job.pixels.planes * job.pixels.count * ceil_div(axis.bins, run);
  return launch_items(compute_maps<T>, items, on,
                      Maps<T>{axis, job.pixels, job.x, run, values(job.maps, job.pixels.is_double)});
}

}  // namespace

cudaError_t activation_maps(const ActivationMaps& job, Launch& on) {
  return in_double(job.axis, job.pixels) ? launch_maps<double>(job, on) : launch_maps<float>(job, on);
}

}  // namespace histloss::cuda
