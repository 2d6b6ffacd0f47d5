#include "cells.h"
#include "taps.h"
#include "windows.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

// ---- by tiles: the gradient is folded onto the nodes of every tile once, then each pixel meets only those:
// 8 or 16 nodes of x (rows), 16 of y (columns)

// Cells are independent sums, which hide the latency of each.
template <int CELLS>
HISTLOSS_INLINE void fold_cells(const CellBasis& basis, const float* extended, int64_t first, float* nodes) {
  const float* const taps = extended + first * basis.cell_bins;
  const int before = basis.outer_taps / 2;
  F32 sum[CELLS];
#pragma GCC unroll 4
  for (int c = 0; c < CELLS; ++c)
    sum[c] = basis.node_taps != 0 ? loadf(taps + c * basis.cell_bins + before) : F32{};
  const auto add = [&](int o, int tap) {
    const F32 weight = loadf(basis.mix + o * kNodes);
#pragma GCC unroll 4
    for (int c = 0; c < CELLS; ++c) sum[c] += taps[c * basis.cell_bins + tap] * weight;
  };
  for (int o = 0; o < before; ++o) add(o, o);
  for (int o = before; o < basis.outer_taps; ++o) add(o, o + basis.node_taps);
#pragma GCC unroll 4
  for (int c = 0; c < CELLS; ++c) store(nodes + (first + c) * kNodes, sum[c]);
}

// Bins of row k to the nodes of y: (cells of y, 16).
void fold_columns(const CellAxis& axis, const Fold& fold, const float* grad, float* extended, float* nodes) {
  fold.unfold(grad, extended);
  int64_t cell = 0;
  for (; cell + 4 <= axis.count; cell += 4) fold_cells<4>(axis.basis, extended, cell, nodes);
  for (; cell < axis.count; ++cell) fold_cells<1>(axis.basis, extended, cell, nodes);
}

// Rows of one cell of x to some of its nodes, from node r on: (cells of y, nodes of x, 16). Only where no tap
// is a node are several nodes mixed of the same rows.
template <int NODES_AT_ONCE>
void fold_rows(const Tiles& tiles, const Fold& fold, int64_t cell, int r, const float* columns, float* weight,
               int64_t* offset, float* out) {
  const CellBasis& basis = tiles.x.basis;
  const int64_t row_size = tiles.y.count * kNodes, first = cell * basis.cell_bins;
  int64_t terms = 0;
  const auto add = [&](int64_t tap, const auto& weight_of) {
    const int64_t k = fold.bin(first + tap);
    if (k < 0) return;
    for (int n = 0; n < NODES_AT_ONCE; ++n) weight[n * basis.taps + terms] = weight_of(r + n);
    offset[terms++] = k * row_size;
  };
  if (basis.node_taps != 0) add(basis.outer_taps / 2 + r, [](int) { return 1.0f; });
  for (int o = 0; o < basis.outer_taps; ++o)
    add(basis.outer_position(o), [&](int node) { return basis.mix[o * basis.nodes + node]; });
  MixedRows<NODES_AT_ONCE> rows;
  for (int n = 0; n < NODES_AT_ONCE; ++n) {
    rows.weight[n] = weight + n * basis.taps;
    rows.out[n] = out + (r + n) * kNodes;
  }
  rows.out_step = basis.nodes * kNodes;
  combine(columns, kNodes, offset, terms, tiles.y.count, rows);
}

struct Gradients {
  float *x, *y, *mass;  // null: not wanted
  float scale_x, scale_y;
};

// Sums of 16 products each, to the pixels that they belong to.
template <class Number>
HISTLOSS_INLINE void scatter(const float* products, int64_t n, float scale, const Number* number, float* to) {
  for (int64_t k = 0; k < n; k += 16) {
    alignas(64) float sums[16];
    store(sums, sum_lanes(products + k * kNodes) * scale);
    in_memory(sums);
    if (n - k >= 16) {
#pragma GCC unroll 16
      for (int lane = 0; lane < 16; ++lane) to[number[k + lane]] = sums[lane];
    } else {
      for (int lane = 0; lane < n - k; ++lane) to[number[k + lane]] = sums[lane];
    }
  }
}

