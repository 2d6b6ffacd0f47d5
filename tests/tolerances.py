"""The one table of tolerances: how far a result of a dtype may be from the same computation in float64.

An error is relative to the largest value expected, see asserters.py. The gradient of a half-precision image
is half precision itself: rounding the result is all that its rows allow for, 2^-11 and 2^-8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    max_error: float
    relative_l2: float
    bias: float


class Tolerances(NamedTuple):
    value: Tolerance
    gradient: Tolerance


TOLERANCES = {
    torch.float64: Tolerances(Tolerance(1e-12, 1e-12, 1e-12), Tolerance(1e-12, 1e-12, 1e-12)),
    torch.float32: Tolerances(Tolerance(1e-6, 1e-6, 1e-6), Tolerance(3e-6, 3e-6, 3e-6)),
    torch.float16: Tolerances(Tolerance(5e-4, 5e-4, 5e-4), Tolerance(5e-4, 5e-4, 5e-4)),
    torch.bfloat16: Tolerances(Tolerance(4e-3, 4e-3, 4e-3), Tolerance(4e-3, 4e-3, 4e-3)),
}
