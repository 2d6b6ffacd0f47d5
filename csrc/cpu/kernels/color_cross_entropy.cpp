// Vectors run over pixels, and a tile of them stays in the caches from its logits to its gradient.
#include "../runtime.h"
#include "simd.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kStrip = 4;  // vectors whose sums stay in registers
#else
constexpr int64_t kStrip = 1;
#endif
constexpr int64_t kRows = 16;  // of exponentials are added before they join the sum of all
constexpr int64_t kAhead = 8;  // rows of logits are fetched before their turn: a tile's are far apart
constexpr int64_t kStreamed = int64_t{1} << 23;  // elements of a gradient that leaves the caches anyway

template <class T>
constexpr int64_t kTile = 16 * Simd<T>::lanes;  // pixels

template <class T>
class Tile {
  using V = typename Simd<T>::Vector;
  static constexpr int64_t lanes = Simd<T>::lanes;

  const ColorCrossEntropy& job_;
  T* const e_;  // (bins, kTile): the logits, then their exponentials
  const int64_t image_, first_, count_;
  alignas(64) T largest_[kTile<T>];
  alignas(64) T total_[kTile<T>];
  bool valid_ = true;

 public:
  Tile(const ColorCrossEntropy& job, int64_t image, int64_t first, T* e)
      : job_(job),
        e_(e),
        image_(image),
        first_(first),
        count_(job.pixels - first < kTile<T> ? job.pixels - first : kTile<T>) {}

  // Whether all of its indices are bins; the others count for nothing.
  bool work() {
    read_logits();
    double scores[kTile<T>]{};
    each_target([&](int64_t i, T logit, T z) { scores[i] += static_cast<double>(z) * logit; });
    for (int64_t i = 0; i < count_; i += kStrip * lanes) exponentiate(i);
    const int64_t at = image_ * job_.pixels + first_;
    const T* const v = static_cast<const T*>(job_.v) + at;
    T* const values = static_cast<T*>(job_.values) + at;
    for (int64_t i = 0; i < count_; ++i)
      values[i] = static_cast<T>(v[i] * (std::log(total_[i]) + (largest_[i] - scores[i])));
    if (job_.grad.data != nullptr) {
      each_target([&](int64_t i, T& e, T z) { e -= total_[i] * z; });
      write_gradient(v);
    }
    return valid_;
  }

 private:
  int64_t logits(int64_t bin) const { return (image_ * job_.bins + bin) * job_.pixels + first_; }

  // visit(i, n) for the n pixels from i on, whole vectors first.
  template <class Visit>
  HISTLOSS_INLINE void each_vector(const Visit& visit) const {
    int64_t i = 0;
    for (; i + lanes <= count_; i += lanes) visit(i, lanes);
    if (i < count_) visit(i, count_ - i);
  }

  // visit(pixel, what e holds for it and a bin, the bin's share) for all of the target.
  template <class Visit>
  HISTLOSS_INLINE void each_target(const Visit& visit) {
    for (int64_t j = 0; j < job_.neighbours; ++j) {
      const int64_t at = (image_ * job_.neighbours + j) * job_.pixels + first_;
      const int64_t* const bins = job_.indices + at;
      const T* const z = static_cast<const T*>(job_.z) + at;
      for (int64_t i = 0; i < count_; ++i) {
        const int64_t bin = bins[i];
        if (bin < 0 || bin >= job_.bins)
          valid_ = false;
        else
          visit(i, e_[bin * kTile<T> + i], z[i]);
      }
    }
  }

  void prefetch(int64_t begin) const {
    const int64_t size = job_.x.type == Scalar::f64 ? 8 : job_.x.type == Scalar::f32 ? 4 : 2;
    const char* const row = static_cast<const char*>(job_.x.data) + begin * size;
    for (int64_t byte = 0; byte < count_ * size; byte += 64) __builtin_prefetch(row + byte);
  }

  void read_logits() {
    for (int64_t i = 0; i < kTile<T>; i += lanes) store(largest_ + i, splat<V>(T(-INFINITY)));
    for (int64_t bin = 0; bin < job_.bins; ++bin) {
      if (bin + kAhead < job_.bins) prefetch(logits(bin + kAhead));
      T* const row = e_ + bin * kTile<T>;
      const T* const x = load_pixels(job_.x, logits(bin), count_, row);
      each_vector([&](int64_t i, int64_t n) {
        const V logit = load_part(x + i, n, T(0));
        store(row + i, logit);
        store(largest_ + i, maximum_or_nan(logit, load<V>(largest_ + i)));
      });
    }
  }

  void exponentiate(int64_t i) {
    V largest[kStrip], total[kStrip]{};
    for (int r = 0; r < kStrip; ++r) largest[r] = load<V>(largest_ + i + r * lanes);
    for (int64_t begin = 0; begin < job_.bins; begin += kRows) {
      const int64_t end = begin + kRows < job_.bins ? begin + kRows : job_.bins;
      V part[kStrip]{};
      for (int64_t bin = begin; bin < end; ++bin) {
        T* const row = e_ + bin * kTile<T> + i;
#pragma GCC unroll 4
        for (int r = 0; r < kStrip; ++r) {
          const V e = exp_not_positive<T>(load<V>(row + r * lanes) - largest[r]);
          part[r] += e;
          store(row + r * lanes, e);
        }
      }
      for (int r = 0; r < kStrip; ++r) total[r] += part[r];
    }
    for (int r = 0; r < kStrip; ++r) store(total_ + i + r * lanes, total[r]);
  }

  void write_gradient(const T* v) {
    alignas(64) T scale[kTile<T>], buffer[kTile<T>];
    for (int64_t i = 0; i < count_; ++i) scale[i] = v[i] / total_[i];
    const bool streams =
        pixels_to_store(job_.grad, 0, buffer) != buffer && job_.images * job_.bins * job_.pixels >= kStreamed;
    for (int64_t bin = 0; bin < job_.bins; ++bin) {
      const T* const row = e_ + bin * kTile<T>;
      T* const grad = pixels_to_store(job_.grad, logits(bin), buffer);
      each_vector([&](int64_t i, int64_t n) {
        const V g = load<V>(row + i) * load<V>(scale + i);
        streams&& n == lanes ? stream(grad + i, g) : store_part(grad + i, g, n);
      });
      store_pixels(job_.grad, logits(bin), count_, grad);
    }
  }
};

template <class T>
bool sweep(const ColorCrossEntropy& job) {
  const int64_t tiles = (job.pixels + kTile<T> - 1) / kTile<T>;
  bool valid = true;
  parallel_for(job.images * tiles, [&](int64_t begin, int64_t end) {
    const Scratch<T> e(job.bins * kTile<T>);
    for (int64_t task = begin; task < end; ++task)
      if (!Tile<T>(job, task / tiles, task % tiles * kTile<T>, e.get()).work())
        __atomic_store_n(&valid, false, __ATOMIC_RELAXED);
    end_stream();
  });
  return valid;
}

}  // namespace

bool color_cross_entropy(const ColorCrossEntropy& job) {
  return job.is_double ? sweep<double>(job) : sweep<float>(job);
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
