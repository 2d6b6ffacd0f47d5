// Small kernels that are correct, each with a twin that has one fault: what the emulator must find.
#pragma once

#include <map>
#include <string>

using Kernel = void (*)(int*);

struct Twins {
  Kernel correct, faulty;
};

// On blocks of 64 threads, with an int of shared memory and one of `out`, which is 0, for each.
inline constexpr int kThreads = 64;
extern const std::map<std::string, Twins> kTwins;

// out[16 i + j]: what lane i of a warp gets from the primitive at its j-th line.
extern const Kernel kPrimitives;
