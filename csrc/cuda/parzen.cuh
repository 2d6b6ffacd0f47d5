// A pixel's activations for any Parzen kernel, each tap evaluated for itself: see csrc/bin_kernel.h. Where a
// pixel lies is found in float64, whatever T its activations are computed in.
#pragma once

#include "device.cuh"

namespace histloss::cuda {
namespace {

struct ScalarMath {
  template <class T>
  static HISTLOSS_HOST_DEVICE T exp(T x) {
    constexpr T most = sizeof(T) == 4 ? 42 : 80;  // beyond, an activation is nothing: 1 / p, with p finite
    return std::exp(std::fmin(x, most));
  }
  template <class T>
  static HISTLOSS_HOST_DEVICE T maximum(T a, T b) {
    return std::fmax(a, b);
  }
  template <class T>
  static HISTLOSS_HOST_DEVICE T step(T x) {
    return x > 0 ? T(1) : T(0);
  }
  template <class T>
  static HISTLOSS_HOST_DEVICE T sign(T x) {
    return step(x) - step(-x);
  }
};

// A pixel among its taps, the bins about the edge between two bins that is nearest to it: of the range's
// edges, if taps outside of it do not count.
template <class T>
struct TapPlace {
  T distance;      // from that edge, in bins
  T nearest;       // of the taps that count, see bin_kernel.h
  T scale, shift;  // by which values and slopes are normalised
  T sign;          // the derivative of where the boundary brought the pixel
  int first;       // tap 0 as a bin number of the extended range
  int begin, end;  // the taps that count
};

template <class T>
struct ParzenAxis {
  Position<double> position;
  SigmoidKernel<T> sigmoid;
  GaussianKernel<T> gaussian;
  BSpline3Kernel<T> bspline3;
  TriangularKernel<T> triangular;
  Kernel kernel;
  Normalization normalization;
  T scale;  // where it is the same for every pixel, else 0
  int bins, radius, taps, margin, groups;

  ParzenAxis(const Axis& axis, bool is_double)
      : position(axis, is_double),
        sigmoid(axis.bandwidth),
        gaussian(axis.bandwidth),
        bspline3(axis.bandwidth),
        triangular(axis.bandwidth),
        kernel(axis.kernel),
        normalization(kernel == Kernel::sigmoid ? Normalization::all : axis.normalization),
        scale(static_cast<T>(common_scale(axis))),
        bins(static_cast<int>(axis.bins)),
        radius(static_cast<int>(position.radius)),
        taps(2 * radius),
        margin(static_cast<int>(position.margin)),
        groups(bins + 2 * margin + 1) {}

  // False if the pixel has no activations. Its taps are summed by the thread, or by the lanes of a warp,
  // which then all place the same pixel.
  template <bool BY_WARP = false>
  __device__ __forceinline__ bool place(double z, TapPlace<T>& at) const {
    if (!locate(z, at)) return false;
    at.scale = scale != 0 ? scale : T(1);
    at.shift = 0;
    if (scale != 0) return true;
    T sum = 0, slopes = 0;
    const int first = BY_WARP ? lane_of_thread() : 0;
#pragma unroll 1
    for (int tap = at.begin + first; tap < at.end; tap += BY_WARP ? kWarp : 1) {
      T value, slope;
      evaluate(at, tap, value, slope);
      sum += value;
      slopes += slope;
    }
    if constexpr (BY_WARP) sum = sum_of_warp(sum), slopes = sum_of_warp(slopes);
    if (!(sum > 0)) return false;
    at.scale = 1 / sum;
    at.shift = slopes * at.scale;
    return true;
  }

  // Of a tap: Pi, and its slope with respect to the distance in bins.
  __device__ __forceinline__ void evaluate(const TapPlace<T>& at, int tap, T& value, T& slope) const {
    const T m = half_steps(tap);
    switch (kernel) {
      case Kernel::sigmoid:
        sigmoid.template evaluate<ScalarMath>(at.distance, m, at.nearest, value, slope);
        break;
      case Kernel::gaussian:
        gaussian.template evaluate<ScalarMath>(at.distance, m, at.nearest, value, slope);
        break;
      case Kernel::bspline3:
        bspline3.template evaluate<ScalarMath>(at.distance, m, at.nearest, value, slope);
        break;
      case Kernel::triangular:
        triangular.template evaluate<ScalarMath>(at.distance, m, at.nearest, value, slope);
        break;
    }
    const bool counts = tap >= at.begin && tap < at.end;
    value = counts ? value * at.scale : T(0);
    slope = counts ? slope * at.scale - value * at.shift : T(0);
  }

