#include "exact_sums.cuh"
#include "parzen.cuh"

namespace histloss::cuda {
namespace {

// ---- few taps: lanes evaluate those of a pixel each, then add the products of one pixel after the other

template <class T>
struct AddTaps {
  ParzenAxis<T> x, y;
  Pixels pixels;
  Image image_x, image_y;
  ExactLayout layout;
  int row_bits;  // lanes of a row of products: a power of two
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) add_taps(const __grid_constant__ AddTaps<T> job) {
  HISTLOSS_SHARED(shared);
  const int lane = lane_of_thread(), taps_x = job.x.taps, taps_y = job.y.taps;
  T* const of_x = tap_rows<T>(shared, taps_x + taps_y);
  T* const of_y = of_x + taps_x * kTapRow;
  unsigned char* const table = shared + tap_bytes<T>(taps_x + taps_y);
  const int column = lane & ((1 << job.row_bits) - 1), first_row = lane >> job.row_bits,
            row_step = kWarp >> job.row_bits;
  for (int64_t slot = blockIdx.x; slot < job.layout.parts.slots(); slot += gridDim.x) {
    const PixelPart part(job.layout.parts, slot);
    const ExactSums sums(job.layout.work, part.plane, table);
    sums.clear();
    __syncthreads();
    for (int64_t i = part.begin + warp_of_thread() * kWarp; i < part.end; i += kThreads) {
      double weight = 0;
      TapPlace<T> at_x, at_y;
      at_x.first = at_y.first = 0;
      if (i + lane < part.end) {
        weight = weight_of(job.pixels, i + lane);
        const bool placed = weight != 0 && job.x.place(load<double>(job.image_x, i + lane), at_x) &&
                            job.y.place(load<double>(job.image_y, i + lane), at_y);
        if (!placed) weight = 0;
      }
      if (weight != 0) {
        T slope;
        for (int tap = 0; tap < taps_x; ++tap) job.x.evaluate(at_x, tap, of_x[tap * kTapRow + lane], slope);
        for (int tap = 0; tap < taps_y; ++tap) job.y.evaluate(at_y, tap, of_y[tap * kTapRow + lane], slope);
      }
      __syncwarp();
      for (unsigned rest = __ballot_sync(kAllLanes, weight != 0); rest != 0; rest &= rest - 1) {
        const int pixel = __ffs(static_cast<int>(rest)) - 1;
        const int x = __shfl_sync(kAllLanes, at_x.first, pixel),
                  y = __shfl_sync(kAllLanes, at_y.first, pixel);
        const double its_weight = __shfl_sync(kAllLanes, weight, pixel);
        const int l = column < taps_y ? job.y.bin(y + column) : -1;
        if (l < 0) continue;
        const double pi_y = its_weight * static_cast<double>(of_y[column * kTapRow + pixel]);
        for (int row = first_row; row < taps_x; row += row_step) {
          const int k = job.x.bin(x + row);
          if (k >= 0)
            sums.add(int64_t{k} * job.y.bins + l, pi_y * static_cast<double>(of_x[row * kTapRow + pixel]));
        }
      }
      __syncwarp();
    }
    __syncthreads();
    sums.empty();
    __syncthreads();
  }
}

template <class T>
cudaError_t launch_add_taps(const JointHistogramSums& job, const ExactWork& work, Launch& on) {
  const ParzenAxis<T> x(job.axis_x, job.pixels.is_double), y(job.axis_y, job.pixels.is_double);
  int row_bits = 0;
  while (1 << row_bits < y.taps) ++row_bits;
  const AddTaps<T> adding{
      x,       y,     job.pixels,
      job.x,   job.y, ExactLayout(job.pixels, work, x.taps * y.taps, tap_bytes<T>(x.taps + y.taps), on),
      row_bits};
  return launch_blocks(add_taps<T>, adding.layout.parts.blocks(), adding.layout.shared_bytes, on, adding);
}

// ---- many: a warp a pixel

struct AddItems {
  ParzenAxis<double> x, y;
  Pixels pixels;
  Image image_x, image_y;
  ExactWork work;
};

__global__ void __launch_bounds__(kThreads, 1) add_items(const __grid_constant__ AddItems job) {
  const int lane = lane_of_thread();
  const Warps warps;
  for (int64_t i = warps.first; i < job.pixels.planes * job.pixels.count; i += warps.step) {
    const double weight = weight_of(job.pixels, i);
    TapPlace<double> at_x, at_y;
    if (weight == 0 || !job.x.place<true>(load<double>(job.image_x, i), at_x) ||
        !job.y.place<true>(load<double>(job.image_y, i), at_y))
      continue;
    const ExactSums sums(job.work, i / job.pixels.count, nullptr);
    for (int column = 0; column < job.y.items(); column += kWarp) {
      double pi_y = 0, slope;
      const int l = column + lane < job.y.items() ? job.y.item(at_y, column + lane, pi_y, slope) : -1;
      for (int row = 0; row < job.x.items(); row += kWarp) {
        double own = 0;
        const int own_k = row + lane < job.x.items() ? job.x.item(at_x, row + lane, own, slope) : -1;
        for (int r = 0; r < min(kWarp, job.x.items() - row); ++r) {
          const double pi_x = __shfl_sync(kAllLanes, own, r);
          const int k = __shfl_sync(kAllLanes, own_k, r);
          if (k >= 0 && l >= 0) sums.add(int64_t{k} * job.y.bins + l, weight * pi_y * pi_x);
        }
      }
    }
  }
}

}  // namespace

cudaError_t joint_histogram_sums(const JointHistogramSums& job, Launch& on) {
  const Pixels& pixels = job.pixels;
  if (pixels.planes == 0) return cudaSuccess;
  const ExactWork work(job, job.axis_x.bins * job.axis_y.bins);
  HISTLOSS_TRY(prepare_sums(pixels, work, job.totals, on));
  switch (tap_method(pixels.is_double, job.axis_x, job.axis_y)) {
    case TapMethod::thread_float: return launch_add_taps<float>(job, work, on);
    case TapMethod::thread_double: return launch_add_taps<double>(job, work, on);
    case TapMethod::warp: break;
  }
  return launch_items(add_items, pixels.planes * pixels.count * kWarp, on,
                      AddItems{ParzenAxis<double>(job.axis_x, pixels.is_double),
                               ParzenAxis<double>(job.axis_y, pixels.is_double), pixels, job.x, job.y, work});
}

}  // namespace histloss::cuda
