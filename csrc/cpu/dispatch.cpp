#include "dispatch.h"

#include <cstdlib>
#include <cstring>

namespace histloss::cpu {
namespace {

#define HISTLOSS_KERNELS(SIMD)                                                                     \
  Kernels {                                                                                        \
    #SIMD, SIMD::soft_histogram, SIMD::soft_histogram_backward, SIMD::joint_histogram,             \
        SIMD::joint_histogram_backward, SIMD::activation_maps, SIMD::activation_maps_backward,     \
        SIMD::soft_histogram_sums, SIMD::soft_histogram_sums_backward, SIMD::joint_histogram_sums, \
        SIMD::joint_histogram_sums_backward, SIMD::nearest_bins, SIMD::color_cross_entropy         \
  }

struct Level {
  Kernels kernels;
  bool runs;
};

Kernels choose() {
#if HISTLOSS_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const Level widest_first[] = {
      {HISTLOSS_KERNELS(avx512), avx512}, {HISTLOSS_KERNELS(avx2), avx2}, {HISTLOSS_KERNELS(sse), true}};
#else
  const Level widest_first[] = {{HISTLOSS_KERNELS(generic), true}};
#endif
  const char* wanted = std::getenv("HISTLOSS_SIMD");
  if (wanted != nullptr) {
    for (const Level& level : widest_first)
      if (level.runs && std::strcmp(level.kernels.simd, wanted) == 0) return level.kernels;
  }
  for (const Level& level : widest_first)
    if (level.runs) return level.kernels;
  return {};  // not reached: the last level always runs
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace histloss::cpu
