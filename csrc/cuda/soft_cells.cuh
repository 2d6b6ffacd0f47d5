// How a soft histogram's table of nodes, which a block holds whole, and its pixels are cut among blocks.
#pragma once

#include <optional>

#include "cells.cuh"

namespace histloss::cuda {
namespace {

// What a kernel needs of shared memory, for each number of the table and each block.
struct SoftCost {
  std::size_t bytes_per_number, bytes_per_block;
};

struct SoftCells {
  const CellBasis& basis;
  Cells x;
};

// The axis in cells, or nothing where the direct method serves, see joint_cells.
inline std::optional<SoftCells> soft_cells(const Axis& axis, const Pixels& pixels, SoftCost cost,
                                           const Launch& on) {
  const CellBasis* basis = smallest_basis(axis.bandwidth);
  if (pixels.is_double || basis == nullptr) return std::nullopt;
  const SoftCells cells{*basis, Cells(axis, *basis, false)};
  if (cells.x.length > 4 * axis.bins) return std::nullopt;
  const int64_t numbers = int64_t{cells.x.count} * cells.x.nodes;
  if (pixels.count * cells.x.taps < 4 * numbers) return std::nullopt;
  if (static_cast<std::size_t>(numbers + 16) * cost.bytes_per_number + cost.bytes_per_block >
      static_cast<std::size_t>(on.shared_bytes))
    return std::nullopt;
  return cells;
}

struct SoftLayout {
  static constexpr int64_t kLeastPart = 8192;
  static constexpr int64_t kMostParts = 256;

  int numbers;  // of a plane's table, a multiple of 16: what follows it in shared memory is aligned
  int parts;    // of a plane's pixels
  int64_t part_size;
  std::size_t shared_bytes;

  SoftLayout(const SoftCells& cells, SoftCost cost, const Pixels& pixels)
      : numbers(ceil_div(cells.x.count * cells.x.nodes, 16) * 16),
        shared_bytes(static_cast<std::size_t>(numbers) * cost.bytes_per_number + cost.bytes_per_block) {
    int64_t wanted = ceil_div(pixels.count, kLeastPart);
    if (wanted > kMostParts) wanted = kMostParts;
    part_size = ceil_div(ceil_div(pixels.count, wanted), int64_t{kThreads}) * kThreads;
    parts = static_cast<int>(ceil_div(pixels.count, part_size));
  }
};

}  // namespace
}  // namespace histloss::cuda
