// Joint histograms, float32, with too few pixels for tiles to pay: every pixel meets the 16 by 16 bins about
// it, its window. Pixels are ordered by patches of bins, so that the rows that they meet stay in the caches.
// For kernels whose taps fit into one vector.
#pragma once

#include "cells.h"

namespace histloss::cpu {
namespace {

constexpr int64_t kPatchRows = 16, kPatchColumns = 64;  // groups of x and of y

// An axis whose pixels touch 16 bins or fewer, half of them on either side of the edge that is nearest. The
// pixels of one edge are a group.
struct WindowAxis {
  Position<float> position;
  alignas(64) float p[kNodes];
  alignas(64) float n[kNodes];
  float coth, a, a_low;
  int64_t groups;  // the windows of group g begin at index g of the extended range
  int64_t length;  // of the extended range

  explicit WindowAxis(const Axis& axis) : position(axis, false) {
    const KernelConstants kernel = kernel_constants(axis.bandwidth);
    coth = static_cast<float>(kernel.coth);
    a = static_cast<float>(kernel.a);
    a_low = static_cast<float>(kernel.a - static_cast<double>(a));
    groups = axis.bins + 2 * position.margin + 1;
    length = groups - 1 + 2 * position.radius;
    for (int k = 0; k < kNodes; ++k) {
      const double centre = k + 0.5 - static_cast<double>(position.radius);
      p[k] = factor(-kernel.a * centre - kernel.log_2sinh);
      n[k] = factor(kernel.a * centre - kernel.log_2sinh);
    }
  }

  static bool fits(const Axis& axis) {
    constexpr double narrowest = 0.05;  // the exponentials of narrower kernels leave float32's range
    return axis.bandwidth >= narrowest && 2 * kernel_radius(axis.bandwidth, false) <= kNodes;
  }

  // An extended row, with room for the vectors that begin at its last windows: whole lines, and an odd number
  // of them, so that neighbouring rows do not share the same places of a cache.
  int64_t row() const { return ((length + kNodes + 15) / 16 | 1) * 16; }

  Nodes nodes() const { return {p, n, coth}; }

  // Sixteen pixels' groups; not valid where they have none.
  HISTLOSS_INLINE I32 group(F32 z, I32& valid) const {
    const F32 at = position.coarse(z) + (static_cast<float>(position.margin) + 0.5f);
    valid = (at >= 0.0f) & (at < static_cast<float>(groups));
    return __builtin_convertvector(valid ? at : F32{}, I32);
  }

  // t being the distance of z + rest from its group's edge.
  HISTLOSS_INLINE Exponential exponential(F32 z, I32 group, F32 rest) const {
    const F32 edge = __builtin_convertvector(group, F32) - static_cast<float>(position.margin);
    const F32 e = exp_scaled(F32{}, position.distance(z, edge) + rest * position.inverse_width, a, a_low);
    return {e, reciprocal(e)};
  }

 private:
  // Where e^70 is not enough, an activation is nothing beside the others.
  static float factor(double exponent) {
    return static_cast<float>(std::exp(exponent < 70.0 ? exponent : 70.0));
  }
};

// The pixels of some planes, each plane's in the order of their patches, one row of patches after the other;
// those without a window come last. The order is that of the image within a patch, whatever the threads.
class PatchOrder {
 public:
  PatchOrder(const WindowAxis& x, const WindowAxis& y, int64_t planes, int64_t pixels)
      : rows((x.length + kPatchRows - 1) / kPatchRows),
        x_(x),
        y_(y),
        pixels_(pixels),
        columns_((y.groups + kPatchColumns - 1) / kPatchColumns),
        places_(rows * columns_ + 1),
        parts_(pixels, kPart, kMostParts, kPart),
        key_(planes * parts_.count * parts_.size),
        next_(planes * parts_.count * places_),
        pairs_(planes * 2 * padded()),
        index_(planes * padded()),
        rest_x_(folds(x) ? planes * padded() : 0),
        rest_y_(folds(y) ? planes * padded() : 0),
        has_rest_(2 * planes * parts_.count) {}

