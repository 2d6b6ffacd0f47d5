// What tests set and read. The rest of the emulator stands behind include/cuda_runtime.h.
#pragma once

#include <cstddef>
#include <string>

namespace emulation {

// Of a launch's blocks, and of the threads of a block that can go on.
enum class Order { random, forward, backward };

struct Options {
  unsigned seed = 0;
  Order order = Order::random;
  std::size_t shared_bytes = std::size_t{227} << 10;  // the most that a block of this device may have
};

Options& options();

// Why the last launch that failed did so.
std::string& error();

}  // namespace emulation
