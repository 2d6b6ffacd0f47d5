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

  // a b 2^23, where the product of all factors is at most kLargest.
  __device__ __forceinline__ void add(int at, float a, float b) const {
    add_low(at, __float_as_uint(fmaf(a, b, 8388608.0f)) - 0x4b000000u);
  }

  // The same for any size.
  __device__ __forceinline__ void add_any(int at, float value) const {
    const unsigned long long fixed = __float2ull_rn(value);
    add_low(at, static_cast<unsigned>(fixed));
    if (const unsigned carry = static_cast<unsigned>(fixed >> 32); carry != 0) add_high(at, carry);
  }

  __device__ __forceinline__ unsigned long long sum(int at) const {
    const unsigned carries = high[at / 4] >> (at % 4 * 8) & 0xffu;
    return static_cast<unsigned long long>(carries) << 32 | low[at];
  }

  // By all threads of a block; whole words of carries.
  __device__ __forceinline__ void clear(int count) const {
    for (int i = threadIdx.x; i < count; i += kThreads) low[i] = 0;
    for (int i = threadIdx.x; i < count / 4; i += kThreads) high[i] = 0;
  }

 private:
  __device__ __forceinline__ void add_low(int at, unsigned value) const {
    const unsigned before = atomicAdd(low + at, value);
    if (before + value < value) add_high(at, 1);
  }
  __device__ __forceinline__ void add_high(int at, unsigned carries) const {
    atomicAdd(high + at / 4, carries << (at % 4 * 8));
  }
};

}  // namespace
}  // namespace histloss::cuda
