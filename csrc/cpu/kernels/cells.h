// Joint histograms, float32: pixels are counting-sorted into tiles, a cell of x by a cell of y, and a tile's
// 16 x 16 node sums stay in registers while its pixels pass. See ../cell_basis.h for what nodes are.
#pragma once

#include "../cell_basis.h"
#include "position.h"

namespace histloss::cpu {
namespace {

constexpr int64_t kChunk = 32768;  // pixels sorted at a time; their numbers fit in 16 bits
constexpr int kBatch = 64;         // pixels whose activations are kept at a time
constexpr int kShortSum = 32;      // pixels added up in float32 before the sum moves on to float64
constexpr int kTile = kNodes * kNodes;

// Node rows that fit in registers beside a pixel's columns.
#if defined(__AVX512F__)
constexpr int kRows = 16;
#elif defined(__AVX2__)
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif

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
  int64_t row() const { return length + basis.outer_stride + kNodes; }

  // The cell of z; lanes that are none compare false.
  HISTLOSS_INLINE I32 locate(F32 z, F32& cell) const {
    const F32 f = (position.coarse(z) + static_cast<float>(position.margin)) *
                  (1.0f / static_cast<float>(basis.cell_bins));
    cell = f;
    return (f >= 0.0f) & (f < static_cast<float>(count));
  }

  float centre(int64_t cell) const {
    return (static_cast<float>(cell) + 0.5f) * static_cast<float>(basis.cell_bins) -
           static_cast<float>(position.margin);
  }
};

struct Tiles {
  CellAxis x, y;
  int64_t count;

  Tiles(const Axis& axis_x, const Axis& axis_y, const CellBasis& basis_x, const CellBasis& basis_y)
      : x(axis_x, basis_x), y(axis_y, basis_y), count(x.count * y.count) {}
};

// One chunk's pixels in the order of their tiles; those without a tile come last.
class TileOrder {
 public:
  explicit TileOrder(const Tiles& tiles)
      : tiles_(tiles),
        key_(kChunk),
        end_(kStreams * (tiles.count + 1)),
        x_(kChunk + kBatch),
        y_(kChunk + kBatch),
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
    float *const sorted_x = x_.get(), *const sorted_y = y_.get();
    uint16_t* const index = index_.get();
    const auto put = [&](int s, int64_t i) {
      const uint32_t to = count[s][key[i]]++;
      sorted_x[to] = x[i];
      sorted_y[to] = y[i];
      index[to] = static_cast<uint16_t>(i);
    };
    for (int64_t i = 0; i < quarter; ++i)
      for (int s = 0; s < kStreams; ++s) put(s, i + s * quarter);
    for (int64_t i = kStreams * quarter; i < n; ++i) put(kStreams - 1, i);
    for (int64_t i = n; i < n + kBatch; ++i) {  // batches read whole vectors
      sorted_x[i] = sorted_y[i] = tiles_.x.position.lo;
      index[i] = 0;
    }
  }

  // visit(tile, pixels' places in the order [begin, end)) for every tile that has pixels.
  template <class Visit>
  HISTLOSS_INLINE void each_tile(const Visit& visit) const {
    int64_t begin = 0;
    for (int64_t tile = 0; tile < tiles_.count; ++tile) {
      const int64_t end = end_[(kStreams - 1) * (tiles_.count + 1) + tile];
      if (end > begin) visit(tile, begin, end);
      begin = end;
    }
  }

  int64_t placed() const { return end_[(kStreams - 1) * (tiles_.count + 1) + tiles_.count - 1]; }
  const float* x() const { return x_.get(); }
  const float* y() const { return y_.get(); }
  const uint16_t* index() const { return index_.get(); }

 private:
  static constexpr int kStreams = 4;

  void find_tiles(const float* x, const float* y, int64_t n) {
    const int32_t columns = static_cast<int32_t>(tiles_.y.count), none = static_cast<int32_t>(tiles_.count);
    for (int64_t i = 0; i < n; i += 16) {
      F32 cell_x, cell_y;
      const I32 valid =
          tiles_.x.locate(load_lanes(x + i, n - i), cell_x) & tiles_.y.locate(load_lanes(y + i, n - i), cell_y);
      const I32 ix = __builtin_convertvector(valid ? cell_x : F32{}, I32);
      const I32 iy = __builtin_convertvector(valid ? cell_y : F32{}, I32);
      store(key_.get() + i, valid ? ix * columns + iy : I32{} + none);
    }
  }

  static HISTLOSS_INLINE F32 load_lanes(const float* p, int64_t n) {
    if (n >= 16) return loadf(p);
    float buffer[16];
    for (int i = 0; i < 16; ++i) buffer[i] = i < n ? p[i] : NAN;
    return loadf(buffer);
  }

