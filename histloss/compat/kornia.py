"""Stands in for the Gaussian and triangular histograms of kornia.enhance (of kornia 0.9.0), without their
tensor of pixels by bins.

Bins are given by their centres, evenly spaced, and the bandwidth in the units of the pixels. Reading them
waits for the device where they are tensors on a GPU, and splits a graph of torch.compile; tensors on the CPU
do as well beside images on a GPU.

The library's own :func:`histloss.soft_histogram` and :func:`histloss.joint_histogram` have these kernels too,
``kernel="gaussian"`` and ``"triangular"``, take numbers and do not wait. There every pixel counts alike.
Here, as in kornia, one near an end of the range counts less, since what falls outside is lost.

NaN and infinite pixels have no mass and a zero gradient, and so has a pixel that is more than about 6
bandwidths of a Gaussian away from every bin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks, exact
from ..binning import MAX_BANDWIDTH, MAX_WIDTH, MIN_BANDWIDTHS, MIN_WIDTH, Binning

IMAGE_KERNELS = ("triangular", "gaussian")  # of kornia's, those that this library has


def histogram(x: Tensor, bins: Tensor, bandwidth: Tensor, epsilon: float = 1e-10) -> Tensor:
    r"""Stands in for ``kornia.enhance.histogram``.

    .. math:: P(k) = \frac{S_k}{\sum_l S_l + \epsilon}, \qquad
              S_k = \frac1D \sum_x \exp\Big(-\frac12 \Big(\frac{x - c_k}{\sigma}\Big)^2\Big)

    Args:
        x: samples, shape (B, D), a row for each histogram. The gradient is theirs.
        bins: the centres c, shape (K,), ascending, and evenly spaced but for the rounding of float32, which
            is not followed. On the device of x or on the CPU. They get no gradient, which in kornia they do.
        bandwidth: sigma in the units of x, shape (), 0.001 to 1000 times the distance of the centres. It
            gets no gradient either.
        epsilon: added to the sum by which the histogram is divided, not negative.

    Returns:
        Histograms, shape (B, K), of the dtype to which x and bins promote; half precision is computed in
        float32. They sum to 1 wherever the pixels are, but those near an end of the range count for less.
        :func:`histloss.soft_histogram` has all count alike.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    checks.check_samples("x", x, 2, "(B, D)")
    dtype = checks.check_centres("bins", bins, x)
    axis = _axis(bins, bandwidth, x)
    epsilon = checks.check_not_negative("epsilon", epsilon)
    mass = exact.soft_histogram(x.to(checks.accumulation_dtype(dtype)), None, axis)
    return (mass / (mass.sum(-1, keepdim=True) + epsilon)).to(dtype)


