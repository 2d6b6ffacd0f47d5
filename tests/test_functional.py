"""The public functions on both paths, native and reference: shapes, dtypes, values, bad input."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import histloss
from asserters import assert_gradient, assert_value
from devices import here, on_cpu
from histloss import reference
from histloss.binning import BOUNDARIES
from histloss.checks import DTYPES, accumulation_dtype
from tolerances import TOLERANCES

F64 = torch.float64
pytestmark = pytest.mark.usefixtures("path")

# Bin centres that are exact in float32, so that both paths can be held to its tolerance.
OPTIONS: dict[str, Any] = {"bins": 32, "range": (-1.0, 1.0), "bandwidth": 0.4}


def images(*shape: int, dtype: torch.dtype = torch.float32, count: int = 2) -> tuple[Tensor, ...]:
    """In the range, with some pixels saturated."""
    return tuple((torch.rand(shape) * 2.4 - 1.2).clamp(-1, 1).to(dtype) for _ in range(count))


@pytest.mark.parametrize(
    "name", ["activation_maps", "soft_histogram", "joint_histogram", "emd", "mutual_information"]
)
def test_the_reference_takes_the_same_arguments(name: str) -> None:
    """But those that are about the order of a sum, and not about its value."""
    public, oracle = (dict(inspect.signature(getattr(m, name)).parameters) for m in (histloss, reference))
    for order in ("exact", "process_group"):
        assert (public.pop(order, None) is None) == ("histogram" not in name)
    assert list(public.values()) == list(oracle.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spatial", [(17,), (5, 7), (3, 4, 5), (2, 1, 3, 2)], ids=str)
def test_shapes_and_dtypes(spatial: tuple[int, ...], dtype: torch.dtype) -> None:
    x, y = images(2, 3, *spatial, dtype=dtype)
    out = accumulation_dtype(dtype)
    for result, shape in (
        (histloss.activation_maps(x, bins=5), (2, 3, 5, *spatial)),
        (histloss.soft_histogram(x, bins=5), (2, 3, 5)),
        (histloss.joint_histogram(x, y, bins=(5, 6)), (2, 3, 5, 6)),
        (histloss.emd(torch.ones(2, 3, 5, dtype=dtype), torch.zeros(3, 5, dtype=dtype)), (2, 3)),
        (histloss.mutual_information(torch.ones(2, 3, 5, 6, dtype=dtype)), (2, 3)),
    ):
        assert result.shape == shape
        assert result.dtype == out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_values_and_gradients(boundary: str, dtype: torch.dtype) -> None:
    """Against the reference in float64, with an upstream gradient that is not 1."""
    x, y = images(2, 3, 9, 11, dtype=dtype)
    weight = torch.rand(2, 1, 9, 11, dtype=accumulation_dtype(dtype))
    options = {**OPTIONS, "boundary": boundary}

    def results(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (
            histloss.soft_histogram(x, **options),
            histloss.soft_histogram(x, **options, weight=weight),
            histloss.joint_histogram(x, y, **options),
            histloss.joint_histogram(x, y, **options, weight=weight),
            histloss.activation_maps(x, **options),
        )

    def oracle(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (
            reference.soft_histogram(x, **options),
            reference.soft_histogram(x, **options, weight=weight),
            reference.joint_histogram(x, y, **options),
            reference.joint_histogram(x, y, **options, weight=weight),
            reference.activation_maps(x, **options),
        )

    inputs = [t.clone().requires_grad_() for t in (x, y, weight)]
    exact = [t.double().requires_grad_() for t in (x, y, weight)]
    for found, expected in zip(results(*inputs), oracle(*exact), strict=True):
        assert_value(found, expected)
        upstream = torch.randn(found.shape, dtype=found.dtype) * 3
        gradients = torch.autograd.grad(found, inputs, upstream, allow_unused=True)
        wanted = torch.autograd.grad(expected, exact, upstream.double(), allow_unused=True)
        for gradient, want, of in zip(gradients, wanted, inputs, strict=True):
            assert (gradient is None) == (want is None)
            if gradient is not None and want is not None:
                assert gradient.dtype == of.dtype
                assert_gradient(gradient, want)


def test_x_and_y_apart() -> None:
    x, y = images(1, 2, 40)
    pair: dict[str, Any] = {
        "bins": (8, 16), "range": ((-1, 1), (-2, 2)), "bandwidth": (0.4, 1.0), "boundary": ("open", "cyclic"),
    }  # fmt: skip
    expected = reference.joint_histogram(x.double(), y.double(), **pair)
    assert_value(histloss.joint_histogram(x, y, **pair), expected)
    swapped = {name: value[::-1] for name, value in pair.items()}
    assert_value(histloss.joint_histogram(y, x, **swapped).mT, expected)


@pytest.mark.parametrize(("first", "second", "out"), [
    (torch.float16, torch.float32, torch.float32),
    (torch.float16, torch.bfloat16, torch.float32),
    (torch.float32, torch.float64, torch.float64),
    (torch.float64, torch.float16, torch.float64),
], ids=str)  # fmt: skip
def test_images_of_two_dtypes(first: torch.dtype, second: torch.dtype, out: torch.dtype) -> None:
    x, y = (t.to(d).requires_grad_() for t, d in zip(images(1, 1, 50), (first, second), strict=True))
    joint = histloss.joint_histogram(x, y, **OPTIONS)
    assert joint.dtype == out
    assert_value(joint, reference.joint_histogram(x.double(), y.double(), **OPTIONS))
    grads = torch.autograd.grad(joint.square().sum(), [x, y])
    assert [g.dtype for g in grads] == [first, second]


@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (3, 1, 1), (2, 1, 6, 5), (2, 3, 6, 5), (5,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.bool], ids=str)
def test_a_weight_broadcasts(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, y = images(2, 3, 6, 5)
    weight = ((8 * torch.rand(shape) + 1).round() / 8).to(dtype)  # whose sums are exact in any order
    full = weight.to(torch.float32).expand(2, 3, 6, 5).contiguous()
    assert torch.equal(
        histloss.soft_histogram(x, **OPTIONS, weight=weight),
        histloss.soft_histogram(x, **OPTIONS, weight=full),
    )
    assert torch.equal(
        histloss.joint_histogram(x, y, **OPTIONS, weight=weight),
        histloss.joint_histogram(x, y, **OPTIONS, weight=full),
    )


def test_the_gradient_of_a_broadcast_weight() -> None:
    x, _ = images(2, 3, 6, 5, dtype=F64)
    weight = torch.rand(6, 5, dtype=F64).requires_grad_()
    full = weight.detach().expand(2, 3, 6, 5).clone().requires_grad_()
    upstream = torch.randn(2, 3, 32, dtype=F64)
    (found,) = torch.autograd.grad(histloss.soft_histogram(x, **OPTIONS, weight=weight), [weight], upstream)
    (each,) = torch.autograd.grad(histloss.soft_histogram(x, **OPTIONS, weight=full), [full], upstream)
    assert_gradient(found, each.sum((0, 1)))


def test_a_mask_selects() -> None:
    x, y = images(1, 1, 8, 8)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 1:7] = True
    cut_x, cut_y = x[:, :, 2:5, 1:7], y[:, :, 2:5, 1:7]
    assert_value(
        histloss.soft_histogram(x, **OPTIONS, weight=mask),
        reference.soft_histogram(cut_x.double(), **OPTIONS),
    )
    expected = reference.joint_histogram(cut_x.double(), cut_y.double(), **OPTIONS)
    assert_value(histloss.joint_histogram(x, y, **OPTIONS, weight=mask), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_pixels_that_are_not_finite(boundary: str, dtype: torch.dtype) -> None:
    """No mass, no gradient, and the divisor stays the number of pixels."""
    x, y = images(1, 1, 30, dtype=dtype)
    x[..., [3, 11, 17]] = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
    y[..., [5, 11]] = math.nan
    x, y = x.requires_grad_(), y.requires_grad_()
    good_x, good_y = x.isfinite().flatten(), y.isfinite().flatten()
    both = good_x & good_y
    options = {**OPTIONS, "boundary": boundary}
    h, j = histloss.soft_histogram(x, **options), histloss.joint_histogram(x, y, **options)
    maps = histloss.activation_maps(x, **options)
    assert_value(h, reference.soft_histogram(x[..., good_x].double(), **options) * good_x.sum() / 30)
    expected = reference.joint_histogram(x[..., both].double(), y[..., both].double(), **options)
    assert_value(j, expected * both.sum() / 30)
    assert not maps[..., ~good_x].any()
    grad_x, grad_y = torch.autograd.grad((h**2).sum() + (j**2).sum() + (maps**2).sum(), [x, y])
    assert bool(grad_x.isfinite().all() & grad_y.isfinite().all())
    assert not grad_x[..., ~good_x].any()
    assert not grad_y[..., ~both].any()


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 3, 0, 5)], ids=str)
def test_no_pixels_no_mass(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape).requires_grad_()
    weight = torch.ones(shape)
    for result in (
        histloss.soft_histogram(x, bins=4),
        histloss.soft_histogram(x, bins=4, weight=weight),
        histloss.joint_histogram(x, x.detach(), bins=4),
        histloss.joint_histogram(x, x.detach(), bins=4, weight=weight),
    ):
        assert result.shape[:3] == (*shape[:2], 4)
        assert not result.detach().any()
        (grad,) = torch.autograd.grad(result.sum(), [x])
        assert grad.shape == shape


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(device: torch.device, low: torch.dtype) -> None:
    x, y = images(1, 2, 12, 12)

    def results(autocast: bool) -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        with torch.autocast(device.type, dtype=low, enabled=autocast):
            h, j = histloss.soft_histogram(leaf, **OPTIONS), histloss.joint_histogram(leaf, y, **OPTIONS)
            total = histloss.emd(h, h.detach().flip(-1)).sum() + histloss.mutual_information(j).sum()
        return h, j, total, *torch.autograd.grad(total, [leaf])

    for one, other in zip(results(True), results(False), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", reference.MI_MODES)
def test_mutual_information_is_the_references(mode: str) -> None:
    joint = torch.rand(2, 3, 6, 5).flatten(2).softmax(-1).view(2, 3, 6, 5)
    expected = reference.mutual_information(joint.double(), mode=mode)
    assert_value(
        histloss.mutual_information(joint, mode=mode), expected, floor=1.0
    )  # differences of entropies


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("form", ["squared", "norm"])
@pytest.mark.parametrize("p", [1, 1.5, 2, 4])
def test_emd_is_the_references(p: float, form: str, cyclic: bool) -> None:
    h1, h2 = torch.rand(2, 2, 3, 20).softmax(-1)
    h2 = h2[:1]  # leading dimensions broadcast
    expected = reference.emd(h1.double(), h2.double(), p=p, form=form, cyclic=cyclic)
    found = histloss.emd(h1, h2, p=p, form=form, cyclic=cyclic)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)  # differences of sums near 1
    assert found.shape == (2, 3)


# ---- bad input: every function checks, on either path ---------------------------------------------

X = torch.zeros(2, 3, 4, 4)
H = torch.ones(2, 3, 4) / 4
J = torch.ones(2, 3, 4, 4) / 16
BINNING_FAULTS = [
    ("bins", 0, ValueError, "bins must be at least 1, got 0"),
    ("bins", 2.5, TypeError, "bins must be an int, got 2.5"),
    ("range", (1, 0), ValueError, "range must be finite with lo < hi, got (1, 0)"),
    ("range", (0, math.nan), ValueError, "range must be finite with lo < hi, got (0, nan)"),
    ("bandwidth", 0, ValueError, "bandwidth must be between 0.001 and 1000.0 bin widths, got 0"),
    ("boundary", "mirror", ValueError, "boundary must be one of 'open', 'reflect', 'cyclic', got 'mirror'"),
]
WEIGHT_FAULTS = [
    (2.0, TypeError, "weight must be a torch.Tensor, got float"),
    (torch.ones(5), ValueError, "weight must broadcast to the shape of the image, (2, 3, 4, 4), got (5,)"),
    (torch.ones(4, 4, device="meta"), ValueError, "weight must be on {device}, got meta"),
]
WEIGHT_VALUE_FAULTS = [
    (-torch.ones(4, 4), ValueError, "weight must be non-negative and not NaN, its smallest value is -1.0"),
    (torch.zeros(4, 4), ValueError, "weight must have a positive, finite sum for every image and channel"),
]
IMAGE_FAULTS = [
    (X.tolist(), TypeError, "x must be a torch.Tensor of shape (B, C, *spatial), got list"),
    (X.int(), TypeError, "x must be float16, bfloat16, float32 or float64, got torch.int32"),
    (X[0, 0], ValueError, "x must have shape (B, C, *spatial), got (4, 4)"),
]
HISTOGRAMS: dict[str, Callable[..., Tensor]] = {
    "activation_maps": histloss.activation_maps,
    "soft_histogram": histloss.soft_histogram,
    "joint_histogram": lambda x, **options: histloss.joint_histogram(x, here(X), **options),
}


@pytest.mark.parametrize("function", HISTOGRAMS)
@pytest.mark.parametrize(("name", "value", "exception", "message"), BINNING_FAULTS)
def test_bad_binning(name: str, value: Any, exception: type[Exception], message: str, function: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        HISTOGRAMS[function](here(X), **{name: value})


@pytest.mark.parametrize("function", HISTOGRAMS)
@pytest.mark.parametrize(("image", "exception", "message"), IMAGE_FAULTS)
def test_bad_images(image: Any, exception: type[Exception], message: str, function: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        HISTOGRAMS[function](here(image))


@pytest.mark.parametrize("function", ["soft_histogram", "joint_histogram"])
@pytest.mark.parametrize(("weight", "exception", "message"), WEIGHT_FAULTS)
def test_bad_weights(
    device: torch.device, weight: Any, exception: type[Exception], message: str, function: str
) -> None:
    with pytest.raises(exception, match=re.escape(message.replace("{device}", str(device)))):
        HISTOGRAMS[function](here(X), weight=here(weight))


@on_cpu  # elsewhere to look at values would be to wait for them
@pytest.mark.parametrize("function", ["soft_histogram", "joint_histogram"])
@pytest.mark.parametrize(("weight", "exception", "message"), WEIGHT_VALUE_FAULTS)
def test_bad_weight_values(weight: Any, exception: type[Exception], message: str, function: str) -> None:
    with pytest.raises(exception, match=re.escape(message)):
        HISTOGRAMS[function](X, weight=weight)


@on_cpu
def test_one_empty_plane_of_weights_is_refused() -> None:
    weight = torch.ones(2, 3, 4, 4)
    weight[1, 2] = 0
    with pytest.raises(ValueError, match=re.escape("got [[16.0, 16.0, 16.0], [16.0, 16.0, 0.0]]")):
        histloss.soft_histogram(X, weight=weight)


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda x, h, j: histloss.joint_histogram(x, None), TypeError, "y must be a torch.Tensor"),
        (
            lambda x, h, j: histloss.joint_histogram(x, x[:1]),
            ValueError,
            "y must have the shape of x, (2, 3, 4, 4)",
        ),
        (lambda x, h, j: histloss.joint_histogram(x, x.long()), TypeError, "y must be float16"),
        (
            lambda x, h, j: histloss.joint_histogram(x, x.to("meta")),
            ValueError,
            "y must be on {device}, got meta",
        ),
        (
            lambda x, h, j: histloss.joint_histogram(x, x, bins=(4, 0)),
            ValueError,
            "bins must be at least 1, got 0",
        ),
        (
            lambda x, h, j: histloss.emd(h, h[..., :3]),
            ValueError,
            "h2 must have as many bins as h1, 4, got 3",
        ),
        (lambda x, h, j: histloss.emd(h, h, p=0.5), ValueError, "p must be finite and at least 1, got 0.5"),
        (
            lambda x, h, j: histloss.emd(h, h, form="root"),
            ValueError,
            "form must be one of 'squared', 'norm', got 'root'",
        ),
        (lambda x, h, j: histloss.emd(h.long(), h), TypeError, "h1 must be float16"),
        (
            lambda x, h, j: histloss.mutual_information(j, mode="MI"),
            ValueError,
            "mode must be one of 'mi', 'relative'",
        ),
        (
            lambda x, h, j: histloss.mutual_information(j, mode=2),
            TypeError,
            "mode must be a string, one of 'mi'",
        ),
        (
            lambda x, h, j: histloss.mutual_information(j[0, 0, 0]),
            ValueError,
            "joint must have shape (..., Kx, Ky)",
        ),
    ],
)
def test_bad_arguments(
    device: torch.device, call: Callable[..., Tensor], exception: type[Exception], message: str
) -> None:
    with pytest.raises(exception, match=re.escape(message.replace("{device}", str(device)))):
        call(*here((X, H, J)))


def test_every_supported_dtype_has_a_tolerance() -> None:
    assert set(TOLERANCES) == set(DTYPES)
