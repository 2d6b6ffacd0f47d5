#include "cells.h"
#include "taps.h"
#include "windows.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

// Node rows that fit in registers beside a pixel's columns.
#if defined(__AVX512F__)
constexpr int kRows = 16;
#elif defined(__AVX2__)
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif

// ---- by tiles

// The node sums of one part of a plane.
struct TileSums {
  float* sums;       // (tiles, 16, 16)
  float* rounding;   // what float32 lost of each sum so far; null for a single chunk
  uint8_t* touched;  // (tiles)
};

// sums[row] += value. Over many chunks the rounding of the sum is kept aside, so that it does not grow with
// the image.
HISTLOSS_INLINE void add_row(const TileSums& out, int64_t tile, int row, F32 value) {
  const int64_t at = tile * kTile + row * kNodes;
  float* const sum = out.sums + at;
  const F32 before = out.touched[tile] ? loadf(sum) : F32{}, after = before + value;
  store(sum, after);
  if (out.rounding == nullptr) return;
  const F32 taken = after - before, lost = (before - (after - taken)) + (value - taken);
  store(out.rounding + at, out.touched[tile] ? loadf(out.rounding + at) + lost : lost);
}

// sum over n pixels of x's activations times y's, kRows rows at a time; emit(row, sum).
template <class Emit>
HISTLOSS_INLINE void outer_products(const float* x, const float* y, int64_t n, const Emit& emit) {
  for (int row = 0; row < kNodes; row += kRows) {
    F32 sum[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sum[r] = F32{};
    for (int64_t i = 0; i < n; ++i) {
      const F32 columns = loadf(y + i * kNodes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) sum[r] += x[i * kNodes + row + r] * columns;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) emit(row + r, sum[r]);
  }
}

// A tile with more pixels than a batch is summed in float64: float32 sums stay short.
struct WideTile {
  alignas(64) double sums[kTile];

  void clear() { std::memset(sums, 0, sizeof sums); }
  void add_to(const TileSums& out, int64_t tile) const {
    for (int row = 0; row < kNodes; ++row) {
      float narrow[kNodes];
      for (int c = 0; c < kNodes; ++c) narrow[c] = static_cast<float>(sums[row * kNodes + c]);
      add_row(out, tile, row, loadf(narrow));
    }
  }
};

void add_tiles(const Tiles& tiles, const TileOrder& order, const Rests& rests, const float* mass,
               const TileSums& out) {
  Exponentials of_x, of_y;
  Batch x, y;
  WideTile wide;
  const Nodes nodes_x(tiles.x.basis), nodes_y(tiles.y.basis);
  // The mix of a wide kernel amplifies the rounding of its nodes' sums: they are kept shorter.
  const bool on_bins = tiles.x.basis.node_taps != 0 && tiles.y.basis.node_taps != 0;
  const int64_t short_sum = on_bins ? 32 : 16;
  int64_t tile = 0;
  const int64_t count = order.placed();
  for (int64_t start = 0, n = 0; start < count; start += n) {
    n = order.batch_end(start, tile) - start;
    for (int64_t i = 0; i < n; i += 16) {
      F32 zx, zy;
      order.pixels(start + i, zx, zy);
      const uint16_t* const number = order.index() + start + i;
      of_x.set(i, tiles.x.exponential(zx, rests_of(rests.x, number)));
      of_y.set(i, tiles.y.exponential(zy, rests_of(rests.y, number)));
    }
    activate<kNodes, false>(nodes_x, of_x, n, x);
    activate<kNodes, false>(nodes_y, of_y, n, y);
    if (mass != nullptr)
      for (int64_t k = 0; k < n; ++k)
        store(x.pi + k * kNodes, loadf(x.pi + k * kNodes) * mass[order.index()[start + k]]);
    order.runs(start, start + n, tile, [&](int64_t t, int64_t first, int64_t last) {
      const auto products = [&](int64_t from, int64_t to, const auto& emit) {
        outer_products(x.pi + (from - start) * kNodes, y.pi + (from - start) * kNodes, to - from, emit);
      };
      const bool begins = first == order.begin(t), ends = last == order.end(t);
      if (begins && ends) {
        for (int64_t from = first; from < last; from += short_sum) {
          products(from, from + short_sum < last ? from + short_sum : last,
                   [&](int row, F32 sum) { add_row(out, t, row, sum); });
          out.touched[t] = 1;
        }
        return;
      }
      if (begins) wide.clear();
      for (int64_t from = first; from < last; from += short_sum)
        products(from, from + short_sum < last ? from + short_sum : last,
                 [&](int row, F32 sum) { add_wide(wide.sums + row * kNodes, sum); });
      if (ends) {
        wide.add_to(out, t);
        out.touched[t] = 1;
      }
    });
  }
}

void sum_part(const JointHistogram& job, const Tiles& tiles, TileOrder& order, int64_t first, int64_t count,
              const TileSums& out) {
  const Scratch<float> buffer((2 + 2 * kFoldBuffers) * kChunk);
  std::memset(out.touched, 0, static_cast<std::size_t>(tiles.count));
  for (int64_t chunk = 0; chunk < count; chunk += kChunk) {
    const int64_t n = count - chunk < kChunk ? count - chunk : kChunk, at = first + chunk;
    const FoldedPair<float> pixels = fold_pair(job, tiles.x.position, tiles.y.position, at, n, buffer.get());
    const float* mass =
        job.pixels.mass == nullptr ? nullptr : static_cast<const float*>(job.pixels.mass) + at;
    order.sort(pixels.x.z, pixels.y.z, n);
    add_tiles(tiles, order, {pixels.x.rest, pixels.y.rest}, mass, out);
  }
}

// One row of tiles summed over the parts, into the first part.
void merge_parts(const TileSums* parts, int64_t count, int64_t first_tile, int64_t tiles) {
  for (int64_t tile = first_tile; tile < first_tile + tiles; ++tile)
    for (int row = 0; row < kNodes; ++row) {
      const int64_t at = tile * kTile + row * kNodes;
      F32 sum{}, rounding{};
      for (int64_t p = 0; p < count; ++p) {
        if (!parts[p].touched[tile]) continue;
        const F32 value = loadf(parts[p].sums + at), after = sum + value, taken = after - sum;
        rounding += (sum - (after - taken)) + (value - taken);
        if (parts[p].rounding != nullptr) rounding += loadf(parts[p].rounding + at);
        sum = after;
      }
      store(parts[0].sums + at, sum + rounding);
    }
}

// Sixteen rows of the joint histogram, from bin k on, out of the node sums of a plane: the rows are mixed,
// turned, mixed again as columns, and turned back.
class MixRows {
 public:
  MixRows(const Tiles& tiles, const Mix& mix_x, const Mix& mix_y, int64_t bins_y)
      : nodes_y_(tiles.y.count * kNodes),
        bins_y_(bins_y),
        mix_x_(mix_x),
        mix_y_(mix_y),
        rows_(16 * nodes_y_),
        columns_(nodes_y_ * 16) {
    std::memset(rows_.get(), 0, static_cast<std::size_t>(16 * nodes_y_) * sizeof(float));
  }

  void compute(const float* sums, int64_t k, int64_t count, float scale, float* out) const {
    for (int64_t row = 0; row < count;) {
      const auto like = [&](int64_t i) { return row + i + 1 < count && mix_x_.like_next[k + row + i]; };
      if (like(0) && like(1) && like(2))
        mix_rows<4>(sums, k, row), row += 4;
      else if (like(0))
        mix_rows<2>(sums, k, row), row += 2;
      else
        mix_rows<1>(sums, k, row), row += 1;
    }
    for (int64_t node = 0; node < nodes_y_; node += 16) {
      F32 block[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) block[r] = loadf(rows_.get() + r * nodes_y_ + node);
      transpose(block);
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) store(columns_.get() + (node + r) * 16, block[r]);
    }
    for (int64_t l = 0; l < bins_y_; l += 16) {
      F32 block[16];
      for (int c = 0; c < 16; ++c) {
        const F32 value = mix_column(l + c < bins_y_ ? l + c : l) * scale;
        block[c] = value > 0.0f ? value : F32{};  // the mix may round below 0
      }
      transpose(block);
      for (int64_t row = 0; row < count; ++row) {
        if (bins_y_ - l >= 16)
          store(out + row * bins_y_ + l, block[row]);
        else
          for (int64_t c = 0; c < bins_y_ - l; ++c) out[row * bins_y_ + l + c] = block[row][c];
      }
    }
  }

 private:
  template <int ROWS>
  HISTLOSS_INLINE void mix_rows(const float* sums, int64_t k, int64_t row) const {
    MixedRows<ROWS> rows;
    for (int r = 0; r < ROWS; ++r) {
      rows.weight[r] = mix_x_.weight.get() + mix_x_.begin[k + row + r];
      rows.out[r] = rows_.get() + (row + r) * nodes_y_;
    }
    rows.out_step = kNodes;
    combine(sums, kTile, mix_x_.offset.get() + mix_x_.begin[k + row], mix_x_.terms(k + row),
            nodes_y_ / kNodes, rows);
  }

  HISTLOSS_INLINE F32 mix_column(int64_t l) const {
    const float *const weight = mix_y_.weight.get(), *const columns = columns_.get();
    const int64_t* const offset = mix_y_.offset.get();
    F32 even{}, odd{};
    int64_t i = mix_y_.begin[l];
    const int64_t last = mix_y_.begin[l + 1];
    for (; i + 1 < last; i += 2) {
      even += weight[i] * loadf(columns + offset[i]);
      odd += weight[i + 1] * loadf(columns + offset[i + 1]);
    }
    if (i < last) even += weight[i] * loadf(columns + offset[i]);
    return even + odd;
  }

  const int64_t nodes_y_, bins_y_;
  const Mix &mix_x_, &mix_y_;
  Scratch<float> rows_;     // (16, nodes of y)
  Scratch<float> columns_;  // (nodes of y, 16)
};

