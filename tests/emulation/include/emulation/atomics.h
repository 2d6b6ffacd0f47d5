// Atomic operations: relaxed, as on the device. The scheduler may go on with another thread at each. Only the
// types that CUDA has: uint64_t, for one, is not among them. Here are those in use.
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
HISTLOSS_ATOMIC(atomicOr, unsigned, fetch_or)
#undef HISTLOSS_ATOMIC
