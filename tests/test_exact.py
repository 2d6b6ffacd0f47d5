"""Exact sums: the same bits for any cut and order of the pixels, from both paths and by any keyword."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import histloss
from asserters import assert_gradient, assert_value
from devices import on_cpu
from histloss import reference
from histloss.binning import BOUNDARIES, KERNELS, Binning, binning
from histloss.checks import DTYPES, accumulation_dtype
from histloss.sums import Sums, add, joint_sums, soft_sums, to_histogram

F64 = torch.float64
COARSE, FINE = 2.0**-30, 2.0**-62
PIXELS = 1501
pytestmark = pytest.mark.usefixtures("device")


def axes(kernel: str, boundary: str) -> tuple[Binning, Binning]:
    return binning(20, (-1, 1), None, boundary, kernel), binning(11, (-1.1, 1.2), None, boundary, kernel)


def planes(dtype: torch.dtype, weighted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two images and a weight, with pixels outside and some that are not finite."""
    x, y = (torch.randn(2, PIXELS).mul(0.6).to(dtype) for _ in range(2))
    x[0, 7], x[1, 3], y[0, 11] = math.nan, math.inf, -math.inf
    weight = torch.rand(2, PIXELS, dtype=accumulation_dtype(dtype)) * 3 if weighted else None
    return x, y, weight


def both_sums(x: Tensor, y: Tensor, weight: Tensor | None, a: Binning, b: Binning) -> list[Sums]:
    return [soft_sums(x, weight, a), joint_sums(x, y, weight, a, b)]


def real(integers: Tensor) -> Tensor:
    value = integers[0].double() * COARSE
    return value + integers[1].double() * FINE if len(integers) == 2 else value


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_of_parts_in_any_order(
    path: str, kernel: str, boundary: str, dtype: torch.dtype, weighted: bool
) -> None:
    """The sums of 1501 pixels, of them shuffled, and of seven parts added up, are the same integers."""
    a, b = axes(kernel, boundary)
    x, y, weight = planes(dtype, weighted)
    whole = both_sums(x, y, weight, a, b)
    order = torch.randperm(PIXELS)
    parts = [order, *order.split([1, 2, 5, 64, 127, 600, PIXELS - 799])]
    shuffled, *some = [
        both_sums(x[:, i], y[:, i], None if weight is None else weight[:, i], a, b) for i in parts
    ]
    for n, expected in enumerate(whole):
        added = some[0][n]
        for other in some[1:]:
            added = add(added, other[n])
        for found in (shuffled[n], added):
            assert torch.equal(found.counts, expected.counts)
            assert torch.equal(found.totals, expected.totals)

    levels = 2 if weighted or dtype == F64 else 1
    w = torch.ones(2, PIXELS, dtype=F64) if weight is None else weight.double()
    images = x.double(), y.double()
    oracles = reference.plane_histogram(images[0], w, a), reference.plane_joint(*images, w, a, b)
    for sums, oracle in zip(whole, oracles, strict=True):
        assert sums.counts.dtype == sums.totals.dtype == torch.int64
        assert (len(sums.counts), sums.totals.shape) == (levels, (levels, 2))
        assert_value(real(sums.counts).to(accumulation_dtype(dtype)), oracle)
        assert_value(real(sums.totals), w.sum(-1))
        histogram = to_histogram(sums, accumulation_dtype(dtype))
        assert_value(histogram, oracle / w.sum(-1).reshape(-1, *[1] * (oracle.ndim - 1)))


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_pixels_gradient_is_its_own(path: str, kernel: str, dtype: torch.dtype, weighted: bool) -> None:
    """With the same gradient of the sums, however the pixels are cut and whatever else there is."""
    from histloss.sums import joint_gradient, soft_gradient

    a, b = axes(kernel, "reflect")
    x, y, weight = planes(dtype, weighted)
    g = torch.randn(2, 20, dtype=accumulation_dtype(dtype))
    gj = torch.randn(2, 20, 11, dtype=accumulation_dtype(dtype))

    def gradients(i: Tensor) -> tuple[Tensor, ...]:
        w = None if weight is None else weight[:, i]
        return (
            *soft_gradient(g, x[:, i], w, a, True, weighted),
            *joint_gradient(gj, x[:, i], y[:, i], w, a, b, True, True, weighted),
        )

    whole = gradients(torch.arange(PIXELS))
    order = torch.randperm(PIXELS)
    parts = [gradients(i) for i in order.split([1, 2, 5, 64, 127, 600, PIXELS - 799])]
    for n, expected in enumerate(whole):
        if n in (1, 4) and not weighted:
            assert expected.numel() == 0
            continue
        assert torch.equal(torch.cat([part[n] for part in parts], -1), expected[:, order])

    exact_inputs = [t.double().requires_grad_() for t in (x, y)]
    w = (torch.ones(2, PIXELS, dtype=F64) if weight is None else weight.double()).requires_grad_()
    soft = (reference.plane_histogram(exact_inputs[0], w, a) * g.double()).sum()
    joint = (reference.plane_joint(*exact_inputs, w, a, b) * gj.double()).sum()
    wanted = (
        *torch.autograd.grad(soft, (exact_inputs[0], w)),
        *torch.autograd.grad(joint, (*exact_inputs, w)),
    )
    for found, expected in zip(whole, wanted, strict=True):
        if found.numel():
            assert_gradient(found, expected)


