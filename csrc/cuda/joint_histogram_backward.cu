#include "direct.cuh"
#include "joint_cells.cuh"

namespace histloss::cuda {
namespace {

// ---- by cells: the gradient is mixed onto the nodes once; then a block holds the nodes of a strip, some
// cells of x by all columns of y, and a thread gathers for one of the strip's pixels

struct MixGradient {
  Cells x, y;
  const float *mix_x, *mix_y;
  int64_t planes;
  int stride;
  const float* grad;  // (planes, Kx, Ky)
  float* columns;     // (planes, Kx, stride): mixed onto the nodes of y; unused in window form
  float* nodes;       // (planes, nodes of x, stride)
};

__global__ void __launch_bounds__(kThreads, 1) mix_to_columns(const __grid_constant__ MixGradient job) {
  const int64_t bins_y = job.y.position.bins, items = job.planes * job.x.position.bins * job.y.count;
  for (int64_t i = first_item(); i < items; i += item_step()) {
    const int64_t row = i / job.y.count;
    const int cell = static_cast<int>(i % job.y.count);
    const float* const grad = job.grad + row * bins_y;
    float nodes[kNodes];
    mix_to_nodes(job.y, job.mix_y, cell, [&](int l) { return grad[l]; }, nodes);
    float* const out = job.columns + row * job.stride + cell * kNodes;
#pragma unroll
    for (int r = 0; r < kNodes; ++r) out[r] = nodes[r];
  }
}

template <int ROWS>
__global__ void __launch_bounds__(kThreads, 1) mix_to_rows(const __grid_constant__ MixGradient job) {
  const int64_t bins_x = job.x.position.bins, bins_y = job.y.position.bins;
  const bool window = job.y.is_window();
  const int columns = job.y.columns();
  for (int64_t i = first_item(); i < job.planes * job.x.count * job.stride; i += item_step()) {
    const int column = static_cast<int>(i % job.stride);
    const int64_t plane = i / job.stride / job.x.count;
    const int cell = static_cast<int>(i / job.stride % job.x.count);
    float nodes[ROWS] = {};
    const int l =
        window ? fold_bin(column - job.y.padding, static_cast<int>(bins_y), job.y.position.boundary) : column;
    const float* const from = (window ? job.grad : job.columns) + l;
    const int64_t step = window ? bins_y : job.stride;
    if (column < columns && l >= 0)
      mix_to_nodes(job.x, job.mix_x, cell, [&](int k) { return from[(plane * bins_x + k) * step]; }, nodes);
    float* const out = job.nodes + (plane * job.x.count + cell) * ROWS * job.stride + column;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) out[r * job.stride] = nodes[r];
  }
}

struct Gather : StripWork {
  const float* nodes;  // (planes, nodes of x, stride)
  float scale_x, scale_y;
  MutableImage grad_x, grad_y, grad_mass;
};

// The strip's pixels that a warp has found, from its part's beginning.
struct FoundPixels {
  int64_t pixel[kMostWaiting];
};

// X: the gradient of x is wanted. Y: that of y or of the mass.
template <int ROWS, bool X, bool Y>
__device__ __forceinline__ void gather_pixel(const Gather& job, const float* strip, int first_cell,
                                             int64_t i) {
  float x = load<float>(job.image_x, i), y = load<float>(job.image_y, i), sign_x, sign_y;
  const int cell_x = settle(job.x.position, x, sign_x) ? job.x.cell(x) : -1;
  const int cell_y = settle(job.y.position, y, sign_y) ? job.y.cell(y) : -1;
  float to_x = 0, to_y = 0, to_mass = 0;
  if (cell_x >= 0 && cell_y >= 0) {
    const float2 of_x = job.x.exponentials(x, cell_x), of_y = job.y.exponentials(y, cell_y);
    float pi[ROWS], slope[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float2 row = activation_and_slope(of_x, job.x.p[r], job.x.n[r], job.x.coth);
      pi[r] = row.x;
      slope[r] = row.y;
    }
    const float* const from = strip + (cell_x - first_cell) * ROWS * job.stride + cell_y * job.y.step;
#pragma unroll
    for (int c = 0; c < kNodes; c += 2) {  // a cell's columns begin at an even one
      float across[2] = {}, across_slope[2] = {};
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const float2 g = *reinterpret_cast<const float2*>(from + r * job.stride + c);
        if constexpr (Y) {
          across[0] = fmaf(pi[r], g.x, across[0]);
          across[1] = fmaf(pi[r], g.y, across[1]);
        }
        if constexpr (X) {
          across_slope[0] = fmaf(slope[r], g.x, across_slope[0]);
          across_slope[1] = fmaf(slope[r], g.y, across_slope[1]);
        }
      }
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const float2 column = activation_and_slope(of_y, job.y.p[c + s], job.y.n[c + s], job.y.coth);
        if constexpr (X) to_x = fmaf(across_slope[s], column.x, to_x);
        if constexpr (Y) {
          to_y = fmaf(across[s], column.y, to_y);
          to_mass = fmaf(across[s], column.x, to_mass);
        }
      }
    }
    const float weight = job.pixels.mass != nullptr ? static_cast<const float*>(job.pixels.mass)[i] : 1.0f;
    to_x *= sign_x * job.scale_x * weight;
    to_y *= sign_y * job.scale_y * weight;
  }
  if constexpr (X) store_wanted(job.grad_x, i, to_x);
  if constexpr (Y) {
    store_wanted(job.grad_y, i, to_y);
    store_wanted(job.grad_mass, i, to_mass);
  }
}

