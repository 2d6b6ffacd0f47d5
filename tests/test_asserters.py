"""The asserters must notice what they exist for: every seeded fault fails, and rounding alone passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from asserters import agreement, assert_agrees, assert_gradient, assert_value
from tolerances import TOLERANCES, Tolerance

DTYPES = list(TOLERANCES)


def gradient_image() -> Tensor:
    """Smooth and signed, as the gradient of an image is."""
    row = torch.linspace(0, 6.0, 64, dtype=torch.float64)
    return row.sin().outer(row.cos()) + 0.01


def histogram() -> Tensor:
    h = torch.linspace(-3, 3, 64, dtype=torch.float64).square().neg().exp() + 0.01
    return h / h.sum()


def one_wrong_bin(t: Tensor) -> Tensor:
    """A little of the mass lands one bin too far."""
    t = t.clone()
    mass = 0.02 * t.abs().max()
    t.view(-1)[t.numel() // 2] -= mass
    t.view(-1)[t.numel() // 2 + 1] += mass
    return t


def one_wrong_sign(t: Tensor) -> Tensor:
    t = t.clone()
    t.view(-1)[t.numel() // 3] *= -1
    return t


def one_nan(t: Tensor) -> Tensor:
    t = t.clone()
    t.view(-1)[0] = torch.nan
    return t


def one_infinity(t: Tensor) -> Tensor:
    t = t.clone()
    t.view(-1)[-1] = torch.inf
    return t


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "one wrong bin": one_wrong_bin,
    "one wrong sign": one_wrong_sign,
    "all signs flipped": torch.neg,
    "scale 1.001": lambda t: t * 1.001,
    "shift by one pixel": lambda t: t.roll(1, -1),
    "zeros": torch.zeros_like,
    "one NaN": one_nan,
    "one infinity": one_infinity,
    "transposed": lambda t: t.mT if t.ndim > 1 else t.flip(0).roll(1),
    "one value missing": lambda t: t[1:],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_fails(fault: str, dtype: torch.dtype) -> None:
    seed = FAULTS[fault]
    if fault == "scale 1.001" and dtype == torch.bfloat16:
        seed = lambda t: t * 1.01  # noqa: E731  (0.1 % is less than bfloat16's rounding)
    for expected, check in ((histogram(), assert_value), (gradient_image(), assert_gradient)):
        with pytest.raises(AssertionError):
            check(seed(expected.to(dtype)), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_passes(dtype: torch.dtype) -> None:
    assert_value(histogram().to(dtype), histogram())
    assert_gradient(gradient_image().to(dtype), gradient_image())


def test_each_measure_alone_can_fail() -> None:
    e = gradient_image()
    loose = Tolerance(1.0, 1.0, 1.0)
    assert_agrees(e * 1.01, e, loose)
    for tight in (
        loose._replace(max_error=1e-3),
        loose._replace(relative_l2=1e-3),
        loose._replace(bias=1e-3),
    ):
        with pytest.raises(AssertionError):
            assert_agrees(e * 1.01, e, tight)
    with pytest.raises(AssertionError):  # the cosine: at right angles, and yet within a loose norm
        assert_agrees(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), Tolerance(2.0, 0.9, 2.0))


def test_the_measures_by_hand() -> None:
    found = agreement(torch.tensor([3.0, -4.4]), torch.tensor([3.0, -4.0]))
    assert found.max_error == pytest.approx(0.1)  # 0.4 of 4
    assert found.relative_l2 == pytest.approx(0.08)  # 0.4 of 5
    assert found.bias == pytest.approx(0.4 * 4 / 25)  # too large, so positive
    assert found.cosine == pytest.approx((9 + 17.6) / (5 * (9 + 19.36) ** 0.5))


def test_the_message_shows_every_measure_and_the_place() -> None:
    with pytest.raises(AssertionError) as failure:
        assert_value(one_wrong_bin(histogram()), histogram())
    for word in ("max_error", "relative_l2", "cosine", "bias", "worst at (3"):
        assert word in str(failure.value)


def test_zeros_expect_exact_zeros() -> None:
    zeros = torch.zeros(5)
    assert_value(zeros, zeros)
    with pytest.raises(AssertionError):
        assert_value(torch.full((5,), 1e-30), zeros)


def test_a_floor_replaces_only_smaller_values() -> None:
    tiny, large = torch.full((5,), 1e-12), torch.ones(5)
    assert_value(tiny * 2, tiny, floor=1e-3)
    with pytest.raises(AssertionError):
        assert_value(tiny + 1e-8, tiny, floor=1e-3)
    with pytest.raises(AssertionError):
        assert_value(large * 1.001, large, floor=1e-3)
