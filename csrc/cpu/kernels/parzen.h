// Pixels' activations for any Parzen kernel, each tap evaluated, and sums of them as integers, which do not
// tell how pixels were cut into calls, parts and threads. See csrc/bin_kernel.h for both.
#pragma once

#include "position.h"

namespace histloss::cpu {
namespace {

template <class T>
struct SimdMath {
  using V = typename Simd<T>::Vector;

  static HISTLOSS_INLINE V exp(V x) {
    constexpr T most = sizeof(T) == 4 ? 42 : 80;  // beyond, an activation is nothing, or may be infinite
    return exponential<T>(minimum(maximum(x, splat<V>(-most)), splat<V>(most)));
  }
  static HISTLOSS_INLINE V maximum(V a, V b) { return cpu::maximum(a, b); }
  static HISTLOSS_INLINE V step(V x) {
    return by_parts(x, x, [](auto a, auto) { return a > T(0) ? a - a + T(1) : a - a; });
  }
  static HISTLOSS_INLINE V sign(V x) { return step(x) - step(-x); }
};

// The taps that a batch of pixels touch, pixel by pixel. Room for whole vectors of pixels.
template <class T>
struct TapBatch {
  const int64_t stride;
  Scratch<int32_t> group;  // where a pixel's taps begin on the extended range; -1: nowhere
  Scratch<T> value, slope;

  TapBatch(int64_t pixels, int64_t tap_stride)
      : stride(tap_stride), group(pixels), value(pixels * stride), slope(pixels * stride) {
    // Of few taps the lanes beyond are not written.
    std::memset(value.get(), 0, static_cast<std::size_t>(pixels * stride) * sizeof(T));
    std::memset(slope.get(), 0, static_cast<std::size_t>(pixels * stride) * sizeof(T));
  }
};

template <class Parzen>
constexpr bool kIsGaussian = false;
template <class T>
constexpr bool kIsGaussian<GaussianKernel<T>> = true;

template <class T>
struct TapAxis {
  using V = typename Simd<T>::Vector;
  static constexpr int lanes = Simd<T>::lanes;

  Position<T> position;
  Kernel kernel;
  Normalization normalization;
  double bandwidth;
  int64_t taps;    // 2 radius
  int64_t stride;  // taps rounded up to whole vectors
  int64_t groups;  // places where a pixel's taps may begin, edges between bins
  int64_t length;  // of the extended range
  T fall[lanes];   // of a Gaussian that chains: exp(-m^2 / 2 h^2) of each tap

  TapAxis(const Axis& axis, bool is_double)
      : position(axis, is_double),
        kernel(axis.kernel),
        normalization(axis.normalization),
        bandwidth(axis.bandwidth),
        taps(2 * position.radius),
        stride((taps + lanes - 1) / lanes * lanes),
        groups(axis.bins + 2 * position.margin + 1),
        length(groups - 1 + taps) {
    if (kernel != Kernel::gaussian || !chains()) return;
    for (int64_t t = 0; t < taps; ++t) {
      const double m = static_cast<double>(position.radius - t) - 0.5;
      fall[t] = static_cast<T>(std::exp(-0.5 * m * m / (bandwidth * bandwidth)));
    }
  }

  // An extended row, with room for the lanes beyond the last tap: whole lines, and an odd number of them, so
  // that neighbouring rows do not share the same places of a cache.
  int64_t row() const { return ((length + stride + 15) / 16 | 1) * 16; }

  template <bool SLOPE>
  void evaluate(const Folded<T>& pixels, int64_t first, int64_t count, TapBatch<T>& out) const {
    with_kernel<T>(kernel, bandwidth, [&](const auto& of) {
      if (taps <= 8)
        evaluate_by<SLOPE, 8>(of, pixels, first, count, out);
      else
        evaluate_by<SLOPE, lanes>(of, pixels, first, count, out);
    });
  }

