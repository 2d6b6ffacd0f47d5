#include "subcell_polynomials.h"

#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "../bin_kernel.h"

namespace histloss::cpu {
namespace {

struct Owned : SubcellPolynomials {
  std::vector<float> values, values_by_tap, slopes_by_tap;
};

// The cubic through f at the four Chebyshev nodes of [-1, 1], by its monomial coefficients: with
// T2 = 2 v^2 - 1 and T3 = 4 v^3 - 3 v, f = c0 + c1 v + c2 T2 + c3 T3.
template <class Function>
void cubic(const Function& f, double (&monomial)[kMoments]) {
  double c[kMoments] = {};
  for (int j = 0; j < kMoments; ++j) {
    const double angle = 3.14159265358979323846 * (j + 0.5) / kMoments;
    const double y = f(std::cos(angle));
    for (int r = 0; r < kMoments; ++r) c[r] += y * std::cos(r * angle) * (r == 0 ? 0.25 : 0.5);
  }
  monomial[0] = c[0] - c[2];
  monomial[1] = c[1] - 3 * c[3];
  monomial[2] = 2 * c[2];
  monomial[3] = 4 * c[3];
}

constexpr double kSubcell = 0.15625;  // at most this many bandwidths wide: the cubic's error is then 3e-8
constexpr double kNarrowest = 0.1, kWidest = 64;

std::unique_ptr<Owned> fit(double bandwidth) {
  auto p = std::make_unique<Owned>();
  const KernelConstants k = kernel_constants(bandwidth);
  p->per_bin = 1;
  while (p->per_bin * kSubcell * bandwidth < 1) p->per_bin *= 2;
  p->radius = static_cast<int>(kernel_radius(bandwidth, false));
  p->taps = 2 * p->radius;
  p->stride = (p->taps + 15) / 16 * 16;
  p->values.assign(static_cast<std::size_t>(p->per_bin) * kMoments * p->stride, 0.0f);
  p->values_by_tap.resize(static_cast<std::size_t>(p->taps) * p->per_bin * kMoments);
  p->slopes_by_tap.resize(p->values_by_tap.size());
  for (int s = 0; s < p->per_bin; ++s)
    for (int t = 0; t < p->taps; ++t) {
      const auto kernel = [&](double v, bool slope) {
        const double distance = (s + (v + 1) / 2) / p->per_bin + p->radius - t - 1;
        const double ep = std::exp(k.a * distance - k.log_2sinh),
                     en = std::exp(-k.a * distance - k.log_2sinh);
        const double pi = 1 / (k.coth + ep + en);
        return slope ? activation_slope(pi, ep, en, k.a) : pi;
      };
      double value[kMoments], slope[kMoments];
      cubic([&](double v) { return kernel(v, false); }, value);
      cubic([&](double v) { return kernel(v, true); }, slope);
      for (int r = 0; r < kMoments; ++r) {
        p->values[(s * kMoments + r) * p->stride + t] = static_cast<float>(value[r]);
        p->values_by_tap[(t * p->per_bin + s) * kMoments + r] = static_cast<float>(value[r]);
        p->slopes_by_tap[(t * p->per_bin + s) * kMoments + r] = static_cast<float>(slope[r]);
      }
    }
  p->value = p->values.data();
  p->value_by_tap = p->values_by_tap.data();
  p->slope_by_tap = p->slopes_by_tap.data();
  return p;
}

}  // namespace

const SubcellPolynomials* subcell_polynomials(double bandwidth) {
  if (bandwidth < kNarrowest || bandwidth > kWidest) return nullptr;
  static std::mutex mutex;
  static auto* known = new std::map<double, std::unique_ptr<Owned>>;  // outlives static destruction
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Owned>& polynomials = (*known)[bandwidth];
  if (polynomials == nullptr) polynomials = fit(bandwidth);
  return polynomials.get();
}

}  // namespace histloss::cpu
