// Atomic operations: relaxed, as on the device. The scheduler may go on with another thread at each. Only the
// types that CUDA has: uint64_t, for one, is not among them.
#pragma once

#include <atomic>
#include <cstdint>

namespace emulation {

void interrupt();  // lets another thread run, at times

}  // namespace emulation

#define HISTLOSS_ATOMIC(name, T, operation)                                          \
  inline T name(T* address, T value) {                                               \
    emulation::interrupt();                                                          \
    return std::atomic_ref<T>(*address).operation(value, std::memory_order_relaxed); \
  }
HISTLOSS_ATOMIC(atomicAdd, int, fetch_add)
HISTLOSS_ATOMIC(atomicAdd, unsigned, fetch_add)
HISTLOSS_ATOMIC(atomicAdd, unsigned long long, fetch_add)
HISTLOSS_ATOMIC(atomicAdd, float, fetch_add)
HISTLOSS_ATOMIC(atomicAdd, double, fetch_add)
HISTLOSS_ATOMIC(atomicSub, int, fetch_sub)
HISTLOSS_ATOMIC(atomicSub, unsigned, fetch_sub)
HISTLOSS_ATOMIC(atomicOr, int, fetch_or)
HISTLOSS_ATOMIC(atomicOr, unsigned, fetch_or)
HISTLOSS_ATOMIC(atomicOr, unsigned long long, fetch_or)
HISTLOSS_ATOMIC(atomicAnd, int, fetch_and)
HISTLOSS_ATOMIC(atomicAnd, unsigned, fetch_and)
HISTLOSS_ATOMIC(atomicAnd, unsigned long long, fetch_and)
HISTLOSS_ATOMIC(atomicExch, int, exchange)
HISTLOSS_ATOMIC(atomicExch, unsigned, exchange)
HISTLOSS_ATOMIC(atomicExch, unsigned long long, exchange)
HISTLOSS_ATOMIC(atomicExch, float, exchange)
#undef HISTLOSS_ATOMIC

#define HISTLOSS_ATOMIC(name, T, keeps)                                                              \
  inline T name(T* address, T value) {                                                               \
    emulation::interrupt();                                                                          \
    const std::atomic_ref<T> at(*address);                                                           \
    T old = at.load(std::memory_order_relaxed);                                                      \
    while (!(old keeps value) && !at.compare_exchange_weak(old, value, std::memory_order_relaxed)) { \
    }                                                                                                \
    return old;                                                                                      \
  }
HISTLOSS_ATOMIC(atomicMax, int, >=)
HISTLOSS_ATOMIC(atomicMax, unsigned, >=)
HISTLOSS_ATOMIC(atomicMax, unsigned long long, >=)
HISTLOSS_ATOMIC(atomicMax, long long, >=)
HISTLOSS_ATOMIC(atomicMin, int, <=)
HISTLOSS_ATOMIC(atomicMin, unsigned, <=)
HISTLOSS_ATOMIC(atomicMin, unsigned long long, <=)
HISTLOSS_ATOMIC(atomicMin, long long, <=)
#undef HISTLOSS_ATOMIC

#define HISTLOSS_ATOMIC(T)                                                                              \
  inline T atomicCAS(T* address, T expected, T desired) {                                               \
    emulation::interrupt();                                                                             \
    std::atomic_ref<T>(*address).compare_exchange_strong(expected, desired, std::memory_order_relaxed); \
    return expected;                                                                                    \
  }
HISTLOSS_ATOMIC(int)
HISTLOSS_ATOMIC(unsigned)
HISTLOSS_ATOMIC(unsigned long long)
#undef HISTLOSS_ATOMIC