void joint_by_tiles(const JointHistogram& job, const Tiles& tiles) {
  const Pixels& pixels = job.pixels;
  const int64_t tile_bytes = tiles.count * kTile * static_cast<int64_t>(sizeof(float));
  const int64_t most = (int64_t{32} << 20) / (2 * tile_bytes);
  const Parts parts(pixels.count, kChunk, most < 1 ? 1 : most > 16 ? 16 : most, kChunk);
  const bool long_sums = parts.size > kChunk;
  const int64_t group = planes_at_once(pixels.planes, parts.count, parts.count * tile_bytes);
  const int64_t slots = group * parts.count;
  const Scratch<float> sums(slots * tiles.count * kTile),
      rounding(long_sums ? slots * tiles.count * kTile : 0);
  const Scratch<uint8_t> touched(slots * tiles.count);
  const Scratch<TileSums> slot(slots);
  for (int64_t s = 0; s < slots; ++s)
    slot[s] = {sums.get() + s * tiles.count * kTile,
               long_sums ? rounding.get() + s * tiles.count * kTile : nullptr,
               touched.get() + s * tiles.count};

  const int64_t kx = job.axis_x.bins, ky = job.axis_y.bins;
  const Mix mix_x(tiles.x, Fold(tiles.x.position, tiles.x.length), tiles.y.count * kTile);
  const Mix mix_y(tiles.y, Fold(tiles.y.position, tiles.y.length), kTile);
  const int64_t blocks = (kx + 15) / 16;
  for (int64_t plane0 = 0; plane0 < pixels.planes; plane0 += group) {
    const int64_t planes = pixels.planes - plane0 < group ? pixels.planes - plane0 : group;
    parallel_for(planes * parts.count, [&](int64_t begin, int64_t end) {
      TileOrder order(tiles);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t plane = plane0 + task / parts.count, part = task % parts.count;
        sum_part(job, tiles, order, plane * pixels.count + parts.begin(part),
                 parts.length(part, pixels.count), slot[task]);
      }
    });
    parallel_for(planes * tiles.x.count, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        merge_parts(slot.get() + task / tiles.x.count * parts.count, parts.count,
                    task % tiles.x.count * tiles.y.count, tiles.y.count);
    });
    parallel_for(planes * blocks, [&](int64_t begin, int64_t end) {
      const MixRows mix(tiles, mix_x, mix_y, ky);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t plane = task / blocks, k = task % blocks * 16;
        mix.compute(slot[plane * parts.count].sums, k, kx - k < 16 ? kx - k : 16,
                    static_cast<float>(pixels.share()),
                    static_cast<float*>(job.joint) + ((plane0 + plane) * kx + k) * ky);
      }
    });
  }
}

