// Sums of activations as integers: integers add to the same bits in any order, so that threads may add when
// they like, and the result does not tell how the work was cut. A sum has 40 bits, a word of 32 and a byte
// for its carries.
#pragma once

#include "device.cuh"

namespace histloss::cuda {
namespace {

// A summand is at most 2^23 for one pixel: the spacing of float32 there is 1, and adding 2^23 rounds to it.
constexpr float kLargest = 8388608.0f - 16.0f;
// Pixels whose summands surely fit. Tests make do with fewer, to need several segments.
#ifndef HISTLOSS_SEGMENT
#define HISTLOSS_SEGMENT 65536
#endif
constexpr int kSegment = HISTLOSS_SEGMENT;
// What a plane's mass, 1 in all, is multiplied by: what a whole segment of pixels has without masses.
constexpr float kMassScale = 65536.0f;

struct FixedSums {
  unsigned* low;   // (count)
  unsigned* high;  // a byte each

  __device__ FixedSums(unsigned char* memory, int count)
      : low(reinterpret_cast<unsigned*>(memory)), high(low + count) {}

  static constexpr std::size_t kBytes = 5;  // of one

  // N summands at once: the additions do not wait for each other, and their carries, which are rare, are
  // looked for together. The products are at most kLargest, or anything if WIDE.
  template <bool WIDE, int N>
  __device__ __forceinline__ void add(const int (&at)[N], const float (&a)[N], const float (&b)[N]) const {
    unsigned value[N], sum[N], carries[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if constexpr (WIDE) {
        const unsigned long long fixed = __float2ull_rn(a[i] * b[i]);
        value[i] = static_cast<unsigned>(fixed);
        carries[i] = static_cast<unsigned>(fixed >> 32);
      } else {
        value[i] = __float_as_uint(fmaf(a[i], b[i], 8388608.0f)) - 0x4b000000u;
        carries[i] = 0;
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = atomicAdd(low + at[i], value[i]) + value[i];
    bool any = false;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      carries[i] += sum[i] < value[i];
      any |= carries[i] != 0;
    }
    if (!any) return;
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (carries[i] != 0) atomicAdd(high + at[i] / 4, carries[i] << (at[i] % 4 * 8));
  }

  __device__ __forceinline__ unsigned long long sum(int at) const {
    const unsigned carries = high[at / 4] >> (at % 4 * 8) & 0xffu;
    return static_cast<unsigned long long>(carries) << 32 | low[at];
  }

  // By all threads of a block; whole words of carries.
  __device__ __forceinline__ void clear(int count) const {
    for (int i = threadIdx.x; i < count; i += static_cast<int>(blockDim.x)) low[i] = 0;
    for (int i = threadIdx.x; i < count / 4; i += static_cast<int>(blockDim.x)) high[i] = 0;
  }
};

}  // namespace
}  // namespace histloss::cuda
