#include "parzen.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

// What the windows of a vector of pixels come to with their activations, before lanes are summed: x's slopes
// and y's values; x's values and y's slopes; both values.
template <class T>
struct Products {
  typename Simd<T>::Vector x[Simd<T>::lanes], y[Simd<T>::lanes], mass[Simd<T>::lanes];
};

template <bool ALL, class T>
HISTLOSS_INLINE void multiply(const T* window, int64_t row, const TapAxis<T>& axis_x,
                              const TapAxis<T>& axis_y, const TapBatch<T>& taps_x, const TapBatch<T>& taps_y,
                              int64_t i, int64_t lane, Products<T>& out) {
  using V = typename Simd<T>::Vector;
  const T *const value_x = taps_x.value.get() + i * axis_x.stride, *const slope_x =
                                                                       taps_x.slope.get() + i * axis_x.stride;
  const T *const value_y = taps_y.value.get() + i * axis_y.stride, *const slope_y =
                                                                       taps_y.slope.get() + i * axis_y.stride;
  V x{}, y{}, mass{};
  for (int64_t t = 0; t < axis_y.stride; t += Simd<T>::lanes) {
    V values{}, slopes{};
    for (int64_t r = 0; r < axis_x.taps; ++r) {
      const V g = load<V>(window + r * row + t);
      slopes += slope_x[r] * g;
      if constexpr (ALL) values += value_x[r] * g;
    }
    const V of_y = load<V>(value_y + t);
    x += slopes * of_y;
    if constexpr (ALL) {
      mass += values * of_y;
      y += values * load<V>(slope_y + t);
    }
  }
  out.x[lane] = x;
  out.y[lane] = y;
  out.mass[lane] = mass;
}

// ALL: not of x alone.
template <class T, bool ALL>
void gather(const JointHistogramBackward& job) {
  using V = typename Simd<T>::Vector;
  constexpr int lanes = Simd<T>::lanes;
  const Pixels& pixels = job.pixels;
  const TapAxis<T> axis_x(job.axis_x, pixels.is_double), axis_y(job.axis_y, pixels.is_double);
  const Fold fold_x(axis_x.position, axis_x.length), fold_y(axis_y.position, axis_y.length);
  const int64_t kx = job.axis_x.bins, ky = job.axis_y.bins, row = axis_y.row(),
                size = axis_x.length * row + 16;
  const int64_t batch_x = batch_size(axis_x.stride), batch_y = batch_size(axis_y.stride);
  const int64_t batch = batch_x < batch_y ? batch_x : batch_y;
  const bool to_x = job.grad_x.data != nullptr, to_y = job.grad_y.data != nullptr,
             to_mass = job.grad_mass != nullptr;
  const Image mass = values(pixels.mass, pixels.is_double);
  const MutableImage grad_mass = values(job.grad_mass, pixels.is_double);
  const int64_t parts = (pixels.count + kTapBlock - 1) / kTapBlock;
  const int64_t fit = (int64_t{4} << 20) / (size * static_cast<int64_t>(sizeof(T)));
  const int64_t most = fit < 1 ? 1 : fit, group = most < pixels.planes ? most : pixels.planes;
  const Scratch<T> extended(group * size);
  for (int64_t plane0 = 0; plane0 < pixels.planes; plane0 += group) {
    const int64_t planes = pixels.planes - plane0 < group ? pixels.planes - plane0 : group;
    parallel_for(planes * axis_x.length, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t plane = task / axis_x.length, i = task % axis_x.length;
        T* const out = extended.get() + plane * size + i * row;
        std::memset(out, 0, static_cast<std::size_t>(i + 1 < axis_x.length ? row : row + 16) * sizeof(T));
        if (fold_x.bin(i) >= 0)
          fold_y.unfold(static_cast<const T*>(job.grad) + ((plane0 + plane) * kx + fold_x.bin(i)) * ky, out);
      }
    });
    parallel_for(planes * parts, [&](int64_t begin, int64_t end) {
      TapBatch<T> taps_x(batch, axis_x.stride), taps_y(batch, axis_y.stride);
      const Scratch<T> buffer((6 + 2 * kFoldBuffers) * kTapBlock);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t plane = task / parts, offset = task % parts * kTapBlock, rest = pixels.count - offset;
        const int64_t n = rest < kTapBlock ? rest : kTapBlock, at = (plane0 + plane) * pixels.count + offset;
        T* const out = buffer.get() + (2 + 2 * kFoldBuffers) * kTapBlock;
        const FoldedPair<T> folded = fold_pair(job, axis_x.position, axis_y.position, at, n, buffer.get());
        const T* const w = mass.data == nullptr ? nullptr : load_pixels(mass, at, n, out + 3 * kTapBlock);
        T* const gx = to_x ? pixels_to_store(job.grad_x, at, out) : nullptr;
        T* const gy = to_y ? pixels_to_store(job.grad_y, at, out + kTapBlock) : nullptr;
        T* const gm = to_mass ? pixels_to_store(grad_mass, at, out + 2 * kTapBlock) : nullptr;
        for (int64_t first = 0; first < n; first += batch) {
          const int64_t some = n - first < batch ? n - first : batch;
          axis_x.template evaluate<true>(folded.x, first, some, taps_x);
          axis_y.template evaluate<ALL>(folded.y, first, some, taps_y);
          for (int64_t i = 0; i < some; i += lanes) {
            Products<T> products{};
            const int64_t here = some - i < lanes ? some - i : lanes;
            for (int64_t k = 0; k < here; ++k)
              if (taps_x.group[i + k] >= 0 && taps_y.group[i + k] >= 0)
                multiply<ALL>(extended.get() + plane * size + taps_x.group[i + k] * row + taps_y.group[i + k],
                              row, axis_x, axis_y, taps_x, taps_y, i + k, k, products);
            const auto put = [&](T* to, const V* of, const TapAxis<T>& axis, const T* sign) {
              V g = sums_of_rows(of) * axis.position.inverse_width;
              if (w != nullptr) g = g * load_part(w + first + i, here, T(0));
              if (sign != nullptr) g = g * load_part(sign + first + i, here, T(0));
              store_part(to + first + i, g, here);
            };
            if (to_x) put(gx, products.x, axis_x, folded.x.sign);
            if (to_y) put(gy, products.y, axis_y, folded.y.sign);
            if (to_mass) store_part(gm + first + i, sums_of_rows(products.mass), here);
          }
        }
        if (to_x) store_pixels(job.grad_x, at, n, gx);
        if (to_y) store_pixels(job.grad_y, at, n, gy);
        if (to_mass) store_pixels(grad_mass, at, n, gm);
      }
    });
  }
}

}  // namespace

void joint_histogram_sums_backward(const JointHistogramBackward& job) {
  if (job.pixels.count == 0 || job.pixels.planes == 0) return;
  const bool all = job.grad_y.data != nullptr || job.grad_mass != nullptr;
  if (job.pixels.is_double)
    gather<double, true>(job);
  else if (all)
    gather<float, true>(job);
  else
    gather<float, false>(job);
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
