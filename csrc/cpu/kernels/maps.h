// Activation maps: vectors run over pixels, and bins out of a vector's reach cost one comparison.
#pragma once

#include "position.h"

namespace histloss::cpu {
namespace {

constexpr int64_t kMapBlock = 256;  // pixels a task widens and folds together

template <class T>
struct Bins {
  using V = typename Simd<T>::Vector;
  static constexpr int lanes = Simd<T>::lanes;

  Position<T> position;
  KernelConstants kernel;
  int64_t reach;  // images on either side that can touch the range

  explicit Bins(const Axis& axis)
      : position(axis, sizeof(T) == 8),
        kernel(kernel_constants(axis.bandwidth)),
        reach(axis.boundary == Boundary::open ? 0 : (position.radius + axis.bins - 1) / axis.bins) {}

  // The bins that some of a vector's pixels touch.
  struct Span {
    int64_t first, last;
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
  HISTLOSS_INLINE V activation(V z, int64_t e) const {
    const V limit = splat<V>(T(80));  // e^80 is as good as infinite, and still finite
    const V t = position.distance(z, splat<V>(static_cast<T>(e) + T(0.5)));
    const T a = static_cast<T>(kernel.a), log_2sinh = static_cast<T>(kernel.log_2sinh);
    const V p = exponential<T>(minimum(maximum(t * a - log_2sinh, -limit), limit));
    const V n = exponential<T>(minimum(maximum(t * -a - log_2sinh, -limit), limit));
    const V pi = 1 / (static_cast<T>(kernel.coth) + p + n);
    const V value = SLOPE ? activation_slope(pi, p, n, splat<V>(a)) : pi;
    const V u = position.coarse(z), far = splat<V>(static_cast<T>(position.radius));
    const auto valid = (u > -far - 1) & (u < far + (static_cast<T>(position.bins) + 1));
    return valid ? value : V{};
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