# ---- the public keyword ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_exact_is_another_rounding_of_the_same(path: str, boundary: str, dtype: torch.dtype) -> None:
    x, y = ((torch.rand(2, 2, 9, 7) * 2.2 - 1.1).to(dtype).requires_grad_() for _ in range(2))
    weight = torch.rand(2, 1, 9, 7, dtype=accumulation_dtype(dtype)).requires_grad_()
    options: dict[str, Any] = {"bins": 16, "boundary": boundary}
    inputs = [t.detach().double().requires_grad_() for t in (x, y, weight)]
    for found, expected in (
        (
            histloss.soft_histogram(x, **options, weight=weight, exact=True),
            reference.soft_histogram(inputs[0], **options, weight=inputs[2]),
        ),
        (
            histloss.soft_histogram(x, **options, exact=True),
            reference.soft_histogram(inputs[0], **options),
        ),
        (
            histloss.joint_histogram(x, y, **options, weight=weight, exact=True),
            reference.joint_histogram(inputs[0], inputs[1], **options, weight=inputs[2]),
        ),
        (
            histloss.joint_histogram(x, y, **options, exact=True),
            reference.joint_histogram(inputs[0], inputs[1], **options),
        ),
    ):
        assert found.dtype == accumulation_dtype(dtype)
        assert_value(found, expected)
        upstream = torch.randn(found.shape, dtype=found.dtype) * 3
        gradients = torch.autograd.grad(found, (x, y, weight), upstream, allow_unused=True)
        wanted = torch.autograd.grad(expected, inputs, upstream.double(), allow_unused=True)
        for gradient, other in zip(gradients, wanted, strict=True):
            assert (gradient is None) == (other is None)
            if gradient is not None and other is not None:
                assert_gradient(gradient, other)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_order_of_pixels_changes_no_bit(path: str, kernel: str) -> None:
    x, y, weight = torch.randn(1, 2, 3000), torch.randn(1, 2, 3000), torch.rand(3000)
    order = torch.randperm(3000)
    options: dict[str, Any] = {"bins": 16, "kernel": kernel, "exact": True}
    for w, shuffled in ((None, None), (weight, weight[order])):
        h = histloss.soft_histogram(x, **options, weight=w)
        assert torch.equal(histloss.soft_histogram(x[..., order], **options, weight=shuffled), h)
        j = histloss.joint_histogram(x, y, **options, weight=w)
        other = histloss.joint_histogram(x[..., order], y[..., order], **options, weight=shuffled)
        assert torch.equal(other, j)


@on_cpu
def test_without_it_the_order_may_change_bits(path: str) -> None:
    """Or the test above says nothing."""
    x, weight = torch.randn(1, 1, 3000), torch.rand(3000)
    orders = [torch.randperm(3000) for _ in range(9)]
    first, *others = [histloss.soft_histogram(x[..., i], bins=16, weight=weight[i]) for i in orders]
    assert not all(torch.equal(first, other) for other in others)


