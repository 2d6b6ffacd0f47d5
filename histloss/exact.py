"""Differentiable histograms made of exact sums, see sums.py: any kernel, and the same bits for any cut.

Between sums and division `combine` may add those of other processes; the gradient is that of this process's
pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import autograd
from .binning import Binning
from .checks import accumulation_dtype
from .sums import Sums

Combine = Callable[[Sums], Sums]


def soft_histogram(x: Tensor, weight: Tensor | None, axis: Binning, combine: Combine | None = None) -> Tensor:
    """sum_x w Pi_k(x) / sum_x w: (P, N) -> (P, K)."""
    value, total = autograd.soft_sums(x, weight, axis, combine)
    return _divide(value, total, x, weight)


def joint_histogram(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    axis_x: Binning,
    axis_y: Binning,
    combine: Combine | None = None,
) -> Tensor:
    """sum_x w Pi_k(x) Pi_l(y) / sum_x w: two (P, N) -> (P, Kx, Ky)."""
    value, total = autograd.joint_sums(x, y, weight, axis_x, axis_y, combine)
    return _divide(value, total, x, weight)


def _divide(value: Tensor, total: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
    """The histogram, 0 without any pixels at all, NaN where the weights come to nothing."""
    if weight is None:
        total = torch.where(total > 0, total, 1.0)
    else:
        added = weight.sum(-1, dtype=torch.float64)  # has the total's gradient, and not its bits
        total = torch.where(total > 0, total + (added - added.detach()), torch.nan)
    return (value / total.reshape(-1, *[1] * (value.ndim - 1))).to(accumulation_dtype(x.dtype))
