// Axes cut into cells, float32: a pixel meets the 8 or 16 nodes of its cell, and the mix from nodes to bins
// is applied to the sums. csrc/cell_basis.h says why that is exact enough; it makes the tables for the CPU
// too.
#pragma once

#include "../cell_basis.h"
#include "device.cuh"

namespace histloss::cuda {
namespace {

constexpr int kNodes = 16;  // of a column; rows may have 8

// Up to this bandwidth, what lies beyond a window of 16 bins about a pixel is less than 1e-7 of the largest
// activation: columns need no nodes of their own.
constexpr double kWidestWindow = 0.42;

struct Cells {
  Position<float> position;
  float p[16], n[16], coth;  // of the nodes
  float a, a_low, per_cell;
  float peak;  // the largest activation
  int count, cell_bins, nodes;
  int step;                          // columns from a cell's first node to the next cell's
  int taps, nodes_begin, nodes_end;  // the bins a cell touches; those in [nodes_begin, nodes_end) are nodes
  int padding, length;               // of the extended range: the index of bin 0, and bins in all

  // In `window` form a cell's nodes are the 16 bins about it, which neighbouring cells share.
  Cells(const Axis& axis, const CellBasis& basis, bool window)
      : position(axis, false),
        coth(basis.coth),
        a(basis.a),
        a_low(basis.a_low),
        cell_bins(window ? 2 : basis.cell_bins),
        nodes(basis.nodes),
        step(window ? 2 : basis.nodes),
        taps(window ? kNodes : basis.taps),
        nodes_begin(window ? 0 : basis.outer_taps / 2),
        nodes_end(nodes_begin + (window ? kNodes : basis.node_taps)) {
    for (int r = 0; r < 16; ++r) p[r] = basis.p[r], n[r] = basis.n[r];
    const KernelConstants kernel = kernel_constants(axis.bandwidth);
    peak = static_cast<float>(1 / (kernel.coth + 2 * std::exp(-kernel.log_2sinh)));
    per_cell = 1.0f / static_cast<float>(cell_bins);
    const int margin = static_cast<int>(position.margin);
    count = (static_cast<int>(axis.bins) + 2 * margin) / cell_bins + 1;
    padding = margin + (window ? kNodes / 2 - 1 : basis.radius);
    length = (count - 1) * cell_bins + taps;
  }

  HISTLOSS_HOST_DEVICE bool nodes_are_bins() const { return nodes_begin < nodes_end; }
  HISTLOSS_HOST_DEVICE bool is_window() const { return step != nodes; }
  int outer_taps() const { return taps - (nodes_end - nodes_begin); }
  // Columns that the cells' nodes take.
  HISTLOSS_HOST_DEVICE int columns() const { return (count - 1) * step + nodes; }

  // Where a settled pixel lies, in bins from the first cell's beginning.
  HISTLOSS_HOST_DEVICE float place(float z) const {
    return position.coarse(z) + static_cast<float>(position.margin);
  }

  // The cell of a settled pixel, -1 where there is none.
  HISTLOSS_HOST_DEVICE int cell(float z) const {
    const float at = in_cells(z);
    return at >= 0 && at < static_cast<float>(count) ? static_cast<int>(at) : -1;
  }
  HISTLOSS_HOST_DEVICE float in_cells(float z) const { return place(z) * per_cell; }