// X: the gradient of x is wanted. Y: that of y or of the mass.
template <int NODES, bool X, bool Y>
void gather(const Tiles& tiles, const TileOrder& order, const Rests& rests, const float* grad,
            const Gradients& out) {
  Batch x;
  const Nodes nodes_x(tiles.x.basis), nodes_y(tiles.y.basis);
  Exponentials of_x, of_y;
  alignas(64) float product_x[kBatch * kNodes + 256], product_y[kBatch * kNodes + 256],
      product_mass[kBatch * kNodes];
  int64_t tile = 0;
  const int64_t count = order.placed();
  for (int64_t start = 0, n = 0; start < count; start += n) {
    n = count - start < kBatch ? count - start : kBatch;
    for (int64_t i = 0; i < n; i += 16) {
      F32 zx, zy;
      order.pixels(start + i, zx, zy);
      const uint16_t* const number = order.index() + start + i;
      of_x.set(i, tiles.x.exponential(zx, rests_of(rests.x, number)));
      of_y.set(i, tiles.y.exponential(zy, rests_of(rests.y, number)));
    }
    activate<NODES, X>(nodes_x, of_x, n, x);
    order.runs(start, start + n, tile, [&](int64_t t, int64_t first, int64_t last) {
      F32 rows[NODES];
#pragma GCC unroll 16
      for (int r = 0; r < NODES; ++r) rows[r] = loadf(grad + (t * NODES + r) * kNodes);
      for (int64_t k = first - start; k < last - start; ++k) {
        F32 across_slope{}, across{};
#pragma GCC unroll 16
        for (int r = 0; r < NODES; ++r) {
          if constexpr (X) across_slope += x.slope[k * NODES + r] * rows[r];
          if constexpr (Y) across += x.pi[k * NODES + r] * rows[r];
        }
        const Activation y = activation(nodes_y, splat<F32>(of_y.e[k]), splat<F32>(of_y.inverse[k]));
        if constexpr (X) store(product_x + k * kNodes, across_slope * y.pi);
        if constexpr (Y) store(product_y + k * kNodes, across * y.slope);
        if constexpr (Y)
          if (out.mass != nullptr) store(product_mass + k * kNodes, across * y.pi);
      }
    });
    const uint16_t* const number = order.index() + start;
    if constexpr (X) scatter(product_x, n, out.scale_x, number, out.x);
    if constexpr (Y) {
      if (out.y != nullptr) scatter(product_y, n, out.scale_y, number, out.y);
      if (out.mass != nullptr) scatter(product_mass, n, 1.0f, number, out.mass);
    }
  }
}

void multiply(float* values, const float* by, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] *= by[i];
}

// Multiplies the gradients of pixels [at, at + n) by what they do not have yet, and stores them.
void finish(const JointHistogramBackward& job, int64_t at, int64_t n, const float* sign_x,
            const float* sign_y, const Gradients& out) {
  const float* mass = static_cast<const float*>(job.pixels.mass);
  const auto finish_one = [&](const MutableImage& image, const float* sign, float* grad) {
    if (grad == nullptr) return;
    if (mass != nullptr) multiply(grad, mass + at, n);
    if (sign != nullptr) multiply(grad, sign, n);
    store_pixels(image, at, n, grad);
  };
  finish_one(job.grad_x, sign_x, out.x);
  finish_one(job.grad_y, sign_y, out.y);
}

