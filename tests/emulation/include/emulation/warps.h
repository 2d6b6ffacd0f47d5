// How the threads of a block meet: barriers, and the primitives of a warp.
#pragma once

#include <bit>
#include <source_location>
#include <type_traits>

#include "language.h"

namespace emulation {

using Where = std::source_location;

void synchronise_block(Where where);
void fence();
[[noreturn]] void fail(Where where, const char* message);

int lane();

// Waits until every lane of the mask is at the same primitive with the same mask, each with its value. Of all
// primitives only __syncwarp orders memory.
enum class Memory { ordered, unordered };
void meet(const char* primitive, Memory memory, unsigned mask, std::uint64_t value, Where where);

// The value that a lane brought to the last meeting of the running thread.
std::uint64_t value_of(int lane);

template <class T>
concept Word = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <Word T>
std::uint64_t to_bits(T value) {
  if constexpr (sizeof(T) == 4)
    return std::bit_cast<std::uint32_t>(value);
  else
    return std::bit_cast<std::uint64_t>(value);
}

template <Word T>
T from_bits(std::uint64_t bits) {
  if constexpr (sizeof(T) == 4)
    return std::bit_cast<T>(static_cast<std::uint32_t>(bits));
  else
    return std::bit_cast<T>(bits);
}

template <Word T>
T shuffle(const char* primitive, unsigned mask, T value, int source, Where where) {
  meet(primitive, Memory::unordered, mask, to_bits(value), where);
  if ((mask >> source & 1) == 0) fail(where, "a shuffle reads a lane that is not in its mask");
  return from_bits<T>(value_of(source));
}

// combine(result so far, a lane's value) over the lanes of the mask.
template <Word T, class Combine>
T reduce(const char* primitive, unsigned mask, T value, T start, const Combine& combine, Where where) {
  meet(primitive, Memory::unordered, mask, to_bits(value), where);
  for (int i = 0; i < warpSize; ++i)
    if (mask >> i & 1) start = combine(start, from_bits<T>(value_of(i)));
  return start;
}

inline unsigned vote(const char* primitive, unsigned mask, int predicate, Where where) {
  meet(primitive, Memory::unordered, mask, predicate != 0, where);
  unsigned ballot = 0;
  for (int i = 0; i < warpSize; ++i)
    if (mask >> i & 1) ballot |= static_cast<unsigned>(value_of(i)) << i;
  return ballot;
}

}  // namespace emulation

inline void __syncthreads(emulation::Where where = emulation::Where::current()) {
  emulation::synchronise_block(where);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, emulation::Where where = emulation::Where::current()) {
  emulation::meet("__syncwarp", emulation::Memory::ordered, mask, 0, where);
}

inline void __threadfence() { emulation::fence(); }

// A source lane beyond the segment of `width` lanes wraps around in __shfl_sync; in the others the lane then
// keeps its own value.

template <emulation::Word T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              emulation::Where where = emulation::Where::current()) {
  const int first = emulation::lane() & ~(width - 1);
  return emulation::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)), where);
}

template <emulation::Word T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = warpSize,
                 emulation::Where where = emulation::Where::current()) {
  const int lane = emulation::lane(), from = lane - static_cast<int>(distance);
  return emulation::shuffle("__shfl_up_sync", mask, value, from < (lane & ~(width - 1)) ? lane : from, where);
}

template <emulation::Word T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = warpSize,
                   emulation::Where where = emulation::Where::current()) {
  const int lane = emulation::lane(), from = lane + static_cast<int>(distance);
  return emulation::shuffle("__shfl_down_sync", mask, value, from > (lane | (width - 1)) ? lane : from,
                            where);
}

template <emulation::Word T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize,
                  emulation::Where where = emulation::Where::current()) {
  const int lane = emulation::lane(), from = lane ^ bits;
  return emulation::shuffle("__shfl_xor_sync", mask, value, from > (lane | (width - 1)) ? lane : from, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              emulation::Where where = emulation::Where::current()) {
  return emulation::vote("__ballot_sync", mask, predicate, where);
}

inline int __any_sync(unsigned mask, int predicate, emulation::Where where = emulation::Where::current()) {
  return emulation::vote("__any_sync", mask, predicate, where) != 0;
}

inline int __all_sync(unsigned mask, int predicate, emulation::Where where = emulation::Where::current()) {
  return emulation::vote("__all_sync", mask, predicate, where) == mask;
}

template <emulation::Word T>
unsigned __match_any_sync(unsigned mask, T value, emulation::Where where = emulation::Where::current()) {
  emulation::meet("__match_any_sync", emulation::Memory::unordered, mask, emulation::to_bits(value), where);
  unsigned equal = 0;
  for (int i = 0; i < warpSize; ++i)
    if ((mask >> i & 1) && emulation::value_of(i) == emulation::to_bits(value)) equal |= 1u << i;
  return equal;
}

#define HISTLOSS_REDUCTION(name, T, start, expression)                                                  \
  inline T name(unsigned mask, T value, emulation::Where where = emulation::Where::current()) {         \
    return emulation::reduce<T>(#name, mask, value, start, [](T a, T b) { return expression; }, where); \
  }
HISTLOSS_REDUCTION(__reduce_add_sync, unsigned, 0, a + b)
HISTLOSS_REDUCTION(__reduce_add_sync, int, 0,
                   static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
HISTLOSS_REDUCTION(__reduce_max_sync, unsigned, value, a > b ? a : b)
HISTLOSS_REDUCTION(__reduce_max_sync, int, value, a > b ? a : b)
#undef HISTLOSS_REDUCTION
