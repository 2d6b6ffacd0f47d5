// Where sixteen pixels lie among the subcells, and their moments.
#pragma once

#include "../subcell_polynomials.h"
#include "position.h"

namespace histloss::cpu {
namespace {

constexpr int64_t kPart = 32768;  // pixels
constexpr int64_t kMostParts = 16;
constexpr int64_t kBlock = 1024;  // pixels that are widened and folded together

struct Subcells {
  Position<float> position;
  const SubcellPolynomials& polynomials;
  int64_t groups;  // half-shifted bins, with the margins
  int64_t count;
  int64_t length;  // of the extended range

  Subcells(const Axis& axis, const SubcellPolynomials& p) : position(axis, false), polynomials(p) {
    groups = axis.bins + 2 * position.margin + 1;
    count = groups * p.per_bin;
    length = groups - 1 + p.taps;
  }

  // Where a block's pixels lie: the offset of their subcell in a table of (subcells, 4), v, and 1, or 0 for
  // pixels that have no place. All of them first, since each is a long chain of dependent steps.
  struct Places {
    alignas(64) uint32_t offset[kBlock];
    alignas(64) float v[kBlock];
    alignas(64) float inside[kBlock];
  };

  void locate(const float* z, int64_t n, Places& out) const {
    const float per_bin = static_cast<float>(polynomials.per_bin);
    const float shift = static_cast<float>(position.margin) + 0.5f;
    for (int64_t i = 0; i < n; i += 16) {
      const F32 pixels = load_part(z + i, n - i, NAN);
      const F32 u = (position.coarse(pixels) + shift) * per_bin;
      const I32 valid = (u >= 0.0f) & (u < static_cast<float>(count));
      const I32 subcell = __builtin_convertvector(valid ? u : F32{}, I32);
      const F32 centre = (__builtin_convertvector(subcell, F32) + 0.5f) * (1 / per_bin) - shift;
      const F32 v = position.distance(pixels, centre) * (2 * per_bin);
      store(out.offset + i, subcell * kMoments);
      store(out.v + i, valid ? v : F32{});
      store(out.inside + i, valid ? splat<F32>(1.0f) : F32{});
    }
  }
};

// Rows r of sixteen pixels to rows of four values a pixel, and back.
HISTLOSS_INLINE void to_pixels(F32 r0, F32 r1, F32 r2, F32 r3, float (*out)[4]) {
  const F32 a = __builtin_shufflevector(r0, r1, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const F32 b = __builtin_shufflevector(r0, r1, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const F32 c = __builtin_shufflevector(r2, r3, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const F32 d = __builtin_shufflevector(r2, r3, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  store(&out[0][0], __builtin_shufflevector(a, c, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23));
  store(&out[4][0],
        __builtin_shufflevector(a, c, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31));
  store(&out[8][0], __builtin_shufflevector(b, d, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23));
  store(&out[12][0],
        __builtin_shufflevector(b, d, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31));
}

HISTLOSS_INLINE F32 four_pixels(const float* table, const uint32_t* offset) {
  const F32x4 a = load<F32x4>(table + offset[0]), b = load<F32x4>(table + offset[1]);
  const F32x4 c = load<F32x4>(table + offset[2]), d = load<F32x4>(table + offset[3]);
  const auto ab = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
  const auto cd = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

HISTLOSS_INLINE void from_pixels(F32 a, F32 b, F32 c, F32 d, F32& r0, F32& r1, F32& r2, F32& r3) {
  const F32 e = __builtin_shufflevector(a, b, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const F32 f = __builtin_shufflevector(c, d, 0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const F32 g = __builtin_shufflevector(a, b, 2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
  const F32 h = __builtin_shufflevector(c, d, 2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
  r0 = __builtin_shufflevector(e, f, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  r1 = __builtin_shufflevector(e, f, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  r2 = __builtin_shufflevector(g, h, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  r3 = __builtin_shufflevector(g, h, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

// Whether a plane has the pixels to pay for its subcells.
HISTLOSS_INLINE const SubcellPolynomials* polynomials_that_pay(const Axis& axis, const Pixels& pixels) {
  if (pixels.is_double) return nullptr;
  const SubcellPolynomials* p = subcell_polynomials(axis.bandwidth);
  if (p == nullptr || Subcells(axis, *p).count > 4 * pixels.count) return nullptr;
  return p;
}

}  // namespace
}  // namespace histloss::cpu
