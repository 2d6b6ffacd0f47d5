#include <type_traits>

#include "maps.h"

namespace histloss::cpu::HISTLOSS_SIMD {
namespace {

template <class T, class Parzen>
void read_maps(const ActivationMapsBackward& job, const Bins<T, Parzen>& bins) {
  each_block<T>(job.pixels, [&](int64_t plane, int64_t offset, int64_t n) {
    T buffer[kMapBlock], fold_buffer[kFoldBuffers * kMapBlock], out_buffer[kMapBlock];
    const int64_t at = plane * job.pixels.count + offset;
    const Folded<T> folded = fold_pixels(bins.position, load_pixels(job.x, at, n, buffer), n, fold_buffer);
    T* const out = pixels_to_store(job.grad_x, at, out_buffer);
    const T* const grad = static_cast<const T*>(job.grad) + plane * job.axis.bins * job.pixels.count + offset;
    for (int64_t i = 0; i < n; i += bins.lanes) {
      const auto pixels = load_part(folded.z + i, n - i, T(NAN));
      const auto span = bins.span(pixels);
      const auto place = bins.place(pixels);
      typename Simd<T>::Vector total{};
      for (int64_t k = 0; k < job.axis.bins; ++k) {
        typename Simd<T>::Vector slope{};
        bool seen = false;
        bins.each_image(k, span, [&](int64_t e) {
          slope += bins.template activation<true>(place, e);
          seen = true;
        });
        if (seen) total += slope * load_part(grad + k * job.pixels.count + i, n - i, T(NAN));
      }
      store_part(out + i, total * bins.position.inverse_width, n - i);
    }
    if (folded.sign != nullptr)
      for (int64_t i = 0; i < n; ++i) out[i] *= folded.sign[i];
    store_pixels(job.grad_x, at, n, out);
  });
}

}  // namespace

void activation_maps_backward(const ActivationMapsBackward& job) {
  const auto read = [&](auto zero) {
    using T = decltype(zero);
    with_kernel<T>(job.axis.kernel, job.axis.bandwidth, [&](const auto& of) {
      read_maps(job, Bins<T, std::decay_t<decltype(of)>>(job.axis, of));
    });
  };
  job.pixels.is_double ? read(double()) : read(float());
}

}  // namespace histloss::cpu::HISTLOSS_SIMD
