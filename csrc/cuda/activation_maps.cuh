// Activation maps, a thread a pixel: its activation of every bin is a sum over its images, itself and, near
// an end of the range, what the boundary makes of it there.
#pragma once

#include "parzen.cuh"

namespace histloss::cuda {
namespace {

// More taps are too many to be summed again for every run of bins.
constexpr int kBins = 32, kMostTapsAgain = 32;

// Whether the maps of this image and kernel are computed in float64: float32 sums of many taps are not exact.
inline bool in_double(const Axis& axis, const Pixels& pixels) {
  return pixels.is_double || (axis.kernel != Kernel::sigmoid &&
                              kernel_radius(axis.bandwidth, false, axis.kernel) > kMostTapsAgain);
}

}  // namespace
}  // namespace histloss::cuda
