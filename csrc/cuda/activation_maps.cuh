// Activation maps, a thread a pixel: its activation of every bin is a sum over its images, itself and, near
// an end of the range, what the boundary makes of it there.
#pragma once

#include "device.cuh"

namespace histloss::cuda {
namespace {

// Narrower kernels multiply a float32 distance by too much.
constexpr double kNarrowestFloat = 0.2;

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
