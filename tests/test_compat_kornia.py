"""histloss.compat.kornia against kornia itself: values, gradients, dtypes, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import histloss
from asserters import assert_agrees, assert_gradient, assert_value
from histloss.compat import kornia as compat
from tolerances import Tolerance

peer = pytest.importorskip("kornia.enhance")
pytestmark = pytest.mark.usefixtures("device")

PARITY = Tolerance(1e-5, 1e-5, 1e-5)  # what histloss.compat promises
DTYPES = [torch.float32, torch.float64]


def assert_parity(actual: Tensor, expected: Tensor) -> None:
    """float64 has no excuse: both have the same formula."""
    __tracebackhide__ = True
    assert actual.dtype == expected.dtype
    if expected.dtype == torch.float64:
        assert_value(actual, expected)
    else:
        assert_agrees(actual, expected, PARITY)


def assert_same(function: Callable[..., Tensor], original: Callable[..., Tensor], *inputs: Tensor) -> None:
    """The value, and the gradient of each input for an upstream gradient of all signs."""
    __tracebackhide__ = True
    found, expected = function(*inputs), original(*inputs)
    assert_parity(found, expected)
    upstream = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        assert bool((b != 0).any())
        assert_parity(a, b)


def samples(
    lo: float, hi: float, dtype: torch.dtype, rows: int = 3, count: int = 200
) -> tuple[Tensor, Tensor]:
    """A little beyond the range at both ends; the second goes with the first."""
    x = torch.rand(rows, count, dtype=dtype) * 1.1 - 0.05
    y = 0.6 * x + 0.4 * torch.rand(rows, count, dtype=dtype)
    return tuple((lo + (hi - lo) * v).requires_grad_() for v in (x, y))  # type: ignore[return-value]


GRIDS = [  # lo, hi, bins, sigma
    (0.0, 1.0, 32, 1 / 31),
    (0.0, 255.0, 64, 3.0),
    (-1.0, 1.0, 20, 0.3),
    (5.0, 6.0, 10, 0.04),
    (-3.0, -1.0, 2, 1.0),
]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lo", "hi", "bins", "sigma"), GRIDS)
def test_histogram(lo: float, hi: float, bins: int, sigma: float, dtype: torch.dtype) -> None:
    centres, bandwidth = torch.linspace(lo, hi, bins, dtype=dtype), torch.tensor(sigma, dtype=dtype)
    x, y = samples(lo, hi, dtype)
    assert_same(
        lambda x: compat.histogram(x, centres, bandwidth),
        lambda x: peer.histogram(x, centres, bandwidth),
        x,
    )
    assert_same(
        lambda x, y: compat.histogram2d(x, y, centres, bandwidth),
        lambda x, y: peer.histogram2d(x, y, centres, bandwidth),
        x,
        y,
    )


def test_epsilon_counts_where_kornia_counts_it() -> None:
    centres, bandwidth = torch.linspace(0, 1, 8, dtype=torch.float64), torch.tensor(0.1)
    x, y = samples(0, 1, torch.float64)
    for epsilon in (0.0, 0.5):
        assert_same(
            lambda x, e=epsilon: compat.histogram(x, centres, bandwidth, e),
            lambda x, e=epsilon: peer.histogram(x, centres, bandwidth, epsilon=e),
            x,
        )
        assert_same(
            lambda x, y, e=epsilon: compat.histogram2d(x, y, centres, bandwidth, epsilon=e),
            lambda x, y, e=epsilon: peer.histogram2d(x, y, centres, bandwidth, e),
            x,
            y,
        )


def test_one_bin_holds_everything() -> None:
    x, y = samples(0, 1, torch.float64)
    bins, bandwidth = torch.tensor([0.5], dtype=torch.float64), torch.tensor(0.3)
    assert_value(compat.histogram(x, bins, bandwidth), peer.histogram(x, bins, bandwidth))
    assert_value(compat.histogram2d(x, y, bins, bandwidth), peer.histogram2d(x, y, bins, bandwidth))


@pytest.mark.parametrize(
    ("of_x", "of_bins"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.uint8, torch.float32),
        (torch.float32, torch.int64),
    ],
    ids=str,
)
def test_the_dtype_is_kornias(of_x: torch.dtype, of_bins: torch.dtype) -> None:
    x = torch.randint(0, 16, (2, 60)).to(of_x)
    bins, bandwidth = torch.arange(0, 16).to(of_bins), torch.tensor(0.8)
    for found, expected in (
        (compat.histogram(x, bins, bandwidth), peer.histogram(x, bins, bandwidth)),
        (compat.histogram2d(x, x, bins, bandwidth), peer.histogram2d(x, x, bins, bandwidth)),
    ):
        assert found.dtype == expected.dtype
        if found.dtype.itemsize == 2:
            assert_value(found, expected)
        else:
            assert_agrees(found, expected, PARITY)


IMAGE_ARGUMENTS: list[dict[str, Any]] = [
    {"max": 1.0, "n_bins": 32},
    {"min": -0.5, "max": 2.0, "n_bins": 10},
    {"max": 1.0, "n_bins": 8, "bandwidth": 0.3},
    {"max": 1.0, "n_bins": 8, "bandwidth": -1.0},
    {"centers": (0.0, 1.0, 20), "bandwidth": 0.1},
    {"centers": (0.0, 1.0, 20), "bandwidth": 1 / 19},
    {"centers": (0.7, 1.0, 10), "bandwidth": 0.3 / 9},  # which is below the distance of the rounded centres
    {"centers": (0.0, 1.0, 12), "bandwidth": 0.12345678},
    {"centers": (0.0, 0.5, 9), "max": 1.0, "n_bins": 4},
]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", compat.IMAGE_KERNELS)
@pytest.mark.parametrize("arguments", IMAGE_ARGUMENTS, ids=str)
def test_image_histogram2d(arguments: dict[str, Any], kernel: str, dtype: torch.dtype) -> None:
    arguments = arguments | {"kernel": kernel}
    if "centers" in arguments:
        lo, hi, bins = arguments["centers"]
        arguments["centers"] = torch.linspace(lo, hi, bins, dtype=dtype)
    image = (torch.rand(2, 3, 9, 11, dtype=dtype) * 1.2 - 0.1).requires_grad_()
    for part in (0, 1):
        assert_same(
            lambda x, i=part: compat.image_histogram2d(x, return_pdf=True, **arguments)[i],
            lambda x, i=part: peer.image_histogram2d(x, return_pdf=True, **arguments)[i],
            image,
        )


@pytest.mark.parametrize("shape", [(7, 5), (3, 7, 5), (2, 3, 7, 5)])
def test_image_shapes(shape: tuple[int, ...]) -> None:
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    for return_pdf in (False, True):
        for found, expected in zip(
            compat.image_histogram2d(image, return_pdf=return_pdf),
            peer.image_histogram2d(image, return_pdf=return_pdf),
            strict=True,
        ):
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
            assert_agrees(found, expected, PARITY)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_the_ends_of_the_range_are_kornias_mistake(level: float) -> None:
    """A pixel at either end counts for half. histloss.soft_histogram keeps it."""
    image = torch.full((1, 1, 4, 4), level)
    counts, _ = compat.image_histogram2d(image, 0.0, 1.0, 16)
    assert counts.sum().item() == peer.image_histogram2d(image, 0.0, 1.0, 16)[0].sum().item() == 8
    kept = histloss.soft_histogram(image, bins=16, range=(0, 1), kernel="triangular")
    assert_value(kept.sum(), torch.ones(()))


def test_gradients_again() -> None:
    """Second derivatives, and those of torch.func."""
    x = torch.rand(2, 30, dtype=torch.float64, requires_grad=True)
    bins, bandwidth = torch.linspace(0, 1, 6, dtype=torch.float64), torch.tensor(0.2)
    assert torch.autograd.gradgradcheck(lambda x: compat.histogram(x, bins, bandwidth), (x,))
    square = [
        torch.func.grad(lambda x, f=function: f(x, bins, bandwidth).square().sum())(x.detach())
        for function in (compat.histogram, peer.histogram)
    ]
    assert_gradient(*square)


def test_far_and_broken_pixels_have_no_mass() -> None:
    bins, bandwidth = torch.linspace(0, 1, 6), torch.tensor(0.2)
    x = torch.tensor([[0.3, torch.nan, torch.inf, -1e30, 0.7]], requires_grad=True)
    h = compat.histogram(x, bins, bandwidth)
    assert_value(h, compat.histogram(x[:, [0, 4]], bins, bandwidth))
    (grad,) = torch.autograd.grad(h[0, 0], x)
    assert (grad != 0).tolist() == [[True, False, False, False, True]]


def test_bins_of_the_cpu_serve_any_device(device: torch.device) -> None:
    x, y = samples(0, 1, torch.float32)
    bins, bandwidth = torch.linspace(0, 1, 8, device="cpu"), torch.tensor(0.1, device="cpu")
    found = compat.histogram2d(x, y, bins, bandwidth)
    assert found.device == x.device
    assert_agrees(found, peer.histogram2d(x, y, bins.to(device), bandwidth.to(device)), PARITY)


X, BINS, SIGMA = torch.rand(2, 5), torch.linspace(0, 1, 5), torch.tensor(0.1)
UNEVEN = torch.tensor([0.0, 0.25, 0.6, 0.75, 1.0])
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: compat.histogram([0.5], BINS, SIGMA), TypeError, r"x must be a torch.Tensor .*got list"),
    (lambda: compat.histogram(X[0], BINS, SIGMA), ValueError, r"x must have shape \(B, D\), got \(5,\)"),
    (lambda: compat.histogram(X * 1j, BINS, SIGMA), TypeError, "x must be float16.*complex64"),
    (lambda: compat.histogram(X, 5, SIGMA), TypeError, "bins must be a torch.Tensor.*got int"),
    (lambda: compat.histogram(X, BINS[None], SIGMA), ValueError, r"bins must have shape \(K,\).*\(1, 5\)"),
    (lambda: compat.histogram(X, BINS[:0], SIGMA), ValueError, "bins must hold at least one value"),
    (
        lambda: compat.histogram(X, UNEVEN, SIGMA),
        ValueError,
        r"bins\[2\] = 0.6 where an even grid .*0.5;.*kornia",
    ),
    (
        lambda: compat.histogram(X, BINS.flip(0), SIGMA),
        ValueError,
        "bins must ascend, got 1 for.*0 for the last",
    ),
    (lambda: compat.histogram(X, BINS * 0, SIGMA), ValueError, "bins must ascend"),
    (
        lambda: compat.histogram(X, BINS / BINS, SIGMA),
        ValueError,
        r"bins must be finite, got bins\[0\] = nan",
    ),
    (lambda: compat.histogram(X, BINS * 1e-36, SIGMA), ValueError, "bins must be 1e-30 to 1e.30 apart"),
    (
        lambda: compat.histogram(X, BINS.pow(1.001), SIGMA),
        ValueError,
        "evenly spaced",
    ),
    (
        lambda: compat.histogram(X, BINS.clone().requires_grad_(), SIGMA),
        ValueError,
        "bins must not require a gradient: kornia's function gives one.*detach",
    ),
    (
        lambda: compat.histogram(X, BINS, SIGMA.clone().requires_grad_()),
        ValueError,
        "bandwidth must not require a gradient",
    ),
    (lambda: compat.histogram(X, BINS, 0.1), TypeError, "bandwidth must be a torch.Tensor.*got float"),
    (
        lambda: compat.histogram(X, BINS, SIGMA[None]),
        ValueError,
        r"bandwidth must have shape \(\), got \(1,\)",
    ),
    (lambda: compat.histogram(X, BINS, -SIGMA), ValueError, "bandwidth must be positive, got -0.1"),
    (lambda: compat.histogram(X, BINS, SIGMA / 0), ValueError, "bandwidth must be finite, got inf"),
    (
        lambda: compat.histogram(X, BINS, SIGMA * 1e-3),
        ValueError,
        "bandwidth must be from 0.001 to 1000 times the distance of the bins, which is 0.25.*got 0.0001",
    ),
    (lambda: compat.histogram(X, BINS, SIGMA * 1e4), ValueError, "bandwidth must be from.*got 1000"),
    (lambda: compat.histogram(X, BINS, SIGMA, -1.0), ValueError, "epsilon must not be negative"),
    (lambda: compat.histogram(X.long(), BINS.long(), SIGMA), TypeError, "bins must be of floating dtype"),
    (
        lambda: compat.histogram2d(X, X[:1], BINS, SIGMA),
        ValueError,
        r"x2 must have the shape of x1, \(2, 5\)",
    ),
    (lambda: compat.image_histogram2d(X[0]), ValueError, r"image must have shape \(H, W\), \(C, H, W\)"),
    (
        lambda: compat.image_histogram2d(X, kernel="uniform"),
        ValueError,
        "kernel must be one of 'triangular', 'gaussian', got 'uniform'",
    ),
    (lambda: compat.image_histogram2d(X, kernel="epanechnikov"), ValueError, "kernel must be one of"),
    (lambda: compat.image_histogram2d(X, 1.0, 0.0), ValueError, "min must be below max, got 1.0 and 0.0"),
    (lambda: compat.image_histogram2d(X, n_bins=0), ValueError, "n_bins must be at least 1, got 0"),
    (lambda: compat.image_histogram2d(X, bandwidth=0.0), ValueError, "bandwidth must be positive"),
    (lambda: compat.image_histogram2d(X, return_pdf=1), TypeError, "return_pdf must be True or False"),
    (
        lambda: compat.image_histogram2d(X, centers=BINS, bandwidth=0.2),
        ValueError,
        "bandwidth must be from 1 to 1000 times the distance of the centers, which is 0.25, for",
    ),
    (lambda: compat.image_histogram2d(X, centers=[0.5]), TypeError, "centers must be a torch.Tensor"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_named(case: int) -> None:
    call, kind, message = BAD[case]
    with torch.device("cpu"), pytest.raises(kind, match=message):
        call()


def test_no_peer_is_imported() -> None:
    """Nor is histloss.compat by histloss."""
    code = (
        "import sys, histloss; assert 'histloss.compat' not in sys.modules; "
        "import histloss.compat; from histloss.compat import huenet, kornia, monai; "
        "assert kornia.histogram and monai.GlobalMutualInformationLoss and huenet.HistogramLayers; "
        "assert not {'kornia', 'monai', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
