// Joint histograms, float32: pixels are counting-sorted into tiles, a cell of x by a cell of y, and what a
// tile holds at its nodes stays in registers while its pixels pass. See csrc/cell_basis.h for what nodes are.
#pragma once

#include "../../cell_basis.h"
#include "position.h"

namespace histloss::cpu {
namespace {

constexpr int64_t kChunk = 32768;  // pixels sorted at a time; their numbers fit in 16 bits
constexpr int kBatch = 64;         // pixels whose activations are kept at a time
constexpr int kNodes = 16;         // of an axis; rows of a gradient's tiles may have 8
constexpr int kTile = kNodes * kNodes;

// e^(a t) and e^(-a t) of sixteen pixels.
struct Exponential {
  F32 e, inverse;
};

struct CellAxis {
  Position<float> position;
  const CellBasis& basis;
  int64_t count;   // cells
  int64_t length;  // of the extended range

  CellAxis(const Axis& axis, const CellBasis& b) : position(axis, false), basis(b) {
    count = (axis.bins + 2 * position.margin) / b.cell_bins + 1;
    length = count * b.cell_bins + 2 * b.radius;
  }

  // An extended row, with room for the vectors that begin at its last taps.
  int64_t row() const { return length + kNodes; }

  // Where z lies, in bins from the first cell's beginning: good to find its cell and bin.
  HISTLOSS_INLINE F32 place(F32 z) const { return position.coarse(z) + static_cast<float>(position.margin); }

  // The cell of a place, 0 where there is none.
  HISTLOSS_INLINE I32 cell(F32 place, I32& valid) const {
    const F32 f = place * (1.0f / static_cast<float>(basis.cell_bins));
    valid = (f >= 0.0f) & (f < static_cast<float>(count));
    return __builtin_convertvector(valid ? f : F32{}, I32);
  }

  // t being the distance of z + rest from the centre of its cell.
  HISTLOSS_INLINE Exponential exponential(F32 z, F32 rest) const {
    I32 valid;
    const F32 at = place(z), index = __builtin_convertvector(cell(at, valid), F32);
    const F32 bin = __builtin_convertvector(__builtin_convertvector(valid ? at : F32{}, I32), F32) + 0.5f;
    const F32 whole = bin - (index + 0.5f) * static_cast<float>(basis.cell_bins);
    const F32 fraction =
        position.distance(z, bin - static_cast<float>(position.margin)) + rest * position.inverse_width;
    const F32 e = exp_scaled(whole, fraction, basis.a, basis.a_low);
    return {e, reciprocal(e)};
  }
};

struct Tiles {
  CellAxis x, y;
  int64_t count;