  const int64_t rows;  // of patches

  // Bytes that an order takes for each plane.
  static int64_t bytes(int64_t pixels) { return (pixels + kPart) * 4 * static_cast<int64_t>(sizeof(float)); }

  // A counting sort of the planes from plane0 on.
  template <class Job>
  void sort(const Job& job, int64_t plane0, int64_t planes) {
    each_part(job, plane0, planes,
              [&](int64_t plane, int64_t part, int64_t n, const FoldedPair<float>& pixels) {
                count(plane, part, n, pixels);
              });
    for (int64_t plane = 0; plane < planes; ++plane) begin(plane);
    each_part(job, plane0, planes,
              [&](int64_t plane, int64_t part, int64_t n, const FoldedPair<float>& pixels) {
                fill(plane, part, n, pixels);
              });
  }

  // visit(plane, part, n, pixels) for every part of some planes, in parallel, with its pixels in the range.
  template <class Job, class Visit>
  void each_part(const Job& job, int64_t plane0, int64_t planes, const Visit& visit) const {
    parallel_for(planes * parts_.count, [&](int64_t begin, int64_t end) {
      const Scratch<float> buffer((2 + 2 * kFoldBuffers) * parts_.size);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t plane = task / parts_.count, part = task % parts_.count;
        const int64_t at = (plane0 + plane) * pixels_ + parts_.begin(part), n = parts_.length(part, pixels_);
        visit(plane, part, n, fold_pair(job, x_.position, y_.position, at, n, buffer.get()));
      }
    });
  }
  int64_t begin_of_part(int64_t part) const { return parts_.begin(part); }

  // The place where a row of patches begins; that of row `rows`: where the pixels without a window begin.
  int64_t begin_of_row(int64_t plane, int64_t row) const {
    return row == 0 ? 0 : counters(plane, parts_.count - 1)[row * columns_ - 1];
  }

  // visit(first, last) in parallel: the rows of patches of some planes, row after row and plane after plane,
  // in shares that cost the same, one for each thread.
  template <class Visit>
  void each_share(int64_t planes, const Visit& visit) const {
    const int64_t shares = thread_count();
    parallel_for(shares, [&](int64_t begin, int64_t end) {
      visit(begin_of_share(planes, begin, shares), begin_of_share(planes, end, shares));
    });
  }

  // Sixteen pixels' values of x and y, and what was rounded off them, from a place on.
  HISTLOSS_INLINE void pixels(int64_t plane, int64_t place, F32& x, F32& y, F32& rest_x, F32& rest_y) const {
    split_pairs(pairs_.get() + 2 * (plane * padded() + place), x, y);
    const uint32_t* const number = index(plane, place);
    const uint8_t* const has_rest = has_rest_.get() + 2 * plane * parts_.count;
    rest_x = rests_of(has_rest[0] ? rest_x_.get() + plane * padded() : nullptr, number);
    rest_y = rests_of(has_rest[1] ? rest_y_.get() + plane * padded() : nullptr, number);
  }
  // The numbers in their plane of the pixels from a place on.
  const uint32_t* index(int64_t plane, int64_t place) const {
    return index_.get() + plane * padded() + place;
  }

 private:
  static constexpr int64_t kPart = 16384;  // pixels
  static constexpr int64_t kMostParts = 256;

  static bool folds(const WindowAxis& axis) { return axis.position.boundary != Boundary::open; }
  int64_t padded() const { return pixels_ + kBatch; }
  int32_t* keys(int64_t plane, int64_t part) const {
    return key_.get() + (plane * parts_.count + part) * parts_.size;
  }
  uint32_t* counters(int64_t plane, int64_t part) const {
    return next_.get() + (plane * parts_.count + part) * places_;
  }
  uint8_t* has_rest(int64_t plane, int64_t part) const {
    return has_rest_.get() + 2 * (plane * parts_.count + part);
  }

