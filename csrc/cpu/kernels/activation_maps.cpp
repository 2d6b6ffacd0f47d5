#include "maps.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

template <class T>
void write_maps(const ActivationMaps& job) {
  const Bins<T> bins(job.axis);
  each_block<T>(job.pixels, [&](int64_t plane, int64_t offset, int64_t n) {
    T buffer[kMapBlock], folded[kFoldBuffers * kMapBlock];
    const T* z = load_pixels(job.x, plane * job.pixels.count + offset, n, buffer);
    z = fold_pixels(bins.position, z, n, folded).z;
    T* const maps = static_cast<T*>(job.maps) + plane * job.axis.bins * job.pixels.count + offset;
    for (int64_t i = 0; i < n; i += Bins<T>::lanes) {
      const auto pixels = load_part(z + i, n - i, T(NAN));
      const auto span = bins.span(pixels);
      for (int64_t k = 0; k < job.axis.bins; ++k) {
        typename Bins<T>::V value{};
        bins.each_image(k, span, [&](int64_t e) { value += bins.template activation<false>(pixels, e); });
        store_part(maps + k * job.pixels.count + i, value, n - i);
      }
    }
  });
}

}  // namespace

void activation_maps(const ActivationMaps& job) {
  job.pixels.is_double ? write_maps<double>(job) : write_maps<float>(job);
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
