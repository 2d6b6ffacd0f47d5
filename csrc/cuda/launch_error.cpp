#include "launch_error.h"

#define HISTLOSS_TEXT_OF(x) #x
#define HISTLOSS_TEXT(x) HISTLOSS_TEXT_OF(x)

namespace histloss::cuda {
namespace {

std::string version_text(int version) {  // as CUDA counts: 13000 is 13.0
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string compute_capability(int device) {
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess)
    return "";
  return std::to_string(major) + "." + std::to_string(minor);
}

}  // namespace

const char* const kArchitectures = HISTLOSS_ARCHITECTURES;
const char* const kCompiler = "nvcc " HISTLOSS_TEXT(__CUDACC_VER_MAJOR__) "." HISTLOSS_TEXT(
    __CUDACC_VER_MINOR__) "." HISTLOSS_TEXT(__CUDACC_VER_BUILD__);
const char* const kRuntime = HISTLOSS_TEXT(__CUDACC_VER_MAJOR__) "." HISTLOSS_TEXT(__CUDACC_VER_MINOR__);

std::string launch_error(const char* op, cudaError_t error, int device) {
  const std::string text = std::string("histloss: ") + op + " failed on cuda:" + std::to_string(device) +
                           ": " + cudaGetErrorString(error);
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion: break;
    default: return text;
  }
  int driver = 0;
  cudaDriverGetVersion(&driver);
  const std::string capability = compute_capability(device);
  std::string found = "the driver " + (driver == 0 ? "is missing" : "is for CUDA " + version_text(driver));
  if (!capability.empty()) found = "the GPU has compute capability " + capability + ", " + found;
  const std::string archs = capability.empty() ? "" : " HISTLOSS_CUDA_ARCHS=" + capability;
  return text + ". Found: " + found + ". Needed: one of " + kArchitectures +
         " (the last for newer GPUs too)" + ", and a driver for CUDA " + kRuntime +
         ". Update the driver, or build histloss on this machine: HISTLOSS_CUDA=1" + archs +
         " pip install --no-binary histloss --force-reinstall --no-deps histloss";
}

}  // namespace histloss::cuda
