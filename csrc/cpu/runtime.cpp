#include "runtime.h"

#include <pthread.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace histloss::cpu {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kKept = std::size_t{64} << 20;  // bytes of idle scratch that the process keeps

// The first line of a block holds its size; the caller gets the rest.
struct Pool {
  std::mutex mutex;
  std::vector<void*> idle;
  std::size_t idle_bytes = 0;
};

Pool& pool() {
  static Pool* const instance = [] {
    // A child that is forked while another thread holds the lock would wait for that thread, which it lacks.
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
    return new Pool;  // outlives every thread that may still release a block
  }();
  return *instance;
}

std::size_t& size_of(void* block) { return *static_cast<std::size_t*>(block); }

template <class To, class From>
void convert(const From* from, int64_t count, To* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(static_cast<float>(from[i]));
}

template <>
void convert(const double* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class T>
const T* load(const Image& image, int64_t begin, int64_t count, T* buffer, Scalar own) {
  if (image.type == own) return static_cast<const T*>(image.data) + begin;
  switch (image.type) {
    case Scalar::f16: convert(static_cast<const Half*>(image.data) + begin, count, buffer); break;
    case Scalar::bf16: convert(static_cast<const BFloat16*>(image.data) + begin, count, buffer); break;
    case Scalar::f32: convert(static_cast<const float*>(image.data) + begin, count, buffer); break;
    case Scalar::f64: convert(static_cast<const double*>(image.data) + begin, count, buffer); break;
  }
  return buffer;
}

template <class T>
void store(const MutableImage& image, int64_t begin, int64_t count, const T* values, Scalar own) {
  if (image.type == own) return;  // written in place
  switch (image.type) {
    case Scalar::f16: convert(values, count, static_cast<Half*>(image.data) + begin); break;
    case Scalar::bf16: convert(values, count, static_cast<BFloat16*>(image.data) + begin); break;
    case Scalar::f32: convert(values, count, static_cast<float*>(image.data) + begin); break;
    case Scalar::f64: convert(values, count, static_cast<double*>(image.data) + begin); break;
  }
}

}  // namespace

void* acquire_scratch(std::size_t bytes) {
  // Powers of two, and up to twice the size asked for, so that one call's blocks serve the next; pages that
  // nobody touches take no memory.
  const std::size_t size = std::bit_ceil(bytes + kAlignment);
  {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    for (void*& idle : p.idle) {
      if (size_of(idle) != size && size_of(idle) != 2 * size) continue;
      void* block = idle;
      idle = p.idle.back();
      p.idle.pop_back();
      p.idle_bytes -= size_of(block);
      return static_cast<char*>(block) + kAlignment;
    }
  }
  void* block = std::aligned_alloc(kAlignment, size);
  if (block == nullptr) throw std::bad_alloc();
  size_of(block) = size;
  return static_cast<char*>(block) + kAlignment;
}

void release_scratch(void* data) {
  void* block = static_cast<char*>(data) - kAlignment;
  {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    if (p.idle_bytes + size_of(block) <= kKept) {
      p.idle_bytes += size_of(block);
      p.idle.push_back(block);
      return;
    }
  }
  std::free(block);
}

int64_t thread_count() { return torch::stable::get_num_threads(); }

void parallel_ranges(int64_t tasks, void (*body)(void*, int64_t, int64_t), void* context) {
  if (tasks == 0) return;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

const float* load_pixels(const Image& image, int64_t begin, int64_t count, float* buffer) {
  return load(image, begin, count, buffer, Scalar::f32);
}
const double* load_pixels(const Image& image, int64_t begin, int64_t count, double* buffer) {
  return load(image, begin, count, buffer, Scalar::f64);
}

float* pixels_to_store(const MutableImage& image, int64_t begin, float* buffer) {
  return image.type == Scalar::f32 ? static_cast<float*>(image.data) + begin : buffer;
}
double* pixels_to_store(const MutableImage& image, int64_t begin, double* buffer) {
  return image.type == Scalar::f64 ? static_cast<double*>(image.data) + begin : buffer;
}
void store_pixels(const MutableImage& image, int64_t begin, int64_t count, const float* values) {
  store(image, begin, count, values, Scalar::f32);
}
void store_pixels(const MutableImage& image, int64_t begin, int64_t count, const double* values) {
  store(image, begin, count, values, Scalar::f64);
}

}  // namespace histloss::cpu