template <int NODES>
void backward_by_tiles(const JointHistogramBackward& job, const Tiles& tiles) {
  const Pixels& pixels = job.pixels;
  const CellAxis &ax = tiles.x, &ay = tiles.y;
  const Fold fold_x(ax.position, ax.length), fold_y(ay.position, ay.length);
  const int64_t kx = job.axis_x.bins, ky = job.axis_y.bins;
  const int64_t column_size = kx * ay.count * kNodes, node_size = tiles.count * tiles.x.basis.nodes * kNodes;
  const Parts parts(pixels.count, kChunk, pixels.count, kChunk);
  const int64_t group = planes_at_once(pixels.planes, parts.count,
                                       (column_size + node_size) * static_cast<int64_t>(sizeof(float)));
  const Scratch<float> columns(group * column_size), nodes(group * node_size);
  const bool to_x = job.grad_x.data != nullptr, to_y = job.grad_y.data != nullptr;
  const bool to_mass = job.grad_mass != nullptr;
  const double scale_x = pixels.share() * ax.basis.a / job.axis_x.width();
  const double scale_y = pixels.share() * ay.basis.a / job.axis_y.width();
  const int nodes_at_once = ax.basis.node_taps == 0 ? 4 : 1;
  const auto fold_node_rows = nodes_at_once == 4 ? fold_rows<4> : fold_rows<1>;
  const auto gather_pixels = !to_x             ? gather<NODES, false, true>
                             : to_y || to_mass ? gather<NODES, true, true>
                                               : gather<NODES, true, false>;

  for (int64_t plane0 = 0; plane0 < pixels.planes; plane0 += group) {
    const int64_t planes = pixels.planes - plane0 < group ? pixels.planes - plane0 : group;
    parallel_for(planes * kx, [&](int64_t begin, int64_t end) {
      const Scratch<float> extended(ay.row());
      for (int64_t task = begin; task < end; ++task)
        fold_columns(ay, fold_y, static_cast<const float*>(job.grad) + (plane0 * kx + task) * ky,
                     extended.get(), columns.get() + task * ay.count * kNodes);
    });
    parallel_for(planes * ax.count, [&](int64_t begin, int64_t end) {
      const Scratch<float> weight(nodes_at_once * ax.basis.taps);
      const Scratch<int64_t> offset(ax.basis.taps);
      for (int64_t task = begin; task < end; ++task)
        for (int r = 0; r < NODES; r += nodes_at_once)
          fold_node_rows(tiles, fold_x, task % ax.count, r, columns.get() + task / ax.count * column_size,
                         weight.get(), offset.get(), nodes.get() + task * ay.count * NODES * kNodes);
    });
    parallel_for(planes * parts.count, [&](int64_t begin, int64_t end) {
      TileOrder order(tiles);
      const Scratch<float> buffer((2 + 2 * kFoldBuffers) * kChunk), x_buffer(kChunk), y_buffer(kChunk);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t plane = task / parts.count, part = task % parts.count;
        const int64_t at = (plane0 + plane) * pixels.count + parts.begin(part);
        const int64_t n = parts.length(part, pixels.count);
        const auto [x, y] = fold_pair(job, ax.position, ay.position, at, n, buffer.get());
        Gradients out{};
        out.scale_x = static_cast<float>(scale_x);
        out.scale_y = static_cast<float>(scale_y);
        if (to_x) out.x = pixels_to_store(job.grad_x, at, x_buffer.get());
        if (to_y) out.y = pixels_to_store(job.grad_y, at, y_buffer.get());
        if (to_mass) out.mass = static_cast<float*>(job.grad_mass) + at;
        order.sort(x.z, y.z, n);
        float* const wanted[] = {out.x, out.y, out.mass};
        if (order.placed() < n)  // pixels without a tile have no gradient
          for (float* const p : wanted)
            if (p != nullptr) std::memset(p, 0, static_cast<std::size_t>(n) * sizeof(float));
        gather_pixels(tiles, order, {x.rest, y.rest}, nodes.get() + plane * node_size, out);
        finish(job, at, n, x.sign, y.sign, out);
      }
    });
  }
}