  // Of the rows before one, in pixels.
  int64_t cost(int64_t plane, int64_t row) const {
    constexpr int64_t empty_row = 128;
    return begin_of_row(plane, row) + row * empty_row;
  }

  // Where a share begins, which is where the one before ends.
  int64_t begin_of_share(int64_t planes, int64_t share, int64_t shares) const {
    int64_t total = 0;
    for (int64_t plane = 0; plane < planes; ++plane) total += cost(plane, rows);
    const int64_t wanted = total * share / shares;
    int64_t before = 0;
    for (int64_t plane = 0; plane < planes; before += cost(plane, rows), ++plane)
      for (int64_t row = 0; row < rows; ++row)
        if (before + cost(plane, row) >= wanted) return plane * rows + row;
    return planes * rows;
  }

  void count(int64_t plane, int64_t part, int64_t n, const FoldedPair<float>& pixels) {
    int32_t* const key = keys(plane, part);
    const int32_t columns = static_cast<int32_t>(columns_), none = static_cast<int32_t>(places_ - 1);
    for (int64_t i = 0; i < n; i += 16) {
      I32 valid_x, valid_y;
      const I32 x = x_.group(load_part(pixels.x.z + i, n - i, NAN), valid_x);
      const I32 y = y_.group(load_part(pixels.y.z + i, n - i, NAN), valid_y);
      const I32 place =
          x / static_cast<int32_t>(kPatchRows) * columns + y / static_cast<int32_t>(kPatchColumns);
      store(key + i, valid_x & valid_y ? place : splat<I32>(none));
    }
    uint32_t* const next = counters(plane, part);
    std::memset(next, 0, static_cast<std::size_t>(places_) * sizeof(uint32_t));
    for (int64_t i = 0; i < n; ++i) ++next[key[i]];
    has_rest(plane, part)[0] = pixels.x.rest != nullptr;
    has_rest(plane, part)[1] = pixels.y.rest != nullptr;
  }

  // From how many pixels each part has in a patch to where they begin.
  void begin(int64_t plane) {
    uint32_t total = 0;
    for (int64_t place = 0; place < places_; ++place)
      for (int64_t part = 0; part < parts_.count; ++part) {
        uint32_t& next = counters(plane, part)[place];
        const uint32_t here = next;
        next = total;
        total += here;
      }
    for (int64_t part = 1; part < parts_.count; ++part)
      for (int axis = 0; axis < 2; ++axis) has_rest(plane, 0)[axis] |= has_rest(plane, part)[axis];
    float* const pairs = pairs_.get() + plane * 2 * padded();
    for (int64_t i = pixels_; i < padded(); ++i) {  // batches read whole vectors
      pairs[2 * i] = x_.position.lo;
      pairs[2 * i + 1] = y_.position.lo;
      index_[plane * padded() + i] = 0;
    }
  }

  void fill(int64_t plane, int64_t part, int64_t n, const FoldedPair<float>& pixels) {
    const int32_t* const key = keys(plane, part);
    uint32_t *const next = counters(plane, part), *const index = index_.get() + plane * padded();
    float* const pairs = pairs_.get() + plane * 2 * padded();
    const int64_t first = parts_.begin(part);
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t to = next[key[i]]++;
      pairs[2 * to] = pixels.x.z[i];
      pairs[2 * to + 1] = pixels.y.z[i];
      index[to] = static_cast<uint32_t>(first + i);
    }
    const auto keep = [&](bool any, const Folded<float>& of, float* rest) {
      if (any)
        for (int64_t i = 0; i < n; ++i) rest[first + i] = of.rest == nullptr ? 0.0f : of.rest[i];
    };
    keep(has_rest(plane, 0)[0], pixels.x, rest_x_.get() + plane * padded());
    keep(has_rest(plane, 0)[1], pixels.y, rest_y_.get() + plane * padded());
  }

