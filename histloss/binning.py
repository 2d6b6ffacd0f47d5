"""Bins, range, bandwidth, boundary and kernel as one value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_choice, check_dtype, is_int, is_number

# The index of each of these is its code in the native schemas.
BOUNDARIES = ("open", "reflect", "cyclic")
KERNELS = ("sigmoid", "gaussian", "bspline3", "triangular")
NORMALIZATIONS = ("all", "inside", "none")
# Of each kernel, in bin widths. The least is a hard bin, or a support that reaches a bin to either side.
BANDWIDTHS = {"sigmoid": 0.4, "gaussian": 0.5, "bspline3": 1.0, "triangular": 1.0}
MIN_BANDWIDTHS = {"sigmoid": 1e-3, "gaussian": 1e-3, "bspline3": 0.5, "triangular": 1.0}
MAX_BANDWIDTH = 1e3  # a flat histogram
MIN_WIDTH, MAX_WIDTH = 1e-30, 1e30  # float32 holds these, and their inverses


class Binning(NamedTuple):
    """K bins over [lo, hi], the kernel and its bandwidth in bin widths, and what happens at both ends.

    The normalization is what a pixel's activations are divided by: their sum over ``"all"`` bins of the
    endless axis, over those ``"inside"`` of the range, where the pixel is to be too, or ``"none"``. The
    kernel ``"sigmoid"`` knows none.
    """

    bins: int = 256
    lo: float = -1.0
    hi: float = 1.0
    bandwidth: float = 0.4
    boundary: str = "reflect"
    kernel: str = "sigmoid"
    normalization: str = "all"

    @property
    def width(self) -> float:
        """The bin width L = (hi - lo) / K."""
        return (self.hi - self.lo) / self.bins

    @property
    def code(self) -> int:
        """The boundary as the native schemas spell it."""
        return BOUNDARIES.index(self.boundary)


def binning(bins: Any, range: Any, bandwidth: Any, boundary: Any, kernel: Any = "sigmoid") -> Binning:
    """Check the binning keywords of a one-axis function and return them as one value.

    A bandwidth of None is the kernel's own.
    """
    if not is_int(bins):
        raise TypeError(f"bins must be an int, got {bins!r}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if isinstance(range, Tensor):
        raise TypeError("range must be a pair of numbers (lo, hi) here, got a tensor: one for each sample")
    if not (isinstance(range, Sequence) and len(range) == 2 and all(map(is_number, range))):
        raise TypeError(f"range must be a pair of numbers (lo, hi), got {range!r}")
    lo, hi = float(range[0]), float(range[1])
    if not -math.inf < lo < hi < math.inf:
        raise ValueError(f"range must be finite with lo < hi, got {range!r}")
    if not MIN_WIDTH <= (hi - lo) / bins <= MAX_WIDTH:
        raise ValueError(
            f"range must give bins {MIN_WIDTH} to {MAX_WIDTH} wide, got {range!r} for {bins} bins"
        )
    check_choice("kernel", kernel, KERNELS)
    if bandwidth is None:
        bandwidth = BANDWIDTHS[kernel]
    if not is_number(bandwidth):
        raise TypeError(f"bandwidth must be a number of bin widths, got {bandwidth!r}")
    if not MIN_BANDWIDTHS[kernel] <= bandwidth <= MAX_BANDWIDTH:
        raise ValueError(
            f"bandwidth must be between {MIN_BANDWIDTHS[kernel]} and {MAX_BANDWIDTH} bin widths, "
            f"got {bandwidth!r} for the kernel {kernel!r}"
        )
    check_choice("boundary", boundary, BOUNDARIES)
    return Binning(int(bins), lo, hi, float(bandwidth), boundary, kernel)


def binning_pair(
    bins: Any, range: Any, bandwidth: Any, boundary: Any, kernel: Any = "sigmoid"
) -> tuple[Binning, Binning]:
    """The same for the two axes of a joint histogram; each keyword is one value or a pair (x, y)."""
    bins_x, bins_y = _pair(bins)
    range_x, range_y = range if _is_pair_of_pairs(range) else (range, range)
    bandwidth_x, bandwidth_y = _pair(bandwidth)
    boundary_x, boundary_y = _pair(boundary)
    kernel_x, kernel_y = _pair(kernel)
    return (
        binning(bins_x, range_x, bandwidth_x, boundary_x, kernel_x),
        binning(bins_y, range_y, bandwidth_y, boundary_y, kernel_y),
    )


def sample_ranges(range: Any, samples: int, pair: bool = False) -> list[Any] | None:
    """The range of each sample, as :func:`binning` takes it, from a tensor (B, 2); None if all share one.

    With `pair`, of a joint histogram, also from a pair (x, y) with such a tensor.
    """
    pair = pair and isinstance(range, (tuple, list)) and len(range) == 2
    parts = tuple(range) if pair else (range,)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if not tensors:
        return None
    for tensor in tensors:
        check_dtype("range", tensor)
        if tensor.shape != (samples, 2):
            raise ValueError(
                f"range must have shape (B, 2) = {(samples, 2)} if it is a tensor, got {tuple(tensor.shape)}"
            )
        if tensor.requires_grad:
            raise ValueError("range has no gradient, got a tensor that requires one: range.detach() does not")
    values = iter(torch.stack([t.double().to(tensors[0].device) for t in tensors]).tolist())  # waits once
    columns = [next(values) if isinstance(part, Tensor) else [part] * samples for part in parts]
    for part, column in zip(parts, columns, strict=True):
        for i, each in enumerate(column if isinstance(part, Tensor) else ()):
            if not -math.inf < each[0] < each[1] < math.inf:
                raise ValueError(
                    f"range must be finite with lo < hi, got ({each[0]}, {each[1]}) for sample {i}"
                )
    return [each if pair else each[0] for each in zip(*columns, strict=True)]


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)


def _is_pair_of_pairs(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(v, Sequence) and len(v) == 2 for v in value)
    )
