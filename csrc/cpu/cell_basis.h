// Sixteen activations stand for all the bins that a pixel touches.
//
// Cut the axis into cells of a few bins. For pixels of one cell, every Pi(t - d) is a fixed linear mix of the
// activations at sixteen nodes: far bins see geometric series in e^(a t) and e^(-a t), and a few functions span
// those. So a pixel scatters 16 numbers per axis whatever the bandwidth, and the mix to the bins is applied
// once per cell instead of once per pixel. Its coefficients depend on the bandwidth alone; they are found by
// least squares over value and slope together.
#pragma once

#include <cstdint>

namespace histloss::cpu {

constexpr int kNodes = 16;

struct CellBasis {
  // Pixel at distance t (in bins) from the cell's centre; e = exp(a t): node r's p and n are p[r] e and n[r] / e.
  alignas(64) float p[kNodes];
  alignas(64) float n[kNodes];
  float coth, a, a_low;

  int cell_bins;   // q
  int radius;      // of the kernel, in bins
  int taps;        // q + 2 radius: the bins that a cell's pixels touch, the first at -radius
  int node_taps;   // 16 if the middle taps are the nodes themselves (narrow kernels), else 0
  int outer_taps;  // taps - node_taps: half of them before the node taps, half after
  int outer_stride;  // outer_taps rounded up to whole vectors

  const float* by_tap;   // (outer_taps, 16)
  const float* by_node;  // (16, outer_stride)

  // Where outer tap o lies among the taps.
  int outer_position(int o) const { return o < outer_taps / 2 ? o : o + node_taps; }
};

// The basis for a float32 kernel of this bandwidth, or null where it does not apply: kernels so narrow that
// their exponentials leave float32's range.
const CellBasis* cell_basis(double bandwidth);

}  // namespace histloss::cpu
