// The CUDA side of every op: the job, with pointers to device memory, put on a stream. Nothing here waits for
// the device or copies from the host, so that a CUDA graph can record it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "../problem.h"

namespace histloss::cuda {

// What a job's kernels get from their caller.
struct Launch {
  cudaStream_t stream;
  int shared_bytes;  // of shared memory that a block may have at most

  // Device memory that stays valid until the job's work on the stream is done.
  virtual void* scratch(std::size_t bytes) = 0;

 protected:
  ~Launch() = default;
};

cudaError_t soft_histogram(const SoftHistogram& job, Launch& launch);
cudaError_t soft_histogram_backward(const SoftHistogramBackward& job, Launch& launch);
cudaError_t joint_histogram(const JointHistogram& job, Launch& launch);
cudaError_t joint_histogram_backward(const JointHistogramBackward& job, Launch& launch);
cudaError_t soft_histogram_sums(const SoftHistogramSums& job, Launch& launch);
cudaError_t soft_histogram_sums_backward(const SoftHistogramBackward& job, Launch& launch);
cudaError_t joint_histogram_sums(const JointHistogramSums& job, Launch& launch);
cudaError_t joint_histogram_sums_backward(const JointHistogramBackward& job, Launch& launch);
cudaError_t activation_maps(const ActivationMaps& job, Launch& launch);
cudaError_t activation_maps_backward(const ActivationMapsBackward& job, Launch& launch);

}  // namespace histloss::cuda
