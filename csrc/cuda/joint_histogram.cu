#include "direct.cuh"
#include "fixed_point.cuh"
#include "joint_cells.cuh"

namespace histloss::cuda {
namespace {

// ---- by cells: a block owns a strip, some cells of x by all columns of y, and a part of a plane's pixels. A
// warp adds one pixel at a time, so that its lanes never meet, whatever the image.

struct Scatter : StripWork {
  float scale;  // of a product of two activations, to fixed point
  // (planes, parts, nodes of x, stride): float where one segment is a plane's whole sum, else integers
  float* sums;
  unsigned long long* wide_sums;
  unsigned* bad;  // (planes), not 0: a mass is not a number
};

// A pixel about to be added. Its rows are in the order of the lanes that take them: first the even ones.
// Records lie an odd number of 16 bytes apart, so that lanes write theirs without meeting at a bank.
template <int ROWS>
struct alignas(16) Record {
  float rows[ROWS], columns[kNodes];
  int offset, gap[3];
};

// Pixels of the strip that a warp has found, and those it is adding.
template <int ROWS>
struct Found {
  float x[kMostWaiting];
  int pixel[kMostWaiting];  // from the segment's beginning
  Record<ROWS> records[kWarp];
};

template <int ROWS, bool WEIGHTED>
__device__ __forceinline__ void add_pixels(const Scatter& job, Found<ROWS>& found, int first, int count,
                                           int64_t segment, int first_cell, const FixedSums& sums) {
  const int lane = lane_of_thread(), half = lane / 16, column = lane % 16;
  Record<ROWS> own{};  // without a pixel, or y without a place: adds 0 to the first sums
  float y = NAN, sign;
  int cell_y = -1;
  if (lane < count) {
    y = load<float>(job.image_y, segment + found.pixel[first + lane]);
    if (settle(job.y.position, y, sign)) cell_y = job.y.cell(y);
  }
  if (cell_y >= 0) {
    const float x = found.x[first + lane];
    const int cell_x = job.x.cell(x);
    const float2 of_x = job.x.exponentials(x, cell_x), of_y = job.y.exponentials(y, cell_y);
    float scale = job.scale;
    if constexpr (WEIGHTED) {
      const float mass = static_cast<const float*>(job.pixels.mass)[segment + found.pixel[first + lane]];
      scale *= valid_mass(mass) ? mass * kMassScale : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
      own.rows[r % 2 * (ROWS / 2) + r / 2] = activation(of_x, job.x.p[r], job.x.n[r], job.x.coth);
#pragma unroll
    for (int c = 0; c < kNodes; ++c)
      own.columns[c] = scale * activation(of_y, job.y.p[c], job.y.n[c], job.y.coth);
    own.offset = (cell_x - first_cell) * ROWS * job.stride + cell_y * job.y.step;
  }
  found.records[lane] = own;
  __syncwarp();
  const int of_lane = half * job.stride + column;
  for (int k = 0; k < count; k += 2) {  // two, to have their loads under way together
    int at[ROWS];
    float pi_x[ROWS], pi_y[ROWS];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const Record<ROWS>& record = found.records[k + s];
      const float4* const rows = reinterpret_cast<const float4*>(record.rows + half * (ROWS / 2));
#pragma unroll
      for (int i = 0; i < ROWS / 2; ++i) {
        const int to = s * (ROWS / 2) + i;
        const float4 four = rows[i / 4];
        pi_x[to] = i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
        pi_y[to] = record.columns[column];
        at[to] = record.offset + of_lane + 2 * i * job.stride;
      }
    }
    sums.add<WEIGHTED>(at, pi_x, pi_y);
  }
}

// A block takes a multiprocessor to itself: the fewer strips, the fewer blocks look through every pixel.
constexpr int kScatterThreads = 512;
constexpr TableCost kCost{FixedSums::kBytes, sizeof(Found<8>), sizeof(Found<16>), std::size_t{256} << 10,
                          kScatterThreads / kWarp};

template <int ROWS, bool WEIGHTED>
__global__ void __launch_bounds__(kScatterThreads, 1) scatter(const __grid_constant__ Scatter job) {
  HISTLOSS_SHARED(shared);
  const int words = job.strip_cells * ROWS * job.stride;
  const FixedSums sums(shared, words);
  Found<ROWS>& found = reinterpret_cast<Found<ROWS>*>(shared + words * FixedSums::kBytes)[warp_of_thread()];
  const Strip strip(job);
  const int64_t out = strip.nodes(job, strip.slot, ROWS);

  sums.clear(words);
  __syncthreads();
  for (int64_t segment = 0;; segment += kSegment) {
    const int64_t first = strip.first + segment, rest = strip.count - segment;
    const int64_t count = rest < kSegment ? rest : kSegment;
    find_pixels(
        job, first, count,
        [&](float x, bool settled, int64_t i) {
          if constexpr (WEIGHTED)  // one strip looks at the masses of all pixels
            if (strip.first_cell == 0 && i < count &&
                !valid_mass(static_cast<const float*>(job.pixels.mass)[first + i]))
              atomicOr(job.bad + strip.plane, 1u);
          return settled && strip.holds(job.x, x);
        },
        [&](int place, float x, int64_t i) {
          found.x[place] = x;
          found.pixel[place] = static_cast<int>(i);
        },
        [&](int begin, int n) {
          add_pixels<ROWS, WEIGHTED>(job, found, begin, n, first, strip.first_cell, sums);
        });
    __syncthreads();
    for (int w = threadIdx.x; w < strip.cells * ROWS * job.stride; w += static_cast<int>(blockDim.x)) {
      if (job.wide_sums == nullptr)
        job.sums[out + w] = __ull2float_rn(sums.sum(w));
      else
        job.wide_sums[out + w] = sums.sum(w) + (segment == 0 ? 0 : job.wide_sums[out + w]);
    }
    if (rest <= kSegment) break;
    __syncthreads();
    sums.clear(words);
    __syncthreads();
  }
}

// Node sums to bins, first rows then columns. In window form the columns are bins already and one pass does
// both.
struct MixSums {
  Cells x, y;
  const float *mix_x, *mix_y;
  int64_t planes;
  int parts, stride;
  const float* sums;  // (planes, parts, nodes of x, stride), or
  const unsigned long long* wide_sums;
  float* rows;          // (planes, Kx, stride); unused in window form
  float* joint;         // (planes, Kx, Ky)
  const unsigned* bad;  // null: no masses
  float scale;
};

// Row k of the bins at one column of nodes.
template <class Sum>
__device__ __forceinline__ float mix_row(const MixSums& job, int64_t plane, int k, int column) {
  const int64_t part_size = static_cast<int64_t>(job.x.count) * job.x.nodes * job.stride;
  const int64_t first = plane * job.parts * part_size + column;
  return mix_to_bin<Sum>(job.x, job.mix_x, k, [&](int cell, int r) {
    const int64_t at = first + static_cast<int64_t>(cell * job.x.nodes + r) * job.stride;
    if (job.wide_sums == nullptr) return job.sums[at];
    unsigned long long sum = 0;
    for (int part = 0; part < job.parts; ++part) sum += job.wide_sums[at + part * part_size];
    return __ull2float_rn(sum);
  });
}

__device__ __forceinline__ float finished(const MixSums& job, int64_t plane, float sum) {
  if (job.bad != nullptr && job.bad[plane] != 0) return NAN;
  return fmaxf(sum, 0.0f) * job.scale;  // the mix may round below 0
}

template <class Sum>
__global__ void __launch_bounds__(kThreads, 1) mix_rows(const __grid_constant__ MixSums job) {
  const int64_t bins = job.x.position.bins, items = job.planes * bins * job.stride;
  for (int64_t i = first_item(); i < items; i += item_step()) {
    const int64_t row = i / job.stride;
    job.rows[i] =
        mix_row<Sum>(job, row / bins, static_cast<int>(row % bins), static_cast<int>(i % job.stride));
  }
}

template <class Sum>
__global__ void __launch_bounds__(kThreads, 1) mix_columns(const __grid_constant__ MixSums job) {
  const int64_t bins_x = job.x.position.bins, bins_y = job.y.position.bins;
  for (int64_t i = first_item(); i < job.planes * bins_x * bins_y; i += item_step()) {
    const int64_t row = i / bins_y;
    const float* const nodes = job.rows + row * job.stride;
    const float sum = mix_to_bin<Sum>(job.y, job.mix_y, static_cast<int>(i % bins_y),
                                      [&](int cell, int r) { return nodes[cell * kNodes + r]; });
    job.joint[i] = finished(job, row / bins_x, sum);
  }
}

template <class Sum>
__global__ void __launch_bounds__(kThreads, 1) mix_window(const __grid_constant__ MixSums job) {
  const int bins_x = static_cast<int>(job.x.position.bins), bins_y = static_cast<int>(job.y.position.bins);
  for (int64_t i = first_item(); i < job.planes * bins_x * bins_y; i += item_step()) {
    const int64_t row = i / bins_y, plane = row / bins_x;
    float sum = 0;
    each_unfolded(static_cast<int>(i % bins_y), bins_y, job.y.position.boundary, -job.y.padding,
                  job.y.length - job.y.padding, [&](int e) {
                    sum += mix_row<Sum>(job, plane, static_cast<int>(row % bins_x), e + job.y.padding);
                  });
    job.joint[i] = finished(job, plane, sum);
  }
}

template <class Sum>
cudaError_t launch_mix(const MixSums& job, const Launch& on) {
  const int64_t rows = job.planes * job.x.position.bins, bins = rows * job.y.position.bins;
  if (job.y.is_window()) return launch_items(mix_window<Sum>, bins, on, job);
  HISTLOSS_TRY(launch_items(mix_rows<Sum>, rows * job.stride, on, job));
  return launch_items(mix_columns<Sum>, bins, on, job);
}

template <int ROWS>
cudaError_t joint_by_cells(const JointHistogram& job, const JointCells& cells, Launch& on) {
  const Pixels& pixels = job.pixels;
  const JointLayout layout(cells, kCost, pixels, on);
  const bool window = cells.y.is_window(), weighted = pixels.mass != nullptr;
  const bool wide = layout.parts > 1 || layout.part_size > kSegment;
  const std::size_t sums_bytes = static_cast<std::size_t>(layout.table * layout.parts) *
                                 (wide ? sizeof(unsigned long long) : sizeof(float));
  const std::size_t rows_bytes =
      window ? 0 : static_cast<std::size_t>(job.axis_x.bins * layout.stride) * sizeof(float);
  const int64_t group = layout.planes_at_once(sums_bytes + rows_bytes, pixels.planes);

  const float *mix_x = nullptr, *mix_y = nullptr;
  HISTLOSS_TRY(make_mix(cells.x, cells.basis_x, on, &mix_x));
  HISTLOSS_TRY(make_mix(cells.y, cells.basis_y, on, &mix_y));
  void* const sums = on.scratch(group * sums_bytes);
  auto* const bad = weighted ? static_cast<unsigned*>(on.scratch(group * sizeof(unsigned))) : nullptr;
  Scatter scatter_job{StripWork(cells, layout, pixels, job.x, job.y),
                      kLargest / (cells.x.peak * cells.y.peak), wide ? nullptr : static_cast<float*>(sums),
                      wide ? static_cast<unsigned long long*>(sums) : nullptr, bad};
  MixSums mix{.x = cells.x,
              .y = cells.y,
              .mix_x = mix_x,
              .mix_y = mix_y,
              .planes = 0,
              .parts = layout.parts,
              .stride = layout.stride,
              .sums = scatter_job.sums,
              .wide_sums = scatter_job.wide_sums,
              .rows = window ? nullptr : static_cast<float*>(on.scratch(group * rows_bytes)),
              .joint = nullptr,
              .bad = bad,
              .scale = static_cast<float>((weighted ? 1 / kMassScale : pixels.share()) / scatter_job.scale)};
  for (int64_t plane = 0; plane < pixels.planes; plane += group) {
    mix.planes = pixels.planes - plane < group ? pixels.planes - plane : group;
    mix.joint = static_cast<float*>(job.joint) + plane * job.axis_x.bins * job.axis_y.bins;
    scatter_job.first_plane = plane;
    const int64_t blocks = mix.planes * layout.parts * layout.strips;
    if (weighted) {
      HISTLOSS_TRY(cudaMemsetAsync(bad, 0, mix.planes * sizeof(unsigned), on.stream));
      HISTLOSS_TRY(launch_blocks(scatter<ROWS, true>, blocks, layout.shared_bytes, on, scatter_job,
                                 layout.warps * kWarp));
    } else {
      HISTLOSS_TRY(launch_blocks(scatter<ROWS, false>, blocks, layout.shared_bytes, on, scatter_job,
                                 layout.warps * kWarp));
    }
    const bool exact = cells.x.nodes_are_bins() && cells.y.nodes_are_bins();
    HISTLOSS_TRY(exact ? launch_mix<float>(mix, on) : launch_mix<double>(mix, on));
  }
  return cudaSuccess;
}

// ---- directly

struct DirectJoint {
  direct::Taps x, y;
  Pixels pixels;
  Image image_x, image_y;
  unsigned long long* sums;  // (planes, Kx, Ky)
  unsigned* bad;             // (planes)
};

__global__ void __launch_bounds__(kThreads, 1) add_directly(const __grid_constant__ DirectJoint job) {
  const int lane = lane_of_thread();
  const int64_t bins_x = job.x.position.bins, bins_y = job.y.position.bins;
  const Image mass = values(job.pixels.mass, job.pixels.is_double);
  const Warps warps;
  for (int64_t i = warps.first; i < job.pixels.planes * job.pixels.count; i += warps.step) {
    double share, sign;
    if (!direct::share_of(mass, job.pixels, i, job.bad, &share)) continue;
    double x = load<double>(job.image_x, i), y = load<double>(job.image_y, i);
    int first_x, first_y;
    if (!settle(job.x.position, x, sign) || !settle(job.y.position, y, sign)) continue;
    if (!job.x.locate(x, &first_x) || !job.y.locate(y, &first_y)) continue;
    unsigned long long* const plane = job.sums + i / job.pixels.count * bins_x * bins_y;
    for (int column = 0; column < job.y.taps; column += kWarp) {
      const int tap_y = first_y + column + lane;
      const int l = column + lane < job.y.taps ? job.y.bin(tap_y) : -1;
      const double pi_y = l >= 0 ? share * job.y.evaluate(y, tap_y).x : 0;
      for (int row = 0; row < job.x.taps; row += kWarp) {
        const int tap_x = first_x + row + lane;
        const double own = row + lane < job.x.taps ? job.x.evaluate(x, tap_x).x : 0;
        for (int r = 0; r < min(kWarp, job.x.taps - row); ++r) {
          const double pi_x = __shfl_sync(kAllLanes, own, r);
          const int k = job.x.bin(first_x + row + r);
          if (k >= 0 && l >= 0) direct::add(plane + k * bins_y + l, pi_x * pi_y);
        }
      }
    }
  }
}

cudaError_t joint_directly(const JointHistogram& job, Launch& on) {
  const DirectJoint adding{.x = direct::Taps(job.axis_x, job.pixels.is_double),
                           .y = direct::Taps(job.axis_y, job.pixels.is_double),
                           .pixels = job.pixels,
                           .image_x = job.x,
                           .image_y = job.y,
                           .sums = nullptr,
                           .bad = nullptr};
  return direct::add_pixels(add_directly, adding, job.axis_x.bins * job.axis_y.bins, job.joint, on);
}

}  // namespace

cudaError_t joint_histogram(const JointHistogram& job, Launch& on) {
  if (job.pixels.planes == 0) return cudaSuccess;
  if (const auto cells = joint_cells(job.axis_x, job.axis_y, job.pixels, kCost, on))
    return cells->x.nodes == 8 ? joint_by_cells<8>(job, *cells, on) : joint_by_cells<16>(job, *cells, on);
  return joint_directly(job, on);
}

}  // namespace histloss::cuda