  Tiles(const Axis& axis_x, const Axis& axis_y, const CellBasis& basis_x, const CellBasis& basis_y)
      : x(axis_x, basis_x), y(axis_y, basis_y), count(x.count * y.count) {}
};

// x and y of sixteen pairs.
HISTLOSS_INLINE void split_pairs(const float* pairs, F32& x, F32& y) {
  const F32 a = loadf(pairs), b = loadf(pairs + 16);
  x = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  y = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// Of sixteen pixels, by their numbers; 0 where there are no rests at all.
template <class Number>
HISTLOSS_INLINE F32 rests_of(const float* rest, const Number* number) {
  if (rest == nullptr) return F32{};
  alignas(64) float of[16];
  for (int i = 0; i < 16; ++i) of[i] = rest[number[i]];
  return loadf(of);
}

// One chunk's pixels in the order of their tiles; those without a tile come last.
class TileOrder {
 public:
  explicit TileOrder(const Tiles& tiles)
      : tiles_(tiles),
        key_(kChunk),
        end_(kStreams * (tiles.count + 1)),
        pairs_(2 * (kChunk + kBatch)),
        index_(kChunk + kBatch) {}

  // Four streams, a quarter of the pixels each: neighbouring pixels often share a tile, and counting them one
  // after the other would wait for the same counter.
  void sort(const float* x, const float* y, int64_t n) {
    const int64_t counters = tiles_.count + 1;
    find_tiles(x, y, n);
    std::memset(end_.get(), 0, static_cast<std::size_t>(kStreams * counters) * sizeof(uint32_t));
    const int64_t quarter = n / kStreams;
    const uint32_t* const key = key_.get();
    uint32_t* const count[kStreams] = {end_.get(), end_.get() + counters, end_.get() + 2 * counters,
                                       end_.get() + 3 * counters};
    for (int64_t i = 0; i < quarter; ++i)
      for (int s = 0; s < kStreams; ++s) ++count[s][key[i + s * quarter]];
    for (int64_t i = kStreams * quarter; i < n; ++i) ++count[kStreams - 1][key[i]];
    uint32_t total = 0;
    for (int64_t t = 0; t < counters; ++t)
      for (int s = 0; s < kStreams; ++s) {
        const uint32_t here = count[s][t];
        count[s][t] = total;
        total += here;
      }
    float* const pairs = pairs_.get();
    uint16_t* const index = index_.get();
    const auto put = [&](int s, int64_t i) {
      const int64_t to = count[s][key[i]]++;
      pairs[2 * to] = x[i];
      pairs[2 * to + 1] = y[i];
      index[to] = static_cast<uint16_t>(i);
    };
    for (int64_t i = 0; i < quarter; ++i)
      for (int s = 0; s < kStreams; ++s) put(s, i + s * quarter);
    for (int64_t i = kStreams * quarter; i < n; ++i) put(kStreams - 1, i);
    for (int64_t i = n; i < n + kBatch; ++i) {  // batches read whole vectors
      pairs[2 * i] = tiles_.x.position.lo;
      pairs[2 * i + 1] = tiles_.y.position.lo;
      index[i] = 0;
    }
  }

  // Where tile t's pixels end, and where they begin.
  int64_t end(int64_t tile) const { return end_[(kStreams - 1) * (tiles_.count + 1) + tile]; }
  int64_t begin(int64_t tile) const { return tile == 0 ? 0 : end(tile - 1); }
  int64_t placed() const { return end(tiles_.count - 1); }

  // Where a batch that begins at `first` ends: with a tile, unless that tile alone is longer than a batch.
  int64_t batch_end(int64_t first, int64_t tile) const {
    int64_t last = first;
    for (; tile < tiles_.count && end(tile) <= first + kBatch; ++tile) last = end(tile);
    if (last > first) return last;
    return first + kBatch < placed() ? first + kBatch : placed();
  }

  // visit(tile, first, last) for every run of one tile's pixels in [first, last); tile, 0 at first, remembers
  // where the last call ended.
  template <class Visit>
  HISTLOSS_INLINE void runs(int64_t first, int64_t last, int64_t& tile, const Visit& visit) const {
    while (first < last) {
      while (end(tile) <= first) ++tile;
      const int64_t until = end(tile) < last ? end(tile) : last;
      visit(tile, first, until);
      first = until;
    }
  }

  // Sixteen pixels' values of x and y from place i on, and the numbers that the pixels have in their chunk.
  HISTLOSS_INLINE void pixels(int64_t i, F32& x, F32& y) const { split_pairs(pairs_.get() + 2 * i, x, y); }
  const uint16_t* index() const { return index_.get(); }

 private:
  static constexpr int kStreams = 4;

  void find_tiles(const float* x, const float* y, int64_t n) {
    const int32_t columns = static_cast<int32_t>(tiles_.y.count), none = static_cast<int32_t>(tiles_.count);
    for (int64_t i = 0; i < n; i += 16) {
      I32 valid_x, valid_y;
      const I32 cell_x = tiles_.x.cell(tiles_.x.place(load_part(x + i, n - i, NAN)), valid_x);
      const I32 cell_y = tiles_.y.cell(tiles_.y.place(load_part(y + i, n - i, NAN)), valid_y);
      store(key_.get() + i, valid_x & valid_y ? cell_x * columns + cell_y : splat<I32>(none));
    }
  }

  const Tiles& tiles_;
  Scratch<uint32_t> key_, end_;
  Scratch<float> pairs_;
  Scratch<uint16_t> index_;
};

// A batch's activations at the nodes of its cell, pixel by pixel, and their slopes but for the factor a.
// The gaps keep the arrays from lying whole pages apart, where loads would wait for stores they do not meet.
struct Batch {
  alignas(64) float pi[kBatch * kNodes + 256];
  alignas(64) float slope[kBatch * kNodes + 256];
};

// A basis's constants in registers: for all the compiler knows, storing an activation might change them.
struct Nodes {
  F32 p, n, coth;

  Nodes(const float* of_p, const float* of_n, float of_coth)
      : p(loadf(of_p)), n(loadf(of_n)), coth(splat<F32>(of_coth)) {}
  explicit Nodes(const CellBasis& basis) : Nodes(basis.p, basis.n, basis.coth) {}
};

struct Activation {
  F32 pi, slope;
};

// Of one pixel, or two with eight nodes each, whose e^(a t) and e^(-a t) the lanes hold.
HISTLOSS_INLINE Activation activation(const Nodes& nodes, F32 e, F32 inverse) {
  const F32 p = e * nodes.p, n = inverse * nodes.n;
  const F32 pi = reciprocal(nodes.coth + p + n);
  return {pi, pi * pi * (n - p)};
}

template <bool SLOPE>
HISTLOSS_INLINE void store_activation(const Nodes& nodes, F32 e, F32 inverse, float* pi, float* slope) {
  const Activation here = activation(nodes, e, inverse);
  store(pi, here.pi);
  if constexpr (SLOPE) store(slope, here.slope);
}

template <int I>
HISTLOSS_INLINE F32 two_lanes(F32 v) {
  constexpr int a = 2 * I, b = 2 * I + 1;
  return __builtin_shufflevector(v, v, a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b);
}

// The exponentials of a batch's pixels: first all of them, since each is a long chain of dependent steps.
struct Exponentials {
  alignas(64) float e[kBatch];
  alignas(64) float inverse[kBatch];

  HISTLOSS_INLINE void set(int64_t i, Exponential of) {
    store(e + i, of.e);
    store(inverse + i, of.inverse);
  }
};

// What folding rounded off x and y, by the pixels' numbers; null for nothing.
struct Rests {
  const float *x, *y;
};

// The activations of a batch.
template <int NODES, bool SLOPE>
HISTLOSS_INLINE void activate(const Nodes& nodes, const Exponentials& of, int64_t count, Batch& out) {
  for (int64_t i = 0; i < count; i += 16) {
    float *const pi = out.pi + i * NODES, *const slope = out.slope + i * NODES;
    if constexpr (NODES == 8) {
      const F32 e = loadf(of.e + i), inverse = loadf(of.inverse + i);
      store_activation<SLOPE>(nodes, two_lanes<0>(e), two_lanes<0>(inverse), pi, slope);
      store_activation<SLOPE>(nodes, two_lanes<1>(e), two_lanes<1>(inverse), pi + 16, slope + 16);
      store_activation<SLOPE>(nodes, two_lanes<2>(e), two_lanes<2>(inverse), pi + 32, slope + 32);
      store_activation<SLOPE>(nodes, two_lanes<3>(e), two_lanes<3>(inverse), pi + 48, slope + 48);
      store_activation<SLOPE>(nodes, two_lanes<4>(e), two_lanes<4>(inverse), pi + 64, slope + 64);
      store_activation<SLOPE>(nodes, two_lanes<5>(e), two_lanes<5>(inverse), pi + 80, slope + 80);
      store_activation<SLOPE>(nodes, two_lanes<6>(e), two_lanes<6>(inverse), pi + 96, slope + 96);
      store_activation<SLOPE>(nodes, two_lanes<7>(e), two_lanes<7>(inverse), pi + 112, slope + 112);
    } else {
#pragma GCC unroll 4
      for (int k = 0; k < 16; ++k)
        store_activation<SLOPE>(nodes, splat<F32>(of.e[i + k]), splat<F32>(of.inverse[i + k]), pi + k * 16,
                                slope + k * 16);
    }
  }
}

// Where the range is short beside the kernel and its ends fold in, many taps stand for every bin, and so
// would the rounding of their mix.
HISTLOSS_INLINE bool folds_often(const CellAxis& axis) {
  return axis.position.boundary != Boundary::open && axis.length > 4 * axis.position.bins;
}

// Whether a plane has the pixels to pay for tiles that hold `size` numbers each. The rules were measured, see
// csrc/NOTES.md: against windows, where those serve instead, a tile has to have eight pixels, and one more
// for each half megabyte that all tiles take.
HISTLOSS_INLINE bool tiles_pay(const Tiles& tiles, int64_t size, const Pixels& pixels, bool or_windows) {
  if (folds_often(tiles.x) || folds_often(tiles.y) || tiles.count >= int64_t{1} << 24) return false;
  if (or_windows) {
    const int64_t bytes = tiles.count * size * static_cast<int64_t>(sizeof(float));
    return pixels.count >= tiles.count * (8 + bytes / (512 << 10));
  }
  const int64_t taps = int64_t{4} * tiles.x.basis.radius * tiles.y.basis.radius;  // a pixel's, done directly
  return pixels.count * taps >= 4 * tiles.count * size;
}

// Rows of a mix that take the same vectors: vector c of row r, at out[r] + c out_step, is the sum over i of
// weight[r][i] times the vector at from + offset[i] + c step.
template <int ROWS>
struct MixedRows {
  const float* weight[ROWS];
  float* out[ROWS];
  int64_t out_step;
};

// Several vectors at once: independent sums hide the latency of each, and a vector that is loaded serves all
// rows.
template <int AT_ONCE, int ROWS>
HISTLOSS_INLINE void combine_some(const float* from, int64_t step, const int64_t* offset, int64_t terms,
                                  const MixedRows<ROWS>& rows, int64_t first) {
  F32 sum[ROWS][AT_ONCE];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < AT_ONCE; ++c) sum[r][c] = F32{};
  for (int64_t i = 0; i < terms; ++i)
#pragma GCC unroll 4
    for (int c = 0; c < AT_ONCE; ++c) {
      const F32 vector = loadf(from + offset[i] + (first + c) * step);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) sum[r][c] += rows.weight[r][i] * vector;
    }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < AT_ONCE; ++c) store(rows.out[r] + (first + c) * rows.out_step, sum[r][c]);
}