def test_a_mask_is_the_masked_pixels_alone(path: str) -> None:
    x, y = torch.randn(2, 1, 1, 400)
    mask = torch.rand(400) < 0.3
    options: dict[str, Any] = {"bins": 8, "exact": True}
    h = histloss.soft_histogram(x, **options, weight=mask)
    ones = torch.ones(int(mask.sum()))
    assert torch.equal(h, histloss.soft_histogram(x[..., mask], **options, weight=ones))
    j = histloss.joint_histogram(x, y, **options, weight=mask)
    alone = histloss.joint_histogram(x[..., mask], y[..., mask], **options, weight=ones)
    assert torch.equal(j, alone)


def test_weights_of_every_size(path: str) -> None:
    """From far below the coarse grid to the largest allowed."""
    x = torch.tensor([[[-0.75, -0.25, 0.25, 0.75]]], dtype=F64)
    for scale in (1e-12, 1.0, 2.0**18):
        weight = torch.tensor([1.0, 2, 3, 4], dtype=F64) * scale
        h = histloss.soft_histogram(x, bins=4, bandwidth=0.001, weight=weight, exact=True)
        expected = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]], dtype=F64)
        torch.testing.assert_close(h, expected, rtol=1e-6 if scale < 1 else 1e-15, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_pixels_no_planes(path: str, kernel: str) -> None:
    options: dict[str, Any] = {"bins": 4, "kernel": kernel, "exact": True}
    for shape in ((2, 3, 0), (0, 3, 5), (2, 0, 5)):
        x = torch.zeros(shape, requires_grad=True)
        h = histloss.soft_histogram(x, **options)
        j = histloss.joint_histogram(x, x, **options)
        assert torch.equal(h, torch.zeros(*shape[:2], 4))
        assert torch.equal(j, torch.zeros(*shape[:2], 4, 4))
        (gradient,) = torch.autograd.grad(h.sum() + j.sum(), x)
        assert gradient.shape == x.shape


# ---- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["soft", "joint"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"exact": 1}, TypeError, "exact must be True or False, got 1"),
        ({"exact": None}, TypeError, "exact must be True or False, got None"),
        ({"empty": "nan"}, ValueError, "empty must be one of 'error', 'zero', got 'nan'"),
        ({"empty": None}, TypeError, "empty must be a string, one of 'error', 'zero', got None"),
        ({"kernel": "box"}, ValueError, "kernel must be one of 'sigmoid', 'gaussian'"),
        ({"kernel": 3}, TypeError, "kernel must be a string, one of 'sigmoid', 'gaussian'"),
    ],
)
def test_bad_keywords(function: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        histogram(function)(torch.zeros(1, 1, 4), **options)


def histogram(function: str) -> Callable[..., Tensor]:
    def of_itself(x: Tensor, **options: Any) -> Tensor:
        return histloss.joint_histogram(x, x, **options)

    return histloss.soft_histogram if function == "soft" else of_itself


@on_cpu
@pytest.mark.parametrize("options", [{"exact": True}, {"kernel": "triangular"}], ids=str)
@pytest.mark.parametrize("function", ["soft", "joint"])
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([1.0, -1, 1, 1]), "weight must be non-negative and not NaN, its smallest value is -1"),
        (torch.tensor([1.0, math.nan, 1, 1]), "weight must be non-negative and not NaN"),
        (torch.tensor([1.0, math.inf, 1, 1]), "weight must have a positive, finite sum"),
        (torch.zeros(4), "weight must have a positive, finite sum for every image and channel"),
        (torch.tensor([2.0**20 + 1, 1, 1, 1]), r"weight must be at most 2\*\*20 .* value is 1.04858e\+06"),
    ],
)  # fmt: skip
def test_bad_weights(path: str, weight: Tensor, message: str, function: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        histogram(function)(torch.zeros(1, 1, 4), bins=4, weight=weight, **options)


@on_cpu
def test_a_weight_whose_sum_does_not_fit(path: str) -> None:
    x = torch.zeros(1, 1, 2**13)
    with pytest.raises(
        ValueError, match=r"weight must sum to less than 2\*\*33 for exact sums, got 8.58993e\+09"
    ):
        histloss.soft_histogram(x, bins=2, weight=torch.tensor(2.0**20), exact=True)
    most = histloss.soft_histogram(x[..., :-1], bins=2, weight=torch.tensor(2.0**20), exact=True)
    assert_value(most, torch.full((1, 1, 2), 0.5))
