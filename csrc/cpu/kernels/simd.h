// 64-byte vectors in the compiler's own vector types: one source for AVX-512, AVX2, SSE2 and NEON.
//
// Files beside this one are compiled once for each level. They define nothing with external linkage but their
// entry point, and use no library templates: the linker must never pick AVX code for a plain caller.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define HISTLOSS_INLINE inline __attribute__((always_inline))

namespace histloss::cpu {
namespace {

using F32 = float __attribute__((vector_size(64)));
using I32 = int32_t __attribute__((vector_size(64)));
using U32 = uint32_t __attribute__((vector_size(64)));
using F64 = double __attribute__((vector_size(64)));
using I64 = int64_t __attribute__((vector_size(64)));
using U64 = uint64_t __attribute__((vector_size(64)));
using F32x4 = float __attribute__((vector_size(16)));
using F64x4 = double __attribute__((vector_size(32)));

// The vector of a scalar type, and the integers of the same size that its comparisons give.
template <class T>
struct Simd;
template <>
struct Simd<float> {
  using Vector = F32;
  using Integers = I32;
  using Bits = U32;
  using Integer = int32_t;
  static constexpr int lanes = 16;
  static constexpr int mantissa = 23, exponent_bias = 127;
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
  static constexpr int exp_terms = 7;
};
template <>
struct Simd<double> {
  using Vector = F64;
  using Integers = I64;
  using Bits = U64;
  using Integer = int64_t;
  static constexpr int lanes = 8;
  static constexpr int mantissa = 52, exponent_bias = 1023;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr int exp_terms = 13;
};

template <class V, class T>
HISTLOSS_INLINE V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class T>
HISTLOSS_INLINE void store(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// A vector from the first `count` of p, the lanes beyond them `fill`.
template <class T>
HISTLOSS_INLINE typename Simd<T>::Vector load_part(const T* p, int64_t count, T fill) {
  using V = typename Simd<T>::Vector;
  if (count >= Simd<T>::lanes) return load<V>(p);
  T buffer[Simd<T>::lanes];
  for (int i = 0; i < Simd<T>::lanes; ++i) buffer[i] = i < count ? p[i] : fill;
  return load<V>(buffer);
}

template <class T>
HISTLOSS_INLINE void store_part(T* p, typename Simd<T>::Vector v, int64_t count) {
  if (count >= Simd<T>::lanes) return store(p, v);
  T buffer[Simd<T>::lanes];
  store(buffer, v);
  for (int i = 0; i < count; ++i) p[i] = buffer[i];
}

// Past the caches, where p is aligned and the machine can: for what is larger than they are. To be followed
// by end_stream, before another thread reads it.
template <class T>
HISTLOSS_INLINE void stream(T* p, typename Simd<T>::Vector v) {
#if defined(__AVX2__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof v == 0) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#else
    __m256i parts[2];
    std::memcpy(parts, &v, sizeof v);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), parts[0]);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p) + 1, parts[1]);
#endif
    return;
  }
#endif
  store(p, v);
}

HISTLOSS_INLINE void end_stream() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

HISTLOSS_INLINE F32 loadf(const float* p) { return load<F32>(p); }
HISTLOSS_INLINE F64 loadd(const double* p) { return load<F64>(p); }

HISTLOSS_INLINE F64x4 widen(F32x4 v) {
#if defined(__AVX2__)
  return reinterpret_cast<F64x4>(_mm256_cvtps_pd(reinterpret_cast<__m128>(v)));  // GCC 12 makes four of it
#else
  return __builtin_convertvector(v, F64x4);
#endif
}

// Makes the compiler keep an array in memory, where scalars load faster than they are extracted from vectors.
template <class T>
HISTLOSS_INLINE void in_memory(T& array) {
  asm("" : "+m"(array));
}

HISTLOSS_INLINE F64 low_half(F32 v) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), F64);
}
HISTLOSS_INLINE F64 high_half(F32 v) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15), F64);
}

// Eight numbers as float64.
HISTLOSS_INLINE F64 load_wide(const float* p) {
  using F32x8 = float __attribute__((vector_size(32)));
  return __builtin_convertvector(load<F32x8>(p), F64);
}
HISTLOSS_INLINE F64 load_wide(const double* p) { return loadd(p); }

// Sixteen numbers of two vectors, rounded.
HISTLOSS_INLINE F32 narrow(F64 low, F64 high) {
  using F32x8 = float __attribute__((vector_size(32)));
  return __builtin_shufflevector(__builtin_convertvector(low, F32x8), __builtin_convertvector(high, F32x8), 0,
                                 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// sums[0..15] += v, in float64.
HISTLOSS_INLINE void add_wide(double* sums, F32 v) {
  store(sums, loadd(sums) + low_half(v));
  store(sums + 8, loadd(sums + 8) + high_half(v));
}

// The same number in every lane: x - 0 is x whatever its sign, so that no subtraction is made (0 + x would
// be).
template <class V, class T>
HISTLOSS_INLINE V splat(T x) {
  return x - V{};
}

// f of two vectors, in vectors of the machine's size: of wider ones GCC 12 compares one number at a time.
template <class V, class F>
HISTLOSS_INLINE V by_parts(V a, V b, const F& f) {
#if defined(__AVX512F__)
  constexpr int size = 64;
#elif defined(__AVX2__)
  constexpr int size = 32;
#else
  constexpr int size = 16;
#endif
  using Number = decltype(+a[0]);
  using Part __attribute__((vector_size(size))) = Number;
  Part x[64 / size], y[64 / size];
  std::memcpy(x, &a, sizeof a);
  std::memcpy(y, &b, sizeof b);
#pragma GCC unroll 4
  for (int i = 0; i < 64 / size; ++i) x[i] = f(x[i], y[i]);
  std::memcpy(&a, x, sizeof a);
  return a;
}

template <class V>
HISTLOSS_INLINE V minimum(V a, V b) {
  return by_parts(a, b, [](auto x, auto y) { return x < y ? x : y; });
}
template <class V>
HISTLOSS_INLINE V maximum(V a, V b) {
  return by_parts(a, b, [](auto x, auto y) { return x > y ? x : y; });
}
// NaN if one of them is.
template <class V>
HISTLOSS_INLINE V maximum_or_nan(V a, V b) {
  return by_parts(a, b, [](auto x, auto y) { return x > y ? x : x == x ? y : x; });
}

template <class T>
HISTLOSS_INLINE bool any(T mask) {
  constexpr int n = sizeof(T) / sizeof(int64_t);
  int64_t bits[n], all = 0;
  std::memcpy(bits, &mask, sizeof mask);
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) all |= bits[i];
  return all != 0;
}

// 1 / x, to the last bit or two.
HISTLOSS_INLINE F32 reciprocal(F32 x) {
#if defined(__AVX512F__)
  const F32 r = reinterpret_cast<F32>(_mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(x)));
  return r * (2.0f - x * r);
#else
  return 1.0f / x;
#endif
}

