// How a joint histogram's table of nodes, rows of x by columns of y, is cut among blocks.
#pragma once

#include <optional>

#include "cells.cuh"

namespace histloss::cuda {
namespace {

// Rows that follow each other begin in different halves of the shared memory's banks.
inline int row_stride(const Cells& y) { return (y.columns() + 15) / 32 * 32 + 16; }

struct JointCells {
  const CellBasis &basis_x, &basis_y;
  Cells x, y;

  std::size_t numbers_per_cell() const { return static_cast<std::size_t>(x.nodes) * row_stride(y); }
  int64_t numbers() const { return x.count * static_cast<int64_t>(numbers_per_cell()); }
};

// What a kernel with such a table needs of shared memory, for each number and each warp of a block, and how
// large its blocks may get.
struct TableCost {
  std::size_t bytes_per_number, bytes_per_warp_of_8, bytes_per_warp_of_16;  // nodes
  std::size_t most_bytes;
  int most_warps;

  std::size_t bytes_per_warp(const Cells& rows) const {
    return rows.nodes == 8 ? bytes_per_warp_of_8 : bytes_per_warp_of_16;
  }
};

// Warps of a block: fewer where shared memory is scarce, 0 where not even one cell of x fits.
inline int fitting_warps(const JointCells& cells, TableCost cost, const Launch& on) {
  constexpr std::size_t kPerWarp = 12 * 1024;  // less leaves too little for the table
  const std::size_t limit = static_cast<std::size_t>(on.shared_bytes);
  int warps = cost.most_warps;
  while (warps > 4 && warps * kPerWarp > limit) warps /= 2;
  while (warps > 0 &&
         cells.numbers_per_cell() * cost.bytes_per_number + warps * cost.bytes_per_warp(cells.x) > limit)
    warps /= 2;
  return warps;
}

// The axes in cells, or nothing where the direct method serves: float64 images, few pixels, kernels too
// narrow or too wide for the tables, ranges short beside the kernel (their many folded taps would amplify
// rounding), and so many bins of y that one cell's rows do not fit in shared memory.
inline std::optional<JointCells> joint_cells(const Axis& axis_x, const Axis& axis_y, const Pixels& pixels,
                                             TableCost cost, const Launch& on) {
  const CellBasis* basis_x = smallest_basis(axis_x.bandwidth);
  const CellBasis* basis_y = cell_basis(axis_y.bandwidth, kNodes);
  if (pixels.is_double || basis_x == nullptr || basis_y == nullptr) return std::nullopt;
  const JointCells cells{*basis_x, *basis_y, Cells(axis_x, *basis_x, false),
                         Cells(axis_y, *basis_y, axis_y.bandwidth <= kWidestWindow)};
  if (cells.x.length > 4 * axis_x.bins || cells.y.length > 4 * axis_y.bins) return std::nullopt;
  if (pixels.count * cells.x.taps * cells.y.taps < 4 * cells.numbers()) return std::nullopt;
  if (fitting_warps(cells, cost, on) == 0) return std::nullopt;
  return cells;
}

// Integer sums and gathered gradients have the same bits however the work is cut.
struct JointLayout {
  static constexpr int64_t kBusyBlocks = 512;
  static constexpr int64_t kLeastPart = 4096;
  static constexpr int64_t kMostParts = 64;
  static constexpr int64_t kScratchBytes = int64_t{256} << 20;

  int stride;     // of a row
  int64_t table;  // numbers of a plane
  int strip_cells, strips;
  int warps;  // of a block
  int parts;  // of a plane's pixels
  int64_t part_size;
  std::size_t shared_bytes;

  JointLayout(const JointCells& cells, TableCost cost, const Pixels& pixels, const Launch& on)
      : stride(row_stride(cells.y)), table(cells.numbers()) {
    warps = fitting_warps(cells, cost, on);
    const std::size_t one_cell = cells.numbers_per_cell() * cost.bytes_per_number;
    const std::size_t of_warps = warps * cost.bytes_per_warp(cells.x);
    const std::size_t limit = static_cast<std::size_t>(on.shared_bytes);
    const std::size_t wanted = limit < cost.most_bytes ? limit : cost.most_bytes;
    const int most = wanted < of_warps + one_cell ? 1 : static_cast<int>((wanted - of_warps) / one_cell);
    strips = ceil_div(cells.x.count, most);
    strip_cells = ceil_div(cells.x.count, strips);
    strips = ceil_div(cells.x.count, strip_cells);
    shared_bytes = static_cast<std::size_t>(strip_cells) * one_cell + of_warps;

    int64_t wanted_parts = ceil_div(kBusyBlocks, pixels.planes * strips);
    const int64_t fitting = kScratchBytes / (table * static_cast<int64_t>(sizeof(unsigned long long)));
    for (const int64_t most_parts : {ceil_div(pixels.count, kLeastPart), kMostParts, fitting})
      if (wanted_parts > most_parts) wanted_parts = most_parts;
    if (wanted_parts < 1) wanted_parts = 1;
    part_size = ceil_div(ceil_div(pixels.count, wanted_parts), int64_t{kThreads}) * kThreads;
    parts = static_cast<int>(ceil_div(pixels.count, part_size));
  }