template <int ROWS, bool X, bool Y>
__global__ void __launch_bounds__(kThreads, 1) gather(const __grid_constant__ Gather job) {
  HISTLOSS_SHARED(shared);
  float* const nodes = reinterpret_cast<float*>(shared);
  const int numbers = job.strip_cells * ROWS * job.stride;
  FoundPixels& found = reinterpret_cast<FoundPixels*>(nodes + numbers)[warp_of_thread()];
  const Strip strip(job);
  const float* const from = job.nodes + strip.nodes(job, strip.plane, ROWS);
  for (int w = threadIdx.x; w < strip.cells * ROWS * job.stride; w += static_cast<int>(blockDim.x))
    nodes[w] = from[w];
  __syncthreads();
  find_pixels(
      job, strip.first, strip.count,
      [&](float x, bool settled, int64_t i) {
        // A pixel without a cell has no gradient: somebody has to write the zero.
        const bool homeless = strip.first_cell == 0 && i < strip.count && !(settled && job.x.cell(x) >= 0);
        return homeless || (settled && strip.holds(job.x, x));
      },
      [&](int place, float, int64_t i) { found.pixel[place] = i; },
      [&](int begin, int n) {
        const int lane = lane_of_thread();
        if (lane < n)
          gather_pixel<ROWS, X, Y>(job, nodes, strip.first_cell, strip.first + found.pixel[begin + lane]);
      });
}

// Two blocks fit on a multiprocessor of 228 KiB.
constexpr TableCost kCost{sizeof(float), sizeof(FoundPixels), sizeof(FoundPixels), std::size_t{112} << 10,
                          kWarps};

template <int ROWS>
cudaError_t backward_by_cells(const JointHistogramBackward& job, const JointCells& cells, Launch& on) {
  const Pixels& pixels = job.pixels;
  const JointLayout layout(cells, kCost, pixels, on);
  const bool window = cells.y.is_window();
  const std::size_t nodes_bytes = static_cast<std::size_t>(layout.table) * sizeof(float);
  const std::size_t columns_bytes =
      window ? 0 : static_cast<std::size_t>(job.axis_x.bins * layout.stride) * sizeof(float);
  const int64_t group = layout.planes_at_once(nodes_bytes + columns_bytes, pixels.planes);

  const float *mix_x = nullptr, *mix_y = nullptr;
  HISTLOSS_TRY(make_mix(cells.x, cells.basis_x, on, &mix_x));
  HISTLOSS_TRY(make_mix(cells.y, cells.basis_y, on, &mix_y));
  MixGradient mix{.x = cells.x,
                  .y = cells.y,
                  .mix_x = mix_x,
                  .mix_y = mix_y,
                  .planes = 0,
                  .stride = layout.stride,
                  .grad = nullptr,
                  .columns = window ? nullptr : static_cast<float*>(on.scratch(group * columns_bytes)),
                  .nodes = static_cast<float*>(on.scratch(group * nodes_bytes))};
  Gather gather_job{StripWork(cells, layout, pixels, job.x, job.y),
                    mix.nodes,
                    static_cast<float>(pixels.share() * cells.x.a / job.axis_x.width()),
                    static_cast<float>(pixels.share() * cells.y.a / job.axis_y.width()),
                    job.grad_x,
                    job.grad_y,
                    values(job.grad_mass, false)};
  const bool to_x = job.grad_x.data != nullptr;
  const bool to_y_or_mass = job.grad_y.data != nullptr || job.grad_mass != nullptr;
  const auto gather_pixels = !to_x          ? gather<ROWS, false, true>
                             : to_y_or_mass ? gather<ROWS, true, true>
                                            : gather<ROWS, true, false>;
  for (int64_t plane = 0; plane < pixels.planes; plane += group) {
    mix.planes = pixels.planes - plane < group ? pixels.planes - plane : group;
    mix.grad = static_cast<const float*>(job.grad) + plane * job.axis_x.bins * job.axis_y.bins;
    if (!window)
      HISTLOSS_TRY(launch_items(mix_to_columns, mix.planes * job.axis_x.bins * cells.y.count, on, mix));
    HISTLOSS_TRY(launch_items(mix_to_rows<ROWS>, mix.planes * cells.x.count * layout.stride, on, mix));
    gather_job.first_plane = plane;
    HISTLOSS_TRY(launch_blocks(gather_pixels, mix.planes * layout.parts * layout.strips, layout.shared_bytes,
                               on, gather_job, layout.warps * kWarp));
  }
  return cudaSuccess;
}