// ---- by windows

void add_windows(WindowBatch& batch, const PatchOrder& order, int64_t plane, int64_t row, const float* mass,
                 const Ring<double>& ring) {
  alignas(64) double x[kBatch * kNodes];
  const int64_t last = order.begin_of_row(plane, row + 1);
  for (int64_t start = order.begin_of_row(plane, row); start < last; start += kBatch) {
    const int64_t n = last - start < kBatch ? last - start : kBatch;
    batch.set<false>(order, plane, row, start, n);
    const uint32_t* const index = order.index(plane, start);
    for (int64_t k = 0; k < n; ++k) {
      F32 pi = loadf(batch.x.pi + k * kNodes);
      if (mass != nullptr) pi = pi * mass[index[k]];
      store(x + k * kNodes, low_half(pi));
      store(x + k * kNodes + 8, high_half(pi));
    }
    for (int64_t k = 0; k < n; ++k) {
      const F32 y = loadf(batch.y.pi + k * kNodes);
      const F64 low = low_half(y), high = high_half(y);
      double* const columns = batch.columns(ring, k);
      const int64_t* const offset = batch.row_offsets(ring, k);
#pragma GCC unroll 16
      for (int t = 0; t < kNodes; ++t) {
        double* const to = columns + offset[t];
        store(to, loadd(to) + x[k * kNodes + t] * low);
        store(to + 8, loadd(to + 8) + x[k * kNodes + t] * high);
      }
    }
  }
}

