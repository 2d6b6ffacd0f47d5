// Vectors run over pixels, each of which has candidates of its own, inserted one after the other, the last
// first.
#include "../runtime.h"
#include "simd.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

// As many pixels as a vector holds. Plain loops over them become vectors of the machine's size.
template <class T>
class Nearest {
  using V = typename Simd<T>::Vector;
  using Slot = typename Simd<T>::Integer;  // among a cell's candidates
  static constexpr int64_t lanes = Simd<T>::lanes;

  const NearestBins& job_;
  const Scratch<T> squares_;  // (neighbours, lanes), ascending; then the weights
  const Scratch<Slot> slots_;

 public:
  explicit Nearest(const NearestBins& job)
      : job_(job), squares_(job.neighbours * lanes), slots_(job.neighbours * lanes) {}

  void work(int64_t image, int64_t first) {
    const int64_t rest = job_.pixels - first, count = rest < lanes ? rest : lanes;
    const T* const points = static_cast<const T*>(job_.points) + 2 * image * job_.pixels + first;
    const V a = load_part(points, count, T(0)), b = load_part(points + job_.pixels, count, T(0));
    int64_t begin[lanes];  // of the cell's candidates
    locate(a, b, begin);
    find(a, b, begin);
    store_part(static_cast<T*>(job_.squares) + image * job_.pixels + first, load<V>(squares_.get()), count);
    weigh();
    for (int64_t k = 0; k < job_.neighbours; ++k) {
      const int64_t at = (image * job_.neighbours + k) * job_.pixels + first;
      store_part(static_cast<T*>(job_.weights) + at, load<V>(squares_.get() + k * lanes), count);
      for (int64_t i = 0; i < count; ++i) job_.indices[at + i] = job_.bins[begin[i] + slots_[k * lanes + i]];
    }
  }

 private:
  // The cell of each point; outside all of them, and for NaN, one at the edge.
  void locate(V a, V b, int64_t (&begin)[lanes]) const {
    const V row = cell(a, 0, job_.rows), column = cell(b, 1, job_.columns);
    for (int64_t i = 0; i < lanes; ++i)
      begin[i] =
          (static_cast<int64_t>(row[i]) * job_.columns + static_cast<int64_t>(column[i])) * job_.candidates;
  }

  V cell(V x, int axis, int64_t size) const {
    const V at = (x - static_cast<T>(job_.low[axis])) / static_cast<T>(job_.step);
    return minimum(maximum(at, V{}), splat<V>(static_cast<T>(size - 1)));
  }

  void find(V a, V b, const int64_t (&begin)[lanes]) {
    T* const squares = squares_.get();
    Slot* const slots = slots_.get();
    for (int64_t i = 0; i < job_.neighbours * lanes; ++i) {
      squares[i] = T(INFINITY);
      slots[i] = 0;
    }
    for (int64_t c = job_.candidates - 1; c >= 0; --c) {
      alignas(64) T bin_a[lanes], bin_b[lanes], square[lanes];
      for (int64_t i = 0; i < lanes; ++i) {
        bin_a[i] = static_cast<const T*>(job_.a)[begin[i] + c];
        bin_b[i] = static_cast<const T*>(job_.b)[begin[i] + c];
      }
      const V distance_a = load<V>(bin_a) - a, distance_b = load<V>(bin_b) - b;
      V square_a = distance_a * distance_a, square_b = distance_b * distance_b;
      in_memory(square_a);  // a multiply-add would tell equal distances apart
      in_memory(square_b);
      store(square, square_a + square_b);
      insert(square, static_cast<Slot>(c));
    }
  }

  // Before those that are equally near, as is then each that makes room.
  HISTLOSS_INLINE void insert(T (&square)[lanes], Slot candidate) {
    alignas(64) Slot slot[lanes];
    for (int64_t i = 0; i < lanes; ++i) slot[i] = candidate;
    for (int64_t k = 0; k < job_.neighbours; ++k) {
      T* const squares = squares_.get() + k * lanes;
      Slot* const slots = slots_.get() + k * lanes;
#pragma GCC ivdep
      for (int64_t i = 0; i < lanes; ++i) {
        const T here = squares[i], other = square[i];
        const Slot slot_here = slots[i], slot_other = slot[i];
        const bool nearer = other <= here;
        squares[i] = nearer ? other : here;
        square[i] = nearer ? here : other;
        slots[i] = nearer ? slot_other : slot_here;
        slot[i] = nearer ? slot_here : slot_other;
      }
    }
  }

  // Squares become weights.
  void weigh() {
    constexpr double most = sizeof(T) == 8 ? 1e300 : 1e30;
    const T decay = static_cast<T>(job_.decay < most ? job_.decay : most);
    const V nearest = load<V>(squares_.get());
    V total{};
    for (int64_t k = 0; k < job_.neighbours; ++k) {
      T* const square = squares_.get() + k * lanes;
      const V weight = exp_not_positive<T>((nearest - load<V>(square)) * decay);
      total += weight;
      store(square, weight);
    }
    for (int64_t k = 0; k < job_.neighbours; ++k) {
      T* const weight = squares_.get() + k * lanes;
      store(weight, load<V>(weight) / total);
    }
  }
};

template <class T>
void encode(const NearestBins& job) {
  constexpr int64_t lanes = Simd<T>::lanes;
  const int64_t blocks = (job.pixels + lanes - 1) / lanes;
  parallel_for(job.images * blocks, [&](int64_t begin, int64_t end) {
    Nearest<T> nearest(job);
    for (int64_t task = begin; task < end; ++task) nearest.work(task / blocks, task % blocks * lanes);
  });
}

}  // namespace

void nearest_bins(const NearestBins& job) { job.is_double ? encode<double>(job) : encode<float>(job); }

}  // namespace histloss::cpu::HISTLOSS_SIMD
