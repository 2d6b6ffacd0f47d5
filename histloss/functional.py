"""The public functions: arguments checked, (B, C, *spatial) laid out as planes, results shaped back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import autograd, checks, distributed, native, reference
from . import exact as exact_sums
from .binning import Binning, binning, binning_pair, sample_ranges
from .sums import Sums


def activation_maps(
    x: Tensor,
    *,
    bins: int = 256,
    range: tuple[float, float] | Tensor = (-1.0, 1.0),
    bandwidth: float | None = None,
    boundary: str = "reflect",
    kernel: str = "sigmoid",
) -> Tensor:
    r"""Soft membership of every pixel in every bin, :math:`\Pi_k(x)` (DeepHist Eq. 6).

    Args:
        x: image batch, shape (B, C, \*spatial), float16, bfloat16, float32 or float64. NaN and infinite
            pixels belong to no bin and get a zero gradient.
        bins: number of bins K.
        range: the support (lo, hi), or one for each sample, as in :func:`soft_histogram`.
        bandwidth: kernel scale in bin widths, at most 1000; None is the kernel's own.
        boundary: ``"reflect"`` mirrors at both ends, so that the maps sum to 1; ``"open"`` is Eq. 6 as
            printed, where a pixel at an end keeps half its mass; ``"cyclic"`` wraps around.
        kernel: as in :func:`soft_histogram`.

    Returns:
        Maps in [0, 1], shape (B, C, K, \*spatial), float32 (float64 for a float64 image). This tensor is
        K times the size of the image: a histogram or a loss never needs it.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    checks.check_image("x", x)
    if (ranges := sample_ranges(range, x.shape[0])) is not None:
        options = {"bins": bins, "bandwidth": bandwidth, "boundary": boundary, "kernel": kernel}
        return reference.by_sample(activation_maps, ranges, [x], None, options)
    axis = binning(bins, range, bandwidth, boundary, kernel)
    maps = autograd.activation_maps if native.available(x) else reference.plane_maps
    return maps(reference.planes(x), axis).reshape(*x.shape[:2], axis.bins, *x.shape[2:])


