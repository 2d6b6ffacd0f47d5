"""How values and gradients are compared: four measures of agreement, all checked, all shown on failure."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tolerances import TOLERANCES, Tolerance


class Agreement(NamedTuple):
    """How far a tensor is from the one expected.

    max_error is relative to the largest value expected and relative_l2 to the norm; bias is the error's share
    along the expected values: +0.001 for a result 0.1 % too large.
    """

    max_error: float
    relative_l2: float
    cosine: float
    bias: float


def agreement(actual: Tensor, expected: Tensor, floor: float = 0.0) -> Agreement:
    """Measure in float64. Where everything expected is below `floor`, the floor stands for every value."""
    a, e = actual.detach().double().flatten(), expected.detach().to(actual.device).double().flatten()
    if torch.equal(a, e):
        return Agreement(0.0, 0.0, 1.0, 0.0)
    error = a - e
    significant = bool(e.abs().max() >= floor)
    size = e.abs() if significant else torch.full_like(e, floor)
    return Agreement(
        max_error=_ratio(error.abs().max(), size.max()),
        relative_l2=_ratio(error.norm(), size.norm()),
        cosine=_cosine(a, e) if significant else 1.0,
        bias=_ratio(error @ e, size @ size),
    )


def assert_agrees(actual: Tensor, expected: Tensor, tolerance: Tolerance, *, floor: float = 0.0) -> None:
    """Fail unless every measure is within the tolerance; NaN and infinity never are."""
    __tracebackhide__ = True
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert bool(expected.isfinite().all()), "the expected values are not finite"
    bad = int((~actual.isfinite()).sum())
    assert bad == 0, f"{bad} of {actual.numel()} values are not finite"
    if actual.numel() == 0:
        return
    found = agreement(actual, expected, floor)
    within = (
        found.max_error <= tolerance.max_error,
        found.relative_l2 <= tolerance.relative_l2,
        1 - found.cosine <= tolerance.relative_l2**2,
        abs(found.bias) <= tolerance.bias,
    )
    assert all(within), f"{found} exceeds {tolerance}; {_worst(actual, expected)}"


def assert_value(actual: Tensor, expected: Tensor, *, floor: float = 0.0) -> None:
    """A forward result, within the table's tolerance for its dtype."""
    __tracebackhide__ = True
    assert_agrees(actual, expected, TOLERANCES[actual.dtype].value, floor=floor)


def assert_gradient(actual: Tensor, expected: Tensor, *, floor: float = 0.0) -> None:
    """A gradient, within the table's tolerance for its dtype."""
    __tracebackhide__ = True
    assert_agrees(actual, expected, TOLERANCES[actual.dtype].gradient, floor=floor)


def _cosine(a: Tensor, e: Tensor) -> float:
    if not bool(a.any() and e.any()):
        return 0.0
    chord = a / a.norm() - e / e.norm()  # 1 - cos = chord^2 / 2, to more digits than a @ e has
    return 1 - float(chord @ chord) / 2


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    n, d = float(numerator), float(denominator)
    return n / d if d else math.copysign(math.inf, n) if n else 0.0


def _worst(actual: Tensor, expected: Tensor) -> str:
    error = (actual.detach().double() - expected.detach().to(actual.device).double()).abs()
    where = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    return f"worst at {where}: {float(actual[where])!r}, expected {float(expected[where])!r}"
