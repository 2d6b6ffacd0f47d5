#include "subcells.h"
#include "taps.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

// Both methods add one part of a plane to `sums`, the extended range.

void add_moments(const SoftHistogram& job, const Subcells& cells, int64_t first, int64_t count,
                 double* sums) {
  const SubcellPolynomials& poly = cells.polynomials;
  const Scratch<double> moments(cells.count * kMoments);
  std::memset(moments.get(), 0, static_cast<std::size_t>(cells.count) * kMoments * sizeof(double));
  const Image mass = values(job.pixels.mass, false);
  Subcells::Places places;
  for (int64_t block = 0; block < count; block += kBlock) {
    const int64_t n = count - block < kBlock ? count - block : kBlock;
    float buffer[kBlock], folded[kFoldBuffers * kBlock];
    const float* z = load_pixels(job.x, first + block, n, buffer);
    z = fold_pixels(cells.position, z, n, folded).z;
    const float* m = mass.data == nullptr ? nullptr : load_pixels(mass, first + block, n, buffer);
    cells.locate(z, n, places);
    for (int64_t i = 0; i < n; i += 16) {
      F32 weight = loadf(places.inside + i);
      if (m != nullptr) weight = weight * load_part(m + i, n - i, 0.0f);
      alignas(64) float rows[16][kMoments];
      const F32 v = loadf(places.v + i), v1 = weight * v, v2 = v1 * v, v3 = v2 * v;
      to_pixels(weight, v1, v2, v3, rows);
      in_memory(rows);
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p) {
        double* const cell = moments.get() + places.offset[i + p];
        store(cell, load<F64x4>(cell) + widen(load<F32x4>(rows[p])));
      }
    }
  }
  const int functions = poly.per_bin * kMoments;
  for (int64_t group = 0; group < cells.groups; ++group) {
    const double* moment = moments.get() + group * functions;
    for (int t = 0; t < poly.stride; t += 16) {
      F32 sum[kMoments]{};  // independent sums hide the latency of each
      for (int f = 0; f < functions; f += kMoments)
#pragma GCC unroll 4
        for (int r = 0; r < kMoments; ++r)
          sum[r] += static_cast<float>(moment[f + r]) *
                    loadf(poly.value + static_cast<int64_t>(f + r) * poly.stride + t);
      add_wide(sums + group + t, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    }
  }
}

void add_taps(const SoftHistogram& job, const Taps& taps, int64_t first, int64_t count, double* sums) {
  const Scratch<double> pi(taps.stride);
  const Image mass = values(job.pixels.mass, job.pixels.is_double);
  for (int64_t block = 0; block < count; block += kBlock) {
    const int64_t n = count - block < kBlock ? count - block : kBlock;
    double buffer[kBlock], folded[kFoldBuffers * kBlock], mass_buffer[kBlock];
    const double* z = load_pixels(job.x, first + block, n, buffer);
    z = fold_pixels(taps.position, z, n, folded).z;
    const double* m = mass.data == nullptr ? nullptr : load_pixels(mass, first + block, n, mass_buffer);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t begin = taps.locate(z[i]);
      if (begin < 0) continue;
      taps.evaluate<false>(z[i], begin, pi.get(), nullptr);
      const double weight = m == nullptr ? 1.0 : m[i];
      for (int64_t t = 0; t < taps.stride; t += 8) {
        double* out = sums + begin + t;
        store(out, loadd(out) + weight * loadd(pi.get() + t));
      }
    }
  }
}

template <class AddPart>
void sum_parts(const SoftHistogram& job, const Fold& fold, int64_t row, const AddPart& add_part) {
  const Pixels& pixels = job.pixels;
  const Parts parts(pixels.count, kPart, kMostParts, kBlock);
  const Scratch<double> sums(pixels.planes * parts.count * row);
  parallel_for(pixels.planes * parts.count, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / parts.count, part = task % parts.count;
      double* mine = sums.get() + task * row;
      std::memset(mine, 0, static_cast<std::size_t>(row) * sizeof(double));
      add_part(plane * pixels.count + parts.begin(part), parts.length(part, pixels.count), mine);
    }
  });
  const double share = pixels.share();
  const int64_t bins = job.axis.bins;
  const Scratch<double> folded(bins);
  for (int64_t plane = 0; plane < pixels.planes; ++plane) {
    double* total = sums.get() + plane * parts.count * row;
    for (int64_t part = 1; part < parts.count; ++part)
      for (int64_t i = 0; i < fold.length; ++i) total[i] += total[part * row + i];
    fold.fold(total, folded.get());
    for (int64_t k = 0; k < bins; ++k) {
      const double value = folded[k] * share;
      if (pixels.is_double)
        static_cast<double*>(job.histogram)[plane * bins + k] = value;
      else
        static_cast<float*>(job.histogram)[plane * bins + k] = static_cast<float>(value);
    }
  }
}

}  // namespace

void soft_histogram(const SoftHistogram& job) {
  if (const SubcellPolynomials* p = polynomials_that_pay(job.axis, job.pixels)) {
    const Subcells cells(job.axis, *p);
    sum_parts(
        job, Fold(cells.position, cells.length), cells.length + p->stride,
        [&](int64_t first, int64_t count, double* sums) { add_moments(job, cells, first, count, sums); });
  } else {
    const Taps taps(job.axis, job.pixels.is_double);
    sum_parts(job, Fold(taps.position, taps.length), taps.row(),
              [&](int64_t first, int64_t count, double* sums) { add_taps(job, taps, first, count, sums); });
  }
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