def soft_histogram(
    x: Tensor,
    *,
    bins: int = 256,
    range: tuple[float, float] | Tensor = (-1.0, 1.0),
    bandwidth: float | None = None,
    boundary: str = "reflect",
    kernel: str = "sigmoid",
    weight: Tensor | None = None,
    exact: bool = False,
    process_group: Any = None,
    empty: str = "error",
) -> Tensor:
    r"""Differentiable histogram of every channel (DeepHist Eq. 5).

    .. math:: P(k) = \frac{\sum_x w(x)\, \Pi_k(x)}{\sum_x w(x)}

    With t the distance of a pixel from a bin's centre in bin widths, and h the bandwidth:

    ================  ===========================================  =======  ==========
    kernel            membership before normalisation              h, own   h, least
    ================  ===========================================  =======  ==========
    ``"sigmoid"``     Eq. 6, :math:`\sigma((t + 1/2) / h) -        0.4      0.001
                      \sigma((t - 1/2) / h)`
    ``"gaussian"``    :math:`\exp(-t^2 / 2 h^2)`                   0.5      0.001
    ``"bspline3"``    cubic B-spline of t / h, 0 from 2 h on       1        0.5
    ``"triangular"``  1 - abs(t) / h where positive                1        1
    ================  ===========================================  =======  ==========

    All but the first are divided by their sum over the bins of an axis without ends.

    Args:
        x: image batch, shape (B, C, \*spatial), float16, bfloat16, float32 or float64. NaN and infinite
            pixels have no mass and get a zero gradient.
        bins: number of bins K.
        range: the support (lo, hi), or a floating tensor (B, 2) with one for each sample, without gradient.
            Such a tensor is read: one on a GPU waits for it, and a graph compiled as a whole has none.
        bandwidth: kernel scale h in bin widths, at most 1000; None is the kernel's own, 0.4 the paper's.
        boundary: ``"reflect"`` (mass is 1 wherever the pixels are), ``"open"`` (Eq. 6 as printed: a pixel at
            an end keeps half its mass) or ``"cyclic"`` (bins wrap round, for hue).
        kernel: one of the above.
        weight: non-negative weight per pixel that broadcasts to x, with a gradient of its own; a mask is 0
            or 1. None weighs all pixels alike. Its values are checked in eager mode on the CPU alone: on a
            GPU that would wait for the device, and the kernels there answer a sum of 0 and a negative,
            infinite or NaN weight by a histogram of NaN.
        exact: sum integers, which gives the same bits for any order of the pixels. So do always kernels
            other than ``"sigmoid"``, and a `process_group`. A weight is then at most 2^20, and its sum less
            than 2^33.
        process_group: a group of ``torch.distributed`` whose processes' pixels are counted together, for
            each image and channel: all of them get the same bits, whatever pixels each brings. The gradient
            is that of a process's own pixels. See :mod:`histloss.distributed`.
        empty: what to do for an image and channel whose weights sum to 0: ``"error"``, or ``"zero"`` for a
            histogram of zeros, without a gradient. On a GPU, where weights are not read, the former is NaN.

    Returns:
        Histograms, shape (B, C, K), float32 (float64 for a float64 image), that sum to 1 (``"open"``: to
        the mass inside the range). An image without pixels gives zeros.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    checks.check_image("x", x)
    checks.check_sums(exact, empty)
    if (ranges := sample_ranges(range, x.shape[0])) is not None:
        options = {"bins": bins, "bandwidth": bandwidth, "boundary": boundary, "kernel": kernel}
        options.update(exact=exact, process_group=process_group, empty=empty)
        return reference.by_sample(soft_histogram, ranges, [x], weight, options)
    axis = binning(bins, range, bandwidth, boundary, kernel)
    if exact or process_group is not None or axis.kernel != "sigmoid":
        weight, combine = _exact_arguments(weight, x, [axis], process_group, empty)
        h = exact_sums.soft_histogram(reference.planes(x), weight, axis, combine)
        h = _without_marks(h) if empty == "zero" else h
    else:
        mass = reference.plane_mass(weight, x, empty)
        histogram = autograd.soft_histogram if native.available(x) else reference.plane_histogram
        h = histogram(reference.planes(x), mass, axis)
    return h.reshape(*x.shape[:2], axis.bins)


def joint_histogram(
    x: Tensor,
    y: Tensor,
    *,
    bins: int | tuple[int, int] = 256,
    range: tuple[float, float]
    | Tensor
    | tuple[tuple[float, float] | Tensor, tuple[float, float] | Tensor] = (-1.0, 1.0),
    bandwidth: float | tuple[float | None, float | None] | None = None,
    boundary: str | tuple[str, str] = "reflect",
    kernel: str | tuple[str, str] = "sigmoid",
    weight: Tensor | None = None,
    exact: bool = False,
    process_group: Any = None,
    empty: str = "error",
) -> Tensor:
    r"""Differentiable joint histogram of two images, channel by channel (DeepHist Eq. 12, 13).

    .. math:: J(k, l) = \frac{\sum_x w(x)\, \Pi_k(x)\, \Pi_l(y)}{\sum_x w(x)}

    Args:
        x: image batch, shape (B, C, \*spatial), float16, bfloat16, float32 or float64.
        y: the image batch that pairs with x, same shape and device.
        bins, range, bandwidth, boundary, kernel: as in :func:`soft_histogram`; a pair sets x and y apart.
        weight, exact, process_group, empty: as in :func:`soft_histogram`.

    Returns:
        Joint histograms, shape (B, C, Kx, Ky), float32 (float64 if an image is), that sum to 1 (``"open"``:
        to the mass inside the range). Row and column sums are the marginals; with ``"reflect"`` and
        ``"cyclic"`` they equal the soft histograms of x and y.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    checks.check_image("x", x)
    checks.check_image_pair(x, y)
    checks.check_sums(exact, empty)
    if (ranges := sample_ranges(range, x.shape[0], pair=True)) is not None:
        options = {"bins": bins, "bandwidth": bandwidth, "boundary": boundary, "kernel": kernel}
        options.update(exact=exact, process_group=process_group, empty=empty)
        return reference.by_sample(joint_histogram, ranges, [x, y], weight, options)
    axis_x, axis_y = binning_pair(bins, range, bandwidth, boundary, kernel)
    if x.dtype != y.dtype:
        dtype = checks.accumulation_dtype(torch.promote_types(x.dtype, y.dtype))
        x, y = x.to(dtype), y.to(dtype)
    planes = reference.planes(x), reference.planes(y)
    if exact or process_group is not None or not axis_x.kernel == axis_y.kernel == "sigmoid":
        weight, combine = _exact_arguments(weight, x, [axis_x, axis_y], process_group, empty)
        j = exact_sums.joint_histogram(*planes, weight, axis_x, axis_y, combine)
        j = _without_marks(j) if empty == "zero" else j
    else:
        mass = reference.plane_mass(weight, x, empty)
        joint = autograd.joint_histogram if native.available(x) else reference.plane_joint
        j = joint(*planes, mass, axis_x, axis_y)
    return j.reshape(*x.shape[:2], axis_x.bins, axis_y.bins)


