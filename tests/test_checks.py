"""Every argument check: the right exception, naming the argument, what it was and what it must be."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from histloss import checks


@pytest.mark.parametrize(
    ("image", "exception", "message"),
    [
        ([[1.0]], TypeError, "x must be a torch.Tensor of shape (B, C, *spatial), got list"),
        (
            torch.zeros(1, 1, 4, dtype=torch.uint8),
            TypeError,
            "x must be float16, bfloat16, float32 or float64",
        ),
        (torch.zeros(1, 1, 4, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(1, 1, 4, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (torch.zeros(4, 4), ValueError, "x must have shape (B, C, *spatial), got (4, 4)"),
        (torch.tensor(1.0), ValueError, "x must have shape (B, C, *spatial), got ()"),
    ],
)
def test_a_bad_image(image: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        checks.check_image("x", image)


@pytest.mark.parametrize(
    ("second", "exception", "message"),
    [
        (None, TypeError, "y must be a torch.Tensor"),
        (torch.zeros(2, 3, 5), ValueError, "y must have the shape of x, (2, 3, 4), got (2, 3, 5)"),
        (torch.zeros(1, 3, 4), ValueError, "y must have the shape of x, (2, 3, 4), got (1, 3, 4)"),
        (torch.zeros(2, 3, 4, device="meta"), ValueError, "y must be on cpu, got meta"),
    ],
)
def test_a_bad_second_image(second: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        checks.check_image_pair(torch.zeros(2, 3, 4), second)


@pytest.mark.parametrize(
    ("weight", "exception", "message"),
    [
        (1.0, TypeError, "weight must be a torch.Tensor, got float"),
        (torch.ones(4, dtype=torch.int64), TypeError, "weight must be float16, bfloat16, float32 or float64"),
        (torch.ones(5), ValueError, "weight must broadcast to the shape of the image, (2, 3, 4), got (5,)"),
        (torch.ones(7, 2, 3, 4), ValueError, "weight must broadcast to the shape of the image"),
        (torch.ones(4, device="meta"), ValueError, "weight must be on cpu, got meta"),
    ],
)
def test_a_bad_weight(weight: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        checks.check_weight(weight, torch.zeros(2, 3, 4))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (3, 4), (1, 3, 4), (2, 1, 1), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [*checks.DTYPES, torch.bool], ids=str)
def test_a_good_weight(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    checks.check_weight(torch.ones(shape, dtype=dtype), torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, -0.5], "weight must be non-negative and not NaN, its smallest value is -0.5"),
        ([1.0, math.nan], "weight must be non-negative and not NaN, its smallest value is nan"),
        ([0.0, 0.0], "weight must have a positive, finite sum for every image and channel, got 0.0"),
        (
            [1.0, math.inf],
            "weight must have a positive, finite sum for every image and channel, got inf",
        ),
    ],
)
def test_bad_weight_values(values: list[float], message: str) -> None:
    weight = torch.tensor(values)
    with pytest.raises(ValueError, match=re.escape(message)):
        checks.check_weight_values(weight, weight.sum())


def test_weights_that_may_be_zero() -> None:
    checks.check_weight_values(torch.zeros(2), torch.tensor([0.0, 1.0]), "zero")
    for total in (math.inf, math.nan):
        with pytest.raises(ValueError, match="weight must have a finite sum for every image and channel"):
            checks.check_weight_values(torch.ones(2), torch.tensor([0.0, total]), "zero")
    with pytest.raises(ValueError, match=r"weight must be non-negative and not NaN, .* is -1\.0"):
        checks.check_weight_values(-torch.ones(2), torch.zeros(()), "zero")


def test_weights_of_exact_sums() -> None:
    most = torch.full((2,), 2.0**20)
    checks.check_exact_weight(most, most.sum(), "error", alone=True)
    with pytest.raises(
        ValueError, match=re.escape("weight must be at most 2**20 for exact sums, its largest")
    ):
        checks.check_exact_weight(2 * most, most.sum(), "error", alone=True)
    with pytest.raises(ValueError, match=re.escape("weight must sum to less than 2**33 for exact sums, got")):
        checks.check_exact_weight(most, torch.tensor(2.0**33), "error", alone=True)
    nothing = torch.zeros(2)
    with pytest.raises(ValueError, match="weight must have a positive, finite sum"):
        checks.check_exact_weight(nothing, nothing.sum(), "error", alone=True)
    checks.check_exact_weight(nothing, nothing.sum(), "zero", alone=True)
    checks.check_exact_weight(nothing, nothing.sum(), "error", alone=False)  # others may have weights


def test_totals_over_all_processes() -> None:
    for totals in ([[1, 2**30]], [[1, 0], [-5, 1]], [[2**61], [0]]):
        checks.check_totals(torch.tensor(totals))
    for totals in ([[1, 0]], [[0, 1], [-3, 1]], [[1, 0], [0, 0]], [[-1, 1], [2**31, 0]]):
        with pytest.raises(ValueError, match="weight must have a positive sum over all processes for every"):
            checks.check_totals(torch.tensor(totals))


@pytest.mark.parametrize(
    ("h1", "h2", "exception", "message"),
    [
        ([1.0], torch.ones(1), TypeError, "h1 must be a torch.Tensor of shape (..., K), got list"),
        (torch.ones(3), 1.0, TypeError, "h2 must be a torch.Tensor of shape (..., K), got float"),
        (torch.ones(3, dtype=torch.int32), torch.ones(3), TypeError, "h1 must be float16"),
        (torch.tensor(1.0), torch.ones(1), ValueError, "h1 must have shape (..., K) with K >= 1, got ()"),
        (torch.ones(3), torch.ones(2, 0), ValueError, "h2 must have shape (..., K) with K >= 1, got (2, 0)"),
        (torch.ones(3), torch.ones(4), ValueError, "h2 must have as many bins as h1, 3, got 4"),
        (
            torch.ones(2, 3),
            torch.ones(5, 3),
            ValueError,
            "h2 must broadcast with h1 of shape (2, 3), got (5, 3)",
        ),
        (torch.ones(3), torch.ones(3, device="meta"), ValueError, "h2 must be on cpu, got meta"),
    ],
)
def test_bad_histograms(h1: Any, h2: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        checks.check_histograms(h1, h2)


@pytest.mark.parametrize(
    ("joint", "exception", "message"),
    [
        (0.5, TypeError, "joint must be a torch.Tensor of shape (..., Kx, Ky), got float"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "joint must be float16"),
        (torch.ones(4), ValueError, "joint must have shape (..., Kx, Ky) with Kx, Ky >= 1, got (4,)"),
        (torch.ones(4, 0), ValueError, "joint must have shape (..., Kx, Ky) with Kx, Ky >= 1, got (4, 0)"),
    ],
)
def test_a_bad_joint_histogram(joint: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        checks.check_joint(joint)


@pytest.mark.parametrize(
    ("ref_hist", "exception", "message"),
    [
        (None, TypeError, "ref_hist must be a torch.Tensor, got NoneType"),
        (torch.ones(3, 8, dtype=torch.int64), TypeError, "ref_hist must be float16"),
        (
            torch.ones(3, 9),
            ValueError,
            "ref_hist must have shape (B, C, K) = (2, 3, 8) or (C, K) = (3, 8), got (3, 9)",
        ),
        (torch.ones(8), ValueError, "or (C, K) = (3, 8), got (8,)"),
        (torch.ones(4, 3, 8), ValueError, "or (C, K) = (3, 8), got (4, 3, 8)"),
        (torch.ones(1, 8), ValueError, "or (C, K) = (3, 8), got (1, 8)"),
    ],
)
def test_a_bad_reference_histogram(ref_hist: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        checks.check_ref_hist(ref_hist, channels=3, batch=2, bins=8)


@pytest.mark.parametrize(
    ("p", "exception", "message"),
    [
        ("2", TypeError, "p must be a number, got '2'"),
        (True, TypeError, "p must be a number, got True"),
        (0.5, ValueError, "p must be finite and at least 1, got 0.5"),
        (math.inf, ValueError, "p must be finite and at least 1, got inf"),
        (math.nan, ValueError, "p must be finite and at least 1, got nan"),
    ],
)
def test_a_bad_order(p: Any, exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        checks.check_order(p)


def test_the_dtype_of_a_histogram() -> None:
    f16, bf16, f32, f64 = checks.DTYPES
    assert [checks.accumulation_dtype(d) for d in (f16, bf16, f32, f64)] == [f32, f32, f32, f64]
