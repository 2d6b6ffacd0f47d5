#include "direct.cuh"
#include "fixed_point.cuh"
#include "soft_cells.cuh"

namespace histloss::cuda {
namespace {

// ---- by cells: a block adds a part of a plane's pixels to all cells, four (or two) pixels of a warp at a
// time, a lane for each node

struct Scatter {
  Cells x;
  Pixels pixels;
  Image image;
  int64_t part_size;
  int parts, numbers;        // of the table, whole carry words
  float scale;               // of an activation, to fixed point
  unsigned long long* sums;  // (planes, parts, numbers)
  unsigned* bad;             // (planes), not 0: a mass is not a number
};

struct Placed {
  float2 exponentials[kWarp];
  float scale[kWarp];
  int offset[kWarp];
};

template <int NODES, bool WEIGHTED>
__global__ void __launch_bounds__(kThreads, 1) scatter(const __grid_constant__ Scatter job) {
  HISTLOSS_SHARED(shared);
  const FixedSums sums(shared, job.numbers);
  const int lane = lane_of_thread(), warp = warp_of_thread();
  Placed& placed = reinterpret_cast<Placed*>(shared + job.numbers * FixedSums::kBytes)[warp];

  const int64_t plane = blockIdx.x / job.parts, part = blockIdx.x % job.parts;
  const int64_t begin = part * job.part_size, rest = job.pixels.count - begin;
  const int64_t end = begin + (rest < job.part_size ? rest : job.part_size);
  const int64_t row = plane * job.pixels.count;
  unsigned long long* const out = job.sums + static_cast<int64_t>(blockIdx.x) * job.numbers;
  const int node = lane % NODES;
  const float p = job.x.p[node], n = job.x.n[node];

  sums.clear(job.numbers);
  __syncthreads();
  for (int64_t segment = begin;; segment += kSegment) {
    const int64_t segment_end = end - segment < kSegment ? end : segment + kSegment;
    for (int64_t i = segment + warp * kWarp; i < segment_end; i += kThreads) {
      // Without a place: adds 0 to the first sums.
      float2 exponentials = make_float2(1, 1);
      float scale = 0;
      int offset = 0;
      if (i + lane < segment_end) {
        float x = load<float>(job.image, row + i + lane), sign;
        const int cell = settle(job.x.position, x, sign) ? job.x.cell(x) : -1;
        if (cell >= 0) {
          offset = cell * NODES;
          scale = job.scale;
          exponentials = job.x.exponentials(x, cell);
        }
        if constexpr (WEIGHTED) {
          const float m = static_cast<const float*>(job.pixels.mass)[row + i + lane];
          scale = valid_mass(m) ? scale * (m * kMassScale) : 0.0f;
          if (!valid_mass(m)) atomicOr(job.bad + plane, 1u);
        }
      }
      placed.exponentials[lane] = exponentials;
      placed.scale[lane] = scale;
      placed.offset[lane] = offset;
      __syncwarp();
      constexpr int kAtOnce = 4, kPixels = kWarp / NODES;
#pragma unroll 2
      for (int first = lane / NODES; first < kWarp; first += kAtOnce * kPixels) {
        int at[kAtOnce];
        float pi[kAtOnce], factor[kAtOnce];
#pragma unroll
        for (int s = 0; s < kAtOnce; ++s) {
          const int k = first + s * kPixels;
          at[s] = placed.offset[k] + node;
          pi[s] = activation(placed.exponentials[k], p, n, job.x.coth);
          factor[s] = placed.scale[k];
        }
        sums.add<WEIGHTED>(at, pi, factor);
      }
      __syncwarp();
    }
    __syncthreads();
    for (int w = threadIdx.x; w < job.numbers; w += kThreads)
      out[w] = segment == begin ? sums.sum(w) : out[w] + sums.sum(w);
    if (end - segment <= kSegment) break;
    __syncthreads();
    sums.clear(job.numbers);
    __syncthreads();
  }
}

struct MixSums {
  Cells x;
  const float* mix;
  int64_t planes;
  int parts, numbers;
  const unsigned long long* sums;  // (planes, parts, numbers)
  const unsigned* bad;             // null: no masses
  float scale;
  float* histogram;  // (planes, K)
};

__global__ void __launch_bounds__(kThreads, 1) mix_sums(const __grid_constant__ MixSums job) {
  const int64_t bins = job.x.position.bins;
  for (int64_t i = first_item(); i < job.planes * bins; i += item_step()) {
    const int64_t plane = i / bins;
    const unsigned long long* const sums = job.sums + plane * job.parts * job.numbers;
    const float sum = mix_to_bin<double>(job.x, job.mix, static_cast<int>(i % bins), [&](int cell, int r) {
      unsigned long long of_parts = 0;
      for (int part = 0; part < job.parts; ++part)
        of_parts += sums[static_cast<int64_t>(part) * job.numbers + cell * job.x.nodes + r];
      return __ull2float_rn(of_parts);
    });
    const bool bad = job.bad != nullptr && job.bad[plane] != 0;
    job.histogram[i] = bad ? NAN : fmaxf(sum, 0.0f) * job.scale;  // the mix may round below 0
  }
}

constexpr SoftCost kCost{FixedSums::kBytes, kWarps * sizeof(Placed)};

template <int NODES>
cudaError_t soft_by_cells(const SoftHistogram& job, const SoftCells& cells, Launch& on) {
  const Pixels& pixels = job.pixels;
  const SoftLayout layout(cells, kCost, pixels);
  const bool weighted = pixels.mass != nullptr;
  const int64_t slots = pixels.planes * layout.parts;
  const float* mix = nullptr;
  HISTLOSS_TRY(make_mix(cells.x, cells.basis, on, &mix));
  auto* const sums = static_cast<unsigned long long*>(
      on.scratch(static_cast<std::size_t>(slots * layout.numbers) * sizeof(unsigned long long)));
  Scatter scatter_job{
      cells.x, pixels, job.x, layout.part_size, layout.parts, layout.numbers, kLargest / cells.x.peak,
      sums,    nullptr};
  if (weighted) {
    const std::size_t bytes = static_cast<std::size_t>(pixels.planes) * sizeof(unsigned);
    scatter_job.bad = static_cast<unsigned*>(on.scratch(bytes));
    HISTLOSS_TRY(cudaMemsetAsync(scatter_job.bad, 0, bytes, on.stream));
    HISTLOSS_TRY(launch_blocks(scatter<NODES, true>, slots, layout.shared_bytes, on, scatter_job));
  } else {
    HISTLOSS_TRY(launch_blocks(scatter<NODES, false>, slots, layout.shared_bytes, on, scatter_job));
  }
  return launch_items(
      mix_sums, pixels.planes * job.axis.bins, on,
      MixSums{cells.x, mix, pixels.planes, layout.parts, layout.numbers, sums, scatter_job.bad,
              static_cast<float>((weighted ? 1 / kMassScale : pixels.share()) / scatter_job.scale),
              static_cast<float*>(job.histogram)});
}

// ---- directly

struct DirectSoft {
  direct::Taps x;
  Pixels pixels;
  Image image;
  unsigned long long* sums;  // (planes, K)
  unsigned* bad;             // (planes)
};

__global__ void __launch_bounds__(kThreads, 1) add_directly(const __grid_constant__ DirectSoft job) {
  const int lane = lane_of_thread();
  const Image mass = values(job.pixels.mass, job.pixels.is_double);
  const Warps warps;
  for (int64_t i = warps.first; i < job.pixels.planes * job.pixels.count; i += warps.step) {
    double share, sign, x = load<double>(job.image, i);
    int first;
    if (!direct::share_of(mass, job.pixels, i, job.bad, &share)) continue;
    if (!settle(job.x.position, x, sign) || !job.x.locate(x, &first)) continue;
    unsigned long long* const plane = job.sums + i / job.pixels.count * job.x.position.bins;
    for (int tap = lane; tap < job.x.taps; tap += kWarp) {
      const int k = job.x.bin(first + tap);
      if (k >= 0) direct::add(plane + k, share * job.x.evaluate(x, first + tap).x);
    }
  }
}

cudaError_t soft_directly(const SoftHistogram& job, Launch& on) {
  const DirectSoft adding{.x = direct::Taps(job.axis, job.pixels.is_double),
                          .pixels = job.pixels,
                          .image = job.x,
                          .sums = nullptr,
                          .bad = nullptr};
  return direct::add_pixels(add_directly, adding, job.axis.bins, job.histogram, on);
}

}  // namespace

cudaError_t soft_histogram(const SoftHistogram& job, Launch& on) {
  if (job.pixels.planes == 0) return cudaSuccess;
  if (const auto cells = soft_cells(job.axis, job.pixels, kCost, on))
    return cells->x.nodes == 8 ? soft_by_cells<8>(job, *cells, on) : soft_by_cells<16>(job, *cells, on);
  return soft_directly(job, on);
}

}  // namespace histloss::cuda