// ---- by windows: each pixel reads the gradient of the bins about it

template <bool X, bool Y>
void gather_windows(WindowBatch& batch, const PatchOrder& order, int64_t plane, int64_t row,
                    const Ring<float>& ring, const Gradients& out) {
  alignas(64) float product_x[kBatch * kNodes + 256], product_y[kBatch * kNodes + 256],
      product_mass[kBatch * kNodes];
  const int64_t last = order.begin_of_row(plane, row + 1);
  for (int64_t start = order.begin_of_row(plane, row); start < last; start += kBatch) {
    const int64_t n = last - start < kBatch ? last - start : kBatch;
    batch.set<true>(order, plane, row, start, n);
    for (int64_t k = 0; k < n; ++k) {
      const float* const columns = batch.columns(ring, k);
      const int64_t* const offset = batch.row_offsets(ring, k);
      F32 across_slope{}, across{};
#pragma GCC unroll 16
      for (int t = 0; t < kNodes; ++t) {
        const F32 grad = loadf(columns + offset[t]);
        if constexpr (X) across_slope += batch.x.slope[k * kNodes + t] * grad;
        if constexpr (Y) across += batch.x.pi[k * kNodes + t] * grad;
      }
      const F32 y = loadf(batch.y.pi + k * kNodes);
      if constexpr (X) store(product_x + k * kNodes, across_slope * y);
      if constexpr (Y) store(product_y + k * kNodes, across * loadf(batch.y.slope + k * kNodes));
      if constexpr (Y)
        if (out.mass != nullptr) store(product_mass + k * kNodes, across * y);
    }
    const uint32_t* const number = order.index(plane, start);
    if constexpr (X) scatter(product_x, n, out.scale_x, number, out.x);
    if constexpr (Y) {
      if (out.y != nullptr) scatter(product_y, n, out.scale_y, number, out.y);
      if (out.mass != nullptr) scatter(product_mass, n, 1.0f, number, out.mass);
    }
  }
}

// Pixels without a window have no gradient.
void clear_rest(const PatchOrder& order, int64_t plane, int64_t pixels, const Gradients& out) {
  const int64_t first = order.begin_of_row(plane, order.rows);
  const uint32_t* const number = order.index(plane, first);
  float* const wanted[] = {out.x, out.y, out.mass};
  for (float* const p : wanted)
    if (p != nullptr)
      for (int64_t i = 0; i < pixels - first; ++i) p[number[i]] = 0.0f;
}

