// Sums of contributions as 64-bit integers, each contribution rounded to the grids of csrc/bin_kernel.h.
// Their bits depend neither on the order nor on how pixels are cut into blocks and calls.
#pragma once

#include "device.cuh"

namespace histloss::cuda {
namespace {

// A pixel's weight, 0 for one that is none.
__device__ __forceinline__ double weight_of(const Pixels& pixels, int64_t i) {
  if (pixels.mass == nullptr) return 1;
  const double weight = load<double>(values(pixels.mass, pixels.is_double), i);
  return valid_weight(weight) ? weight : 0;
}

struct Rounded {
  unsigned long long coarse, fine;

  __device__ __forceinline__ explicit Rounded(double value) {
    const double shifted = value + kShift, left = value - (shifted - kShift);
    coarse = steps(shifted, kShift);
    fine = steps(left + kFineShift, kFineShift);
  }

 private:
  static __device__ __forceinline__ unsigned long long steps(double shifted, double shift) {
    return static_cast<unsigned long long>(__double_as_longlong(shifted)) -
           static_cast<unsigned long long>(__double_as_longlong(shift));
  }
};

// Pixels of the planes' least part. Tests make do with fewer.
#ifndef HISTLOSS_LEAST_PART
#define HISTLOSS_LEAST_PART 2048
#endif

// The planes' pixels in parts, a block each.
struct PixelParts {
  static constexpr int64_t kBusyBlocks = 1024;

  int64_t planes, count, parts, part_size;

  // Of `least` pixels, or more.
  explicit PixelParts(const Pixels& pixels, int64_t least = HISTLOSS_LEAST_PART)
      : planes(pixels.planes), count(pixels.count) {
    const int64_t wanted = ceil_div(kBusyBlocks, planes), most = ceil_div(count, least);
    const int64_t some = wanted < most ? wanted : most;
    part_size = some == 0 ? 1 : ceil_div(ceil_div(count, some), int64_t{kThreads}) * kThreads;
    parts = ceil_div(count, part_size);
  }

  HISTLOSS_HOST_DEVICE int64_t slots() const { return planes * parts; }
  int64_t blocks() const { return slots() < kMostBlocks ? slots() : kMostBlocks; }
};

struct PixelPart {
  int64_t plane, begin, end;  // pixels, from the first plane's beginning

  __device__ PixelPart(const PixelParts& of, int64_t slot) : plane(slot / of.parts) {
    const int64_t first = slot % of.parts * of.part_size, rest = of.count - first;
    begin = plane * of.count + first;
    end = begin + (rest < of.part_size ? rest : of.part_size);
  }
};

// How blocks add. A block that has a table adds to that, in shared memory, whose atomic additions are of 32
// bits: it is of words, the lower halves of all sums and then the upper ones, and a carry is a second
// addition.
struct ExactWork {
  int64_t size;  // sums of a plane and level
  int64_t planes;
  int levels;
  bool has_table;
  unsigned long long* sums;  // (levels, planes, size)

  template <class Job>
  ExactWork(const Job& job, int64_t sums_of_plane)
      : size(sums_of_plane),
        planes(job.pixels.planes),
        levels(static_cast<int>(job.levels())),
        has_table(false),
        sums(reinterpret_cast<unsigned long long*>(job.sums)) {}

  HISTLOSS_HOST_DEVICE int table_words() const { return static_cast<int>(size) * levels; }
};

// Whether blocks have tables, and what parts they work on. `products`: what a pixel adds.
struct ExactLayout {
  ExactWork work;
  PixelParts parts;
  std::size_t shared_bytes;

  ExactLayout(const Pixels& pixels, const ExactWork& to, int64_t products, std::size_t other_shared_bytes,
              const Launch& on)
      : work(to), parts(pixels), shared_bytes(other_shared_bytes) {
    const int64_t repays = 4 * work.size / products;  // pixels that are worth a table's clearing and emptying
    const int64_t free_bytes = on.shared_bytes - static_cast<int64_t>(other_shared_bytes);
    const int64_t table_bytes = work.size * work.levels * static_cast<int64_t>(sizeof(*work.sums));
    if (table_bytes > free_bytes || pixels.count < repays) return;
    work.has_table = true;
    shared_bytes += static_cast<std::size_t>(table_bytes);
    if (repays > HISTLOSS_LEAST_PART) parts = PixelParts(pixels, repays);
  }
};

// Where a block adds.
struct ExactSums {
  const ExactWork& work;
  unsigned long long* const sums;  // of the plane; the fine ones planes * size further on
  unsigned *const low, *const high;

  __device__ ExactSums(const ExactWork& of, int64_t plane, unsigned char* table)
      : work(of),
        sums(of.sums + plane * of.size),
        low(reinterpret_cast<unsigned*>(table)),
        high(of.has_table ? low + of.table_words() : nullptr) {}

