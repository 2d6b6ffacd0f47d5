#include "subcells.h"
#include "taps.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

// One function of a pixel's value a gradient: its cubics on every subcell of a plane, (subcells, 4).
void tabulate(const Subcells& cells, const float* extended_grad, const float* by_tap, double scale,
              float* table) {
  const SubcellPolynomials& poly = cells.polynomials;
  const int functions = poly.per_bin * kMoments;
  for (int64_t group = 0; group < cells.groups; ++group) {
    float* out = table + group * functions;
    int f = 0;
    for (; f + 16 <= functions; f += 16) {
      F32 sum{};
      for (int t = 0; t < poly.taps; ++t) sum += extended_grad[group + t] * loadf(by_tap + t * functions + f);
      store(out + f, sum * static_cast<float>(scale));
    }
    for (; f < functions; ++f) {
      float sum = 0;
      for (int t = 0; t < poly.taps; ++t) sum += extended_grad[group + t] * by_tap[t * functions + f];
      out[f] = sum * static_cast<float>(scale);
    }
  }
}

HISTLOSS_INLINE F32 look_up(const float* table, const Subcells::Places& places, int64_t i) {
  const uint32_t* const offset = places.offset + i;
  F32 c0, c1, c2, c3;
  from_pixels(four_pixels(table, offset), four_pixels(table, offset + 4), four_pixels(table, offset + 8),
              four_pixels(table, offset + 12), c0, c1, c2, c3);
  const F32 v = loadf(places.v + i);
  return (((c3 * v + c2) * v + c1) * v + c0) * loadf(places.inside + i);
}

void backward_by_subcells(const SoftHistogramBackward& job, const Subcells& cells) {
  const Pixels& pixels = job.pixels;
  const SubcellPolynomials& poly = cells.polynomials;
  const int64_t size = cells.count * kMoments;
  const bool to_x = job.grad_x.data != nullptr, to_mass = job.grad_mass != nullptr;
  const Scratch<float> slopes(to_x ? pixels.planes * size : 0), heights(to_mass ? pixels.planes * size : 0);
  const double share = pixels.share();
  const double per_unit = share / job.axis.width();
  const Fold fold(cells.position, cells.length);
  parallel_for(pixels.planes, [&](int64_t begin, int64_t end) {
    const Scratch<float> extended(cells.length);
    for (int64_t plane = begin; plane < end; ++plane) {
      fold.unfold(static_cast<const float*>(job.grad) + plane * job.axis.bins, extended.get());
      if (to_x) tabulate(cells, extended.get(), poly.slope_by_tap, per_unit, slopes.get() + plane * size);
      if (to_mass) tabulate(cells, extended.get(), poly.value_by_tap, 1.0, heights.get() + plane * size);
    }
  });

  const Image mass = values(pixels.mass, false);
  const Parts parts(pixels.count, kPart, pixels.count, kBlock);
  parallel_for(pixels.planes * parts.count, [&](int64_t begin, int64_t end) {
    Subcells::Places places;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / parts.count, part = task % parts.count;
      const int64_t first = plane * pixels.count + parts.begin(part),
                    count = parts.length(part, pixels.count);
      const float* slope = slopes.get() + plane * size;
      const float* height = heights.get() + plane * size;
      for (int64_t block = 0; block < count; block += kBlock) {
        const int64_t n = count - block < kBlock ? count - block : kBlock, at = first + block;
        float buffer[kBlock], fold_buffer[kFoldBuffers * kBlock], out_buffer[kBlock];
        const Folded<float> folded =
            fold_pixels(cells.position, load_pixels(job.x, at, n, buffer), n, fold_buffer);
        const float* m = mass.data == nullptr ? nullptr : static_cast<const float*>(mass.data) + at;
        float* out = to_x ? pixels_to_store(job.grad_x, at, out_buffer) : nullptr;
        cells.locate(folded.z, n, places);
        for (int64_t i = 0; i < n; i += 16) {
          if (to_x) {
            F32 g = look_up(slope, places, i);
            if (m != nullptr) g = g * load_part(m + i, n - i, 0.0f);
            if (folded.sign != nullptr) g = g * load_part(folded.sign + i, n - i, 1.0f);
            store_part(out + i, g, n - i);
          }
          if (to_mass)
            store_part(static_cast<float*>(job.grad_mass) + at + i, look_up(height, places, i), n - i);
        }
        if (to_x) store_pixels(job.grad_x, at, n, out);
      }
    }
  });
}

