#include <type_traits>

#include "maps.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

template <class T, class Parzen>
void write_maps(const ActivationMaps& job, const Bins<T, Parzen>& bins) {
  each_block<T>(job.pixels, [&](int64_t plane, int64_t offset, int64_t n) {
    T buffer[kMapBlock], folded[kFoldBuffers * kMapBlock];
    const T* z = load_pixels(job.x, plane * job.pixels.count + offset, n, buffer);
    z = fold_pixels(bins.position, z, n, folded).z;
    T* const maps = static_cast<T*>(job.maps) + plane * job.axis.bins * job.pixels.count + offset;
    for (int64_t i = 0; i < n; i += bins.lanes) {
      const auto pixels = load_part(z + i, n - i, T(NAN));
      const auto span = bins.span(pixels);
      const auto place = bins.place(pixels);
      for (int64_t k = 0; k < job.axis.bins; ++k) {
        typename Simd<T>::Vector value{};
        bins.each_image(k, span, [&](int64_t e) { value += bins.template activation<false>(place, e); });
        store_part(maps + k * job.pixels.count + i, value, n - i);
      }
    }
  });
}

}  // namespace

void activation_maps(const ActivationMaps& job) {
  const auto write = [&](auto zero) {
    using T = decltype(zero);
    with_kernel<T>(job.axis.kernel, job.axis.bandwidth, [&](const auto& of) {
      write_maps(job, Bins<T, std::decay_t<decltype(of)>>(job.axis, of));
    });
  };
  job.pixels.is_double ? write(double()) : write(float());
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
