// Stands in for CUDA's header of this name.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

struct __nv_bfloat16 {
  std::uint16_t bits;  // the upper half of a float's
};

inline float __bfloat162float(__nv_bfloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (std::isnan(x)) return {0x7fff};
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t half_to_even = 0x7fff + (bits >> 16 & 1);
  return {static_cast<std::uint16_t>((bits + half_to_even) >> 16)};
}
