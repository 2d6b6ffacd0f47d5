// The kernel's mathematics, once, for scalars, SIMD vectors and CUDA threads alike.
//
// A pixel at distance t (in bins) from a bin's centre belongs to it by
//
//   Pi(t) = sigmoid(a t + a/2) - sigmoid(a t - a/2),   a = 1 / bandwidth          (DeepHist Eq. 6)
//         = 1 / (coth(a/2) + p + n),   p = e^(a t) / (2 sinh(a/2)),   n = e^(-a t) / (2 sinh(a/2))
//
// The second form cancels nowhere, and bins that are neighbours differ by a constant factor in p and n: one
// exponential serves every bin of a pixel.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define HISTLOSS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HISTLOSS_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace histloss {

// coth(a/2), and the logarithm of 2 sinh(a/2), which itself overflows for a narrow kernel.
struct KernelConstants {
  double a, coth, log_2sinh;
};

static inline KernelConstants kernel_constants(double bandwidth) {
  const double a = 1 / bandwidth;
  const double rest = -std::expm1(-a);  // 1 - e^-a
  return {a, (2 - rest) / rest, a / 2 + std::log(rest)};
}

// d Pi / d t from Pi and its p and n.
template <class V>
HISTLOSS_HOST_DEVICE V activation_slope(V pi, V p, V n, V a) {
  return a * pi * pi * (n - p);
}

// Bins beyond this distance hold less of a pixel than float32 (float64) resolves. Mirrors reference.radius.
static inline int64_t kernel_radius(double bandwidth, bool is_double) {
  return static_cast<int64_t>(std::ceil((is_double ? 54 : 27) * 0.6931471805599453 * bandwidth + 0.5));
}

enum class Boundary : int { open = 0, reflect = 1, cyclic = 2 };

// The bin that bin number e of the range extended at both ends stands for, or -1 for none.
HISTLOSS_HOST_DEVICE int64_t fold_bin(int64_t e, int64_t bins, Boundary boundary) {
  if (e >= 0 && e < bins) return e;
  if (boundary == Boundary::open) return -1;
  const int64_t period = boundary == Boundary::cyclic ? bins : 2 * bins;
  int64_t k = e % period;
  if (k < 0) k += period;
  return k < bins ? k : period - 1 - k;
}

// A finite position outside [lo, hi], brought inside; sign is the derivative of where it lands.
template <class T>
HISTLOSS_HOST_DEVICE T fold_position(T z, T lo, T hi, Boundary boundary, T& sign) {
  const T width = hi - lo;
  const T period = std::floor((z - lo) / width);
  const T inside = z - width * period;
  const bool mirrored = boundary == Boundary::reflect && period - 2 * std::floor(period / 2) == 1;
  sign = mirrored ? T(-1) : T(1);
  const T folded = mirrored ? hi - (inside - lo) : inside;
  return folded < lo ? lo : folded > hi ? hi : folded;
}

}  // namespace histloss
