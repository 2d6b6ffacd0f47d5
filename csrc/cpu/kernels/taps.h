// The direct method: every pixel evaluates its own bins, in float64. It serves float64 images, few pixels,
// and kernels too narrow or too wide for the cells' tables.
#pragma once

#include "position.h"

namespace histloss::cpu {
namespace {

struct Taps {
  Position<double> position;
  KernelConstants kernel;
  int64_t taps;    // 2 radius
  int64_t stride;  // taps rounded up to whole vectors
  int64_t groups;  // places where a pixel's taps may begin
  int64_t length;  // of the extended range

  Taps(const Axis& axis, bool is_double)
      : position(axis, is_double), kernel(kernel_constants(axis.bandwidth)) {
    taps = 2 * position.radius;
    stride = (taps + 7) / 8 * 8;
    groups = axis.bins + 2 * position.margin + 1;
    length = groups - 1 + taps;
  }

  // An extended row, with room for the lanes beyond the last tap.
  int64_t row() const { return length + stride; }

  // The index in the extended range of the first tap of z, or -1 if z has none.
  int64_t locate(double z) const {
    const double group = std::floor(position.coarse(z) + 0.5) + static_cast<double>(position.margin);
    return group >= 0 && group < static_cast<double>(groups) ? static_cast<int64_t>(group) : -1;
  }

  // Pi of the taps from index `first` on, and its derivative with respect to z where SLOPE.
  template <bool SLOPE>
  HISTLOSS_INLINE void evaluate(double z, int64_t first, double* value, double* slope) const {
    const double nearest = static_cast<double>(first - position.padding()) + 0.5;
    const double t0 = position.distance(z, nearest);
    const F64 lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const F64 low = splat<F64>(-80.0),
              high = splat<F64>(80.0);  // e^80 is as good as infinite, and e^160 still finite
    for (int64_t i = 0; i < stride; i += 8) {
      const F64 t = t0 - static_cast<double>(i) - lane;
      const F64 up = minimum(maximum(t * kernel.a - kernel.log_2sinh, low), high);
      const F64 down = minimum(maximum(t * -kernel.a - kernel.log_2sinh, low), high);
      const F64 p = exponential<double>(up), n = exponential<double>(down);
      const F64 pi = 1 / (kernel.coth + p + n);
      store(value + i, pi);
      if constexpr (SLOPE)
        store(slope + i, activation_slope(pi, p, n, splat<F64>(kernel.a)) * position.inverse_width);
    }
  }
};

}  // namespace
}  // namespace histloss::cpu
