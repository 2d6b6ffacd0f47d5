// Puts every op's job on the stream that PyTorch works on. From PyTorch it takes no more than LibTorch's
// stable ABI, so that the library also loads, and registers its ops, where PyTorch has no CUDA.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <vector>

#include "../boundary.h"
#include "../module.h"
#include "kernels.h"
#include "launch_error.h"

// Not in LibTorch's stable headers, but in libtorch_cuda since 2.10. Null where PyTorch has no CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace histloss::cuda {
namespace {

cudaStream_t current_stream(int device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "histloss: this PyTorch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Scratch comes from PyTorch's allocator, which gives freed memory to later work on the same stream: it may
// go when the op returns.
class TorchLaunch final : public Launch {
 public:
  TorchLaunch(const Tensor& x, cudaStream_t on_stream, int most_shared_bytes) : like_(x) {
    stream = on_stream;
    shared_bytes = most_shared_bytes;
  }

  void* scratch(std::size_t bytes) override {
    held_.push_back(torch::stable::new_empty(like_, {static_cast<int64_t>(bytes)}, ScalarType::Byte));
    return held_.back().mutable_data_ptr();
  }

 private:
  Tensor like_;
  std::vector<Tensor> held_;
};

template <class Job>
void launch(const char* op, cudaError_t (*kernels)(const Job&, Launch&), const Job& job, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cuda(), "histloss: x is not a CUDA tensor");
  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  int shared_bytes = 0;
  cudaError_t error = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) {
    TorchLaunch on(x, current_stream(device), shared_bytes);
    error = kernels(job, on);
  }
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would find it
  throw std::runtime_error(launch_error(op, error, device));
}

struct Backend {
  static void activation_maps(const ActivationMaps& job, const Tensor& x) {
    launch("activation_maps", cuda::activation_maps, job, x);
  }
  static void activation_maps_backward(const ActivationMapsBackward& job, const Tensor& x) {
    launch("activation_maps_backward", cuda::activation_maps_backward, job, x);
  }
  static void soft_histogram(const SoftHistogram& job, const Tensor& x) {
    launch("soft_histogram", cuda::soft_histogram, job, x);
  }
  static void soft_histogram_backward(const SoftHistogramBackward& job, const Tensor& x) {
    launch("soft_histogram_backward", cuda::soft_histogram_backward, job, x);
  }
  static void joint_histogram(const JointHistogram& job, const Tensor& x) {
    launch("joint_histogram", cuda::joint_histogram, job, x);
  }
  static void joint_histogram_backward(const JointHistogramBackward& job, const Tensor& x) {
    launch("joint_histogram_backward", cuda::joint_histogram_backward, job, x);
  }
  static void soft_histogram_sums(const SoftHistogramSums& job, const Tensor& x) {
    launch("soft_histogram_sums", cuda::soft_histogram_sums, job, x);
  }
  static void soft_histogram_sums_backward(const SoftHistogramBackward& job, const Tensor& x) {
    launch("soft_histogram_sums_backward", cuda::soft_histogram_sums_backward, job, x);
  }
  static void joint_histogram_sums(const JointHistogramSums& job, const Tensor& x) {
    launch("joint_histogram_sums", cuda::joint_histogram_sums, job, x);
  }
  static void joint_histogram_sums_backward(const JointHistogramBackward& job, const Tensor& x) {
    launch("joint_histogram_sums_backward", cuda::joint_histogram_sums_backward, job, x);
  }
};

}  // namespace
}  // namespace histloss::cuda

STABLE_TORCH_LIBRARY_IMPL(histloss, CUDA, m) { histloss::implement_ops<histloss::cuda::Backend>(m); }

extern "C" {
static PyModuleDef histloss_module = {
    PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__cuda(void) {
  return histloss::make_module(histloss_module, {{"architectures", histloss::cuda::kArchitectures},
                                                 {"compiler", histloss::cuda::kCompiler},
                                                 {"runtime", histloss::cuda::kRuntime}});
}
}