  // The bin that tap number e of the extended range stands for, -1 for none.
  __device__ __forceinline__ int bin(int e) const { return fold_bin(e, bins, position.boundary); }

  // Of a pixel as wide as a warp, what is worth a lane: its taps, or the bins where those are fewer.
  __device__ __forceinline__ int items() const { return min(taps, bins); }

  // The bin of an item, or -1, and its activation and slope.
  __device__ __forceinline__ int item(const TapPlace<T>& at, int i, T& value, T& slope) const {
    value = slope = 0;
    const auto add = [&](int e) {
      T of_tap, its_slope;
      evaluate(at, e - at.first, of_tap, its_slope);
      value += of_tap;
      slope += its_slope;
    };
    if (taps <= bins) {
      add(at.first + i);
      return bin(at.first + i);
    }
    each_unfolded(i, bins, position.boundary, at.first + at.begin, at.first + at.end, add);
    return i;
  }

 private:
  static constexpr double kFar = 1e15;  // bins: no kernel reaches as far, and multiples of it are finite

  // The m of a tap, see bin_kernel.h.
  __device__ T half_steps(int tap) const { return static_cast<T>(radius - tap) - T(0.5); }

  __device__ __forceinline__ bool locate(double z, TapPlace<T>& at) const {
    double sign;
    if (!settle(position, z, sign)) return false;
    double edge = floor(position.coarse(z) + 0.5);
    if (normalization == Normalization::inside) edge = fmin(fmax(edge, 0.0), static_cast<double>(bins));
    const double group = edge + margin;
    if (!(group >= 0 && group < groups)) return false;
    at.distance = static_cast<T>(fmin(fmax(position.distance(z, edge), -kFar), kFar));
    at.sign = static_cast<T>(sign);
    at.first = static_cast<int>(edge) - radius;
    at.begin = 0;
    at.end = taps;
    if (normalization == Normalization::inside) {
      at.begin = max(0, -at.first);
      at.end = min(taps, bins - at.first);
    }
    const int near = at.distance > 0 ? radius : radius - 1;
    at.nearest = normalization == Normalization::none ? -at.distance
                                                      : half_steps(min(max(near, at.begin), at.end - 1));
    return true;
  }

  // Compact kernels of a whole bandwidth sum to it, wherever the pixel is.
  static double common_scale(const Axis& axis) {
    if (axis.kernel == Kernel::sigmoid || axis.normalization == Normalization::none) return 1;
    const bool known = axis.kernel != Kernel::gaussian && axis.bandwidth == std::floor(axis.bandwidth) &&
                       axis.normalization == Normalization::all;
    return known ? 1 / axis.bandwidth : 0;
  }
};

// Who evaluates a pixel's taps: a thread where they are few, else a warp in float64. It is for the axes to
// decide alone, as a pixel's activations must not depend on what other pixels there are.
enum class TapMethod { thread_float, thread_double, warp };

constexpr int64_t kMostFloatTaps = 16, kMostDoubleTaps = 10;

// The kernel itself, not relative to the nearest bin, and narrower than this multiplies a float32 distance by
// too much.
constexpr double kNarrowestFloat = 0.2;

template <class... Axes>
TapMethod tap_method(bool is_double, const Axes&... axes) {
  const auto few = [&](const Axis& axis, int64_t most) {
    return 2 * kernel_radius(axis.bandwidth, is_double, axis.kernel) <= most;
  };
  const auto too_narrow = [](const Axis& axis) {
    return axis.normalization == Normalization::none && axis.bandwidth < kNarrowestFloat;
  };
  if (is_double || (too_narrow(axes) || ...))
    return (few(axes, kMostDoubleTaps) && ...) ? TapMethod::thread_double : TapMethod::warp;
  return (few(axes, kMostFloatTaps) && ...) ? TapMethod::thread_float : TapMethod::warp;
}

// Where the threads of a warp keep their pixels' taps: a column for each, in rows that lie apart by an odd
// number of banks, so that lanes read another's column without meeting.
constexpr int kTapRow = kWarp + 1;

template <class T>
HISTLOSS_HOST_DEVICE std::size_t tap_bytes(int rows) {  // of a block
  return static_cast<std::size_t>(kWarps * kTapRow * rows) * sizeof(T);
}

// The first row of the thread's warp.
template <class T>
__device__ __forceinline__ T* tap_rows(unsigned char* shared, int rows) {
  return reinterpret_cast<T*>(shared) + warp_of_thread() * kTapRow * rows;
}

}  // namespace
}  // namespace histloss::cuda
