// Launches the kernels of faults.cu from Python.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "emulator.h"
#include "faults.h"

namespace {

// What the kernel leaves in an array of zeros.
std::vector<int> launch(Kernel kernel, dim3 blocks, dim3 threads, std::size_t shared_bytes, unsigned seed) {
  std::vector<int> out(std::size_t{blocks.x} * kThreads);
  emulation::options().seed = seed;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  if (cudaLaunchKernelEx(&config, kernel, out.data()) != cudaSuccess)
    throw std::runtime_error(emulation::error());
  return out;
}

std::vector<int> run(const std::string& name, bool faulty, unsigned seed) {
  const Twins& twins = kTwins.at(name);
  return launch(faulty ? twins.faulty : twins.correct, 4, kThreads, kThreads * sizeof(int), seed);
}

// allowed: what cudaFuncSetAttribute is asked to allow, unless 0.
void try_launch(std::array<unsigned, 3> blocks, std::array<unsigned, 3> threads, std::size_t shared_bytes,
                int allowed) {
  const Kernel kernel = kTwins.at("divergent_barrier").correct;
  if (allowed != 0 &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed) != cudaSuccess)
    throw std::runtime_error(emulation::error());
  launch(kernel, dim3(blocks[0], blocks[1], blocks[2]), dim3(threads[0], threads[1], threads[2]),
         shared_bytes, 0);
}

}  // namespace

PYBIND11_MODULE(emulated_faults, m) {
  m.def("names", [] {
    std::vector<std::string> names;
    for (const auto& [name, twins] : kTwins) names.push_back(name);
    return names;
  });
  m.def("run", run);
  m.def("try_launch", try_launch);
  m.def("primitives", [] { return launch(kPrimitives, 8, warpSize, 0, 0); });
  m.def("floats_to_ints", [](double x) {
    const auto single = static_cast<float>(x);
    return std::tuple{__float2int_rn(single), __float2uint_rn(single), __float2ll_rn(single),
                      __float2ull_rn(single), __double2ull_rn(x),      __float2int_rd(single)};
  });
  m.def("halves", [](float x) {
    return std::pair{__half2float(__float2half_rn(x)), __bfloat162float(__float2bfloat16_rn(x))};
  });
}
