// What every kernel needs: shared memory, launches, pixels in the arithmetic's type.
//
// Two rules keep these files runnable on a CPU, where tests execute them: shared memory comes from
// HISTLOSS_SHARED, and kernels are launched by cudaLaunchKernelEx.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../position.h"
#include "kernels.h"

#ifndef HISTLOSS_SHARED
#define HISTLOSS_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#define HISTLOSS_TRY(call) \
  if (const cudaError_t status = (call); status != cudaSuccess) return status

namespace histloss::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;
// Of a grid whose threads stride over their items. Tests make do with fewer.
#ifndef HISTLOSS_MOST_BLOCKS
#define HISTLOSS_MOST_BLOCKS (1 << 22)
#endif
constexpr int64_t kMostBlocks = HISTLOSS_MOST_BLOCKS;

template <class T>
HISTLOSS_HOST_DEVICE T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// kernel<<<blocks, threads>>>(job). Jobs are passed by value: a recorded graph keeps its own copy.
template <class Job>
cudaError_t launch_blocks(void (*kernel)(Job), int64_t blocks, std::size_t shared_bytes, const Launch& on,
                          const Job& job, int threads = kThreads) {
  if (blocks == 0) return cudaSuccess;
  if (shared_bytes > 48 * 1024)
    HISTLOSS_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = on.stream;
  return cudaLaunchKernelEx(&config, kernel, job);
}

// One thread an item, or more items a thread where there are very many.
template <class Job>
cudaError_t launch_items(void (*kernel)(Job), int64_t items, const Launch& on, const Job& job,
                         std::size_t shared_bytes = 0) {
  const int64_t blocks = ceil_div<int64_t>(items, kThreads);
  return launch_blocks(kernel, blocks < kMostBlocks ? blocks : kMostBlocks, shared_bytes, on, job);
}

__device__ __forceinline__ int64_t first_item() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t item_step() { return static_cast<int64_t>(gridDim.x) * kThreads; }

__device__ __forceinline__ int lane_of_thread() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp_of_thread() { return threadIdx.x / kWarp; }

// Items of a warp each: from `first` on.
struct Warps {
  int64_t first, step;
  __device__ Warps() : first(first_item() / kWarp), step(item_step() / kWarp) {}
};

// Each lane gets the same bits.
template <class T>
__device__ __forceinline__ T sum_of_warp(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <class T>
__device__ __forceinline__ T load(const Image& image, int64_t i) {
  switch (image.type) {
    case Scalar::f16: return static_cast<T>(__half2float(static_cast<const __half*>(image.data)[i]));
    case Scalar::bf16:
      return static_cast<T>(__bfloat162float(static_cast<const __nv_bfloat16*>(image.data)[i]));
    case Scalar::f32: return static_cast<T>(static_cast<const float*>(image.data)[i]);
    case Scalar::f64: break;
  }
  return static_cast<T>(static_cast<const double*>(image.data)[i]);
}

template <class T>
__device__ __forceinline__ void store(const MutableImage& image, int64_t i, T value) {
  switch (image.type) {
    case Scalar::f16:
      static_cast<__half*>(image.data)[i] = __float2half_rn(static_cast<float>(value));
      return;
    case Scalar::bf16:
      static_cast<__nv_bfloat16*>(image.data)[i] = __float2bfloat16_rn(static_cast<float>(value));
      return;
    case Scalar::f32: static_cast<float*>(image.data)[i] = static_cast<float>(value); return;
    case Scalar::f64: static_cast<double*>(image.data)[i] = static_cast<double>(value); return;
  }
}

template <class T>
__device__ __forceinline__ void store_wanted(const MutableImage& image, int64_t i, T value) {
  if (image.data != nullptr) store(image, i, value);
}

// Brings a pixel into the range where the boundary asks for it; sign is the derivative. False if it is NaN or
// infinite; under `open` a pixel may still be too far away to touch a bin.
template <class T>
__device__ __forceinline__ bool settle(const Position<T>& axis, T& z, T& sign) {
  sign = 1;
  if (z >= axis.lo && z <= axis.hi) return true;
  if (!(z - z == 0)) return false;
  if (axis.boundary == Boundary::open) return true;
  double mirrored;
  z = static_cast<T>(
      fold_position(static_cast<double>(z), axis.exact_lo, axis.exact_hi, axis.boundary, mirrored));
  sign = static_cast<T>(mirrored);
  return true;
}

// A mass that counts. Python cannot look at it without waiting for the device; any other makes its plane NaN.
template <class T>
__device__ __forceinline__ bool valid_mass(T mass) {
  return mass >= 0 && mass - mass == 0;
}

// The kernel at a distance t, in bins, for whoever does not go by nodes.
template <class T>
struct PointKernel {
  T a, coth, log_2sinh;

  explicit PointKernel(double bandwidth) {
    const KernelConstants kernel = kernel_constants(bandwidth);
    a = static_cast<T>(kernel.a);
    coth = static_cast<T>(kernel.coth);
    log_2sinh = static_cast<T>(kernel.log_2sinh);
  }

  // Pi and its slope with respect to t.
  __device__ void evaluate(T t, T* pi, T* slope) const {
    // At these limits Pi is as good as 0, and its reciprocal still finite.
    constexpr T limit = sizeof(T) == 4 ? 42 : 80;
    const T p = exp(fmin(fmax(t * a - log_2sinh, -limit), limit));
    const T n = exp(fmin(fmax(t * -a - log_2sinh, -limit), limit));
    *pi = 1 / (coth + p + n);
    *slope = activation_slope(*pi, p, n, a);
  }
};

// visit(e) for every bin number e in [begin, end) of the extended range that stands for bin k, as fold_bin
// has it. One place calls visit, which is long: k and its mirror image share the loop.
template <class Visit>
__device__ __forceinline__ void each_unfolded(int k, int bins, Boundary boundary, int begin, int end,
                                              const Visit& visit) {
  const int images = boundary == Boundary::reflect ? 2 : 1;
  const int period = boundary == Boundary::open ? 1 << 30 : images * bins;
#pragma unroll 1
  for (int image = 0; image < images; ++image) {
    int e = image == 0 ? k : -1 - k;
    e += e < begin ? ceil_div(begin - e, period) * period : -((e - begin) / period * period);
#pragma unroll 1
    for (; e < end; e += period) visit(e);
  }
}

__device__ __forceinline__ int fold_bin(int e, int bins, Boundary boundary) {
  return e >= 0 && e < bins ? e : static_cast<int>(histloss::fold_bin(e, bins, boundary));
}

}  // namespace
}  // namespace histloss::cuda