// ---- directly

struct DirectGather {
  direct::Taps x, y;
  Pixels pixels;
  Image image_x, image_y;
  Image grad;  // (planes, Kx, Ky)
  MutableImage grad_x, grad_y, grad_mass;
};

__global__ void __launch_bounds__(kThreads, 1) gather_directly(const __grid_constant__ DirectGather job) {
  const int lane = lane_of_thread();
  const int64_t bins_x = job.x.position.bins, bins_y = job.y.position.bins;
  const Image mass = values(job.pixels.mass, job.pixels.is_double);
  const Warps warps;
  for (int64_t i = warps.first; i < job.pixels.planes * job.pixels.count; i += warps.step) {
    double x = load<double>(job.image_x, i), y = load<double>(job.image_y, i), sign_x, sign_y;
    int first_x = 0, first_y = 0;
    const bool placed = settle(job.x.position, x, sign_x) && settle(job.y.position, y, sign_y) &&
                        job.x.locate(x, &first_x) && job.y.locate(y, &first_y);
    double to_x = 0, to_y = 0, to_mass = 0;
    const int64_t plane = i / job.pixels.count * bins_x * bins_y;
    for (int column = 0; placed && column < job.y.taps; column += kWarp) {
      const int tap_y = first_y + column + lane;
      const int l = column + lane < job.y.taps ? job.y.bin(tap_y) : -1;
      const double2 of_y = l >= 0 ? job.y.evaluate(y, tap_y) : make_double2(0, 0);
      for (int row = 0; row < job.x.taps; row += kWarp) {
        const int tap_x = first_x + row + lane;
        const double2 own = row + lane < job.x.taps ? job.x.evaluate(x, tap_x) : make_double2(0, 0);
        for (int r = 0; r < min(kWarp, job.x.taps - row); ++r) {
          const double pi_x = __shfl_sync(kAllLanes, own.x, r), slope_x = __shfl_sync(kAllLanes, own.y, r);
          const int k = job.x.bin(first_x + row + r);
          if (k < 0 || l < 0) continue;
          const double g = load<double>(job.grad, plane + k * bins_y + l);
          to_x += g * slope_x * of_y.x;
          to_y += g * pi_x * of_y.y;
          to_mass += g * pi_x * of_y.x;
        }
      }
    }
    to_x = sum_of_warp(to_x);
    to_y = sum_of_warp(to_y);
    to_mass = sum_of_warp(to_mass);
    if (lane != 0) continue;
    const double share = mass.data == nullptr ? job.pixels.share() : load<double>(mass, i);
    store_wanted(job.grad_x, i, placed ? to_x * share * sign_x : 0.0);
    store_wanted(job.grad_y, i, placed ? to_y * share * sign_y : 0.0);
    store_wanted(job.grad_mass, i, to_mass);
  }
}

cudaError_t backward_directly(const JointHistogramBackward& job, Launch& on) {
  const Pixels& pixels = job.pixels;
  return launch_items(
      gather_directly, pixels.planes * pixels.count * kWarp, on,
      DirectGather{direct::Taps(job.axis_x, pixels.is_double), direct::Taps(job.axis_y, pixels.is_double),
                   pixels, job.x, job.y, values(job.grad, pixels.is_double), job.grad_x, job.grad_y,
                   values(job.grad_mass, pixels.is_double)});
}

}  // namespace

cudaError_t joint_histogram_backward(const JointHistogramBackward& job, Launch& on) {
  if (job.pixels.planes == 0 || job.pixels.count == 0) return cudaSuccess;
  if (const auto cells = joint_cells(job.axis_x, job.axis_y, job.pixels, kCost, on))
    return cells->x.nodes == 8 ? backward_by_cells<8>(job, *cells, on)
                               : backward_by_cells<16>(job, *cells, on);
  return backward_directly(job, on);
}

}  // namespace histloss::cuda
