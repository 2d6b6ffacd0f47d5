"""What the losses share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..checks import accumulation_dtype


def widen(x: Tensor) -> Tensor:
    """The same values in the dtype of the arithmetic: float32, or float64 for float64."""
    return x.to(accumulation_dtype(x.dtype))


def reduce(values: Tensor, reduction: str) -> Tensor:
    """Their `"mean"`, their `"sum"`, or themselves."""
    if reduction == "mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values


def show(**arguments: Any) -> str:
    """A module's `extra_repr`: its arguments as in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
