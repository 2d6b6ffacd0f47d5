"""The public functions: arguments checked, (B, C, *spatial) laid out as planes, results shaped back."""

from __future__ import annotations

import torch
from torch import Tensor

from . import autograd, checks, native, reference
from .binning import binning, binning_pair


def activation_maps(
    x: Tensor,
    *,
    bins: int = 256,
    range: tuple[float, float] = (-1.0, 1.0),
    bandwidth: float = 0.4,
    boundary: str = "reflect",
) -> Tensor:
    r"""Soft membership of every pixel in every bin, :math:`\Pi_k(x)` (DeepHist Eq. 6).

    Args:
        x: image batch, shape (B, C, \*spatial), float16, bfloat16, float32 or float64. NaN and infinite
            pixels belong to no bin and get a zero gradient.
        bins: number of bins K.
        range: the support (lo, hi).
        bandwidth: kernel scale in bin widths, from 0.001 to 1000; the paper's is 0.4.
        boundary: ``"reflect"`` mirrors at both ends, so that the maps sum to 1; ``"open"`` is Eq. 6 as
            printed, where a pixel at an end keeps half its mass; ``"cyclic"`` wraps around.

    Returns:
        Maps in [0, 1], shape (B, C, K, \*spatial), float32 (float64 for a float64 image). This tensor is
        K times the size of the image: a histogram or a loss never needs it.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    axis = binning(bins, range, bandwidth, boundary)
    checks.check_image("x", x)
    maps = autograd.activation_maps if native.available(x) else reference.plane_maps
    return maps(reference.planes(x), axis).reshape(*x.shape[:2], axis.bins, *x.shape[2:])


def soft_histogram(
    x: Tensor,
    *,
    bins: int = 256,
    range: tuple[float, float] = (-1.0, 1.0),
    bandwidth: float = 0.4,
    boundary: str = "reflect",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Differentiable histogram of every channel (DeepHist Eq. 5).

    .. math:: P(k) = \frac{\sum_x w(x)\, \Pi_k(x)}{\sum_x w(x)}

    Args:
        x: image batch, shape (B, C, \*spatial), float16, bfloat16, float32 or float64. NaN and infinite
            pixels have no mass and get a zero gradient.
        bins: number of bins K.
        range: the support (lo, hi).
        bandwidth: kernel scale in bin widths, from 0.001 to 1000; the paper's is 0.4.
        boundary: ``"reflect"`` (mass is 1 wherever the pixels are), ``"open"`` (Eq. 6 as printed: a pixel at
            an end keeps half its mass) or ``"cyclic"`` (bins wrap round, for hue).
        weight: non-negative weight per pixel that broadcasts to x, with a gradient of its own; a mask is 0
            or 1. None weighs all pixels alike. Its values are checked in eager mode on the CPU alone: on a
            GPU that would wait for the device, and the kernels there answer a sum of 0 and a negative,
            infinite or NaN weight by a histogram of NaN.

    Returns:
        Histograms, shape (B, C, K), float32 (float64 for a float64 image), that sum to 1 (``"open"``: to
        the mass inside the range). An image without pixels gives zeros.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    axis = binning(bins, range, bandwidth, boundary)
    checks.check_image("x", x)
    mass = reference.plane_mass(weight, x)
    histogram = autograd.soft_histogram if native.available(x) else reference.plane_histogram
    return histogram(reference.planes(x), mass, axis).reshape(*x.shape[:2], axis.bins)


def joint_histogram(
    x: Tensor,
    y: Tensor,
    *,
    bins: int | tuple[int, int] = 256,
    range: tuple[float, float] | tuple[tuple[float, float], tuple[float, float]] = (-1.0, 1.0),
    bandwidth: float | tuple[float, float] = 0.4,
    boundary: str | tuple[str, str] = "reflect",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Differentiable joint histogram of two images, channel by channel (DeepHist Eq. 12, 13).

    .. math:: J(k, l) = \frac{\sum_x w(x)\, \Pi_k(x)\, \Pi_l(y)}{\sum_x w(x)}

    Args:
        x: image batch, shape (B, C, \*spatial), float16, bfloat16, float32 or float64.
        y: the image batch that pairs with x, same shape and device.
        bins, range, bandwidth, boundary: as in :func:`soft_histogram`; a pair sets x and y apart.
        weight: as in :func:`soft_histogram`.

    Returns:
        Joint histograms, shape (B, C, Kx, Ky), float32 (float64 if an image is), that sum to 1 (``"open"``:
        to the mass inside the range). Row and column sums are the marginals; with ``"reflect"`` and
        ``"cyclic"`` they equal the soft histograms of x and y.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    axis_x, axis_y = binning_pair(bins, range, bandwidth, boundary)
    checks.check_image("x", x)
    checks.check_image_pair(x, y)
    if x.dtype != y.dtype:
        dtype = checks.accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
        x, y = x.to(dtype), y.to(dtype)
    mass = reference.plane_mass(weight, x)
    joint = autograd.joint_histogram if native.available(x) else reference.plane_joint
    return joint(reference.planes(x), reference.planes(y), mass, axis_x, axis_y).reshape(
        *x.shape[:2], axis_x.bins, axis_y.bins
    )


def emd(h1: Tensor, h2: Tensor, *, p: float = 2, form: str = "squared", cyclic: bool = False) -> Tensor:
    r"""Earth Mover's Distance of one-dimensional histograms, through their cumulative sums.

    .. math:: \text{squared: } \sum_i |C_i(h_1) - C_i(h_2)|^p \qquad
              \text{norm: } \Big(\frac1K \sum_i |C_i(h_1) - C_i(h_2)|^p\Big)^{1/p}

    ``squared`` with p = 2 is DeepHist Eq. 14, strictly a squared Cramer distance; ``norm`` is Hue-Net's form
    (p = 2 in the official code), with p = 1 the Wasserstein-1 distance as a fraction of the range.

    Args:
        h1, h2: histograms, shape (..., K), whose leading dimensions broadcast.
        p: order, finite and at least 1.
        form: ``"squared"`` or ``"norm"``.
        cyclic: the least distance over all rotations of where the sums begin, for hue:
            min over c of the same expression with C(h1) - C(h2) - c.

    Returns:
        Distances, shape (...), float32 or float64; 0 with a zero gradient where the histograms are equal.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    return reference.emd(h1, h2, p=p, form=form, cyclic=cyclic)


def mutual_information(joint: Tensor, *, mode: str = "relative") -> Tensor:
    r"""Mutual information and its relatives of a joint histogram, in nats (DeepHist Eq. 15 to 17).

    With the marginals P = row sums (of x) and Q = column sums (of y), and H the entropy:

    =========================  ==================================  =========================================
    mode                       value                               source
    =========================  ==================================  =========================================
    ``"mi"``                   I = H(P) + H(Q) - H(J)              Eq. 15
    ``"relative"``             1 - I / H(J), in [0, 1]             Eq. 16; 0.43, not 0, for a uniform image
                                                                   with itself at 256 bins: soft bins overlap
    ``"conditional_entropy"``  H(J) - H(P), entropy of y given x   the official code's "MI loss"
    ``"nmi"``                  (H(P) + H(Q)) / H(J), in [1, 2]     Studholme, Hill and Hawkes 1999
    =========================  ==================================  =========================================

    Args:
        joint: joint histograms, shape (..., Kx, Ky). Empty cells have value and gradient 0.
        mode: one of the above.

    Returns:
        Values, shape (...), float32 or float64.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    return reference.mutual_information(joint, mode=mode)
