#include "parzen.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

template <class T>
void gather(const SoftHistogramBackward& job) {
  using V = typename Simd<T>::Vector;
  constexpr int lanes = Simd<T>::lanes;
  const Pixels& pixels = job.pixels;
  const TapAxis<T> axis(job.axis, pixels.is_double);
  const Fold fold(axis.position, axis.length);
  const int64_t bins = job.axis.bins, row = axis.row(), batch = batch_size(axis.stride);
  const bool to_x = job.grad_x.data != nullptr, to_mass = job.grad_mass != nullptr;
  const Scratch<T> extended(pixels.planes * row);
  for (int64_t plane = 0; plane < pixels.planes; ++plane) {
    T* const out = extended.get() + plane * row;
    std::memset(out, 0, static_cast<std::size_t>(row) * sizeof(T));
    fold.unfold(static_cast<const T*>(job.grad) + plane * bins, out);
  }
  const Image mass = values(pixels.mass, pixels.is_double);
  const MutableImage grad_mass = values(job.grad_mass, pixels.is_double);
  const int64_t parts = (pixels.count + kTapBlock - 1) / kTapBlock;
  parallel_for(pixels.planes * parts, [&](int64_t begin, int64_t end) {
    TapBatch<T> taps(batch, axis.stride);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / parts, offset = task % parts * kTapBlock, rest = pixels.count - offset;
      const int64_t n = rest < kTapBlock ? rest : kTapBlock, at = plane * pixels.count + offset;
      T buffer[kTapBlock], fold_buffer[kFoldBuffers * kTapBlock], mass_buffer[kTapBlock], out_x[kTapBlock],
          out_mass[kTapBlock];
      const Folded<T> folded = fold_pixels(axis.position, load_pixels(job.x, at, n, buffer), n, fold_buffer);
      const T* const w = mass.data == nullptr ? nullptr : load_pixels(mass, at, n, mass_buffer);
      T* const gx = to_x ? pixels_to_store(job.grad_x, at, out_x) : nullptr;
      T* const gm = to_mass ? pixels_to_store(grad_mass, at, out_mass) : nullptr;
      for (int64_t first = 0; first < n; first += batch) {
        const int64_t some = n - first < batch ? n - first : batch;
        axis.template evaluate<true>(folded, first, some, taps);
        for (int64_t i = 0; i < some; i += lanes) {
          V values[lanes]{}, slopes[lanes]{};
          const int64_t here = some - i < lanes ? some - i : lanes;
          for (int64_t k = 0; k < here; ++k) {
            if (taps.group[i + k] < 0) continue;
            const T* const grad = extended.get() + plane * row + taps.group[i + k];
            V value{}, slope{};
            for (int64_t t = 0; t < axis.stride; t += lanes) {
              const V g = load<V>(grad + t);
              value += g * load<V>(taps.value.get() + (i + k) * axis.stride + t);
              slope += g * load<V>(taps.slope.get() + (i + k) * axis.stride + t);
            }
            values[k] = value;
            slopes[k] = slope;
          }
          const int64_t at_pixel = first + i;
          if (to_x) {
            V g = sums_of_rows(slopes) * axis.position.inverse_width;
            if (w != nullptr) g = g * load_part(w + at_pixel, here, T(0));
            if (folded.sign != nullptr) g = g * load_part(folded.sign + at_pixel, here, T(0));
            store_part(gx + at_pixel, g, here);
          }
          if (to_mass) store_part(gm + at_pixel, sums_of_rows(values), here);
        }
      }
      if (to_x) store_pixels(job.grad_x, at, n, gx);
      if (to_mass) store_pixels(grad_mass, at, n, gm);
    }
  });
}

}  // namespace

void soft_histogram_sums_backward(const SoftHistogramBackward& job) {
  if (job.pixels.count == 0) return;
  job.pixels.is_double ? gather<double>(job) : gather<float>(job);
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