 private:
  // Vectors run over pixels: a pixel's sum of taps needs no sum of lanes. Then they are turned.
  // ROWS: the taps that are evaluated at a time.
  template <bool SLOPE, int ROWS, class Parzen>
  HISTLOSS_INLINE void evaluate_by(const Parzen& of, const Folded<T>& pixels, int64_t first, int64_t count,
                                   TapBatch<T>& out) const {
    const bool compact = kernel == Kernel::bspline3 || kernel == Kernel::triangular;
    const bool sums_to_bandwidth =
        compact && bandwidth == std::floor(bandwidth) && normalization == Normalization::all;
    const bool divide =
        kernel != Kernel::sigmoid && normalization != Normalization::none && !sums_to_bandwidth;
    const bool inside = normalization == Normalization::inside;
    const bool chained = kernel == Kernel::gaussian && chains();
    const T radius = static_cast<T>(position.radius), padding = static_cast<T>(position.padding());
    for (int64_t i = 0; i < count; i += lanes) {
      const int64_t n = count - i < lanes ? count - i : lanes;
      const V z = load_part(pixels.z + first + i, n, T(NAN));
      const V at = position.coarse(z) + (static_cast<T>(position.margin) + T(0.5));
      auto valid = (at >= T(0)) & (at < static_cast<T>(groups));
      const V group =
          __builtin_convertvector(__builtin_convertvector(valid ? at : V{}, typename Simd<T>::Integers), V);
      V d = position.distance(valid ? z : splat<V>(position.lo), group - static_cast<T>(position.margin));
      if (pixels.rest != nullptr) d += load_part(pixels.rest + first + i, n, T(0)) * position.inverse_width;

      // Tap t lies at m = radius - 1/2 - t from the edge; those in [begin, end) count.
      V begin{}, end = splat<V>(static_cast<T>(taps));
      if (inside) {
        begin = maximum(padding - group, begin);
        end = minimum((padding + static_cast<T>(position.bins)) - group, end);
        valid &= end > begin;
      }
      const V near = minimum(maximum(d > T(0) ? splat<V>(radius) : splat<V>(radius - 1), begin), end - T(1));
      const V nearest = normalization == Normalization::none ? -d : (radius - T(0.5)) - near;
      alignas(64) T groups_of[lanes];
      store(groups_of, valid ? group : splat<V>(T(-1)));
      for (int64_t k = 0; k < n; ++k) out.group[i + k] = static_cast<int32_t>(groups_of[k]);

      V value[ROWS], slope[ROWS];
      const auto fill = [&](int64_t tap) {
        if constexpr (kIsGaussian<Parzen>) {
          if (chained) return fill_chain(of, d, nearest, begin, end, value, slope);
        }
        const int64_t some = taps - tap < ROWS ? taps - tap : ROWS;
        for (int64_t j = 0; j < some; ++j) {
          const T t = static_cast<T>(tap + j);
          of.template evaluate<SimdMath<T>>(d, splat<V>((radius - T(0.5)) - t), nearest, value[j], slope[j]);
          if (!inside) continue;
          const auto counts = (begin <= t) & (end > t);
          value[j] = counts ? value[j] : V{};
          slope[j] = counts ? slope[j] : V{};
        }
        for (int64_t j = some; j < ROWS; ++j) value[j] = slope[j] = V{};
      };
      fill(0);
      V inverse = splat<V>(sums_to_bandwidth ? static_cast<T>(1 / bandwidth) : T(1)), shift{};
      if (divide) {
        V sum{}, slopes{};
        for (int64_t t = 0; t < taps; t += ROWS) {
          if (t > 0) fill(t);
#pragma GCC unroll 16
          for (int j = 0; j < ROWS; ++j) {
            sum += value[j];
            slopes += slope[j];
          }
        }
        const auto some = sum > T(0);  // or a compact kernel does not reach the range
        inverse = some ? T(1) / (some ? sum : splat<V>(T(1))) : V{};
        shift = slopes * inverse;
        if (taps > ROWS) fill(0);
      }
      for (int64_t t = 0; t < taps; t += ROWS) {
        if (t > 0) fill(t);
#pragma GCC unroll 16
        for (int j = 0; j < ROWS; ++j) {
          value[j] = value[j] * inverse;
          if constexpr (SLOPE) slope[j] = slope[j] * inverse - value[j] * shift;
        }
        turn(value, out.value.get() + i * stride + t);
        if constexpr (SLOPE) turn(slope, out.slope.get() + i * stride + t);
      }
    }
  }

  // A Gaussian's taps from two exponentials in place of one each: with c = 1 / 2 h^2 and n the nearest tap's
  // m, exp(-c ((d + m)^2 - (d + n)^2)) = exp(c n (n + 2 d)) exp(-c m^2) exp(-c d)^(2 m). Its rounding grows
  // from tap to tap, as they fall. For float32, few taps, and kernels whose powers stay in its range.
  bool chains() const { return sizeof(T) == 4 && taps <= lanes && bandwidth >= 0.25; }

  template <int ROWS>
  HISTLOSS_INLINE void fill_chain(const GaussianKernel<T>& of, V d, V nearest, V begin, V end,
                                  V (&value)[ROWS], V (&slope)[ROWS]) const {
    using Math = SimdMath<T>;
    const V scale = Math::exp(nearest * (nearest + (d + d)) * of.scale);
    const V up = Math::exp(d * -of.scale), down = Math::exp(d * of.scale), up2 = up * up, down2 = down * down;
    const T steep = of.scale + of.scale;
    V left = scale * up, right = scale * down;
    for (int64_t k = 0; k < position.radius; ++k) {
      const int64_t a = position.radius - 1 - k, b = position.radius + k;
      const T m = static_cast<T>(k) + T(0.5);
      value[a] = left * fall[a];
      value[b] = right * fall[b];
      left = left * up2;
      right = right * down2;
      if (normalization == Normalization::inside) {
        const T t_a = static_cast<T>(a), t_b = static_cast<T>(b);
        value[a] = (begin <= t_a) & (end > t_a) ? value[a] : V{};
        value[b] = (begin <= t_b) & (end > t_b) ? value[b] : V{};
      }
      slope[a] = value[a] * ((nearest - m) * steep);
      slope[b] = value[b] * ((nearest + m) * steep);
    }
    for (int64_t t = taps; t < ROWS; ++t) value[t] = slope[t] = V{};
  }