def _exact_arguments(
    weight: Tensor | None, x: Tensor, axes: list[Binning], process_group: Any, empty: str
) -> tuple[Tensor | None, exact_sums.Combine | None]:
    """For the exact sums: the weight as planes (B C, N), and what is done between sums and division."""
    if (w := reference.plane_weight(weight, x)) is not None:
        if checks.is_eager_cpu(w):
            total = reference.plane_rows(w.detach())[1][..., 0, 0]
            checks.check_exact_weight(w, total, empty, alone=process_group is None)
        w = w.expand(*x.shape[:2], -1).flatten(0, 1)
    if process_group is None:
        return w, _marked if w is not None and empty == "zero" else None
    gather = distributed.combine(process_group, *axes, dtype=checks.accumulation_dtype(x.dtype))

    def combine(sums: Sums) -> Sums:
        sums = gather(sums)
        if empty == "zero":
            return _marked(sums)
        checks.check_totals(sums.totals)  # whether or not this process has weights: all raise, or none
        return sums

    return w, combine


def _marked(sums: Sums) -> Sums:
    """Sums of which planes without any weight are histograms of -1, to be told by that from all others.

    So they can be after a division that is finite, as its gradient then is, and without waiting for a GPU.
    """
    nothing = (sums.totals == 0).all(0).to(torch.int64)
    mark = nothing.reshape(1, -1, *[1] * (sums.counts.ndim - 2))
    counts, totals = sums
    return Sums(torch.cat([counts[:1] - mark, counts[1:]]), torch.cat([totals[:1] + nothing, totals[1:]]))


def _without_marks(histogram: Tensor) -> Tensor:
    return torch.where(histogram < 0, 0.0, histogram)


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


def mutual_information(
    joint: Tensor,
    *,
    mode: str = "relative",
    correction: str | None = None,
    count: float | Tensor | None = None,
) -> Tensor:
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
        correction: ``"miller_madow"`` adds (m - 1) / 2N to each entropy, which few pixels estimate too low: N
            is their number, m that of the entropy's occupied bins. A soft bin counts as occupied if it
            holds half a pixel, so m has no gradient. The ranges above then hold but roughly. None adds
            nothing.
        count: N, a number or a tensor that broadcasts to the result; for the correction alone.

    Returns:
        Values, shape (...), float32 or float64.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    return reference.mutual_information(joint, mode=mode, correction=correction, count=count)
