#include "parzen.cuh"

namespace histloss::cuda {
namespace {

template <class T>
struct GatherSums {
  ParzenAxis<T> x, y;
  Pixels pixels;
  Image image_x, image_y;
  Image grad;  // (planes, Kx, Ky)
  MutableImage grad_x, grad_y, grad_mass;

  // A float32 kernel's is float32.
  __device__ __forceinline__ T grad_at(int64_t i) const {
    if constexpr (sizeof(T) == 4)
      return static_cast<const T*>(grad.data)[i];
    else
      return load<T>(grad, i);
  }

  // to_x and to_y are with respect to distances in bins.
  __device__ __forceinline__ void finish(int64_t i, bool placed, const TapPlace<T>& at_x,
                                         const TapPlace<T>& at_y, T to_x, T to_y, T to_mass) const {
    const T weight = pixels.mass == nullptr ? T(1) : load<T>(values(pixels.mass, pixels.is_double), i);
    const auto scaled = [&](T gradient, const ParzenAxis<T>& axis, const TapPlace<T>& at) {
      return placed ? gradient * static_cast<T>(axis.position.inverse_width) * weight * at.sign : T(0);
    };
    store_wanted(grad_x, i, scaled(to_x, x, at_x));
    store_wanted(grad_y, i, scaled(to_y, y, at_y));
    store_wanted(grad_mass, i, placed ? to_mass : T(0));
  }
};

// ---- few taps: a thread a pixel, which has y's in shared memory and evaluates x's as it goes

template <class T>
__global__ void __launch_bounds__(kThreads, 1) gather_taps(const __grid_constant__ GatherSums<T> job) {
  HISTLOSS_SHARED(shared);
  const int taps_y = job.y.taps;
  T* const values_y = tap_rows<T>(shared, 2 * taps_y) + lane_of_thread();
  T* const slopes_y = values_y + taps_y * kTapRow;
  for (int64_t i = first_item(); i < job.pixels.planes * job.pixels.count; i += item_step()) {
    const int64_t plane = i / job.pixels.count * job.x.bins;
    TapPlace<T> at_x, at_y;
    const bool placed =
        job.x.place(load<double>(job.image_x, i), at_x) && job.y.place(load<double>(job.image_y, i), at_y);
    T to_x = 0, to_y = 0, to_mass = 0;
    if (placed) {
      for (int tap = 0; tap < taps_y; ++tap)
        job.y.evaluate(at_y, tap, values_y[tap * kTapRow], slopes_y[tap * kTapRow]);
      for (int row = 0; row < job.x.taps; ++row) {
        const int k = job.x.bin(at_x.first + row);
        if (k < 0) continue;
        T by_values = 0, by_slopes = 0;
        for (int column = 0; column < taps_y; ++column) {
          const int l = job.y.bin(at_y.first + column);
          if (l < 0) continue;
          const T g = job.grad_at((plane + k) * job.y.bins + l);
          by_values += g * values_y[column * kTapRow];
          by_slopes += g * slopes_y[column * kTapRow];
        }
        T value, slope;
        job.x.evaluate(at_x, row, value, slope);
        to_x += slope * by_values;
        to_y += value * by_slopes;
        to_mass += value * by_values;
      }
    }
    job.finish(i, placed, at_x, at_y, to_x, to_y, to_mass);
  }
}

// ---- many: a warp a pixel

__global__ void __launch_bounds__(kThreads, 1) gather_items(const __grid_constant__ GatherSums<double> job) {
  const int lane = lane_of_thread();
  const Warps warps;
  for (int64_t i = warps.first; i < job.pixels.planes * job.pixels.count; i += warps.step) {
    const int64_t plane = i / job.pixels.count * job.x.bins;
    TapPlace<double> at_x, at_y;
    const bool placed = job.x.place<true>(load<double>(job.image_x, i), at_x) &&
                        job.y.place<true>(load<double>(job.image_y, i), at_y);
    double to_x = 0, to_y = 0, to_mass = 0;
    for (int column = 0; placed && column < job.y.items(); column += kWarp) {
      double value_y = 0, slope_y = 0, by_values = 0, by_slopes = 0;
      const int l = column + lane < job.y.items() ? job.y.item(at_y, column + lane, value_y, slope_y) : -1;
      for (int row = 0; row < job.x.items(); row += kWarp) {
        double value = 0, slope = 0;
        const int own_k = row + lane < job.x.items() ? job.x.item(at_x, row + lane, value, slope) : -1;
        for (int r = 0; r < min(kWarp, job.x.items() - row); ++r) {
          const double value_x = __shfl_sync(kAllLanes, value, r), slope_x = __shfl_sync(kAllLanes, slope, r);
          const int k = __shfl_sync(kAllLanes, own_k, r);
          if (k < 0 || l < 0) continue;
          const double g = job.grad_at((plane + k) * job.y.bins + l);
          by_values += g * value_x;
          by_slopes += g * slope_x;
        }
      }
      to_x += by_slopes * value_y;
      to_y += by_values * slope_y;
      to_mass += by_values * value_y;
    }
    to_x = sum_of_warp(to_x);
    to_y = sum_of_warp(to_y);
    to_mass = sum_of_warp(to_mass);
    if (lane == 0) job.finish(i, placed, at_x, at_y, to_x, to_y, to_mass);
  }
}

template <class T>
GatherSums<T> gather_of(const JointHistogramBackward& job) {
  const bool is_double = job.pixels.is_double;
  return {ParzenAxis<T>(job.axis_x, is_double),
          ParzenAxis<T>(job.axis_y, is_double),
          job.pixels,
          job.x,
          job.y,
          values(job.grad, is_double),
          job.grad_x,
          job.grad_y,
          values(job.grad_mass, is_double)};
}

template <class T>
cudaError_t launch_gather_taps(const JointHistogramBackward& job, Launch& on) {
  const GatherSums<T> gathering = gather_of<T>(job);
  return launch_items(gather_taps<T>, job.pixels.planes * job.pixels.count, on, gathering,
                      tap_bytes<T>(2 * gathering.y.taps));
}

}  // namespace

cudaError_t joint_histogram_sums_backward(const JointHistogramBackward& job, Launch& on) {
  const Pixels& pixels = job.pixels;
  switch (tap_method(pixels.is_double, job.axis_x, job.axis_y)) {
    case TapMethod::thread_float: return launch_gather_taps<float>(job, on);
    case TapMethod::thread_double: return launch_gather_taps<double>(job, on);
    case TapMethod::warp: break;
  }
  return launch_items(gather_items, pixels.planes * pixels.count * kWarp, on, gather_of<double>(job));
}

}  // namespace histloss::cuda