  const WindowAxis &x_, &y_;
  const int64_t pixels_, columns_, places_;
  const Parts parts_;
  Scratch<int32_t> key_;
  Scratch<uint32_t> next_;  // where the next pixel of each patch goes, by planes and parts
  Scratch<float> pairs_;
  Scratch<uint32_t> index_;
  Scratch<float> rest_x_, rest_y_;
  Scratch<uint8_t> has_rest_;
};

// The rows that the windows of one row of patches may meet, and no others: they stay in the cache while the
// patches pass. They begin as 0: windows may end beyond the extended range.
template <class T>
struct Ring {
  static constexpr int64_t kRows = kPatchRows + kNodes;

  const int64_t stride;
  const Scratch<T> rows;
  int64_t offset[2 * kRows];  // of row i at i % kRows, and of those after it

  explicit Ring(int64_t row_stride) : stride(row_stride), rows(kRows * row_stride) {
    for (int64_t i = 0; i < 2 * kRows; ++i) offset[i] = i % kRows * stride;
    clear(0, kRows);
  }

  T* row(int64_t i) const { return rows.get() + offset[i % kRows]; }
  void clear(int64_t first, int64_t count) const {
    for (int64_t i = first; i < first + count; ++i)
      std::memset(row(i), 0, static_cast<std::size_t>(stride) * sizeof(T));
  }
};

// A batch's activations, and the groups where its windows begin.
struct WindowBatch {
  const WindowAxis &axis_x, &axis_y;
  const Nodes nodes_x, nodes_y;
  Batch x, y;
  Exponentials of_x, of_y;
  alignas(64) int32_t group_x[kBatch];
  alignas(64) int32_t group_y[kBatch];

  WindowBatch(const WindowAxis& ax, const WindowAxis& ay)
      : axis_x(ax), axis_y(ay), nodes_x(ax.nodes()), nodes_y(ay.nodes()) {}

  // Of a row of patches: a group is kept in it even if a compiler rounds it otherwise here than where pixels
  // are counted.
  template <bool SLOPE>
  HISTLOSS_INLINE void set(const PatchOrder& order, int64_t plane, int64_t row, int64_t place, int64_t n) {
    const I32 first = splat<I32>(static_cast<int32_t>(row * kPatchRows));
    const I32 last = first + static_cast<int32_t>(kPatchRows - 1);
    for (int64_t i = 0; i < n; i += 16) {
      F32 zx, zy, rest_x, rest_y;
      I32 valid;
      order.pixels(plane, place + i, zx, zy, rest_x, rest_y);
      const I32 gx = minimum(maximum(axis_x.group(zx, valid), first), last), gy = axis_y.group(zy, valid);
      store(group_x + i, gx);
      store(group_y + i, gy);
      of_x.set(i, axis_x.exponential(zx, gx, rest_x));
      of_y.set(i, axis_y.exponential(zy, gy, rest_y));
    }
    activate<kNodes, SLOPE>(nodes_x, of_x, n, x);
    activate<kNodes, SLOPE>(nodes_y, of_y, n, y);
  }

  // The column and the row offsets of pixel k's window.
  template <class T>
  HISTLOSS_INLINE T* columns(const Ring<T>& ring, int64_t k) const {
    return ring.rows.get() + group_y[k];
  }
  template <class T>
  HISTLOSS_INLINE const int64_t* row_offsets(const Ring<T>& ring, int64_t k) const {
    return ring.offset + group_x[k] % Ring<T>::kRows;
  }
};

// Whether a job can be done by windows: its kernels are narrow, and 32 bits can number its pixels.
template <class Job>
bool windows_fit(const Job& job) {
  return !job.pixels.is_double && job.pixels.count < (int64_t{1} << 31) && WindowAxis::fits(job.axis_x) &&
         WindowAxis::fits(job.axis_y);
}

}  // namespace
}  // namespace histloss::cpu
