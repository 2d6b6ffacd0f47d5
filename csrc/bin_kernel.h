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

enum class Kernel : int { sigmoid = 0, gaussian = 1, bspline3 = 2, triangular = 3 };

// What a pixel's activations are divided by: their sum over the bins of the endless axis, over the range's
// own, or nothing. The sigmoid's sum to 1 by themselves.
enum class Normalization : int { all = 0, inside = 1, none = 2 };

// Bins beyond this distance hold less of a pixel than float32 (float64) resolves. Mirrors reference.radius.
static inline int64_t kernel_radius(double bandwidth, bool is_double, Kernel kernel = Kernel::sigmoid) {
  const double nats = (is_double ? 54 : 27) * 0.6931471805599453;
  switch (kernel) {
    case Kernel::gaussian: return static_cast<int64_t>(std::ceil(bandwidth * std::sqrt(2 * nats)));
    case Kernel::bspline3: return static_cast<int64_t>(std::ceil(2 * bandwidth));
    case Kernel::triangular: return static_cast<int64_t>(std::ceil(bandwidth));
    case Kernel::sigmoid: break;
  }
  return static_cast<int64_t>(std::ceil(nats * bandwidth + 0.5));
}

// The kernels by their values at one place, and slopes by it. A bin's distance is t = d + m bins: d, to the
// nearest edge between two bins, has all its digits, and m is a multiple of a half. `nearest` is the m of the
// nearest bin that counts. Math has exp, maximum, step (1 where positive, else 0) and sign for V.

template <class T>
struct SigmoidKernel {
  T a, coth, log_rest;

  __attribute__((always_inline)) explicit SigmoidKernel(double bandwidth)
      : a(static_cast<T>(1 / bandwidth)),
        coth(static_cast<T>(kernel_constants(bandwidth).coth)),
        log_rest(static_cast<T>(std::log(-std::expm1(-1 / bandwidth)))) {}

  template <class Math, class V>
  HISTLOSS_HOST_DEVICE void evaluate(V d, V m, V, V& value, V& slope) const {
    const V p = Math::exp((d + (m - T(0.5))) * a - log_rest),
            n = Math::exp((d + (m + T(0.5))) * -a - log_rest);
    value = T(1) / (coth + p + n);
    slope = value * value * (n - p) * a;
  }
};

// Relative to the nearest bin's, so that not all of a narrow kernel's values vanish. nearest = -d gives the
// kernel itself.
template <class T>
struct GaussianKernel {
  T scale;

  __attribute__((always_inline)) explicit GaussianKernel(double bandwidth)
      : scale(static_cast<T>(0.5 / (bandwidth * bandwidth))) {}

  template <class Math, class V>
  HISTLOSS_HOST_DEVICE void evaluate(V d, V m, V nearest, V& value, V& slope) const {
    value = Math::exp((nearest - m) * ((d + d) + (nearest + m)) * scale);
    slope = value * (nearest - m) * (scale + scale);
  }
};

// (2 - s)+^3 / 6 - 4 (1 - s)+^3 / 6 at s = |t| / bandwidth: the cubic B-spline, whose support is |s| < 2.
template <class T>
struct BSpline3Kernel {
  T scale;

  __attribute__((always_inline)) explicit BSpline3Kernel(double bandwidth)
      : scale(static_cast<T>(1 / bandwidth)) {}

  template <class Math, class V>
  HISTLOSS_HOST_DEVICE void evaluate(V d, V m, V, V& value, V& slope) const {
    const V t = (d + m) * scale, s = Math::maximum(t, -t), zero = t - t;
    const V outer = Math::maximum(T(2) - s, zero), inner = Math::maximum(T(1) - s, zero);
    value = outer * outer * outer * T(1.0 / 6) - inner * inner * inner * T(4.0 / 6);
    slope = (inner * inner * T(2) - outer * outer * T(0.5)) * Math::sign(t) * scale;
  }
};

template <class T>
struct TriangularKernel {
  T scale;

  __attribute__((always_inline)) explicit TriangularKernel(double bandwidth)
      : scale(static_cast<T>(1 / bandwidth)) {}

  template <class Math, class V>
  HISTLOSS_HOST_DEVICE void evaluate(V d, V m, V, V& value, V& slope) const {
    const V t = (d + m) * scale, rest = T(1) - Math::maximum(t, -t);
    value = Math::maximum(rest, t - t);
    slope = Math::step(rest) * Math::sign(t) * -scale;
  }
};

// f(kernel) with the kernel of that name.
template <class T, class F>
void with_kernel(Kernel kernel, double bandwidth, const F& f) {
  switch (kernel) {
    case Kernel::sigmoid: return f(SigmoidKernel<T>(bandwidth));
    case Kernel::gaussian: return f(GaussianKernel<T>(bandwidth));
    case Kernel::bspline3: return f(BSpline3Kernel<T>(bandwidth));
    case Kernel::triangular: return f(TriangularKernel<T>(bandwidth));
  }
}

// The grid that sums of activations are rounded to, 2^-30 and for what that leaves 2^-62: integers add to the
// same bits in any order. A number plus the shift has its last digit at the grid.
constexpr double kGrid = 1073741824.0, kFineGrid = 4611686018427387904.0;
constexpr double kShift = 1.5 * 4194304.0, kFineShift = 1.5 / 1024;

// The largest weight that the grids have room for, and the total of a plane with one that is larger, negative
// or NaN: Python cannot always look at them.
constexpr double kMostWeight = 1048576.0;
constexpr int64_t kBadTotal = -(int64_t{1} << 62);

HISTLOSS_HOST_DEVICE bool valid_weight(double weight) { return weight >= 0 && weight <= kMostWeight; }

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
