"""Histograms as sums of integers, which have the same bits however pixels are cut into calls and processes.

Each pixel's contribution w Pi_k(x) Pi_l(y) is rounded to a multiple of 2^-30, and what that leaves of it, for
float64, weights and wide kernels, to a multiple of 2^-62. Integers add to the same in any order, so sums of
parts may be added, sent and merged as one likes. They are not divided by anything, and have no gradient here:
that is given apart, and each pixel's is a function of that pixel alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import native, reference
from .binning import BOUNDARIES, KERNELS, NORMALIZATIONS, Binning
from .checks import accumulation_dtype

_native = torch.ops.histloss
COARSE, FINE = reference.LEVELS  # what 1 stands for at each level


class Sums(NamedTuple):
    """Of L = 1 or 2 levels and P planes: counts (L, P, K) or (L, P, Kx, Ky), totals of weights (L, P)."""

    counts: Tensor
    totals: Tensor


def soft_sums(x: Tensor, weight: Tensor | None, axis: Binning) -> Sums:
    """sum_x w Pi_k(x), the weight being 1 where there is none: (P, N) -> K bins."""
    if native.available(x):
        return Sums(*_native.soft_histogram_sums(x, weight, *_numbers(axis)))
    return Sums(*reference.plane_sums(x, weight, axis))


def joint_sums(x: Tensor, y: Tensor, weight: Tensor | None, axis_x: Binning, axis_y: Binning) -> Sums:
    """sum_x w Pi_k(x) Pi_l(y): two (P, N) -> Kx by Ky bins."""
    if native.available(x):
        return Sums(*_native.joint_histogram_sums(x, y, weight, *_numbers(axis_x), *_numbers(axis_y)))
    return Sums(*reference.plane_joint_sums(x, y, weight, axis_x, axis_y))


def soft_gradient(
    grad: Tensor, x: Tensor, weight: Tensor | None, axis: Binning, need_x: bool, need_weight: bool
) -> tuple[Tensor, ...]:
    """Of <grad, sums>, grad being (P, K), with respect to x and the weight; no elements if not needed."""
    grad = grad.to(accumulation_dtype(x.dtype))
    if native.available(x):
        gradients: tuple[Tensor, ...] = _native.soft_histogram_sums_backward(
            grad, x, weight, *_numbers(axis), need_x, need_weight
        )
        return gradients
    return reference.plane_sums_gradient(grad, x, weight, axis, need_x, need_weight)


def joint_gradient(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    axis_x: Binning,
    axis_y: Binning,
    need_x: bool,
    need_y: bool,
    need_weight: bool,
) -> tuple[Tensor, ...]:
    """The same of two images, grad being (P, Kx, Ky)."""
    grad = grad.to(accumulation_dtype(x.dtype))
    if native.available(x):
        gradients: tuple[Tensor, ...] = _native.joint_histogram_sums_backward(
            grad, x, y, weight, *_numbers(axis_x), *_numbers(axis_y), need_x, need_y, need_weight
        )
        return gradients
    return reference.plane_joint_sums_gradient(
        grad, x, y, weight, axis_x, axis_y, need_x, need_y, need_weight
    )


def add(a: Sums, b: Sums) -> Sums:
    """The sums of both's pixels. One of a single level has nothing at the second."""
    levels = max(len(a.totals), len(b.totals))

    def both(first: Tensor, second: Tensor) -> Tensor:
        return with_levels(first, levels) + with_levels(second, levels)

    return Sums(both(a.counts, b.counts), both(a.totals, b.totals))


def with_levels(integers: Tensor, levels: int) -> Tensor:
    """(L, ...) with levels of zeros after the last."""
    missing = levels - len(integers)
    return torch.cat([integers, integers.new_zeros(missing, *integers.shape[1:])]) if missing else integers


def to_real(integers: Tensor) -> Tensor:
    """The numbers they stand for, (L, ...) -> (...), float64."""
    value = integers[0].double() * COARSE
    return value + integers[1].double() * FINE if len(integers) > 1 else value


def to_histogram(sums: Sums, dtype: torch.dtype) -> Tensor:
    """Sums divided by the totals: (P, K) or (P, Kx, Ky), NaN where a total is not positive."""
    total = to_real(sums.totals)
    total = torch.where(total > 0, total, torch.nan)
    value = to_real(sums.counts)
    return (value / total.reshape(-1, *[1] * (value.ndim - 1))).to(dtype)


def _numbers(axis: Binning) -> tuple[float, ...]:
    """An axis as the native schemas spell it."""
    return (
        *axis[:4],
        BOUNDARIES.index(axis.boundary),
        KERNELS.index(axis.kernel),
        NORMALIZATIONS.index(axis.normalization),
    )
