#include "parzen.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

template <class T>
struct TapAxes {
  TapAxis<T> x, y;
  int64_t row;   // of a table on the extended ranges
  int64_t size;  // of a table

  explicit TapAxes(const JointHistogramSums& job)
      : x(job.axis_x, job.pixels.is_double),
        y(job.axis_y, job.pixels.is_double),
        row(y.row()),
        size(x.length * row + 16) {}
};

template <class T, int LEVELS>
void add_part(const JointHistogramSums& job, const TapAxes<T>& axes, int64_t first, int64_t count,
              int64_t* sums) {
  const Image mass = values(job.pixels.mass, job.pixels.is_double);
  const int64_t batch_x = batch_size(axes.x.stride), batch_y = batch_size(axes.y.stride);
  const int64_t batch = batch_x < batch_y ? batch_x : batch_y, wide = (axes.y.taps + 7) / 8 * 8;
  TapBatch<T> taps_x(batch, axes.x.stride), taps_y(batch, axes.y.stride);
  const Scratch<T> buffer((2 + 2 * kFoldBuffers) * kTapBlock);
  const Scratch<double> of_y(wide), mass_buffer(kTapBlock);
  for (int64_t block = 0; block < count; block += kTapBlock) {
    const int64_t n = count - block < kTapBlock ? count - block : kTapBlock, at = first + block;
    const FoldedPair<T> pixels = fold_pair(job, axes.x.position, axes.y.position, at, n, buffer.get());
    const double* const w = mass.data == nullptr ? nullptr : load_pixels(mass, at, n, mass_buffer.get());
    for (int64_t begin = 0; begin < n; begin += batch) {
      const int64_t some = n - begin < batch ? n - begin : batch;
      axes.x.template evaluate<false>(pixels.x, begin, some, taps_x);
      axes.y.template evaluate<false>(pixels.y, begin, some, taps_y);
      for (int64_t i = 0; i < some; ++i) {
        if (taps_x.group[i] < 0 || taps_y.group[i] < 0) continue;
        const double weight = weight_of(w, begin + i);
        int64_t* const window = sums + taps_x.group[i] * axes.row + taps_y.group[i];
        const T *const x = taps_x.value.get() + i * axes.x.stride, *const y =
                                                                       taps_y.value.get() + i * axes.y.stride;
        if (wide == 8) {
          const F64 columns = load_wide(y);
          for (int64_t r = 0; r < axes.x.taps; ++r) {
            int64_t* const to = window + r * axes.row;
            add_exactly<LEVELS>(to, to + axes.size, columns * (weight * static_cast<double>(x[r])));
          }
        } else if (wide == 16) {
          const F64 low = load_wide(y), high = load_wide(y + 8);
          for (int64_t r = 0; r < axes.x.taps; ++r) {
            int64_t* const to = window + r * axes.row;
            const double here = weight * static_cast<double>(x[r]);
            add_exactly<LEVELS>(to, to + axes.size, low * here);
            add_exactly<LEVELS>(to + 8, to + axes.size + 8, high * here);
          }
        } else {
          for (int64_t t = 0; t < wide; t += 8) store(of_y.get() + t, load_wide(y + t));
          for (int64_t r = 0; r < axes.x.taps; ++r) {
            int64_t* const to = window + r * axes.row;
            const double here = weight * static_cast<double>(x[r]);
            for (int64_t t = 0; t < wide; t += 8)
              add_exactly<LEVELS>(to + t, to + axes.size + t, loadd(of_y.get() + t) * here);
          }
        }
      }
    }
  }
}

// A table on the extended ranges, as one of bins.
void fold_table(const Fold& fold_x, const Fold& fold_y, int64_t row, int64_t* table, int64_t* out) {
  const int64_t ky = fold_y.bins;
  std::memset(out, 0, static_cast<std::size_t>(fold_x.bins * ky) * sizeof(int64_t));
  for (int64_t i = 0; i < fold_x.length; ++i) {
    if (fold_x.bin(i) < 0) continue;
    int64_t *const from = table + i * row, *const to = out + fold_x.bin(i) * ky;
    fold_y.fold(from);
    for (int64_t l = 0; l < ky; ++l) to[l] += from[fold_y.padding + l];
  }
}

template <class T, int LEVELS>
void sum_exactly(const JointHistogramSums& job) {
  const Pixels& pixels = job.pixels;
  const TapAxes<T> axes(job);
  const Fold fold_x(axes.x.position, axes.x.length), fold_y(axes.y.position, axes.y.length);
  const int64_t bins = fold_x.bins * fold_y.bins, parts = part_count(pixels);
  const int64_t size = (pixels.count + parts - 1) / parts;
  const Scratch<int64_t> others(LEVELS * pixels.planes * (parts - 1) * bins);  // of the parts after the first
  const auto folded = [&](int64_t plane, int64_t part, int64_t level) {
    return part == 0 ? job.sums + (level * pixels.planes + plane) * bins
                     : others.get() + ((plane * (parts - 1) + part - 1) * LEVELS + level) * bins;
  };
  parallel_for(pixels.planes * parts, [&](int64_t begin, int64_t end) {
    const Scratch<int64_t> sums(LEVELS * axes.size);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / parts, part = task % parts, first = part * size;
      const int64_t rest = pixels.count - first, count = rest < size ? rest : size;
      std::memset(sums.get(), 0, static_cast<std::size_t>(LEVELS * axes.size) * sizeof(int64_t));
      add_part<T, LEVELS>(job, axes, plane * pixels.count + first, count, sums.get());
      for (int level = 0; level < LEVELS; ++level)
        fold_table(fold_x, fold_y, axes.row, sums.get() + level * axes.size, folded(plane, part, level));
    }
  });
  parallel_for(pixels.planes, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      for (int level = 0; level < LEVELS; ++level)
        for (int64_t part = 1; part < parts; ++part) {
          int64_t* const out = folded(plane, 0, level);
          const int64_t* const in = folded(plane, part, level);
          for (int64_t k = 0; k < bins; ++k) out[k] += in[k];
        }
      add_weights(pixels, plane, LEVELS, job.totals + plane);
    }
  });
}

}  // namespace

void joint_histogram_sums(const JointHistogramSums& job) {
  if (job.pixels.planes == 0) return;
  if (job.pixels.is_double)
    sum_exactly<double, 2>(job);
  else if (job.levels() == 2)
    sum_exactly<float, 2>(job);
  else
    sum_exactly<float, 1>(job);
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
