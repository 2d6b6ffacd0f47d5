#include "exact_sums.cuh"
#include "parzen.cuh"

namespace histloss::cuda {
namespace {

// ---- few taps: a thread a pixel

template <class T>
struct AddTaps {
  ParzenAxis<T> x;
  Pixels pixels;
  Image image;
  ExactLayout layout;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) add_taps(const __grid_constant__ AddTaps<T> job) {
  HISTLOSS_SHARED(shared);
  const int lane = lane_of_thread(), taps = job.x.taps;
  T* const own = tap_rows<T>(shared, taps) + lane;
  unsigned char* const table = shared + tap_bytes<T>(taps);
  for (int64_t slot = blockIdx.x; slot < job.layout.parts.slots(); slot += gridDim.x) {
    const PixelPart part(job.layout.parts, slot);
    const ExactSums sums(job.layout.work, part.plane, table);
    sums.clear();
    __syncthreads();
    for (int64_t i = part.begin + threadIdx.x; i < part.end; i += kThreads) {
      const double weight = weight_of(job.pixels, i);
      TapPlace<T> at;
      if (weight == 0 || !job.x.place(load<double>(job.image, i), at)) continue;
      for (int tap = 0; tap < taps; ++tap) {
        T slope;
        job.x.evaluate(at, tap, own[tap * kTapRow], slope);
      }
      // Each lane begins with another tap, so that not all meet at one sum where pixels are equal.
      for (int n = 0, tap = lane % taps; n < taps; ++n, tap = tap + 1 < taps ? tap + 1 : 0) {
        const int k = job.x.bin(at.first + tap);
        if (k >= 0) sums.add(k, weight * static_cast<double>(own[tap * kTapRow]));
      }
    }
    __syncthreads();
    sums.empty();
    __syncthreads();
  }
}

template <class T>
cudaError_t launch_add_taps(const SoftHistogramSums& job, const ExactWork& work, Launch& on) {
  const ParzenAxis<T> x(job.axis, job.pixels.is_double);
  const AddTaps<T> adding{x, job.pixels, job.x,
                          ExactLayout(job.pixels, work, x.taps, tap_bytes<T>(x.taps), on)};
  return launch_blocks(add_taps<T>, adding.layout.parts.blocks(), adding.layout.shared_bytes, on, adding);
}

// ---- many: a warp a pixel

struct AddItems {
  ParzenAxis<double> x;
  Pixels pixels;
  Image image;
  ExactWork work;
};

__global__ void __launch_bounds__(kThreads, 1) add_items(const __grid_constant__ AddItems job) {
  const Warps warps;
  for (int64_t i = warps.first; i < job.pixels.planes * job.pixels.count; i += warps.step) {
    const double weight = weight_of(job.pixels, i);
    TapPlace<double> at;
    if (weight == 0 || !job.x.place<true>(load<double>(job.image, i), at)) continue;
    const ExactSums sums(job.work, i / job.pixels.count, nullptr);
    for (int item = lane_of_thread(); item < job.x.items(); item += kWarp) {
      double value, slope;
      const int k = job.x.item(at, item, value, slope);
      if (k >= 0) sums.add(k, weight * value);
    }
  }
}

}  // namespace

cudaError_t soft_histogram_sums(const SoftHistogramSums& job, Launch& on) {
  const Pixels& pixels = job.pixels;
  if (pixels.planes == 0) return cudaSuccess;
  const ExactWork work(job, job.axis.bins);
  HISTLOSS_TRY(prepare_sums(pixels, work, job.totals, on));
  switch (tap_method(pixels.is_double, job.axis)) {
    case TapMethod::thread_float: return launch_add_taps<float>(job, work, on);
    case TapMethod::thread_double: return launch_add_taps<double>(job, work, on);
    case TapMethod::warp: break;
  }
  return launch_items(add_items, pixels.planes * pixels.count * kWarp, on,
                      AddItems{ParzenAxis<double>(job.axis, pixels.is_double), pixels, job.x, work});
}

}  // namespace histloss::cuda