void backward_by_windows(const JointHistogramBackward& job, const WindowAxis& axis_x,
                         const WindowAxis& axis_y) {
  const Pixels& pixels = job.pixels;
  const int64_t kx = job.axis_x.bins, ky = job.axis_y.bins;
  const Fold fold_x(axis_x.position, axis_x.length), fold_y(axis_y.position, axis_y.length);
  const int64_t group = planes_at_once(pixels.planes, 1, PatchOrder::bytes(pixels.count));
  const bool to_x = job.grad_x.data != nullptr, to_y = job.grad_y.data != nullptr;
  const bool to_mass = job.grad_mass != nullptr;
  const Scratch<float> x_buffer(group * pixels.count), y_buffer(group * pixels.count);
  PatchOrder order(axis_x, axis_y, group, pixels.count);
  const auto gather_row = !to_x             ? gather_windows<false, true>
                          : to_y || to_mass ? gather_windows<true, true>
                                            : gather_windows<true, false>;
  for (int64_t plane0 = 0; plane0 < pixels.planes; plane0 += group) {
    const int64_t planes = pixels.planes - plane0 < group ? pixels.planes - plane0 : group;
    // Of the pixels of a plane from one on.
    const auto gradients = [&](int64_t plane, int64_t first) {
      const int64_t of_group = plane * pixels.count + first, at = plane0 * pixels.count + of_group;
      Gradients out{};
      out.scale_x = static_cast<float>(pixels.share() * axis_x.a / job.axis_x.width());
      out.scale_y = static_cast<float>(pixels.share() * axis_y.a / job.axis_y.width());
      if (to_x) out.x = pixels_to_store(job.grad_x, at, x_buffer.get() + of_group);
      if (to_y) out.y = pixels_to_store(job.grad_y, at, y_buffer.get() + of_group);
      if (to_mass) out.mass = static_cast<float*>(job.grad_mass) + at;
      return out;
    };
    order.sort(job, plane0, planes);
    order.each_share(planes, [&](int64_t first, int64_t last) {
      WindowBatch batch(axis_x, axis_y);
      const Ring<float> ring(axis_y.row());
      for (int64_t task = first; task < last; ++task) {
        const int64_t plane = task / order.rows, row = task % order.rows, i0 = row * kPatchRows;
        const float* const grad = static_cast<const float*>(job.grad) + (plane0 + plane) * kx * ky;
        for (int64_t i = task == first || row == 0 ? i0 : i0 + kNodes; i < i0 + ring.kRows; ++i) {
          const int64_t k = i < axis_x.length ? fold_x.bin(i) : -1;
          if (k >= 0)
            fold_y.unfold(grad + k * ky, ring.row(i));
          else
            ring.clear(i, 1);
        }
        gather_row(batch, order, plane, row, ring, gradients(plane, 0));
        if (row == order.rows - 1) clear_rest(order, plane, pixels.count, gradients(plane, 0));
      }
    });
    order.each_part(job, plane0, planes,
                    [&](int64_t plane, int64_t part, int64_t n, const FoldedPair<float>& of) {
                      const int64_t first = order.begin_of_part(part);
                      finish(job, (plane0 + plane) * pixels.count + first, n, of.x.sign, of.y.sign,
                             gradients(plane, first));
                    });
  }
}

// ---- directly

