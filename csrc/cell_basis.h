// A few activations stand for all the bins that a pixel touches.
//
// Cut the axis into cells of a few bins. For pixels of one cell, every Pi(t - d) is a fixed linear mix of the
// activations at 8 or 16 nodes: far bins see geometric series in e^(a t) and e^(-a t), and a few functions
// span those. So a pixel meets that many numbers per axis whatever the bandwidth, and the mix to the bins is
// applied once per cell instead of once per pixel. Its coefficients depend on the bandwidth alone; they are
// found by least squares over value and slope together.
#pragma once

#include <cstdint>

namespace histloss {

struct CellBasis {
  // Pixel at distance t (in bins) from the cell's centre; e = exp(a t): node r's p and n are p[r] e and n[r]
  // / e. Eight nodes stand there twice, for two pixels.
  alignas(64) float p[16];
  alignas(64) float n[16];
  float coth, a, a_low;
  int nodes;

  int cell_bins;   // q
  int radius;      // of the kernel, in bins
  int taps;        // q + 2 radius: the bins that a cell's pixels touch, the first at -radius
  int node_taps;   // `nodes` if the middle taps are the nodes themselves (narrow kernels), else 0
  int outer_taps;  // taps - node_taps: half of them before the node taps, half after

  const float* mix;  // (outer_taps, nodes)

  // Where outer tap o lies among the taps.
  int outer_position(int o) const { return o < outer_taps / 2 ? o : o + node_taps; }
};

// The basis of 8 or 16 nodes for a float32 kernel of this bandwidth, or null where it does not apply: kernels
// so narrow that their exponentials leave float32's range, or too wide for so few nodes.
const CellBasis* cell_basis(double bandwidth, int nodes);

}  // namespace histloss
