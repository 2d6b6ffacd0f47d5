// Pixels in their places, and the folding of the extended range's ends, see csrc/position.h.
#pragma once

#include "../../position.h"
#include "../runtime.h"
#include "simd.h"

namespace histloss::cpu {
namespace {

// Pixels in the range, or where the boundary lets them be: NaN for one that has no place.
template <class T>
struct Folded {
  const T* z;
  const T* rest;  // what z's rounding took away; null for nothing
  const T* sign;  // the derivative; null for 1
};

constexpr int kFoldBuffers = 3;  // each as long as the pixels

template <class T>
Folded<T> fold_pixels(const Position<T>& axis, const T* z, int64_t count, T* buffers) {
  const Folded<T> unchanged{z, nullptr, nullptr};
  if (axis.boundary == Boundary::open) return unchanged;
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
  if (inside && !any(outside)) return unchanged;
  T *const folded = buffers, *const rest = buffers + count, *const sign = buffers + 2 * count;
  bool rounded = false, mirrored = false;
  for (int64_t i = 0; i < count; ++i) {
    double s = 1, exact = static_cast<double>(z[i]);
    if (!(z[i] >= axis.lo && z[i] <= axis.hi))
      exact = exact - exact == 0 ? fold_position(exact, axis.exact_lo, axis.exact_hi, axis.boundary, s) : NAN;
    folded[i] = static_cast<T>(exact);
    rest[i] = exact == exact ? static_cast<T>(exact - static_cast<double>(folded[i])) : T(0);
    sign[i] = static_cast<T>(s);
    rounded |= rest[i] != 0;
    mirrored |= s != 1;
  }
  return {folded, rounded ? rest : nullptr, mirrored ? sign : nullptr};
}

template <class T>
struct FoldedPair {
  Folded<T> x, y;
};

// Pixels [begin, begin + count) of both images of a joint histogram; buffers for 2 + 2 kFoldBuffers times as
// many.
template <class Job, class T>
FoldedPair<T> fold_pair(const Job& job, const Position<T>& axis_x, const Position<T>& axis_y, int64_t begin,
                        int64_t count, T* buffers) {
  T *const of_x = buffers, *const of_y = buffers + (1 + kFoldBuffers) * count;
  return {fold_pixels(axis_x, load_pixels(job.x, begin, count, of_x), count, of_x + count),
          fold_pixels(axis_y, load_pixels(job.y, begin, count, of_y), count, of_y + count)};
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

  // The same in place: the sum of bin k's is put at index padding + k.
  template <class T>
  HISTLOSS_INLINE void fold(T* extended) const {
    add_range(extended, 0, padding, extended + padding);
    add_range(extended, padding + bins, length, extended + padding);
  }

  // The adjoint: a gradient on the bins, laid out on the extended range.
  template <class T, class U>
  HISTLOSS_INLINE void unfold(const U* grad, T* extended) const {
    unfold_range(grad, 0, padding, extended);
    for (int64_t k = 0; k < bins; ++k) extended[padding + k] = static_cast<T>(grad[k]);
    unfold_range(grad, padding + bins, length, extended);
  }

  int64_t bin(int64_t i) const { return bin_[i]; }

 private:
  template <class T, class U>
  HISTLOSS_INLINE void add_range(const T* extended, int64_t begin, int64_t end, U* out) const {
    for (int64_t i = begin; i < end; ++i)
      if (bin_[i] >= 0) out[bin_[i]] += static_cast<U>(extended[i]);
  }

  template <class T, class U>
  HISTLOSS_INLINE void unfold_range(const U* grad, int64_t begin, int64_t end, T* extended) const {
    for (int64_t i = begin; i < end; ++i) extended[i] = bin_[i] >= 0 ? static_cast<T>(grad[bin_[i]]) : T(0);
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