template <int ROWS>
HISTLOSS_INLINE void combine(const float* from, int64_t step, const int64_t* offset, int64_t terms,
                             int64_t count, const MixedRows<ROWS>& rows) {
#if defined(__AVX512F__)
  constexpr int at_once = 4;
#else
  constexpr int at_once = ROWS == 1 ? 4 : 1;  // what registers hold
#endif
  int64_t c = 0;
  for (; c + at_once <= count; c += at_once) combine_some<at_once>(from, step, offset, terms, rows, c);
  for (; c < count; ++c) combine_some<1>(from, step, offset, terms, rows, c);
}

// The mix along one axis: bin k's sums are those of weight[i] times the vectors at offset[i], i in [begin[k],
// begin[k + 1]), where node r of a cell lies at cell * cell_step + r * 16.
class Mix {
 public:
  Mix(const CellAxis& axis, const Fold& fold, int64_t step)
      : cell_step(step),
        begin(fold.bins + 1),
        like_next(fold.bins),
        offset(capacity(axis, fold)),
        weight(capacity(axis, fold)) {
    int64_t terms = 0;
    for (int64_t k = 0; k < fold.bins; ++k) {
      begin[k] = terms;
      fold.each(k, [&](int64_t i) { add(axis, i, terms); });
    }
    begin[fold.bins] = terms;
    for (int64_t k = 0; k < fold.bins; ++k) like_next[k] = k + 1 < fold.bins && same_vectors(k, k + 1);
  }