  // Taps by pixels to pixels by taps.
  template <int ROWS>
  HISTLOSS_INLINE void turn(V (&rows)[ROWS], T* out) const {
    if constexpr (sizeof(T) == 8) {
      for (int k = 0; k < lanes; ++k)
        for (int j = 0; j < ROWS; ++j) out[k * stride + j] = rows[j][k];
    } else if constexpr (ROWS == 16) {
      transpose(rows);
      for (int k = 0; k < 16; ++k) store(out + k * stride, rows[k]);
    } else {
      transpose(rows);
      for (int k = 0; k < 16; ++k)
        std::memcpy(out + k * stride, reinterpret_cast<const T*>(rows) + k * 8, 8 * sizeof(T));
    }
  }
};

// The sums of some vectors that lie in a row, one for each lane.
HISTLOSS_INLINE F32 sums_of_rows(const F32* rows) { return sum_lanes(reinterpret_cast<const float*>(rows)); }
HISTLOSS_INLINE F64 sums_of_rows(const F64* rows) {
  F64 sums;
  for (int k = 0; k < 8; ++k) sums[k] = sum(rows[k]);
  return sums;
}

// sum[0..8) += v on the grid; and where there are two levels, fine[0..8) += what the first leaves, on the
// fine one.
template <int LEVELS>
HISTLOSS_INLINE void add_exactly(int64_t* sum, int64_t* fine, F64 v) {
  const F64 shift = splat<F64>(kShift), shifted = v + shift;
  store(sum, load<U64>(sum) + (reinterpret_cast<U64>(shifted) - reinterpret_cast<U64>(shift)));
  if constexpr (LEVELS == 2) {
    const F64 fine_shift = splat<F64>(kFineShift), left = v - (shifted - shift);
    store(fine,
          load<U64>(fine) + (reinterpret_cast<U64>(left + fine_shift) - reinterpret_cast<U64>(fine_shift)));
  }
}

// A pixel's weight, 0 for one that is none.
HISTLOSS_INLINE double weight_of(const double* weights, int64_t i) {
  return weights == nullptr ? 1.0 : valid_weight(weights[i]) ? weights[i] : 0.0;
}

// The sums of weights on the grids, or the number of pixels.
inline void add_weights(const Pixels& pixels, int64_t plane, int64_t levels, int64_t* totals) {
  for (int64_t level = 0; level < levels; ++level) totals[level * pixels.planes] = 0;
  if (pixels.mass == nullptr) {
    totals[0] = static_cast<int64_t>(static_cast<uint64_t>(pixels.count) * static_cast<uint64_t>(kGrid));
    return;
  }
  constexpr int64_t kBlock = 1024;
  const Image mass = values(pixels.mass, pixels.is_double);
  alignas(64) int64_t sums[8] = {}, fine[8] = {};
  bool valid = true;
  for (int64_t block = 0; block < pixels.count; block += kBlock) {
    const int64_t n = pixels.count - block < kBlock ? pixels.count - block : kBlock;
    double buffer[kBlock];
    const double* const w = load_pixels(mass, plane * pixels.count + block, n, buffer);
    for (int64_t i = 0; i < n; ++i) valid &= valid_weight(w[i]);
    for (int64_t i = 0; i < n; i += 8) add_exactly<2>(sums, fine, load_part(w + i, n - i, 0.0));
  }
  uint64_t total = 0, fine_total = 0;
  for (int i = 0; i < 8; ++i) {
    total += static_cast<uint64_t>(sums[i]);
    fine_total += static_cast<uint64_t>(fine[i]);
  }
  totals[0] = valid ? static_cast<int64_t>(total) : kBadTotal;
  totals[pixels.planes] = static_cast<int64_t>(fine_total);
}

constexpr int64_t kTapBlock = 1024;   // pixels that are widened and folded together
constexpr int64_t kMostTaps = 16384;  // of a batch: they stay in the first cache

// Pixels whose taps are evaluated at a time.
inline int64_t batch_size(int64_t stride) {
  const int64_t fit = kMostTaps / stride / 16 * 16;
  return fit < 16 ? 16 : fit > 64 ? 64 : fit;
}

// How many parts a plane's pixels are cut into. Sums as integers have the same bits for any number of them.
inline int64_t part_count(const Pixels& pixels) {
  constexpr int64_t least = 16384;
  const int64_t busy = (thread_count() + pixels.planes - 1) / pixels.planes, fit = pixels.count / least;
  const int64_t n = busy < fit ? busy : fit;
  return n < 1 ? 1 : n;
}

}  // namespace
}  // namespace histloss::cpu
