// What the boundary hands to the kernels: plain pointers and sizes, already valid.
#pragma once

#include <cstdint>

#include "bin_kernel.h"

namespace histloss {

struct Axis {
  int64_t bins;
  double lo, hi, bandwidth;  // bandwidth in bin widths
  Boundary boundary;
  Kernel kernel = Kernel::sigmoid;
  Normalization normalization = Normalization::all;

  double width() const { return (hi - lo) / static_cast<double>(bins); }
  // Whether a kernel's activations are so small that sums of them need the fine grid. Mirrors
  // reference.levels.
  bool is_wide() const { return bandwidth > 2; }
};

enum class Scalar { f16, bf16, f32, f64 };

// Contiguous (planes, pixels).
struct Image {
  const void* data;
  Scalar type;
};

struct MutableImage {
  void* data;  // null: not wanted
  Scalar type;
};

// Histograms, mass and their gradients are float32, or float64 where is_double: the type the images widen to.
struct Pixels {
  int64_t planes, count;
  const void* mass;  // (planes, count), or null for 1 / count
  bool is_double;

  // What a histogram's sums are multiplied by: the mass is a share already.
  HISTLOSS_HOST_DEVICE double share() const {
    return mass != nullptr || count == 0 ? 1.0 : 1.0 / static_cast<double>(count);
  }

  // Of a sum as integers: the fine grid is for what float32 does not hold.
  bool need_fine_grid() const { return is_double || mass != nullptr; }
};

// Mass, histograms and their gradients are of the image's arithmetic type.
HISTLOSS_HOST_DEVICE Image values(const void* data, bool is_double) {
  return {data, is_double ? Scalar::f64 : Scalar::f32};
}
HISTLOSS_HOST_DEVICE MutableImage values(void* data, bool is_double) {
  return {data, is_double ? Scalar::f64 : Scalar::f32};
}

struct SoftHistogram {
  Axis axis;
  Pixels pixels;
  Image x;
  void* histogram;  // (planes, K)
};

struct SoftHistogramBackward {
  Axis axis;
  Pixels pixels;
  Image x;
  const void* grad;     // (planes, K)
  MutableImage grad_x;  // (planes, count)
  void* grad_mass;      // (planes, count) or null
};

// Sums as integers, see kGrid. Here and in their gradients the mass is a weight, not yet a share: 1 where
// null.
struct SoftHistogramSums {
  Axis axis;
  Pixels pixels;
  Image x;
  int64_t* sums;    // (levels, planes, K)
  int64_t* totals;  // (levels, planes): of the weights

  int64_t levels() const { return pixels.need_fine_grid() || axis.is_wide() ? 2 : 1; }
};

struct JointHistogram {
  Axis axis_x, axis_y;
  Pixels pixels;
  Image x, y;
  void* joint;  // (planes, Kx, Ky)
};

struct JointHistogramSums {
  Axis axis_x, axis_y;
  Pixels pixels;
  Image x, y;
  int64_t* sums;    // (levels, planes, Kx, Ky)
  int64_t* totals;  // (levels, planes)

  int64_t levels() const { return pixels.need_fine_grid() || axis_x.is_wide() || axis_y.is_wide() ? 2 : 1; }
};

struct JointHistogramBackward {
  Axis axis_x, axis_y;
  Pixels pixels;
  Image x, y;
  const void* grad;  // (planes, Kx, Ky)
  MutableImage grad_x, grad_y;
  void* grad_mass;
};

struct ActivationMaps {
  Axis axis;
  Pixels pixels;  // mass unused
  Image x;
  void* maps;  // (planes, K, count)
};

struct ActivationMapsBackward {
  Axis axis;
  Pixels pixels;
  Image x;
  const void* grad;  // (planes, K, count)
  MutableImage grad_x;
};

// The n nearest of the bins that a cell of the plane has for candidates, which are ascending.
struct NearestBins {
  int64_t images, pixels, neighbours;
  bool is_double;
  const void* points;  // (images, 2, pixels)
  double low[2], step;
  int64_t rows, columns, candidates;
  const int64_t* bins;  // (rows, columns, candidates)
  const void* a;        // their coordinates, of the points' type
  const void* b;
  double decay;      // a weight is exp(-decay d^2), divided by their sum
  int64_t* indices;  // (images, neighbours, pixels)
  void* weights;     // (images, neighbours, pixels)
  void* squares;     // (images, pixels): of the distance to the nearest
};

// Values, shares and weights are of the logits' arithmetic type.
struct ColorCrossEntropy {
  int64_t images, bins, pixels, neighbours;
  bool is_double;
  Image x;                 // (images, bins, pixels)
  const int64_t* indices;  // (images, neighbours, pixels): the kernel tells if one is no bin
  const void* z;           // their shares of the target
  const void* v;           // (images, pixels): weights
  void* values;            // (images, pixels)
  MutableImage grad;       // of x
};

}  // namespace histloss
