// Pixels in their places, and the folding of the extended range's ends, see csrc/position.h.
#pragma once

#include "../../position.h"
#include "../runtime.h"
#include "simd.h"

namespace histloss::cpu {
namespace {

// Pixels brought into the range where the boundary asks for it, and NaN where they have no place; z itself if
// nothing changes. sign, if given, receives the derivative, and mirrored whether any of it is not 1.
template <class T>
const T* fold_pixels(const Position<T>& axis, const T* z, int64_t count, T* buffer, T* sign, bool* mirrored) {
  if (mirrored != nullptr) *mirrored = false;
  if (axis.boundary == Boundary::open) return z;
  using V = typename Simd<T>::Vector;
  constexpr int lanes = Simd<T>::lanes;
  typename Simd<T>::Integers outside{};
  bool inside = true;
  int64_t checked = 0;
  for (; checked + lanes <= count; checked += lanes) {
    const V v = load<V>(z + checked);
    outside |= ~((v >= axis.lo) & (v <= axis.hi));
  }
  for (; checked < count; ++checked) inside &= z[checked] >= axis.lo && z[checked] <= axis.hi;
  if (inside && !any(outside)) return z;
  for (int64_t i = 0; i < count; ++i) {
    double s = 1;
    buffer[i] = z[i];
    if (!(z[i] >= axis.lo && z[i] <= axis.hi)) {
      const double value = static_cast<double>(z[i]);
      buffer[i] = value - value == 0
                      ? static_cast<T>(fold_position(value, axis.exact_lo, axis.exact_hi, axis.boundary, s))
                      : T(NAN);
    }
    if (sign != nullptr) {
      sign[i] = static_cast<T>(s);
      *mirrored |= s != 1;
    }
  }
  return buffer;
}

// Which bin each index of the extended range stands for, -1 for none.
class Fold {
 public:
  template <class T>
  Fold(const Position<T>& axis, int64_t extended_length)
      : length(extended_length), padding(axis.padding()), bins(axis.bins), bin_(extended_length) {
    for (int64_t i = 0; i < length; ++i)
      bin_[i] = static_cast<int32_t>(fold_bin(i - padding, bins, axis.boundary));
  }

  const int64_t length, padding, bins;

  // visit(i) for every index that stands for bin k.
  template <class Visit>
  HISTLOSS_INLINE void each(int64_t k, const Visit& visit) const {
    for (int64_t i = 0; i < padding; ++i)
      if (bin_[i] == k) visit(i);
    visit(padding + k);
    for (int64_t i = padding + bins; i < length; ++i)
      if (bin_[i] == k) visit(i);
  }

  // out[k] = the sum over the indices that stand for k.
  template <class T, class U>
  HISTLOSS_INLINE void fold(const T* extended, U* out) const {
    for (int64_t k = 0; k < bins; ++k) out[k] = static_cast<U>(extended[padding + k]);
    add_range(extended, 0, padding, out);
    add_range(extended, padding + bins, length, out);
  }

  // The adjoint: a gradient on the bins, laid out on the extended range.
  template <class T, class U>
  HISTLOSS_INLINE void unfold(const U* grad, T* extended) const {
    for (int64_t i = 0; i < length; ++i) extended[i] = bin_[i] >= 0 ? static_cast<T>(grad[bin_[i]]) : T(0);
  }

  int64_t bin(int64_t i) const { return bin_[i]; }

 private:
  template <class T, class U>
  HISTLOSS_INLINE void add_range(const T* extended, int64_t begin, int64_t end, U* out) const {
    for (int64_t i = begin; i < end; ++i)
      if (bin_[i] >= 0) out[bin_[i]] += static_cast<U>(extended[i]);
  }

  Scratch<int32_t> bin_;
};

// How a plane's pixels are cut into parts, by its size alone: the same sums in the same order for any number
// of threads.
struct Parts {
  int64_t count, size;

  // At least `least` pixels a part, at most `most` parts, each of whole `step`s.
  Parts(int64_t pixels, int64_t least, int64_t most, int64_t step = 1) {
    int64_t n = (pixels + least - 1) / least;
    n = n < 1 ? 1 : n > most ? most : n;
    size = ((pixels + n - 1) / n + step - 1) / step * step;
    count = size == 0 ? 1 : (pixels + size - 1) / size;
    if (count == 0) count = 1;
  }
  int64_t begin(int64_t part) const { return part * size; }
  int64_t length(int64_t part, int64_t pixels) const {
    const int64_t rest = pixels - begin(part);
    return rest < size ? rest : size;
  }
};

}  // namespace
}  // namespace histloss::cpu
