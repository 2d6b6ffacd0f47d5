"""What the losses share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import distributed
from ..checks import accumulation_dtype
from ..reference import plane_rows, plane_weight


def widen(x: Tensor) -> Tensor:
    """The same values in the dtype of the arithmetic: float32, or float64 for float64."""
    return x.to(accumulation_dtype(x.dtype))


def no_mass(histogram: Tensor) -> Tensor:
    """Which histograms (..., K) are all 0; NaN is something."""
    return (histogram.detach() == 0).all(-1)


def pixel_count(x: Tensor, weight: Tensor | None, process_group: Any) -> Tensor:
    """How many pixels the histograms of x come from, (B, C) float64.

    With weights, as many as give a mean of that variance (Kish): (sum w)^2 / sum w^2.
    """
    w = plane_weight(weight, x)
    if w is None:
        pixels = math.prod(x.shape[2:])
        counts = torch.full((2, *x.shape[:2]), pixels, dtype=torch.float64, device=x.device)
    else:
        w = w.detach().double()
        sums = [plane_rows(power)[1][..., 0, 0] for power in (w, w.square())]
        counts = torch.stack(sums).expand(-1, *x.shape[:2])
    if process_group is not None:
        counts = distributed.all_sum(counts, process_group)
    nothing = counts[1] == 0
    return torch.where(nothing, 1.0, counts[0].square() / torch.where(nothing, 1.0, counts[1]))


def reduce(values: Tensor, reduction: str) -> Tensor:
    """Their `"mean"`, their `"sum"`, or themselves."""
    if reduction == "mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values


def show(**arguments: Any) -> str:
    """A module's `extra_repr`: its arguments as in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