void backward_by_taps(const SoftHistogramBackward& job, const Taps& taps) {
  const Pixels& pixels = job.pixels;
  const bool to_x = job.grad_x.data != nullptr, to_mass = job.grad_mass != nullptr;
  const int64_t row = taps.row(), bins = job.axis.bins;
  const Fold fold(taps.position, taps.length);
  const Scratch<double> extended(pixels.planes * row);
  for (int64_t plane = 0; plane < pixels.planes; ++plane) {
    double* out = extended.get() + plane * row;
    std::memset(out, 0, static_cast<std::size_t>(row) * sizeof(double));
    if (pixels.is_double)
      fold.unfold(static_cast<const double*>(job.grad) + plane * bins, out);
    else
      fold.unfold(static_cast<const float*>(job.grad) + plane * bins, out);
  }
  const double share = pixels.share();
  const Image mass = values(pixels.mass, pixels.is_double);
  const MutableImage grad_mass = values(job.grad_mass, pixels.is_double);
  const Parts parts(pixels.count, kBlock, pixels.count, 1);
  parallel_for(pixels.planes * parts.count, [&](int64_t begin, int64_t end) {
    const Scratch<double> pi(taps.stride), slope(taps.stride);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / parts.count, part = task % parts.count;
      const int64_t at = plane * pixels.count + parts.begin(part), n = parts.length(part, pixels.count);
      const double* grad = extended.get() + plane * row;
      double buffer[kBlock], fold_buffer[kFoldBuffers * kBlock], mass_buffer[kBlock], out_x[kBlock],
          out_mass[kBlock];
      const Folded<double> folded =
          fold_pixels(taps.position, load_pixels(job.x, at, n, buffer), n, fold_buffer);
      const double* m = mass.data == nullptr ? nullptr : load_pixels(mass, at, n, mass_buffer);
      double* gx = to_x ? pixels_to_store(job.grad_x, at, out_x) : nullptr;
      double* gm = to_mass ? pixels_to_store(grad_mass, at, out_mass) : nullptr;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t first = taps.locate(folded.z[i]);
        F64 sum_pi{}, sum_slope{};
        if (first >= 0) {
          taps.evaluate<true>(folded.z[i], first, pi.get(), slope.get());
          for (int64_t t = 0; t < taps.stride; t += 8) {
            const F64 g = loadd(grad + first + t);
            sum_pi += g * loadd(pi.get() + t);
            sum_slope += g * loadd(slope.get() + t);
          }
        }
        const double weight = m == nullptr ? share : m[i];
        if (to_x) gx[i] = sum(sum_slope) * weight * (folded.sign == nullptr ? 1.0 : folded.sign[i]);
        if (to_mass) gm[i] = sum(sum_pi);
      }
      if (to_x) store_pixels(job.grad_x, at, n, gx);
      if (to_mass) store_pixels(grad_mass, at, n, gm);
    }
  });
}

}  // namespace

void soft_histogram_backward(const SoftHistogramBackward& job) {
  if (job.pixels.count == 0) return;
  if (const SubcellPolynomials* p = polynomials_that_pay(job.axis, job.pixels))
    backward_by_subcells(job, Subcells(job.axis, *p));
  else
    backward_by_taps(job, Taps(job.axis, job.pixels.is_double));
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