def histogram2d(x1: Tensor, x2: Tensor, bins: Tensor, bandwidth: Tensor, epsilon: float = 1e-10) -> Tensor:
    """Stands in for ``kornia.enhance.histogram2d``: as :func:`histogram`, of products of both's kernels.

    Args:
        x1: samples, shape (B, D).
        x2: the samples that pair with x1, same shape and device. Both get gradients.
        bins, bandwidth: as in :func:`histogram`, for both axes.
        epsilon: not used. Nor is it in kornia, which adds 1e-10 to the sum over the D pairs.

    Returns:
        Joint histograms, shape (B, K, K), the first axis that of x1, of the dtype to which x1 and bins
        promote. They sum to 1, but pixels near an end of the range count for less;
        :func:`histloss.joint_histogram` has all count alike.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    checks.check_samples("x1", x1, 2, "(B, D)")
    checks.check_samples("x2", x2, 2, "(B, D)")
    if x2.shape != x1.shape:
        raise ValueError(f"x2 must have the shape of x1, {tuple(x1.shape)}, got {tuple(x2.shape)}")
    checks.check_device("x2", x2, x1.device)
    dtype = checks.check_centres("bins", bins, x1)
    axis = _axis(bins, bandwidth, x1)
    checks.check_not_negative("epsilon", epsilon)
    x1, x2 = (x.to(checks.accumulation_dtype(dtype)) for x in (x1, x2))
    mass = exact.joint_histogram(x1, x2, None, axis, axis)
    epsilon = 1e-10 / max(x1.shape[1], 1)  # of a mean over the pairs
    return (mass / (mass.sum((1, 2), keepdim=True) + epsilon)).to(dtype)


def image_histogram2d(
    image: Tensor,
    min: float = 0.0,
    max: float = 255.0,
    n_bins: int = 256,
    bandwidth: float | None = None,
    centers: Tensor | None = None,
    return_pdf: bool = False,
    kernel: str = "triangular",
    eps: float = 1e-10,
) -> tuple[Tensor, Tensor]:
    """Stands in for ``kornia.enhance.image_histogram2d``: how many pixels of each channel are in each bin.

    As there, with the triangular kernel a pixel at either end of the range counts for half, and an image that
    is all black, or all white, sums to half of its pixels; and a bandwidth without centers widens and moves
    the bins. :func:`histloss.soft_histogram` does neither. It returns shares, which sum to 1.

    Args:
        image: shape (H, W), (C, H, W) or (B, C, H, W). The gradient is its own. A pixel at a kink of the
            triangular kernel, on a bin's centre or a bandwidth away from it, has a gradient of 0 from that
            bin; a bandwidth away kornia's has not.
        min, max: the range of the bins, min below max; not used with centers.
        n_bins: number of bins; not used with centers.
        bandwidth: half the width of the triangle, or sigma of the Gaussian, in the units of the image. None
            and -1 stand for (max - min) / n_bins. Without centers the bins are as wide, and begin at min.
        centers: centres of the bins as in :func:`histogram`; then the bandwidth is 1 to 1000 times their
            distance with the triangular kernel, and 0.001 to 1000 times with the Gaussian. None and an
            empty tensor stand for the middles of the bins.
        return_pdf: whether to return densities as well.
        kernel: ``"triangular"`` or ``"gaussian"``. kornia's ``"uniform"``, which has no gradient, and
            ``"epanechnikov"`` are not offered.
        eps: added to the sum by which densities are divided, not negative.

    Returns:
        Counts, shape (K,), (C, K) or (B, C, K), and densities, the counts divided by their sum; without
        return_pdf zeros. float32, or float64 if a tensor is.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    checks.check_samples("image", image, (2, 3, 4), "(H, W), (C, H, W) or (B, C, H, W)")
    checks.check_choice("kernel", kernel, IMAGE_KERNELS)
    checks.check_bool("return_pdf", return_pdf)
    eps = checks.check_not_negative("eps", eps)
    dtype = torch.promote_types(torch.float32, image.dtype)
    given = centers is not None and not (isinstance(centers, Tensor) and centers.numel() == 0)
    if not given or bandwidth is None or bandwidth == -1:
        lo, hi = checks.check_finite("min", min), checks.check_finite("max", max)
        if not lo < hi:
            raise ValueError(f"min must be below max, got {min!r} and {max!r}")
        n_bins = checks.check_count("n_bins", n_bins, 1)
        if bandwidth is None or bandwidth == -1:
            bandwidth = (hi - lo) / n_bins
    bandwidth = checks.check_positive("bandwidth", bandwidth)
    if given:
        dtype = torch.promote_types(dtype, checks.check_centres("centers", centers, image))
        axis = _of_grid("centers", centers, bandwidth, kernel)
    else:
        checks.check_between("bandwidth", bandwidth, MIN_WIDTH, MAX_WIDTH)
        axis = _kornia(Binning(n_bins, lo, lo + n_bins * bandwidth, 1.0), kernel)
    rows = image.flatten(-2).to(dtype)
    pixels = rows.shape[-1]
    shares = exact.soft_histogram(rows.reshape(-1, pixels), None, axis)
    counts = (pixels * shares).reshape(*rows.shape[:-1], axis.bins)
    if return_pdf:
        return counts, counts / (counts.sum(-1, keepdim=True) + eps)
    return counts, torch.zeros_like(counts)


def _axis(bins: Tensor, bandwidth: Tensor, x: Tensor) -> Binning:
    return _of_grid("bins", bins, checks.check_bandwidth_tensor("bandwidth", bandwidth, x), "gaussian")


def _of_grid(name: str, centres: Tensor | None, bandwidth: float, kernel: str) -> Binning:
    """The axis with these centres."""
    assert centres is not None
    count, first, distance = checks.even_grid(name, centres, bandwidth, (MIN_WIDTH, MAX_WIDTH))
    wide, least = bandwidth / distance, MIN_BANDWIDTHS[kernel]
    if (1 - 1e-6) * least < wide < least:
        wide = least  # it was meant: the centres' rounding can make their distance a little larger
    if not least <= wide <= MAX_BANDWIDTH:
        raise ValueError(
            f"bandwidth must be from {least:g} to {MAX_BANDWIDTH:g} times the distance of the {name}, which "
            f"is {distance:g}, for the kernel {kernel!r}, got {bandwidth:g}"
        )
    lo = first - distance / 2
    return _kornia(Binning(count, lo, lo + count * distance, wide), kernel)


def _kornia(axis: Binning, kernel: str) -> Binning:
    """With a kernel that is not divided by its sum over the bins, and is lost outside of the range."""
    return axis._replace(boundary="open", kernel=kernel, normalization="none")