// Pushes the fraction of a number below 2^22 (2^51) out of its digits; what is left of it are the low bits.
template <class T>
constexpr T kRound = T(3) * (typename Simd<T>::Integer{1} << (Simd<T>::mantissa - 1));

// e^r 2^n, |r| <= ln(2) / 2, where shifted = n + kRound.
template <class T>
HISTLOSS_INLINE typename Simd<T>::Vector exp_reduced(typename Simd<T>::Vector r,
                                                     typename Simd<T>::Vector shifted) {
  using S = Simd<T>;
  using V = typename S::Vector;
  constexpr T inverse_factorial[] = {1,
                                     1,
                                     T(1) / 2,
                                     T(1) / 6,
                                     T(1) / 24,
                                     T(1) / 120,
                                     T(1) / 720,
                                     T(1) / 5040,
                                     T(1) / 40320,
                                     T(1) / 362880,
                                     T(1) / 3628800,
                                     T(1) / 39916800,
                                     T(1) / 479001600,
                                     T(1) / 6227020800};
  V e = splat<V>(inverse_factorial[S::exp_terms - 1]);
#pragma GCC unroll 16
  for (int i = S::exp_terms - 2; i >= 0; --i) e = e * r + inverse_factorial[i];
  const auto exponent = reinterpret_cast<typename S::Bits>(shifted) << S::mantissa;
  return reinterpret_cast<V>(reinterpret_cast<typename S::Bits>(e) + exponent);
}

// e^x for |x| below 87 (float) or 708 (double).
template <class T>
HISTLOSS_INLINE typename Simd<T>::Vector exponential(typename Simd<T>::Vector x) {
  using S = Simd<T>;
  const auto shifted = x * T(1.4426950408889634) + kRound<T>, n = shifted - kRound<T>;
  return exp_reduced<T>((x - n * S::ln2_high) - n * S::ln2_low, shifted);
}

// e^x for x <= 0, less e^-87 (e^-708), from where on it is 0.
template <class T>
HISTLOSS_INLINE typename Simd<T>::Vector exp_not_positive(typename Simd<T>::Vector x) {
  using V = typename Simd<T>::Vector;
  const V least = splat<V>(T(sizeof(T) == 8 ? -708 : -87));
  return exponential<T>(maximum(x, least)) - exponential<T>(least);
}

// e^(scale (whole + x)) for the same exponents, to the last digits: whole is a short number, scale is given
// in two parts, and their product is never rounded at its full size.
HISTLOSS_INLINE F32 exp_scaled(F32 whole, F32 x, float scale, float scale_low) {
  using S = Simd<float>;
  const F32 sum = whole + x;
  const F32 shifted = sum * (scale * 1.4426950408889634f) + kRound<float>, n = shifted - kRound<float>;
  F32 r = whole * scale - n * S::ln2_high;
  r = r + x * scale;
  r = r + (sum * scale_low - n * S::ln2_low);
  return exp_reduced<float>(r, shifted);
}

HISTLOSS_INLINE double sum(F64 v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// Rows to columns, in place, by four perfect shuffles.
HISTLOSS_INLINE void transpose(F32 (&m)[16]) {
#pragma GCC unroll 4
  for (int stage = 0; stage < 4; ++stage) {
    F32 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      t[2 * i] =
          __builtin_shufflevector(m[i], m[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      t[2 * i + 1] = __builtin_shufflevector(m[i], m[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
                                             30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) m[i] = t[i];
  }
}

// Eight rows of sixteen to sixteen rows of eight, in place.
HISTLOSS_INLINE void transpose(F32 (&m)[8]) {
#pragma GCC unroll 3
  for (int stage = 0; stage < 3; ++stage) {
    F32 t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[2 * i] =
          __builtin_shufflevector(m[i], m[i + 4], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      t[2 * i + 1] = __builtin_shufflevector(m[i], m[i + 4], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
                                             30, 15, 31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) m[i] = t[i];
  }
}

// The sums of sixteen vectors that lie in a row, as one vector.
HISTLOSS_INLINE F32 sum_lanes(const float* rows) {
  F32 a[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const F32 x = loadf(rows + 16 * i), y = loadf(rows + 16 * (i + 8));
    a[i] = __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  F32 b[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    b[i] =
        __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
        __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  F32 c[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    c[i] =
        __builtin_shufflevector(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
        __builtin_shufflevector(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  return __builtin_shufflevector(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         __builtin_shufflevector(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

}  // namespace
}  // namespace histloss::cpu