void scale_row(const double* from, int64_t count, double scale, float* to) {
  int64_t l = 0;
  for (; l + 16 <= count; l += 16)
    store(to + l, narrow(loadd(from + l) * scale, loadd(from + l + 8) * scale));
  for (; l < count; ++l) to[l] = static_cast<float>(from[l] * scale);
}

// The rows of the extended range that stand for a bin together with others, numbered: their sums are kept
// until all of them are there.
class SharedRows {
 public:
  explicit SharedRows(const Fold& fold) : fold_(fold), number_(fold.length) {
    for (int64_t i = 0; i < fold.length; ++i) number_[i] = -1;
    for (int64_t i = 0; i < fold.length; ++i) {
      if (fold.bin(i) < 0 || (i >= fold.padding && i < fold.padding + fold.bins)) continue;
      number_[i] = count_++;
      int32_t& main = number_[fold.padding + fold.bin(i)];
      if (main < 0) main = count_++;
    }
  }

  int64_t count() const { return count_; }
  // -1 for a row that is alone, or stands for no bin.
  int64_t number(int64_t i) const { return number_[i]; }

  // sums[0 .. size) = the sum of the kept rows of bin k; false if there are none.
  bool add_up(const double* kept, int64_t k, int64_t size, double* sums) const {
    if (number_[fold_.padding + k] < 0) return false;
    std::memset(sums, 0, static_cast<std::size_t>(size) * sizeof(double));
    fold_.each(k, [&](int64_t i) {
      const double* const row = kept + number_[i] * size;
      for (int64_t l = 0; l < size; ++l) sums[l] += row[l];
    });
    return true;
  }

 private:
  const Fold& fold_;
  Scratch<int32_t> number_;
  int32_t count_ = 0;
};

