#include "direct.cuh"
#include "soft_cells.cuh"

namespace histloss::cuda {
namespace {

// ---- by cells: the gradient is mixed onto the nodes once, and every pixel gathers from those of its cell

struct MixGradient {
  Cells x;
  const float* mix;
  int64_t planes;
  const float* grad;  // (planes, K)
  int numbers;
  float* nodes;  // (planes, numbers)
};

template <int NODES>
__global__ void __launch_bounds__(kThreads, 1) mix_gradient(const __grid_constant__ MixGradient job) {
  const int64_t bins = job.x.position.bins;
  for (int64_t i = first_item(); i < job.planes * job.x.count; i += item_step()) {
    const int64_t plane = i / job.x.count;
    const int cell = static_cast<int>(i % job.x.count);
    float nodes[NODES];
    mix_to_nodes(job.x, job.mix, cell, [&](int k) { return job.grad[plane * bins + k]; }, nodes);
#pragma unroll
    for (int r = 0; r < NODES; ++r) job.nodes[plane * job.numbers + cell * NODES + r] = nodes[r];
  }
}

struct Gather {
  Cells x;
  Pixels pixels;
  Image image;
  int64_t part_size;
  int parts, numbers;
  const float* nodes;  // (planes, numbers)
  float scale;
  MutableImage grad_x, grad_mass;
};

template <int NODES>
__global__ void __launch_bounds__(kThreads, 1) gather(const __grid_constant__ Gather job) {
  HISTLOSS_SHARED(shared);
  float* const nodes = reinterpret_cast<float*>(shared);
  const int64_t plane = blockIdx.x / job.parts, part = blockIdx.x % job.parts;
  const int64_t begin = part * job.part_size, rest = job.pixels.count - begin;
  const int64_t end = begin + (rest < job.part_size ? rest : job.part_size);
  const int64_t row = plane * job.pixels.count;
  for (int w = threadIdx.x; w < job.x.count * NODES; w += kThreads)
    nodes[w] = job.nodes[plane * job.numbers + w];
  __syncthreads();
  for (int64_t i = row + begin + threadIdx.x; i < row + end; i += kThreads) {
    float x = load<float>(job.image, i), sign;
    const int cell = settle(job.x.position, x, sign) ? job.x.cell(x) : -1;
    float to_x = 0, to_mass = 0;
    if (cell >= 0) {
      const float2 exponentials = job.x.exponentials(x, cell);
      const float4* const from = reinterpret_cast<const float4*>(nodes + cell * NODES);
#pragma unroll
      for (int r = 0; r < NODES; r += 4) {
        const float4 four = from[r / 4];
        const float g[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          const float2 node = activation_and_slope(exponentials, job.x.p[r + s], job.x.n[r + s], job.x.coth);
          to_x = fmaf(g[s], node.y, to_x);
          to_mass = fmaf(g[s], node.x, to_mass);
        }
      }
      const float weight = job.pixels.mass != nullptr ? static_cast<const float*>(job.pixels.mass)[i] : 1.0f;
      to_x *= sign * job.scale * weight;
    }
    store_wanted(job.grad_x, i, to_x);
    store_wanted(job.grad_mass, i, to_mass);
  }
}

constexpr SoftCost kCost{sizeof(float), 0};

template <int NODES>
cudaError_t backward_by_cells(const SoftHistogramBackward& job, const SoftCells& cells, Launch& on) {
  const Pixels& pixels = job.pixels;
  const SoftLayout layout(cells, kCost, pixels);
  const float* mix = nullptr;
  HISTLOSS_TRY(make_mix(cells.x, cells.basis, on, &mix));
  float* const nodes = static_cast<float*>(
      on.scratch(static_cast<std::size_t>(pixels.planes * layout.numbers) * sizeof(float)));
  HISTLOSS_TRY(launch_items(
      mix_gradient<NODES>, pixels.planes * cells.x.count, on,
      MixGradient{cells.x, mix, pixels.planes, static_cast<const float*>(job.grad), layout.numbers, nodes}));
  return launch_blocks(gather<NODES>, pixels.planes * layout.parts, layout.shared_bytes, on,
                       Gather{cells.x, pixels, job.x, layout.part_size, layout.parts, layout.numbers, nodes,
                              static_cast<float>(pixels.share() * cells.x.a / job.axis.width()), job.grad_x,
                              values(job.grad_mass, false)});
}

// ---- directly

struct DirectGather {
  direct::Taps x;
  Pixels pixels;
  Image image;
  Image grad;  // (planes, K)
  MutableImage grad_x, grad_mass;
};

__global__ void __launch_bounds__(kThreads, 1) gather_directly(const __grid_constant__ DirectGather job) {
  const int lane = lane_of_thread();
  const Image mass = values(job.pixels.mass, job.pixels.is_double);
  const Warps warps;
  for (int64_t i = warps.first; i < job.pixels.planes * job.pixels.count; i += warps.step) {
    double x = load<double>(job.image, i), sign;
    int first = 0;
    const bool placed = settle(job.x.position, x, sign) && job.x.locate(x, &first);
    double to_x = 0, to_mass = 0;
    for (int tap = lane; placed && tap < job.x.taps; tap += kWarp) {
      const int k = job.x.bin(first + tap);
      if (k < 0) continue;
      const double2 own = job.x.evaluate(x, first + tap);
      const double g = load<double>(job.grad, i / job.pixels.count * job.x.position.bins + k);
      to_x += g * own.y;
      to_mass += g * own.x;
    }
    to_x = sum_of_warp(to_x);
    to_mass = sum_of_warp(to_mass);
    if (lane != 0) continue;
    const double share = mass.data == nullptr ? job.pixels.share() : load<double>(mass, i);
    store_wanted(job.grad_x, i, placed ? to_x * share * sign : 0.0);
    store_wanted(job.grad_mass, i, to_mass);
  }
}

cudaError_t backward_directly(const SoftHistogramBackward& job, Launch& on) {
  const Pixels& pixels = job.pixels;
  return launch_items(
      gather_directly, pixels.planes * pixels.count * kWarp, on,
      DirectGather{direct::Taps(job.axis, pixels.is_double), pixels, job.x,
                   values(job.grad, pixels.is_double), job.grad_x, values(job.grad_mass, pixels.is_double)});
}

}  // namespace

cudaError_t soft_histogram_backward(const SoftHistogramBackward& job, Launch& on) {
  if (job.pixels.planes == 0 || job.pixels.count == 0) return cudaSuccess;
  if (const auto cells = soft_cells(job.axis, job.pixels, kCost, on))
    return cells->x.nodes == 8 ? backward_by_cells<8>(job, *cells, on)
                               : backward_by_cells<16>(job, *cells, on);
  return backward_directly(job, on);
}

}  // namespace histloss::cuda
