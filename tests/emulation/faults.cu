#include <cuda_runtime.h>

#include "faults.h"

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

// Each thread adds up what its left neighbour wrote.
template <bool faulty>
__global__ void missing_syncthreads(int* out) {
  HISTLOSS_SHARED(memory);
  int* const values = reinterpret_cast<int*>(memory);
  const int i = threadIdx.x;
  values[i] = i;
  if (!faulty) __syncthreads();
  out[blockIdx.x * kThreads + i] = values[(i + kThreads - 1) % kThreads];
}

// Within a warp a shuffle makes the others wait, but promises nothing of memory.
template <bool faulty>
__global__ void missing_syncwarp(int* out) {
  HISTLOSS_SHARED(memory);
  int* const values = reinterpret_cast<int*>(memory);
  const int i = threadIdx.x;
  values[i] = i;
  __shfl_xor_sync(kAllLanes, i, 1);
  if (!faulty) __syncwarp();
  out[blockIdx.x * kThreads + i] = values[i ^ 1];
}

template <bool faulty>
__global__ void plain_add(int* out) {
  if (faulty)
    ++out[blockIdx.x];
  else
    atomicAdd(out + blockIdx.x, 1);
}

template <bool faulty>
__global__ void shared_index(int* out) {
  HISTLOSS_SHARED(memory);
  int* const values = reinterpret_cast<int*>(memory);
  const int i = threadIdx.x;
  values[i + faulty] = i;
  __syncthreads();
  out[blockIdx.x * kThreads + i] = values[i + faulty];
}

template <bool faulty>
__global__ void global_index(int* out) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  out[i] = 0;
  if (faulty && i == static_cast<int>(gridDim.x) * kThreads - 1) out[i + 1] = 0;
}

template <bool faulty>
__global__ void misaligned_vector(int* out) {
  if (threadIdx.x == 0)
    *reinterpret_cast<int4*>(out + blockIdx.x * kThreads + faulty) = make_int4(1, 2, 3, 4);
}

// The last block to finish adds up what all have written.
template <bool faulty>
__global__ void blocks_race(int* out) {
  HISTLOSS_SHARED(memory);
  bool* const last = reinterpret_cast<bool*>(memory);
  int* const done = out + gridDim.x;
  if (threadIdx.x == 0) {
    out[blockIdx.x] = static_cast<int>(blockIdx.x);
    if (!faulty) __threadfence();
    *last = atomicAdd(done, 1) == static_cast<int>(gridDim.x) - 1;
    if (!faulty) __threadfence();
    if (*last)
      for (unsigned b = 0; b < gridDim.x; ++b) out[gridDim.x + 1] += out[b];
  }
}

template <bool faulty>
__global__ void divergent_barrier(int* out) {
  const int i = threadIdx.x;
  if (faulty && i % 2)
    __syncthreads();
  else
    __syncthreads();
  out[blockIdx.x * kThreads + i] = i;
}

template <bool faulty>
__global__ void barrier_after_exit(int* out) {
  const int i = threadIdx.x;
  if (faulty && i == 5) return;
  __syncthreads();
  out[blockIdx.x * kThreads + i] = i;
}

template <bool faulty>
__global__ void shuffle_with_exited_lane(int* out) {
  const int i = threadIdx.x;
  if (i % warpSize == 9) return;
  const unsigned mask = faulty ? kAllLanes : kAllLanes & ~(1u << 9);
  out[blockIdx.x * kThreads + i] = __shfl_sync(mask, i, i % warpSize);
}

template <bool faulty>
__global__ void shuffle_from_outside_the_mask(int* out) {
  const int i = threadIdx.x;
  if (i % warpSize < 16) out[blockIdx.x * kThreads + i] = __shfl_sync(0xffffu, i, faulty ? 16 : 3);
}

template <bool faulty>
__global__ void caller_outside_the_mask(int* out) {
  out[blockIdx.x * kThreads + threadIdx.x] = __any_sync(faulty ? 0xffffu : kAllLanes, 1);
}

template <bool faulty>
__global__ void different_primitives(int* out) {
  const int i = threadIdx.x;
  out[blockIdx.x * kThreads + i] = faulty && i % 2 ? __any_sync(kAllLanes, 1) : __all_sync(kAllLanes, 1);
}

template <bool faulty>
__global__ void deadlock(int* out) {
  if (!faulty || threadIdx.x != 0) __syncwarp();
  __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = 0;
}

__global__ void primitives(int* out) {
  const int i = threadIdx.x;
  int* const results = out + 16 * i;
  results[0] = __shfl_sync(kAllLanes, i, 11, 8);
  results[1] = __shfl_up_sync(kAllLanes, i, 3, 8);
  results[2] = __shfl_down_sync(kAllLanes, i, 3, 16);
  results[3] = __shfl_xor_sync(kAllLanes, i, 5);
  results[4] = static_cast<int>(__ballot_sync(kAllLanes, i % 3 == 0));
  results[5] = __any_sync(kAllLanes, i == 7);
  results[6] = __all_sync(kAllLanes, i != 7);
  results[7] = static_cast<int>(__match_any_sync(kAllLanes, 0.5 * (i % 4)));
  results[8] = __reduce_add_sync(kAllLanes, -i);
  results[9] = static_cast<int>(__reduce_max_sync(kAllLanes, static_cast<unsigned>(i - 1)));
  results[10] = static_cast<int>(__shfl_sync(kAllLanes, 1e10 + i, 6) - 1e10);
  if (i % 2) results[11] = static_cast<int>(__ballot_sync(0xaaaaaaaau, i > 16));
}

}  // namespace

#define HISTLOSS_TWINS(name)           \
  {                                    \
    #name, { name<false>, name<true> } \
  }
const std::map<std::string, Twins> kTwins = {
    HISTLOSS_TWINS(missing_syncthreads),
    HISTLOSS_TWINS(missing_syncwarp),
    HISTLOSS_TWINS(plain_add),
    HISTLOSS_TWINS(shared_index),
    HISTLOSS_TWINS(global_index),
    HISTLOSS_TWINS(misaligned_vector),
    HISTLOSS_TWINS(blocks_race),
    HISTLOSS_TWINS(divergent_barrier),
    HISTLOSS_TWINS(barrier_after_exit),
    HISTLOSS_TWINS(shuffle_with_exited_lane),
    HISTLOSS_TWINS(shuffle_from_outside_the_mask),
    HISTLOSS_TWINS(caller_outside_the_mask),
    HISTLOSS_TWINS(different_primitives),
    HISTLOSS_TWINS(deadlock),
};

const Kernel kPrimitives = primitives;
