// What CUDA adds to C++: qualifiers, built-in types and variables.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__ __attribute__((unused))  // in some of the files that include it
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// Static __shared__ variables are not offered: every byte of shared memory is asked for at the launch, so
// that its end is known.
#define HISTLOSS_SHARED(name) unsigned char* const name = ::emulation::shared_memory()

namespace emulation {

unsigned char* shared_memory();  // of the running block

}  // namespace emulation

#define HISTLOSS_VECTORS(name, scalar)                                                              \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };                                      \
  struct name##3 { scalar x, y, z; };                                                               \
  struct alignas(4 * sizeof(scalar) < 16 ? 4 * sizeof(scalar) : 16) name##4 { scalar x, y, z, w; }; \
  constexpr name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                           \
  constexpr name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }              \
  constexpr name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

HISTLOSS_VECTORS(int, int)
HISTLOSS_VECTORS(uint, unsigned)
HISTLOSS_VECTORS(float, float)
HISTLOSS_VECTORS(double, double)
#undef HISTLOSS_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Those of the running thread: set at every switch.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;
