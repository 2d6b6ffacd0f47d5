// From a pixel's value to its place among the bins.
//
// Kernels work on the range extended at both ends by the bins that pixels inside it touch; the ends are
// folded in afterwards (reflect: mirrored; cyclic: wrapped; open: dropped). Under `open` pixels outside the
// range still touch bins inside, so the axis begins a margin before lo; otherwise they are brought inside
// first.
#pragma once

#include "../../problem.h"
#include "../runtime.h"
#include "simd.h"

namespace histloss::cpu {
namespace {

// An axis in the arithmetic's type. A pixel's distance is taken from a point near it whose place is known in
// two parts: the kernel multiplies what (z - lo) / width would round away by 1 / bandwidth.
template <class T>
struct Position {
  T lo, hi, inverse_width;
  T middle, middle_low;
  T width, width_low;  // width has few digits: its product with a bin number is exact
  T half_bins;
  double exact_lo, exact_hi;
  int64_t bins, radius, margin;
  Boundary boundary;

  Position(const Axis& axis, bool is_double)
      : lo(static_cast<T>(axis.lo)),
        hi(static_cast<T>(axis.hi)),
        inverse_width(static_cast<T>(1 / axis.width())),
        middle(static_cast<T>(0.5 * axis.lo + 0.5 * axis.hi)),
        middle_low(static_cast<T>(0.5 * axis.lo + 0.5 * axis.hi - static_cast<double>(middle))),
        width(few_digits(axis.width())),
        width_low(static_cast<T>(axis.width() - static_cast<double>(width))),
        half_bins(static_cast<T>(0.5 * static_cast<double>(axis.bins))),
        exact_lo(axis.lo),
        exact_hi(axis.hi),
        bins(axis.bins),
        radius(kernel_radius(axis.bandwidth, is_double)),
        margin(axis.boundary == Boundary::open ? radius : 0),
        boundary(axis.boundary) {}

  // Bin number e of the extended range is at index e + padding().
  int64_t padding() const { return margin + radius; }

  // Where z lies, in bins from lo: good to find its cell, not to measure in it.
  template <class V>
  HISTLOSS_INLINE V coarse(V z) const {
    return (z - lo) * inverse_width;
  }

  // z's distance in bins from the point n bins above lo; n a multiple of a power of 1/2.
  template <class V>
  HISTLOSS_INLINE V distance(V z, V n) const {
    const V c = n - half_bins, step = c * width;
    const V point = middle + step, taken = point - middle;
    const V rounding = (middle - (point - taken)) + (step - taken);
    return ((z - point) - ((rounding + middle_low) + c * width_low)) * inverse_width;
  }

 private:
  static T few_digits(double width) {
    int exponent;
    const double digits = std::frexp(width, &exponent);
    const int kept = Simd<T>::mantissa * 2 / 5;
    return static_cast<T>(std::ldexp(std::floor(std::ldexp(digits, kept)), exponent - kept));
  }
};

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
