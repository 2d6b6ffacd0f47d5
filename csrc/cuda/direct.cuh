// The direct method: a warp a pixel, every bin it touches evaluated in float64. It serves float64 images, few
// pixels, and kernels too narrow or too wide for the cells' tables. Sums are integers, so that their order
// does not matter.
#pragma once

#include "device.cuh"

namespace histloss::cuda::direct {
namespace {

// A plane's whole mass in fixed point.
constexpr double kWhole = 4611686018427387904.0;  // 2^62

struct Taps {
  Position<double> position;
  PointKernel<double> kernel;
  int taps, groups, padding;

  Taps(const Axis& axis, bool is_double)
      : position(axis, is_double),
        kernel(axis.bandwidth),
        taps(static_cast<int>(2 * position.radius)),
        groups(static_cast<int>(axis.bins + 2 * position.margin + 1)),
        padding(static_cast<int>(position.padding())) {}

  // The first tap of a settled pixel, a bin number of the extended range; false if it touches no bin.
  __device__ bool locate(double z, int* first) const {
    const double group = floor(position.coarse(z) + 0.5) + static_cast<double>(position.margin);
    if (!(group >= 0 && group < static_cast<double>(groups))) return false;
    *first = static_cast<int>(group) - padding;
    return true;
  }

  // Pi of bin `tap` of the extended range, and its slope with respect to z.
  __device__ double2 evaluate(double z, int tap) const {
    double pi, slope;
    kernel.evaluate(position.distance(z, static_cast<double>(tap) + 0.5), &pi, &slope);
    return make_double2(pi, slope * position.inverse_width);
  }

  __device__ int bin(int tap) const {
    return fold_bin(tap, static_cast<int>(position.bins), position.boundary);
  }
};

__device__ __forceinline__ void add(unsigned long long* sum, double share) {
  atomicAdd(sum, __double2ull_rn(share * kWhole));
}

// A pixel's share of the whole; false, and a mark for its plane, if its mass is none.
__device__ __forceinline__ bool share_of(const Image& mass, const Pixels& pixels, int64_t i, unsigned* bad,
                                         double* share) {
  *share = mass.data == nullptr ? pixels.share() : load<double>(mass, i);
  if (valid_mass(*share)) return true;
  atomicOr(bad + i / pixels.count, 1u);
  return false;
}

// Sums to numbers.
struct Finish {
  const unsigned long long* sums;
  const unsigned* bad;
  int64_t planes, size;  // numbers of a plane
  MutableImage out;
};

__global__ void __launch_bounds__(kThreads, 1) finish(const __grid_constant__ Finish job) {
  for (int64_t i = first_item(); i < job.planes * job.size; i += item_step())
    store(job.out, i,
          job.bad[i / job.size] != 0 ? static_cast<double>(NAN)
                                     : static_cast<double>(job.sums[i]) * (1 / kWhole));
}

// The sums of a kernel whose warps each add a pixel, as numbers in `out`: `size` of each plane.
template <class Job>
cudaError_t add_pixels(void (*kernel)(Job), Job job, int64_t size, void* out, Launch& on) {
  const Pixels& pixels = job.pixels;
  const std::size_t sums_bytes = static_cast<std::size_t>(pixels.planes * size) * sizeof(*job.sums);
  const std::size_t bad_bytes = static_cast<std::size_t>(pixels.planes) * sizeof(*job.bad);
  job.sums = static_cast<unsigned long long*>(on.scratch(sums_bytes));
  job.bad = static_cast<unsigned*>(on.scratch(bad_bytes));
  HISTLOSS_TRY(cudaMemsetAsync(job.sums, 0, sums_bytes, on.stream));
  HISTLOSS_TRY(cudaMemsetAsync(job.bad, 0, bad_bytes, on.stream));
  HISTLOSS_TRY(launch_items(kernel, pixels.planes * pixels.count * kWarp, on, job));
  return launch_items(finish, pixels.planes * size, on,
                      Finish{job.sums, job.bad, pixels.planes, size, values(out, pixels.is_double)});
}

}  // namespace
}  // namespace histloss::cuda::direct
