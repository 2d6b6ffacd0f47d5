#include "parzen.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

template <class T, int LEVELS>
void add_part(const SoftHistogramSums& job, const TapAxis<T>& axis, int64_t first, int64_t count,
              int64_t* sums) {
  const Image mass = values(job.pixels.mass, job.pixels.is_double);
  const int64_t batch = batch_size(axis.stride), row = axis.row();
  TapBatch<T> taps(batch, axis.stride);
  for (int64_t block = 0; block < count; block += kTapBlock) {
    const int64_t n = count - block < kTapBlock ? count - block : kTapBlock;
    T buffer[kTapBlock], fold_buffer[kFoldBuffers * kTapBlock];
    double mass_buffer[kTapBlock];
    const Folded<T> pixels =
        fold_pixels(axis.position, load_pixels(job.x, first + block, n, buffer), n, fold_buffer);
    const double* const w = mass.data == nullptr ? nullptr : load_pixels(mass, first + block, n, mass_buffer);
    for (int64_t begin = 0; begin < n; begin += batch) {
      const int64_t some = n - begin < batch ? n - begin : batch;
      axis.template evaluate<false>(pixels, begin, some, taps);
      for (int64_t i = 0; i < some; ++i) {
        if (taps.group[i] < 0) continue;
        const double weight = weight_of(w, begin + i);
        int64_t* const to = sums + taps.group[i];
        const T* const value = taps.value.get() + i * axis.stride;
        for (int64_t t = 0; t < axis.taps; t += 8)
          add_exactly<LEVELS>(to + t, to + row + t, load_wide(value + t) * weight);
      }
    }
  }
}

template <class T, int LEVELS>
void sum_exactly(const SoftHistogramSums& job) {
  const Pixels& pixels = job.pixels;
  const TapAxis<T> axis(job.axis, pixels.is_double);
  const Fold fold(axis.position, axis.length);
  const int64_t bins = job.axis.bins, parts = part_count(pixels), row = axis.row();
  const int64_t size = (pixels.count + parts - 1) / parts;
  const Scratch<int64_t> folded(LEVELS * pixels.planes * parts * bins);
  parallel_for(pixels.planes * parts, [&](int64_t begin, int64_t end) {
    const Scratch<int64_t> sums(LEVELS * row);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / parts, first = task % parts * size;
      const int64_t rest = pixels.count - first, count = rest < size ? rest : size;
      std::memset(sums.get(), 0, static_cast<std::size_t>(LEVELS * row) * sizeof(int64_t));
      add_part<T, LEVELS>(job, axis, plane * pixels.count + first, count, sums.get());
      for (int level = 0; level < LEVELS; ++level)
        fold.fold(sums.get() + level * row, folded.get() + (task * LEVELS + level) * bins);
    }
  });
  for (int64_t plane = 0; plane < pixels.planes; ++plane) {
    for (int level = 0; level < LEVELS; ++level) {
      int64_t* const out = job.sums + (level * pixels.planes + plane) * bins;
      std::memset(out, 0, static_cast<std::size_t>(bins) * sizeof(int64_t));
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t* const in = folded.get() + ((plane * parts + part) * LEVELS + level) * bins;
        for (int64_t k = 0; k < bins; ++k) out[k] += in[k];
      }
    }
    add_weights(pixels, plane, LEVELS, job.totals + plane);
  }
}

}  // namespace

void soft_histogram_sums(const SoftHistogramSums& job) {
  if (job.pixels.planes == 0) return;
  if (job.pixels.is_double)
    sum_exactly<double, 2>(job);
  else if (job.levels() == 2)
    sum_exactly<float, 2>(job);
  else
    sum_exactly<float, 1>(job);
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
