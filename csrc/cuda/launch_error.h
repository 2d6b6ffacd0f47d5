#pragma once

#include <cuda_runtime.h>

#include <string>

namespace histloss::cuda {

// What this library was built for and by.
extern const char *const kArchitectures, *const kCompiler, *const kRuntime;

// Why an op failed on a device, in words; where the library and the machine do not fit, what would.
std::string launch_error(const char* op, cudaError_t error, int device);

}  // namespace histloss::cuda
