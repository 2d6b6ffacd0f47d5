// What the kernels need from the process: scratch memory, threads, and pixels in the arithmetic's type.
// Defined outside the kernels, so that no library code is compiled for a SIMD level.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../problem.h"

namespace histloss::cpu {

// 64-byte aligned memory, kept for the next call: fresh pages cost more than the kernels do.
void* acquire_scratch(std::size_t bytes);
void release_scratch(void* block);

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(acquire_scratch(static_cast<std::size_t>(count) * sizeof(T)))) {}
  ~Scratch() { release_scratch(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

int64_t thread_count();

// body(context, begin, end) over disjoint ranges of [0, tasks), on torch's thread pool.
void parallel_ranges(int64_t tasks, void (*body)(void*, int64_t, int64_t), void* context);

template <class Body>
inline __attribute__((always_inline)) void parallel_for(int64_t tasks, const Body& body) {
  parallel_ranges(
      tasks,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Pixels [begin, begin + count) of the image, in place if they have the type already, else widened to buffer.
const float* load_pixels(const Image& image, int64_t begin, int64_t count, float* buffer);
const double* load_pixels(const Image& image, int64_t begin, int64_t count, double* buffer);

// Where to write such pixels, and what brings them into the image afterwards.
float* pixels_to_store(const MutableImage& image, int64_t begin, float* buffer);
double* pixels_to_store(const MutableImage& image, int64_t begin, double* buffer);
void store_pixels(const MutableImage& image, int64_t begin, int64_t count, const float* values);
void store_pixels(const MutableImage& image, int64_t begin, int64_t count, const double* values);

}  // namespace histloss::cpu
