// One-dimensional histograms, float32: cut every bin into a few subcells. Within one, each Pi is a cubic to
// float32's precision, so a pixel adds four moments, and the cubics are applied once per subcell.
#pragma once

#include <cstdint>

namespace histloss::cpu {

constexpr int kMoments = 4;

// A pixel at bin coordinate u is in group i = floor(u + 1/2), half a bin off the bins so that the nearest
// 2 radius bins, from i - radius on, lie evenly around it; in subcell s of the group, at v in [-1, 1].
struct SubcellPolynomials {
  int per_bin;  // a power of two: the subcells' centres are exact in binary
  int radius;   // of the kernel, in bins
  int taps;     // 2 radius
  int stride;   // taps rounded up to whole vectors

  const float* value;         // (per_bin, 4, stride): Pi of tap t = sum_r value[s][r][t] v^r
  const float* value_by_tap;  // (taps, per_bin, 4)
  const float* slope_by_tap;  // (taps, per_bin, 4): d Pi / d u
};

// Null where the polynomials do not pay: very narrow or very wide kernels.
const SubcellPolynomials* subcell_polynomials(double bandwidth);

}  // namespace histloss::cpu