void backward_directly(const JointHistogramBackward& job, const Taps& taps_x, const Taps& taps_y) {
  const Pixels& pixels = job.pixels;
  const Fold fold_x(taps_x.position, taps_x.length), fold_y(taps_y.position, taps_y.length);
  const int64_t kx = job.axis_x.bins, ky = job.axis_y.bins, row = taps_y.row(), size = taps_x.length * row;
  constexpr int64_t kBlock = 1024;
  const Parts parts(pixels.count, kBlock, pixels.count);
  const int64_t group =
      planes_at_once(pixels.planes, parts.count, size * static_cast<int64_t>(sizeof(double)));
  const Scratch<double> extended(group * size);
  const bool to_x = job.grad_x.data != nullptr, to_y = job.grad_y.data != nullptr;
  const bool to_mass = job.grad_mass != nullptr;
  const Image mass = values(pixels.mass, pixels.is_double);
  const MutableImage grad_mass = values(job.grad_mass, pixels.is_double);

  for (int64_t plane0 = 0; plane0 < pixels.planes; plane0 += group) {
    const int64_t planes = pixels.planes - plane0 < group ? pixels.planes - plane0 : group;
    parallel_for(planes * taps_x.length, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        double* out = extended.get() + task * row;
        std::memset(out, 0, static_cast<std::size_t>(row) * sizeof(double));
        const int64_t k = fold_x.bin(task % taps_x.length);
        if (k < 0) continue;
        const int64_t at = ((plane0 + task / taps_x.length) * kx + k) * ky;
        if (pixels.is_double)
          fold_y.unfold(static_cast<const double*>(job.grad) + at, out);
        else
          fold_y.unfold(static_cast<const float*>(job.grad) + at, out);
      }
    });
    parallel_for(planes * parts.count, [&](int64_t begin, int64_t end) {
      const Scratch<double> pi_x(taps_x.stride), slope_x(taps_x.stride), pi_y(taps_y.stride),
          slope_y(taps_y.stride), buffer((6 + 2 * kFoldBuffers) * kBlock);
      const auto slot = [&](int i) { return buffer.get() + i * kBlock; };
      for (int64_t task = begin; task < end; ++task) {
        const int64_t plane = task / parts.count, part = task % parts.count;
        const double* grad = extended.get() + plane * size;
        const int64_t at = (plane0 + plane) * pixels.count + parts.begin(part);
        const int64_t n = parts.length(part, pixels.count);
        const double* m = mass.data == nullptr ? nullptr : load_pixels(mass, at, n, slot(0));
        double* gx = to_x ? pixels_to_store(job.grad_x, at, slot(1)) : nullptr;
        double* gy = to_y ? pixels_to_store(job.grad_y, at, slot(2)) : nullptr;
        double* gm = to_mass ? pixels_to_store(grad_mass, at, slot(3)) : nullptr;
        const auto [x, y] = fold_pair(job, taps_x.position, taps_y.position, at, n, slot(4));
        for (int64_t i = 0; i < n; ++i) {
          double in_x = 0, in_y = 0, in_mass = 0;
          const int64_t first_x = taps_x.locate(x.z[i]), first_y = taps_y.locate(y.z[i]);
          if (first_x >= 0 && first_y >= 0) {
            taps_x.evaluate<true>(x.z[i], first_x, pi_x.get(), slope_x.get());
            taps_y.evaluate<true>(y.z[i], first_y, pi_y.get(), slope_y.get());
            for (int64_t t = 0; t < taps_x.taps; ++t) {
              const double* g = grad + (first_x + t) * row + first_y;
              F64 along{}, along_slope{};
              for (int64_t s = 0; s < taps_y.stride; s += 8) {
                along += loadd(g + s) * loadd(pi_y.get() + s);
                along_slope += loadd(g + s) * loadd(slope_y.get() + s);
              }
              const double total = sum(along);
              in_x += slope_x[t] * total;
              in_mass += pi_x[t] * total;
              in_y += pi_x[t] * sum(along_slope);
            }
          }
          const double weight = m == nullptr ? pixels.share() : m[i];
          if (to_x) gx[i] = in_x * weight * (x.sign == nullptr ? 1.0 : x.sign[i]);
          if (to_y) gy[i] = in_y * weight * (y.sign == nullptr ? 1.0 : y.sign[i]);
          if (to_mass) gm[i] = in_mass;
        }
        if (to_x) store_pixels(job.grad_x, at, n, gx);
        if (to_y) store_pixels(job.grad_y, at, n, gy);
        if (to_mass) store_pixels(grad_mass, at, n, gm);
      }
    });
  }
}

// Rows of eight nodes make small cells: half the work for every pixel, but more to fold.
template <int NODES>
bool try_tiles(const JointHistogramBackward& job) {
  const CellBasis* basis_x = cell_basis(job.axis_x.bandwidth, NODES);
  const CellBasis* basis_y = cell_basis(job.axis_y.bandwidth, kNodes);
  if (job.pixels.is_double || basis_x == nullptr || basis_y == nullptr) return false;
  const Tiles tiles(job.axis_x, job.axis_y, *basis_x, *basis_y);
  if (!tiles_pay(tiles, NODES * kNodes, job.pixels, windows_fit(job))) return false;
  backward_by_tiles<NODES>(job, tiles);
  return true;
}

}  // namespace

void joint_histogram_backward(const JointHistogramBackward& job) {
  if (job.pixels.count == 0) return;
  if (try_tiles<8>(job) || try_tiles<16>(job)) return;
  if (windows_fit(job)) return backward_by_windows(job, WindowAxis(job.axis_x), WindowAxis(job.axis_y));
  backward_directly(job, Taps(job.axis_x, job.pixels.is_double), Taps(job.axis_y, job.pixels.is_double));
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
