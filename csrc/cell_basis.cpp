#include "cell_basis.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "bin_kernel.h"

namespace histloss {
namespace {

using Matrix = std::vector<std::vector<double>>;  // columns

// min |A x - b|^2 for several b at once, by Householder reflections; b's first rows become the solutions.
void least_squares(Matrix& a, Matrix& b) {
  const int columns = static_cast<int>(a.size()), rows = static_cast<int>(a[0].size());
  std::vector<double> diagonal(columns);
  for (int j = 0; j < columns; ++j) {
    double norm = 0;
    for (int i = j; i < rows; ++i) norm += a[j][i] * a[j][i];
    const double alpha = a[j][j] > 0 ? -std::sqrt(norm) : std::sqrt(norm);
    std::vector<double>& v = a[j];  // the reflector replaces the column below the diagonal
    v[j] -= alpha;
    diagonal[j] = alpha;
    double vv = 0;
    for (int i = j; i < rows; ++i) vv += v[i] * v[i];
    const auto reflect = [&](std::vector<double>& column) {
      double dot = 0;
      for (int i = j; i < rows; ++i) dot += v[i] * column[i];
      const double scale = 2 * dot / vv;
      for (int i = j; i < rows; ++i) column[i] -= scale * v[i];
    };
    for (int k = j + 1; k < columns; ++k) reflect(a[k]);
    for (std::vector<double>& column : b) reflect(column);
  }
  for (std::vector<double>& x : b) {
    for (int j = columns - 1; j >= 0; --j) {
      for (int k = j + 1; k < columns; ++k) x[j] -= a[k][j] * x[k];
      x[j] /= diagonal[j];
    }
  }
}

struct Layout {
  int cell_bins;
  double half_span;  // of the nodes, in bins
};

constexpr double kNarrowest = 0.2;    // narrower kernels leave float32's range within a cell
constexpr double kWidest = 64;        // wider ones have more taps than they save work
constexpr double kNodesOnBins = 1.5;  // up to here a node on every bin
constexpr double kEightNodes = 0.5;   // wider ones need more than eight nodes

// Cells as wide as the evenly spaced nodes carry to 1e-7 in value and 2e-6 in slope, relative to the largest,
// with coefficients that do not amplify float32's rounding.
Layout layout(double bandwidth, int nodes) {
  const double on_bins = (nodes - 1) / 2.0;
  if (nodes == 8) return {2, on_bins};
  if (bandwidth <= 0.5) return {10, on_bins};
  if (bandwidth <= kNodesOnBins) return {8, on_bins};
  const int cell_bins = static_cast<int>(4 * bandwidth);
  return {cell_bins, cell_bins / 2.0 + 2.25 * bandwidth};
}

struct OwnedBasis : CellBasis {
  std::vector<float> storage;
};

constexpr int kSamples = 200;
constexpr double kRidge = 1e-8;  // keeps coefficients small where nodes nearly coincide

std::unique_ptr<OwnedBasis> fit(double bandwidth, int nodes) {
  auto basis = std::make_unique<OwnedBasis>();
  const KernelConstants k = kernel_constants(bandwidth);
  const Layout cell = layout(bandwidth, nodes);
  basis->cell_bins = cell.cell_bins;
  basis->radius = static_cast<int>(kernel_radius(bandwidth, false));
  basis->taps = cell.cell_bins + 2 * basis->radius;
  basis->nodes = nodes;
  basis->node_taps = bandwidth <= kNodesOnBins ? nodes : 0;
  basis->outer_taps = basis->taps - basis->node_taps;
  basis->coth = static_cast<float>(k.coth);
  basis->a = static_cast<float>(k.a);
  basis->a_low = static_cast<float>(k.a - static_cast<double>(basis->a));

  std::vector<double> node(16);
  for (int r = 0; r < 16; ++r) {
    node[r] = cell.half_span * (2.0 * (r % nodes) / (nodes - 1) - 1);
    basis->p[r] = static_cast<float>(std::exp(-k.a * node[r] - k.log_2sinh));
    basis->n[r] = static_cast<float>(std::exp(k.a * node[r] - k.log_2sinh));
  }

  const auto pi = [&](double t, double& slope) {
    const double p = std::exp(k.a * t - k.log_2sinh), n = std::exp(-k.a * t - k.log_2sinh);
    const double value = 1 / (k.coth + p + n);
    slope = activation_slope(value, p, n, k.a);
    return value;
  };
  double largest_slope = 0, largest, slope;
  largest = pi(0, slope);
  for (int i = 0; i < kSamples; ++i) {
    pi((i + 0.5) / kSamples * (basis->radius), slope);
    largest_slope = std::max(largest_slope, std::abs(slope));
  }
  // Rows: values at the samples, slopes at the samples, the ridge.
  const auto column = [&](double centre) {
    std::vector<double> c(2 * kSamples + nodes, 0.0);
    for (int i = 0; i < kSamples; ++i) {
      const double t = cell.cell_bins / 2.0 * std::cos(3.14159265358979323846 * (i + 0.5) / kSamples);
      c[i] = pi(t - centre, slope) / largest;
      c[kSamples + i] = slope / largest_slope;
    }
    return c;
  };
  Matrix a, b;
  for (int r = 0; r < nodes; ++r) {
    a.push_back(column(node[r]));
    a.back()[2 * kSamples + r] = kRidge;
  }
  for (int o = 0; o < basis->outer_taps; ++o)
    b.push_back(column(basis->outer_position(o) - basis->radius + 0.5 - cell.cell_bins / 2.0));
  least_squares(a, b);

  for (const std::vector<double>& tap : b)
    for (int r = 0; r < nodes; ++r) basis->storage.push_back(static_cast<float>(tap[r]));
  basis->mix = basis->storage.data();
  return basis;
}

}  // namespace

const CellBasis* cell_basis(double bandwidth, int nodes) {
  if (bandwidth < kNarrowest || bandwidth > (nodes == 8 ? kEightNodes : kWidest)) return nullptr;
  static std::mutex mutex;
  using Known = std::map<std::pair<double, int>, std::unique_ptr<OwnedBasis>>;
  static auto* known = new Known;  // outlives static destruction
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<OwnedBasis>& basis = (*known)[{bandwidth, nodes}];
  if (basis == nullptr) basis = fit(bandwidth, nodes);
  return basis.get();
}

}  // namespace histloss
