"""The binning keywords: what they make, and the error that names the one that is wrong."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from histloss.binning import BANDWIDTHS, KERNELS, Binning, binning, binning_pair, sample_ranges

GOOD: dict[str, Any] = {"bins": 8, "range": (-1.0, 1.0), "bandwidth": 0.4, "boundary": "reflect"}


def test_a_binning_holds_what_it_was_given() -> None:
    axis = binning(10, [0, 5], 2, "cyclic")
    assert axis == Binning(10, 0.0, 5.0, 2.0, "cyclic")
    assert (axis.width, axis.code) == (0.5, 2)
    assert [type(value) for value in axis] == [int, float, float, float, str, str, str]


def test_the_defaults_are_the_papers_with_mirrored_ends() -> None:
    assert Binning() == (256, -1.0, 1.0, 0.4, "reflect", "sigmoid", "all")


def test_the_codes_of_the_native_schemas() -> None:
    assert [Binning(boundary=b).code for b in ("open", "reflect", "cyclic")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "value", "exception", "message"),
    [
        ("bins", 8.0, TypeError, "bins must be an int, got 8.0"),
        ("bins", "8", TypeError, "bins must be an int, got '8'"),
        ("bins", True, TypeError, "bins must be an int, got True"),
        ("bins", None, TypeError, "bins must be an int, got None"),
        ("bins", 0, ValueError, "bins must be at least 1, got 0"),
        ("bins", -3, ValueError, "bins must be at least 1, got -3"),
        ("range", 1.0, TypeError, "range must be a pair of numbers (lo, hi), got 1.0"),
        ("range", "01", TypeError, "range must be a pair of numbers (lo, hi), got '01'"),
        ("range", (0.0,), TypeError, "range must be a pair of numbers (lo, hi), got (0.0,)"),
        ("range", (0, 1, 2), TypeError, "range must be a pair of numbers (lo, hi), got (0, 1, 2)"),
        ("range", (0, None), TypeError, "range must be a pair of numbers (lo, hi), got (0, None)"),
        ("range", (False, True), TypeError, "range must be a pair of numbers (lo, hi), got (False, True)"),
        ("range", (1.0, 1.0), ValueError, "range must be finite with lo < hi, got (1.0, 1.0)"),
        ("range", (1.0, -1.0), ValueError, "range must be finite with lo < hi, got (1.0, -1.0)"),
        ("range", (0.0, math.inf), ValueError, "range must be finite with lo < hi, got (0.0, inf)"),
        ("range", (math.nan, 1.0), ValueError, "range must be finite with lo < hi, got (nan, 1.0)"),
        (
            "range",
            (-1e308, 1e308),
            ValueError,
            "range must give bins 1e-30 to 1e+30 wide, got (-1e+308, 1e+308)",
        ),
        ("range", (0.0, 5e-324), ValueError, "range must give bins 1e-30 to 1e+30 wide, got (0.0, 5e-324)"),
        ("bandwidth", "wide", TypeError, "bandwidth must be a number of bin widths, got 'wide'"),
        ("bandwidth", True, TypeError, "bandwidth must be a number of bin widths, got True"),
        ("bandwidth", 0, ValueError, "bandwidth must be between 0.001 and 1000.0 bin widths, got 0"),
        ("bandwidth", -0.4, ValueError, "bandwidth must be between 0.001 and 1000.0 bin widths, got -0.4"),
        ("bandwidth", 1001, ValueError, "bandwidth must be between 0.001 and 1000.0 bin widths, got 1001"),
        ("bandwidth", math.nan, ValueError, "bandwidth must be between 0.001 and 1000.0 bin widths, got nan"),
        ("bandwidth", math.inf, ValueError, "bandwidth must be between 0.001 and 1000.0 bin widths, got inf"),
        ("boundary", 1, TypeError, "boundary must be a string, one of 'open', 'reflect', 'cyclic', got 1"),
        ("boundary", "wrap", ValueError, "boundary must be one of 'open', 'reflect', 'cyclic', got 'wrap'"),
    ],
)
def test_a_bad_binning(name: str, value: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        binning(**{**GOOD, name: value})
    with pytest.raises(exception, match=re.escape(message)):
        binning_pair(**{**GOOD, name: value})


def test_each_kernel_has_a_bandwidth_of_its_own() -> None:
    assert KERNELS == tuple(BANDWIDTHS) == ("sigmoid", "gaussian", "bspline3", "triangular")
    found = [binning(8, (0, 1), None, "open", kernel) for kernel in KERNELS]
    assert [axis.bandwidth for axis in found] == [0.4, 0.5, 1.0, 1.0]
    assert [axis.kernel for axis in found] == list(KERNELS)
    assert binning(8, (0, 1), None, "open") == found[0]
    pair = binning_pair(8, (0, 1), (None, 2), "open", ("gaussian", "bspline3"))
    assert pair == (found[1], found[2]._replace(bandwidth=2.0))


@pytest.mark.parametrize(
    ("kernel", "least"), [("sigmoid", 0.001), ("gaussian", 0.001), ("bspline3", 0.5), ("triangular", 1.0)]
)
def test_the_least_bandwidth_of_each_kernel(kernel: str, least: float) -> None:
    assert binning(8, (0, 1), least, "open", kernel).bandwidth == least
    assert binning(8, (0, 1), 1000, "open", kernel).bandwidth == 1000
    below, above = math.nextafter(least, 0), math.nextafter(1000, math.inf)
    for value in (below, above):
        message = f"between {least} and 1000.0 bin widths, got {value!r} for the kernel {kernel!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            binning(8, (0, 1), value, "open", kernel)


@pytest.mark.parametrize(
    ("kernel", "exception", "message"),
    [
        (
            "box",
            ValueError,
            "kernel must be one of 'sigmoid', 'gaussian', 'bspline3', 'triangular', got 'box'",
        ),
        (None, TypeError, "kernel must be a string, one of 'sigmoid', 'gaussian', 'bspline3', 'triangular'"),
    ],
)
def test_a_bad_kernel(kernel: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        binning(**GOOD, kernel=kernel)
    with pytest.raises(exception, match=re.escape(message)):
        binning_pair(**GOOD, kernel=("sigmoid", kernel))


def test_the_ranges_of_samples() -> None:
    x, y = torch.tensor([[0.0, 1], [2, 3]]), torch.tensor([[-1.0, 1], [-5, 4]], dtype=torch.float64)
    assert sample_ranges((0, 1), 2) is None
    assert sample_ranges(((0, 1), (0, 1)), 2, pair=True) is None
    assert sample_ranges(x, 2) == sample_ranges(x, 2, pair=True) == [[0, 1], [2, 3]]
    assert sample_ranges((x, y), 2, pair=True) == [([0, 1], [-1, 1]), ([2, 3], [-5, 4])]
    assert sample_ranges(((0, 9), y), 2, pair=True) == [((0, 9), [-1, 1]), ((0, 9), [-5, 4])]
    assert sample_ranges((x, y), 2) is None  # for binning to refuse
    assert sample_ranges(x[:0], 0) == []


@pytest.mark.parametrize(
    "edge", [{"bins": 1}, {"bandwidth": 1e-3}, {"bandwidth": 1000}, {"range": (-1e-20, 0)}]
)
def test_the_extremes_that_are_allowed(edge: dict[str, Any]) -> None:
    assert binning(**{**GOOD, **edge}) == Binning(**_fields({**GOOD, **edge}))


def _fields(keywords: dict[str, Any]) -> dict[str, Any]:
    lo, hi = keywords.pop("range")
    return {**keywords, "lo": lo, "hi": hi}


def test_pairs_set_x_and_y_apart() -> None:
    x, y = binning_pair((4, 6), ((0, 1), (-2, 2)), (0.4, 3), ("open", "cyclic"))
    assert x == Binning(4, 0, 1, 0.4, "open")
    assert y == Binning(6, -2, 2, 3, "cyclic")
    both = binning_pair(4, (0, 1), 0.4, "open")
    assert both == (x, x)
    mixed = binning_pair((4, 6), (0, 1), 0.4, "open")
    assert mixed == (x, x._replace(bins=6))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bins", (4, 0), "bins must be at least 1, got 0"),
        ("bins", (4, 6.0), "bins must be an int, got 6.0"),
        ("bins", (4, 5, 6), "bins must be an int, got (4, 5, 6)"),
        ("range", ((0, 1), (1, 0)), "range must be finite with lo < hi, got (1, 0)"),
        ("bandwidth", (0.4, -1), "bandwidth must be between"),
        ("boundary", ("open", "wrap"), "boundary must be one of"),
    ],
)
def test_a_bad_half_of_a_pair(name: str, value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        binning_pair(**{**GOOD, name: value})