  int64_t terms(int64_t k) const { return begin[k + 1] - begin[k]; }

  const int64_t cell_step;
  const Scratch<int64_t> begin;
  const Scratch<uint8_t> like_next;  // whether bin k + 1 has the offsets of bin k
  const Scratch<int64_t> offset;
  const Scratch<float> weight;

 private:
  static int64_t capacity(const CellAxis& axis, const Fold& fold) {
    return fold.length * axis.basis.nodes *
           ((axis.basis.taps + axis.basis.cell_bins - 1) / axis.basis.cell_bins);
  }

  bool same_vectors(int64_t k, int64_t l) const {
    return terms(k) == terms(l) && std::memcmp(offset.get() + begin[k], offset.get() + begin[l],
                                               static_cast<std::size_t>(terms(k)) * sizeof(int64_t)) == 0;
  }

  // The terms of index i of the extended range.
  void add(const CellAxis& axis, int64_t i, int64_t& terms) {
    const CellBasis& basis = axis.basis;
    const int64_t before = basis.outer_taps / 2, last = i / basis.cell_bins;
    for (int64_t cell = last < axis.count ? last : axis.count - 1; cell >= 0; --cell) {
      const int64_t tap = i - cell * basis.cell_bins;
      if (tap >= basis.taps) break;
      if (tap >= before && tap < before + basis.node_taps) {
        add_term(cell, tap - before, 1.0f, terms);
      } else {
        const int64_t outer = tap < before ? tap : tap - basis.node_taps;
        for (int r = 0; r < basis.nodes; ++r) add_term(cell, r, basis.mix[outer * basis.nodes + r], terms);
      }
    }
  }

  void add_term(int64_t cell, int64_t node, float w, int64_t& terms) {
    offset[terms] = cell * cell_step + node * kNodes;
    weight[terms++] = w;
  }
};

// How many planes to work on at once: few enough to stay in the caches, enough to keep the threads busy.
HISTLOSS_INLINE int64_t planes_at_once(int64_t planes, int64_t parts, int64_t bytes_per_plane) {
  constexpr int64_t budget = 4 << 20;
  const int64_t busy = (thread_count() + parts - 1) / parts, fit = budget / bytes_per_plane;
  const int64_t n = busy > fit ? busy : fit;
  return n < planes ? n : planes;
}

}  // namespace
}  // namespace histloss::cpu
