// Activation maps, a thread a pixel: its activation of every bin is a sum over its images, itself and, near
// an end of the range, what the boundary makes of it there.
#pragma once

#include "device.cuh"

namespace histloss::cuda {
namespace {

// Narrower kernels multiply a float32 distance by too much.
constexpr double kNarrowestFloat = 0.2;

template <class T>
struct MapAxis {
  Position<T> position;
  T a, coth, log_2sinh;

  MapAxis(const Axis& axis, bool is_double) : position(axis, is_double) {
    const KernelConstants kernel = kernel_constants(axis.bandwidth);
    a = static_cast<T>(kernel.a);
    coth = static_cast<T>(kernel.coth);
    log_2sinh = static_cast<T>(kernel.log_2sinh);
  }

  // Pi at distance t, in bins, and its slope but for the factor a.
  __device__ void evaluate(T t, T* pi, T* slope) const {
    // At these limits Pi is as good as 0, and its reciprocal still finite.
    constexpr T limit = sizeof(T) == 4 ? 42 : 80;
    const T p = exp(fmin(fmax(t * a - log_2sinh, -limit), limit));
    const T n = exp(fmin(fmax(t * -a - log_2sinh, -limit), limit));
    *pi = 1 / (coth + p + n);
    *slope = *pi * *pi * (n - p);
  }
};

// A pixel's place among the bins of the extended range.
template <class T>
struct Place {
  T to_nearest, sign;  // distance from bin `nearest`, in bins
  int nearest;
  bool valid;

  __device__ Place(const Position<T>& axis, T z) {
    valid = settle(axis, z, sign);
    const T bin = floor(axis.coarse(z));
    const T far = static_cast<T>(axis.bins + axis.radius);
    valid = valid && bin >= -far && bin <= far;
    nearest = valid ? static_cast<int>(bin) : 0;
    to_nearest = valid ? axis.distance(z, bin + T(0.5)) : T(0);
  }

  __device__ T distance(int e) const { return to_nearest - static_cast<T>(e - nearest); }
};

// Whether the maps of this image and kernel are computed in float64.
inline bool in_double(const Axis& axis, const Pixels& pixels) {
  return pixels.is_double || axis.bandwidth < kNarrowestFloat;
}

}  // namespace
}  // namespace histloss::cuda
