// From a pixel's value to its place among the bins.
//
// Kernels work on the range extended at both ends by the bins that pixels inside it touch; the ends are
// folded in afterwards (reflect: mirrored; cyclic: wrapped; open: dropped). Under `open` pixels outside the
// range still touch bins inside, so the axis begins a margin before lo; otherwise they are brought inside
// first.
#pragma once

#include <limits>

#include "problem.h"

namespace histloss {

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
        radius(kernel_radius(axis.bandwidth, is_double, axis.kernel)),
        margin(axis.boundary == Boundary::open ? radius : 0),
        boundary(axis.boundary) {}

  // Bin number e of the extended range is at index e + padding().
  int64_t padding() const { return margin + radius; }

  // Where z lies, in bins from lo: good to find its cell, not to measure in it.
  template <class V>
  HISTLOSS_HOST_DEVICE V coarse(V z) const {
    return (z - lo) * inverse_width;
  }

  // z's distance in bins from the point n bins above lo; n a multiple of a power of 1/2.
  template <class V>
  HISTLOSS_HOST_DEVICE V distance(V z, V n) const {
    const V c = n - half_bins, step = c * width;
    const V point = middle + step, taken = point - middle;
    const V rounding = (middle - (point - taken)) + (step - taken);
    return ((z - point) - ((rounding + middle_low) + c * width_low)) * inverse_width;
  }

 private:
  static T few_digits(double width) {
    int exponent;
    const double digits = std::frexp(width, &exponent);
    const int kept = (std::numeric_limits<T>::digits - 1) * 2 / 5;
    return static_cast<T>(std::ldexp(std::floor(std::ldexp(digits, kept)), exponent - kept));
  }
};

}  // namespace histloss
