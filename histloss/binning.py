"""Bins, range, bandwidth and boundary as one value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from .checks import check_choice, is_int, is_number

BOUNDARIES = ("open", "reflect", "cyclic")  # a boundary's index is its code in the native schemas
MIN_BANDWIDTH, MAX_BANDWIDTH = 1e-3, 1e3  # in bin widths: from a hard bin to a flat histogram
MIN_WIDTH, MAX_WIDTH = 1e-30, 1e30  # float32 holds these, and their inverses


class Binning(NamedTuple):
    """K bins over [lo, hi], the kernel's bandwidth in bin widths, and what happens at both ends."""

    bins: int = 256
    lo: float = -1.0
    hi: float = 1.0
    bandwidth: float = 0.4
    boundary: str = "reflect"

    @property
    def width(self) -> float:
        """The bin width L = (hi - lo) / K."""
        return (self.hi - self.lo) / self.bins

    @property
    def code(self) -> int:
        """The boundary as the native schemas spell it."""
        return BOUNDARIES.index(self.boundary)


def binning(bins: Any, range: Any, bandwidth: Any, boundary: Any) -> Binning:
    """Check the binning keywords of a one-axis function and return them as one value."""
    if not is_int(bins):
        raise TypeError(f"bins must be an int, got {bins!r}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if not (isinstance(range, Sequence) and len(range) == 2 and all(map(is_number, range))):
        raise TypeError(f"range must be a pair of numbers (lo, hi), got {range!r}")
    lo, hi = float(range[0]), float(range[1])
    if not -math.inf < lo < hi < math.inf:
        raise ValueError(f"range must be finite with lo < hi, got {range!r}")
    if not MIN_WIDTH <= (hi - lo) / bins <= MAX_WIDTH:
        raise ValueError(
            f"range must give bins {MIN_WIDTH} to {MAX_WIDTH} wide, got {range!r} for {bins} bins"
        )
    if not is_number(bandwidth):
        raise TypeError(f"bandwidth must be a number of bin widths, got {bandwidth!r}")
    if not MIN_BANDWIDTH <= bandwidth <= MAX_BANDWIDTH:
        raise ValueError(
            f"bandwidth must be between {MIN_BANDWIDTH} and {MAX_BANDWIDTH} bin widths, got {bandwidth!r}"
        )
    check_choice("boundary", boundary, BOUNDARIES)
    return Binning(int(bins), lo, hi, float(bandwidth), boundary)


def binning_pair(bins: Any, range: Any, bandwidth: Any, boundary: Any) -> tuple[Binning, Binning]:
    """The same for the two axes of a joint histogram; each keyword is one value or a pair (x, y)."""
    bins_x, bins_y = _pair(bins)
    range_x, range_y = range if _is_pair_of_pairs(range) else (range, range)
    bandwidth_x, bandwidth_y = _pair(bandwidth)
    boundary_x, boundary_y = _pair(boundary)
    return (
        binning(bins_x, range_x, bandwidth_x, boundary_x),
        binning(bins_y, range_y, bandwidth_y, boundary_y),
    )


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)


def _is_pair_of_pairs(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(v, Sequence) and len(v) == 2 for v in value)
    )
