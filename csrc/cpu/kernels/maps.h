// Activation maps: vectors run over pixels, and bins out of a vector's reach cost one comparison.
#pragma once

#include "parzen.h"

namespace histloss::cpu {
namespace {

constexpr int64_t kMapBlock = 256;  // pixels a task widens and folds together

template <class T, class Parzen>
struct Bins {
  using V = typename Simd<T>::Vector;
  static constexpr int lanes = Simd<T>::lanes;

  Position<T> position;
  Parzen kernel;
  bool divided;   // by the sum of a pixel's activations
  int64_t reach;  // images on either side that can touch the range

  Bins(const Axis& axis, const Parzen& of)
      : position(axis, sizeof(T) == 8),
        kernel(of),
        divided(axis.kernel != Kernel::sigmoid),
        reach(axis.boundary == Boundary::open ? 0 : (position.radius + axis.bins - 1) / axis.bins) {}

  // The bins that some of a vector's pixels touch.
  struct Span {
    int64_t first, last;
  };

  // Pixels by their nearest edges between bins: its number, the distance from it, that of the nearest bin
  // from it, and what their activations and slopes are to be divided by.
  struct Place {
    V edge, distance, nearest, inverse, shift;
  };

  Span span(V z) const {
    const T beyond = static_cast<T>(position.bins + position.radius + 1);
    T low = beyond, high = -beyond;
    for (int i = 0; i < lanes; ++i) {
      const T u = position.coarse(z[i]);
      if (!(u > -beyond && u < beyond)) continue;
      low = u < low ? u : low;
      high = u > high ? u : high;
    }
    return {static_cast<int64_t>(low) - position.radius - 1, static_cast<int64_t>(high) + position.radius};
  }

  // A pixel without a place is put at the range's beginning, and none of its bins is in the span.
  Place place(V z) const {
    const V u = position.coarse(z), far = splat<V>(static_cast<T>(position.radius));
    const auto valid = (u > -far - 1) & (u < far + (static_cast<T>(position.bins) + 1));
    Place at;
    at.edge = ((valid ? u : V{}) + kRound<T>)-kRound<T>;
    at.distance = position.distance(valid ? z : splat<V>(position.lo), at.edge);
    at.nearest = at.distance > T(0) ? splat<V>(T(-0.5)) : splat<V>(T(0.5));
    at.inverse = valid ? splat<V>(T(1)) : V{};
    at.shift = V{};
    if (!divided) return at;
    V sum{}, slopes{};
    for (int64_t j = -position.radius; j < position.radius; ++j) {
      V value, slope;
      kernel.template evaluate<SimdMath<T>>(at.distance, splat<V>(static_cast<T>(j) + T(0.5)), at.nearest,
                                            value, slope);
      sum += value;
      slopes += slope;
    }
    at.inverse = at.inverse / sum;
    at.shift = slopes / sum;
    return at;
  }

  // visit(e) for every extended bin e in the span that stands for bin k.
  template <class Visit>
  HISTLOSS_INLINE void each_image(int64_t k, Span span, const Visit& visit) const {
    const bool reflect = position.boundary == Boundary::reflect;
    for (int64_t j = -reach; j <= reach; ++j) {
      const int64_t e = reflect && (j & 1) ? (j + 1) * position.bins - 1 - k : j * position.bins + k;
      if (e >= span.first && e <= span.last) visit(e);
    }
  }

  // Pi of extended bin e, or its slope in bins; 0 for pixels that have no place.
  template <bool SLOPE>
  HISTLOSS_INLINE V activation(const Place& at, int64_t e) const {
    V value, slope;
    kernel.template evaluate<SimdMath<T>>(at.distance, at.edge - (static_cast<T>(e) + T(0.5)), at.nearest,
                                          value, slope);
    value = value * at.inverse;
    return SLOPE ? slope * at.inverse - value * at.shift : value;
  }
};

// visit(plane, offset, count) over all pixels, in parallel.
template <class T, class Visit>
void each_block(const Pixels& pixels, const Visit& visit) {
  const int64_t blocks = (pixels.count + kMapBlock - 1) / kMapBlock;
  parallel_for(pixels.planes * blocks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t offset = task % blocks * kMapBlock, rest = pixels.count - offset;
      visit(task / blocks, offset, rest < kMapBlock ? rest : kMapBlock);
    }
  });
}

}  // namespace
}  // namespace histloss::cpu