  const Tiles& tiles_;
  Scratch<uint32_t> key_, end_;
  Scratch<float> x_, y_;
  Scratch<uint16_t> index_;
};

// A batch's activations at the nodes of its cell, and their slopes but for the factor a.
struct Batch {
  alignas(64) float pi[kBatch][kNodes];
  alignas(64) float slope[kBatch][kNodes];
};

template <bool SLOPE>
HISTLOSS_INLINE void activate(const CellAxis& axis, float centre, const float* z, int n, Batch& out) {
  const CellBasis& basis = axis.basis;
  const F32 p_nodes = loadf(basis.p), n_nodes = loadf(basis.n), coth = F32{} + basis.coth;
  for (int i = 0; i < n; i += 16) {
    alignas(64) float e[16], inverse[16];
    const F32 t = axis.position.distance(loadf(z + i), F32{} + centre);
    const F32 up = exp_scaled<float>(t, basis.a, basis.a_low);
    store(e, up);
    store(inverse, reciprocal(up));
#pragma GCC unroll 4
    for (int k = 0; k < 16; ++k) {
      const F32 p = e[k] * p_nodes, m = inverse[k] * n_nodes;
      const F32 pi = reciprocal(coth + p + m);
      store(out.pi[i + k], pi);
      if constexpr (SLOPE) store(out.slope[i + k], pi * pi * (m - p));
    }
  }
}

// Whether the plane has the pixels to pay for its tiles.
HISTLOSS_INLINE bool tiles_pay(const Axis& x, const Axis& y, const Pixels& pixels) {
  if (pixels.is_double) return false;
  const CellBasis *bx = cell_basis(x.bandwidth), *by = cell_basis(y.bandwidth);
  if (bx == nullptr || by == nullptr) return false;
  const Tiles tiles(x, y, *bx, *by);
  const int64_t taps = int64_t{4} * bx->radius * by->radius;  // of a pixel, by the direct method
  return tiles.count < (int64_t{1} << 24) && pixels.count * taps >= tiles.count * 1024;
}

// The mix along one axis: bin k's sum is that of weight[i] times the sum at node[i], i in [begin[k],
// begin[k + 1]), a cell's nodes numbered cell * 16 + r.
class Mix {
 public:
  Mix(const CellAxis& axis, const Fold& fold)
      : begin(fold.bins + 1), node(capacity(axis, fold)), weight(capacity(axis, fold)) {
    int64_t terms = 0;
    for (int64_t k = 0; k < fold.bins; ++k) {
      begin[k] = terms;
      fold.each(k, [&](int64_t i) { add(axis, i, terms); });
    }
    begin[fold.bins] = terms;
  }

  Scratch<int64_t> begin;
  Scratch<int32_t> node;
  Scratch<float> weight;

 private:
  static int64_t capacity(const CellAxis& axis, const Fold& fold) {
    return fold.length * kNodes * ((axis.basis.taps + axis.basis.cell_bins - 1) / axis.basis.cell_bins);
  }

  // The terms of index i of the extended range.
  void add(const CellAxis& axis, int64_t i, int64_t& terms) {
    const CellBasis& basis = axis.basis;
    const int64_t before = basis.outer_taps / 2, last = i / basis.cell_bins;
    for (int64_t cell = last < axis.count ? last : axis.count - 1; cell >= 0; --cell) {
      const int64_t tap = i - cell * basis.cell_bins;
      if (tap >= basis.taps) break;
      if (tap >= before && tap < before + basis.node_taps) {
        add_term(cell * kNodes + tap - before, 1.0f, terms);
      } else {
        const int64_t outer = tap < before ? tap : tap - basis.node_taps;
        for (int r = 0; r < kNodes; ++r)
          add_term(cell * kNodes + r, basis.by_tap[outer * kNodes + r], terms);
      }
    }
  }

  void add_term(int64_t from, float w, int64_t& terms) {
    node[terms] = static_cast<int32_t>(from);
    weight[terms++] = w;
  }
};

// How many planes to work on at once: few enough to stay in the caches, enough to keep the threads busy.
HISTLOSS_INLINE int64_t planes_at_once(int64_t planes, int64_t parts, int64_t bytes_per_plane) {
  constexpr int64_t budget = 8 << 20;
  const int64_t busy = (2 * thread_count() + parts - 1) / parts, fit = budget / bytes_per_plane;
  const int64_t n = busy > fit ? busy : fit;
  return n < planes ? n : planes;
}

}  // namespace
}  // namespace histloss::cpu
