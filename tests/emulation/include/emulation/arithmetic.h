// CUDA's functions of numbers, as far as the kernels call them. The fast approximations are exact here, and
// nothing is contracted to a fused multiply-add.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace emulation {

// An integral value: beyond the type's ends the end. What NaN becomes is in the description of PTX's cvt.
template <class To, class From>
To saturate(From rounded) {
  constexpr From kEnd = static_cast<From>(To{1} << (std::numeric_limits<To>::digits - 1)) * 2;  // exact
  constexpr bool kWide = sizeof(To) == 8 || sizeof(From) == 8;
  if (std::isnan(rounded)) return kWide ? static_cast<To>(std::uint64_t{1} << (8 * sizeof(To) - 1)) : To{0};
  if (rounded >= kEnd) return std::numeric_limits<To>::max();
  if (rounded < static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  return static_cast<To>(rounded);
}

template <class A, class B>
concept Numbers = std::is_arithmetic_v<A> && std::is_arithmetic_v<B>;

}  // namespace emulation

#define HISTLOSS_TO_INTEGER(from, From, to, To)                                                 \
  inline To __##from##2##to##_rn(From x) { return emulation::saturate<To>(std::nearbyint(x)); } \
  inline To __##from##2##to##_rz(From x) { return emulation::saturate<To>(std::trunc(x)); }     \
  inline To __##from##2##to##_rd(From x) { return emulation::saturate<To>(std::floor(x)); }     \
  inline To __##from##2##to##_ru(From x) { return emulation::saturate<To>(std::ceil(x)); }
HISTLOSS_TO_INTEGER(float, float, int, int)
HISTLOSS_TO_INTEGER(float, float, uint, unsigned)
HISTLOSS_TO_INTEGER(float, float, ll, long long)
HISTLOSS_TO_INTEGER(float, float, ull, unsigned long long)
HISTLOSS_TO_INTEGER(double, double, int, int)
HISTLOSS_TO_INTEGER(double, double, uint, unsigned)
HISTLOSS_TO_INTEGER(double, double, ll, long long)
HISTLOSS_TO_INTEGER(double, double, ull, unsigned long long)
#undef HISTLOSS_TO_INTEGER

inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline float __fdividef(float a, float b) {
  return std::fabs(b) > 0x1p126f && std::isfinite(b) ? 0 * a : a / b;
}

// Of a number and NaN, the number.
template <class A, class B>
  requires emulation::Numbers<A, B>
constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return std::fmin(static_cast<T>(a), static_cast<T>(b));
  else
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}

template <class A, class B>
  requires emulation::Numbers<A, B>
constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return std::fmax(static_cast<T>(a), static_cast<T>(b));
  else
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