void joint_by_windows(const JointHistogram& job, const WindowAxis& axis_x, const WindowAxis& axis_y) {
  const Pixels& pixels = job.pixels;
  const int64_t kx = job.axis_x.bins, ky = job.axis_y.bins;
  const double share = pixels.share();
  const Fold fold_x(axis_x.position, axis_x.length), fold_y(axis_y.position, axis_y.length);
  const SharedRows shared(fold_x);
  const int64_t group = planes_at_once(pixels.planes, 1, PatchOrder::bytes(pixels.count));
  const Scratch<double> kept(group * shared.count() * ky);
  PatchOrder order(axis_x, axis_y, group, pixels.count);
  for (int64_t plane0 = 0; plane0 < pixels.planes; plane0 += group) {
    const int64_t planes = pixels.planes - plane0 < group ? pixels.planes - plane0 : group;
    float* const joint = static_cast<float*>(job.joint) + plane0 * kx * ky;
    order.sort(job, plane0, planes);
    order.each_share(planes, [&](int64_t first, int64_t last) {
      WindowBatch batch(axis_x, axis_y);
      const Ring<double> ring(axis_y.row());
      for (int64_t task = first; task < last; ++task) {
        const int64_t plane = task / order.rows, row = task % order.rows, i0 = row * kPatchRows;
        const float* mass = static_cast<const float*>(pixels.mass);
        if (mass != nullptr) mass += (plane0 + plane) * pixels.count;
        if (row == 0) {
          ring.clear(0, ring.kRows);
        } else if (task == first) {  // windows of the row before reach into this one
          add_windows(batch, order, plane, row - 1, mass, ring);
          ring.clear(i0 - kPatchRows, kPatchRows);
        }
        add_windows(batch, order, plane, row, mass, ring);
        for (int64_t i = i0; i < i0 + kPatchRows && i < axis_x.length; ++i) {
          double* const extended = ring.row(i);
          fold_y.fold(extended);
          double* const folded = extended + fold_y.padding;
          if (shared.number(i) >= 0)
            std::memcpy(kept.get() + (plane * shared.count() + shared.number(i)) * ky, folded,
                        static_cast<std::size_t>(ky) * sizeof(double));
          else if (fold_x.bin(i) >= 0)
            scale_row(folded, ky, share, joint + (plane * kx + fold_x.bin(i)) * ky);
        }
        ring.clear(i0, kPatchRows);
      }
    });
    if (shared.count() == 0) continue;
    parallel_for(planes * kx, [&](int64_t begin, int64_t end) {
      const Scratch<double> sums(ky);
      for (int64_t task = begin; task < end; ++task)
        if (shared.add_up(kept.get() + task / kx * shared.count() * ky, task % kx, ky, sums.get()))
          scale_row(sums.get(), ky, share, joint + task * ky);
    });
  }
}

// ---- directly

void add_pixels(const JointHistogram& job, const Taps& taps_x, const Taps& taps_y, int64_t first,
                int64_t count, double* sums) {
  constexpr int64_t kBlock = 1024;
  const Scratch<double> pi_x(taps_x.stride), pi_y(taps_y.stride), buffer((3 + 2 * kFoldBuffers) * kBlock);
  const Image mass = values(job.pixels.mass, job.pixels.is_double);
  const int64_t row = taps_y.row();
  for (int64_t block = 0; block < count; block += kBlock) {
    const int64_t n = count - block < kBlock ? count - block : kBlock, at = first + block;
    const auto [folded_x, folded_y] =
        fold_pair(job, taps_x.position, taps_y.position, at, n, buffer.get() + kBlock);
    const double *const x = folded_x.z, *const y = folded_y.z;
    const double* m = mass.data == nullptr ? nullptr : load_pixels(mass, at, n, buffer.get());
    for (int64_t i = 0; i < n; ++i) {
      const int64_t begin_x = taps_x.locate(x[i]), begin_y = taps_y.locate(y[i]);
      if (begin_x < 0 || begin_y < 0) continue;
      taps_x.evaluate<false>(x[i], begin_x, pi_x.get(), nullptr);
      taps_y.evaluate<false>(y[i], begin_y, pi_y.get(), nullptr);
      const double weight = m == nullptr ? 1.0 : m[i];
      for (int64_t t = 0; t < taps_x.taps; ++t) {
        double* const out = sums + (begin_x + t) * row + begin_y;
        const double wx = weight * pi_x[t];
        for (int64_t s = 0; s < taps_y.stride; s += 8)
          store(out + s, loadd(out + s) + wx * loadd(pi_y.get() + s));
      }
    }
  }
}