  // So that scratch memory stays small beside the images' own.
  static int64_t planes_at_once(std::size_t bytes_per_plane, int64_t planes) {
    const int64_t fitting = kScratchBytes / static_cast<int64_t>(bytes_per_plane);
    return fitting < 1 ? 1 : fitting < planes ? fitting : planes;
  }
};

// What scatter and gather work on: a block on one strip, some cells of x, and one part of a plane's pixels.
struct StripWork {
  Cells x, y;
  Pixels pixels;
  Image image_x, image_y;
  int64_t first_plane, part_size;
  int parts, strips, strip_cells, stride;

  StripWork(const JointCells& cells, const JointLayout& layout, const Pixels& p, Image on_x, Image on_y)
      : x(cells.x),
        y(cells.y),
        pixels(p),
        image_x(on_x),
        image_y(on_y),
        first_plane(0),
        part_size(layout.part_size),
        parts(layout.parts),
        strips(layout.strips),
        strip_cells(layout.strip_cells),
        stride(layout.stride) {}
};

// A block's share of it.
struct Strip {
  int first_cell, cells;
  int64_t slot;          // of the plane's part among those of this launch
  int64_t plane;         // among those of this launch
  int64_t first, count;  // pixels, from the first plane's beginning

  __device__ explicit Strip(const StripWork& work)
      : first_cell(static_cast<int>(blockIdx.x % work.strips) * work.strip_cells),
        cells(min(work.strip_cells, work.x.count - first_cell)),
        slot(blockIdx.x / work.strips),
        plane(slot / work.parts) {
    const int64_t begin = slot % work.parts * work.part_size, rest = work.pixels.count - begin;
    first = (work.first_plane + plane) * work.pixels.count + begin;
    count = rest < work.part_size ? rest : work.part_size;
  }

  // Where its nodes begin in a table of the planes (or of their parts, if `of` is the slot).
  __device__ int64_t nodes(const StripWork& work, int64_t of, int rows) const {
    return (of * work.x.count + first_cell) * rows * work.stride;
  }

  // Whether a settled pixel's cell is among them: as x.cell(z) has it, without making an integer of it.
  __device__ __forceinline__ bool holds(const Cells& x, float z) const {
    const float at = x.in_cells(z);
    return at >= static_cast<float>(first_cell) && at < static_cast<float>(first_cell + cells);
  }
};

// Groups of 32 pixels that a warp looks through at a time, and how many it may have found then.
constexpr int kGroups = 2;
constexpr int kMostWaiting = (kGroups + 1) * kWarp;

// values[g] = pixel first + 32 g + lane, NaN where `count` pixels from `first` on do not reach.
__device__ __forceinline__ void load_groups(const Image& image, int64_t first, int64_t count,
                                            float (&values)[kGroups]) {
  const int64_t at = first + lane_of_thread();
  const int reach = count < kGroups * kWarp ? static_cast<int>(count) - lane_of_thread() : kGroups * kWarp;
  if (image.type == Scalar::f32) {
    const float* const from = static_cast<const float*>(image.data) + at;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) values[g] = g * kWarp < reach ? from[g * kWarp] : NAN;
  } else {
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      values[g] = g * kWarp < reach ? load<float>(image, at + g * kWarp) : NAN;
  }
}

// Looks, with a block's warps, through x's `count` pixels from `first` on. mine(x, settled, i) tells whether
// this strip has pixel i; keep(place, x, i) is to store it among those that wait, which take(begin, n) then
// works on, at most 32 at a time.
template <class Mine, class Keep, class Take>
__device__ __forceinline__ void find_pixels(const StripWork& work, int64_t first, int64_t count,
                                            const Mine& mine, const Keep& keep, const Take& take) {
  const int lane = lane_of_thread();
  const int64_t step = static_cast<int64_t>(blockDim.x) * kGroups;
  int waiting = 0;
  for (int64_t begin = warp_of_thread() * kWarp * kGroups; begin < count; begin += step) {
    float xs[kGroups];
    load_groups(work.image_x, first + begin, count - begin, xs);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int64_t i = begin + g * kWarp + lane;
      float x = xs[g], sign;
      const bool settled = settle(work.x.position, x, sign), found = mine(x, settled, i);
      const unsigned lanes = __ballot_sync(kAllLanes, found);
      if (found) keep(waiting + __popc(lanes & ((1u << lane) - 1)), x, i);
      waiting += __popc(lanes);
    }
    __syncwarp();
    const bool last = begin + step >= count;
    while (waiting >= kWarp || (last && waiting > 0)) {
      const int n = min(waiting, kWarp);
      waiting -= n;
      take(waiting, n);
      __syncwarp();
    }
  }
}

}  // namespace
}  // namespace histloss::cuda
