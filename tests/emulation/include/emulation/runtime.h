// The part of the CUDA runtime that launches kernels and clears device memory. Everything is done when a call
// returns; limits are those of a GPU, and what one would refuse is refused.
#pragma once

#include <cstddef>
#include <functional>
#include <tuple>
#include <utility>

#include "language.h"

using cudaStream_t = struct CUstream_st*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct cudaLaunchAttribute;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream = nullptr);

namespace emulation {

cudaError_t allow_shared_bytes(const void* kernel, cudaFuncAttribute attribute, int bytes);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread);

}  // namespace emulation

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return emulation::allow_shared_bytes(reinterpret_cast<const void*>(kernel), attribute, value);
}

// As on a device, the arguments are converted to the parameters' types, and every thread has copies.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<std::remove_cv_t<Parameters>...> copies(std::forward<Arguments>(arguments)...);
  return emulation::launch(*config, reinterpret_cast<const void*>(kernel),
                           [&] { std::apply(kernel, copies); });
}