template <class T>
void fold_row(const Fold& fold_x, const Fold& fold_y, const double* parts, int64_t count, int64_t row,
              int64_t k, double scale, double* extended, double* folded, T* out) {
  std::memset(extended, 0, static_cast<std::size_t>(row) * sizeof(double));
  fold_x.each(k, [&](int64_t i) {
    for (int64_t p = 0; p < count; ++p) {
      const double* in = parts + (p * fold_x.length + i) * row;
      for (int64_t l = 0; l < fold_y.length; ++l) extended[l] += in[l];
    }
  });
  fold_y.fold(extended, folded);
  for (int64_t l = 0; l < fold_y.bins; ++l) out[l] = static_cast<T>(folded[l] * scale);
}

void joint_directly(const JointHistogram& job, const Taps& taps_x, const Taps& taps_y) {
  const Pixels& pixels = job.pixels;
  const int64_t size = taps_x.length * taps_y.row(), bytes = size * static_cast<int64_t>(sizeof(double));
  const int64_t most = (int64_t{16} << 20) / bytes;
  const Parts parts(pixels.count, 4096, most < 1 ? 1 : most > 8 ? 8 : most);
  const int64_t group = planes_at_once(pixels.planes, parts.count, parts.count * bytes);
  const Scratch<double> sums(group * parts.count * size);
  const Fold fold_x(taps_x.position, taps_x.length), fold_y(taps_y.position, taps_y.length);
  const int64_t row = taps_y.row();
  const int64_t kx = job.axis_x.bins, ky = job.axis_y.bins;
  for (int64_t plane0 = 0; plane0 < pixels.planes; plane0 += group) {
    const int64_t planes = pixels.planes - plane0 < group ? pixels.planes - plane0 : group;
    parallel_for(planes * parts.count, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t plane = plane0 + task / parts.count, part = task % parts.count;
        double* mine = sums.get() + task * size;
        std::memset(mine, 0, static_cast<std::size_t>(bytes));
        add_pixels(job, taps_x, taps_y, plane * pixels.count + parts.begin(part),
                   parts.length(part, pixels.count), mine);
      }
    });
    parallel_for(planes * kx, [&](int64_t begin, int64_t end) {
      const Scratch<double> extended(row), folded(ky);
      for (int64_t task = begin; task < end; ++task) {
        const double* plane = sums.get() + task / kx * parts.count * size;
        const int64_t at = (plane0 * kx + task) * ky;
        if (pixels.is_double)
          fold_row(fold_x, fold_y, plane, parts.count, row, task % kx, pixels.share(), extended.get(),
                   folded.get(), static_cast<double*>(job.joint) + at);
        else
          fold_row(fold_x, fold_y, plane, parts.count, row, task % kx, pixels.share(), extended.get(),
                   folded.get(), static_cast<float*>(job.joint) + at);
      }
    });
  }
}

}  // namespace

void joint_histogram(const JointHistogram& job) {
  const CellBasis* basis_x = cell_basis(job.axis_x.bandwidth, kNodes);
  const CellBasis* basis_y = cell_basis(job.axis_y.bandwidth, kNodes);
  if (!job.pixels.is_double && basis_x != nullptr && basis_y != nullptr) {
    const Tiles tiles(job.axis_x, job.axis_y, *basis_x, *basis_y);
    if (tiles_pay(tiles, kTile, job.pixels, windows_fit(job))) return joint_by_tiles(job, tiles);
  }
  if (windows_fit(job)) return joint_by_windows(job, WindowAxis(job.axis_x), WindowAxis(job.axis_y));
  joint_directly(job, Taps(job.axis_x, job.pixels.is_double), Taps(job.axis_y, job.pixels.is_double));
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