  __device__ __forceinline__ void add(int64_t at, double value) const {
    const Rounded rounded(value);
    add_to_level(0, at, rounded.coarse);
    if (work.levels == 2) add_to_level(1, at, rounded.fine);
  }

  // By all threads of a block, which are to meet before and after.
  __device__ void clear() const {
    if (!work.has_table) return;
    for (int i = threadIdx.x; i < 2 * work.table_words(); i += kThreads) low[i] = 0;
  }
  __device__ void empty() const {
    if (!work.has_table) return;
    for (int i = threadIdx.x; i < work.table_words(); i += kThreads) {
      const unsigned long long sum = static_cast<unsigned long long>(high[i]) << 32 | low[i];
      const int level = i < work.size ? 0 : 1;
      if (sum != 0) atomicAdd(of_level(level) + (i - level * work.size), sum);
    }
  }

 private:
  __device__ unsigned long long* of_level(int level) const { return sums + level * work.planes * work.size; }

  __device__ __forceinline__ void add_to_level(int level, int64_t at, unsigned long long value) const {
    if (value == 0) return;
    if (!work.has_table) {
      atomicAdd(of_level(level) + at, value);
      return;
    }
    const int word = static_cast<int>(level * work.size + at);
    const unsigned lower = static_cast<unsigned>(value);
    unsigned upper = static_cast<unsigned>(value >> 32);
    if (lower != 0) upper += atomicAdd(low + word, lower) + lower < lower ? 1u : 0u;
    if (upper != 0) atomicAdd(high + word, upper);
  }
};

// ---- the sums of the weights

struct AddWeights {
  PixelParts parts;
  Image mass;
  unsigned long long* totals;  // (levels, planes)
  unsigned* bad;               // (planes), not 0: a weight is none
};

__global__ void __launch_bounds__(kThreads, 1) add_weights(const __grid_constant__ AddWeights job) {
  for (int64_t slot = blockIdx.x; slot < job.parts.slots(); slot += gridDim.x) {
    const PixelPart part(job.parts, slot);
    unsigned long long coarse = 0, fine = 0;
    for (int64_t i = part.begin + threadIdx.x; i < part.end; i += kThreads) {
      const double weight = load<double>(job.mass, i);
      if (!valid_weight(weight)) {
        atomicOr(job.bad + part.plane, 1u);
        continue;
      }
      const Rounded rounded(weight);
      coarse += rounded.coarse;
      fine += rounded.fine;
    }
    coarse = sum_of_warp(coarse);
    fine = sum_of_warp(fine);
    if (lane_of_thread() != 0) continue;
    atomicAdd(job.totals + part.plane, coarse);
    atomicAdd(job.totals + job.parts.planes + part.plane, fine);
  }
}

struct FinishTotals {
  Pixels pixels;
  int levels;
  int64_t* totals;      // (levels, planes)
  const unsigned* bad;  // null: no weights
};

__global__ void __launch_bounds__(kThreads, 1) finish_totals(const __grid_constant__ FinishTotals job) {
  const Pixels& pixels = job.pixels;
  for (int64_t i = first_item(); i < pixels.planes; i += item_step()) {
    if (job.bad == nullptr) {
      job.totals[i] = pixels.count << 30;
      if (job.levels == 2) job.totals[pixels.planes + i] = 0;
    } else if (job.bad[i] != 0) {
      job.totals[i] = kBadTotal;
    }
  }
}

// Clears the sums, and has the totals done.
inline cudaError_t prepare_sums(const Pixels& pixels, const ExactWork& work, int64_t* totals, Launch& on) {
  const std::size_t bytes = static_cast<std::size_t>(work.levels * pixels.planes) * sizeof(*totals);
  HISTLOSS_TRY(cudaMemsetAsync(work.sums, 0, bytes * static_cast<std::size_t>(work.size), on.stream));
  unsigned* bad = nullptr;
  if (pixels.mass != nullptr) {
    const std::size_t bad_bytes = static_cast<std::size_t>(pixels.planes) * sizeof(*bad);
    bad = static_cast<unsigned*>(on.scratch(bad_bytes));
    HISTLOSS_TRY(cudaMemsetAsync(bad, 0, bad_bytes, on.stream));
    HISTLOSS_TRY(cudaMemsetAsync(totals, 0, bytes, on.stream));
    const AddWeights adding{PixelParts(pixels), values(pixels.mass, pixels.is_double),
                            reinterpret_cast<unsigned long long*>(totals), bad};
    HISTLOSS_TRY(launch_blocks(add_weights, adding.parts.blocks(), 0, on, adding));
  }
  return launch_items(finish_totals, pixels.planes, on, FinishTotals{pixels, work.levels, totals, bad});
}

}  // namespace
}  // namespace histloss::cuda