  // e^(a t) and e^(-a t), t being the distance from the centre of the pixel's cell. The exponent is short +
  // rest, so that it is never rounded at its full size.
  __device__ float2 exponentials(float z, int cell) const {
    const float bin = floorf(place(z)) + 0.5f;
    const float whole = bin - (static_cast<float>(cell) + 0.5f) * static_cast<float>(cell_bins);
    const float fraction = position.distance(z, bin - static_cast<float>(position.margin));
    const float large = whole * a;
    const float small = fmaf(whole, a, -large) + fmaf(fraction, a, (whole + fraction) * a_low);
    const float e = expf(large) * expf(small);
    return make_float2(e, __fdividef(1.0f, e));
  }
};

// Pi at a node whose constants are p and n.
__device__ __forceinline__ float activation(float2 exponentials, float p, float n, float coth) {
  return __fdividef(1.0f, fmaf(exponentials.x, p, fmaf(exponentials.y, n, coth)));
}

// Pi, and its slope but for the factor a. The same bits whether or not the caller uses both.
__device__ __forceinline__ float2 activation_and_slope(float2 exponentials, float p, float n, float coth) {
  const float pi = activation(exponentials, p, n, coth);
  return make_float2(pi, pi * pi * fmaf(exponentials.y, n, -(exponentials.x * p)));
}

// For what has as few nodes as the bandwidth allows; null where there are none.
inline const CellBasis* smallest_basis(double bandwidth) {
  const CellBasis* basis = cell_basis(bandwidth, 8);
  return basis != nullptr ? basis : cell_basis(bandwidth, kNodes);
}

// ---- the mix between nodes and bins

// The mix (outer taps, nodes) in device memory. It travels as kernel arguments, which need no host memory
// that outlives the call and no synchronisation.
struct MixUpload {
  static constexpr int kMost = 960;
  float* to;
  int count;
  float values[kMost];
};

__global__ void upload_mix(const __grid_constant__ MixUpload job) {
  for (int i = threadIdx.x; i < job.count; i += kThreads) job.to[i] = job.values[i];
}

inline cudaError_t make_mix(const Cells& cells, const CellBasis& basis, Launch& on, const float** mix) {
  const int count = cells.outer_taps() * cells.nodes;
  *mix = nullptr;
  if (count == 0) return cudaSuccess;
  float* const to = static_cast<float*>(on.scratch(static_cast<std::size_t>(count) * sizeof(float)));
  for (int first = 0; first < count; first += MixUpload::kMost) {
    MixUpload job{};
    job.to = to + first;
    job.count = count - first < MixUpload::kMost ? count - first : MixUpload::kMost;
    for (int i = 0; i < job.count; ++i) job.values[i] = basis.mix[first + i];
    HISTLOSS_TRY(launch_blocks(upload_mix, 1, 0, on, job));
  }
  *mix = to;
  return cudaSuccess;
}

// Bin k of what the cells' nodes hold; read(cell, r) is node r's number. Where nodes are not bins themselves,
// their sums are large beside the bins', and float32 would lose what they differ by: Sum is then double.
template <class Sum, class Read>
__device__ __forceinline__ float mix_to_bin(const Cells& cells, const float* mix, int k, const Read& read) {
  Sum sum = 0;
  each_unfolded(k, static_cast<int>(cells.position.bins), cells.position.boundary, -cells.padding,
                cells.length - cells.padding, [&](int e) {
                  const int at = e + cells.padding, last = at / cells.cell_bins;
                  for (int cell = last < cells.count ? last : cells.count - 1; cell >= 0; --cell) {
                    const int tap = at - cell * cells.cell_bins;
                    if (tap >= cells.taps) break;
                    if (tap >= cells.nodes_begin && tap < cells.nodes_end) {
                      sum += read(cell, tap - cells.nodes_begin);
                      continue;
                    }
                    const int outer =
                        tap < cells.nodes_begin ? tap : tap - (cells.nodes_end - cells.nodes_begin);
                    for (int r = 0; r < cells.nodes; ++r)
                      sum += static_cast<Sum>(mix[outer * cells.nodes + r]) * read(cell, r);
                  }
                });
  return static_cast<float>(sum);
}

// The adjoint: the nodes of one cell from numbers on the bins; read(k) is bin k's.
template <int NODES, class Read>
__device__ __forceinline__ void mix_to_nodes(const Cells& cells, const float* mix, int cell, const Read& read,
                                             float (&nodes)[NODES]) {
  const auto tap_value = [&](int tap) {
    const int k = fold_bin(cell * cells.cell_bins + tap - cells.padding,
                           static_cast<int>(cells.position.bins), cells.position.boundary);
    return k >= 0 ? read(k) : 0.0f;
  };
  const auto add = [&](int outer, float value) {
#pragma unroll
    for (int r = 0; r < NODES; ++r) nodes[r] = fmaf(mix[outer * NODES + r], value, nodes[r]);
  };
#pragma unroll
  for (int r = 0; r < NODES; ++r) nodes[r] = cells.nodes_are_bins() ? tap_value(cells.nodes_begin + r) : 0.0f;
  for (int tap = 0; tap < cells.nodes_begin; ++tap) add(tap, tap_value(tap));
  for (int tap = cells.nodes_end; tap < cells.taps; ++tap)
    add(tap - (cells.nodes_end - cells.nodes_begin), tap_value(tap));
}

}  // namespace
}  // namespace histloss::cuda
