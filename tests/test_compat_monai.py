"""histloss.compat.monai against MONAI itself, and where MONAI fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from asserters import assert_agrees, assert_gradient, assert_value
from histloss.compat import monai as compat
from histloss.compat.monai import GlobalMutualInformationLoss
from tolerances import Tolerance

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what MONAI imports
    peer = pytest.importorskip("monai.losses").GlobalMutualInformationLoss
pytestmark = pytest.mark.usefixtures("device")

PARITY = Tolerance(1e-5, 1e-5, 1e-5)  # what histloss.compat promises
KERNELS = compat.KERNELS
DTYPES = [torch.float32, torch.float64]


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two images that share something, a little beyond 0 and 1."""
    x = torch.rand(shape, dtype=dtype) * 1.1 - 0.05
    y = 0.7 * x + 0.3 * torch.rand(shape, dtype=dtype)
    return x.requires_grad_(), y.requires_grad_()


def gradients(loss: Tensor, inputs: tuple[Tensor, ...], upstream: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, inputs, upstream, allow_unused=True)


def assert_same(x: Tensor, y: Tensor, *arguments: Any, **named: Any) -> None:
    """Value and gradients."""
    __tracebackhide__ = True
    found = GlobalMutualInformationLoss(*arguments, **named)(x, y)
    expected = peer(*arguments, **named).to(x.device)(x, y)
    assert found.dtype == x.dtype
    assert_agrees(found, expected, PARITY)
    upstream = torch.randn_like(found)
    for a, b in zip(
        gradients(found, (x, y), upstream),
        gradients(expected, (x, y), upstream.to(expected.dtype)),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert bool((b != 0).any())
            assert_agrees(a, b, PARITY)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 9, 10, 11), (3, 2, 17, 13), (4, 300)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_numbers(kernel: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, y = pair(*shape, dtype=dtype)
    for reduction in ("mean", "sum", "none"):
        assert_same(x, y, kernel, 16, reduction=reduction)
    assert_same(x, y, kernel)
    assert_same(x, y, kernel, 11, 0.7, smooth_nr=1e-3, smooth_dr=1e-2)


@pytest.mark.parametrize("sigma_ratio", [0.2, 1.0, 3.0])
def test_the_gaussians_width(sigma_ratio: float) -> None:
    assert_same(*pair(2, 1, 12, 12), "gaussian", 20, sigma_ratio)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("scale", "shift"), [(40.0, -7.3), (1e-3, 5e-3), (3000.0, 100.0)])
def test_any_range_of_a_spline(scale: float, shift: float, dtype: torch.dtype) -> None:
    x, y = (v.detach() * scale + shift for v in pair(2, 1, 14, 15, dtype=dtype))
    assert_same(x.requires_grad_(), y.requires_grad_(), "b-spline", 12)


def test_the_extremes_share_the_ranges_gradient() -> None:
    """The least and greatest values set the range, so theirs is unlike any other; ties have equal shares."""
    x, y = (v.detach() for v in pair(2, 1, 13, 13, dtype=torch.float64))
    x[0, 0, 0, :3], x[1, 0, 5, 5], x[1, 0, 5, 6:8] = -1.0, -1.0, 2.0
    assert_same(x.requires_grad_(), y.requires_grad_(), "b-spline", 14)
    (grad,) = torch.autograd.grad(GlobalMutualInformationLoss("b-spline", 14)(x, y), x)
    at_least, at_most = grad[x == -1], grad[x == 2]
    assert len(at_least) == 4
    assert len(at_most) == 2
    assert grad[(x != -1) & (x != 2)].abs().max() < at_most.abs().min()
    assert torch.equal(at_most, at_most[:1].expand(2))


@pytest.mark.usefixtures("path")
def test_halfway_between_two_bins_the_target_belongs_to_both() -> None:
    """With 8 bins and values from 0 to 8 every other value is halfway."""
    x, _ = pair(1, 1, 30, dtype=torch.float64)
    y = torch.arange(30, dtype=torch.float64).remainder(9).reshape(1, 1, 30)
    assert_same(x, y.requires_grad_(), "b-spline", 8)
    joint = compat._joint_histogram(x.detach()[0], y.detach()[0], compat._Method("b-spline", 8, 0.5, False))
    of_target = (
        joint[0].sum(0) * 30
    )  # 0 to 8 four times each, but 3 to 8 thrice; 7 and 8 are clamped to bin 5
    expected = torch.tensor(
        [0, 0, 4 + 2, 2 + 4 + 1.5, 1.5 + 3 + 1.5, 1.5 + 3 + 3 + 3, 0, 0], dtype=torch.float64
    )
    assert_value(of_target, expected)


# ---- where MONAI fails -----------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0, -700.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_constant_image_shares_nothing(kernel: str, value: float) -> None:
    """MONAI #9018: NaN with B-splines."""
    other, _ = pair(2, 1, 8, 8)
    constant = torch.full((2, 1, 8, 8), value, requires_grad=True)
    if kernel == "b-spline":
        assert bool(peer(kernel)(constant, other).isnan())
    for x, y in ((constant, other), (other, constant), (constant, constant)):
        loss = GlobalMutualInformationLoss(kernel)(x, y)
        assert abs(loss.item()) < 1e-5
        for grad in gradients(loss, (constant, other), torch.ones(())):
            if grad is not None:
                assert grad.abs().max() < 1e-5
    (grad,) = torch.autograd.grad(GlobalMutualInformationLoss("b-spline")(constant, other), constant)
    assert not grad.any()


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast_changes_nothing(device: torch.device, kernel: str, low: torch.dtype) -> None:
    """MONAI #7622: -inf."""
    x, y = pair(2, 1, 20, 20)
    loss = GlobalMutualInformationLoss(kernel)
    expected = loss(x, y)
    with torch.autocast(device.type, dtype=low):
        found = loss(x, y)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(value, x)[0] for value in (found, expected)))


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision_is_computed_in_float32(kernel: str, low: torch.dtype) -> None:
    x, y = (v.detach().to(low).requires_grad_() for v in pair(2, 1, 20, 20))
    wide_x, wide_y = (v.detach().float().requires_grad_() for v in (x, y))
    loss = GlobalMutualInformationLoss(kernel)
    found, expected = loss(x, y), loss(wide_x, wide_y)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    (grad,), (wide,) = torch.autograd.grad(found, x), torch.autograd.grad(expected, wide_x)
    assert torch.equal(grad, wide.to(low))


@pytest.mark.usefixtures("path")
def test_a_range_for_each_sample() -> None:
    """MONAI's is the batch's: one bright sample changes the loss of all."""
    x, y = pair(3, 1, 12, 12, dtype=torch.float64)
    x, y = x.detach(), y.detach()
    x[1], y[1] = 50 * x[1], 20 * y[1]
    x.requires_grad_()
    own = GlobalMutualInformationLoss("b-spline", 12, reduction="none", per_sample_range=True)(x, y)
    alone = torch.cat([peer("b-spline", 12, reduction="none")(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    upstream = torch.randn(3, dtype=torch.float64)
    assert_agrees(own, alone, PARITY)
    assert_agrees(*(torch.autograd.grad(value, x, upstream)[0] for value in (own, alone)), PARITY)
    of_batch = GlobalMutualInformationLoss("b-spline", 12, reduction="none")(x, y)
    assert_agrees(of_batch, peer("b-spline", 12, reduction="none")(x, y), PARITY)
    assert bool(((of_batch - own)[[0, 2]].abs() > 0.1).all())


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_smoothing_empty_cells_count_for_nothing(kernel: str) -> None:
    x, y = pair(2, 1, 10, 10, dtype=torch.float64)
    loss = GlobalMutualInformationLoss(kernel, 40, smooth_nr=0.0, smooth_dr=0.0)(x, y)
    (grad,) = torch.autograd.grad(loss, x)
    assert bool(grad.isfinite().all() & (grad != 0).any())
    assert_agrees(
        loss, GlobalMutualInformationLoss(kernel, 40, smooth_nr=1e-12, smooth_dr=1e-12)(x, y), PARITY
    )


# ---- in parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("ranges", [False, True])
def test_parts_add_to_the_same_bits(kernel: str, ranges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = ranges and kernel == "b-spline"
    loss = GlobalMutualInformationLoss(kernel, reduction="none", per_sample_range=ranges)
    x, y = pair(2, 3, 4111)
    results = []
    for part in (compat.PART, 1):
        monkeypatch.setattr(compat, "PART", part)
        value = loss(x, y)
        results.append((value, *gradients(value, (x, y), torch.tensor([1.0, -2.0]))))
    assert len(list(compat._parts(x.flatten(1)))) == 4
    (one, *of_one), (many, *of_many) = results
    assert torch.equal(one, many)
    for a, b in zip(of_one, of_many, strict=True):
        assert (a is None) == (b is None)
        if a is not None and kernel == "gaussian":
            assert torch.equal(a, b)
        elif a is not None:  # but for the shares of the range's ends, which are sums of floats
            assert_gradient(a, b)
            assert bool((a != b).sum() <= 4)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("kernel", KERNELS)
def test_threads_do_not_show(kernel: str) -> None:
    x, y = pair(1, 1, 3 * compat.PART // 2)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        value = GlobalMutualInformationLoss(kernel)(x, y)
        results.append((value, torch.autograd.grad(value, x)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_other_derivatives_take_the_plain_way(kernel: str) -> None:
    """Double backward, torch.func and forward mode: those of MONAI's, and of backward."""
    x, y = pair(2, 1, 40, dtype=torch.float64)
    direction = torch.randn_like(x)
    second = []
    for loss in (GlobalMutualInformationLoss(kernel, 9), peer(kernel, 9).to(x.device)):
        (grad,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
        second.append(torch.autograd.grad((grad * direction).sum(), x)[0])
    assert_agrees(*second, PARITY)
    loss = GlobalMutualInformationLoss(kernel, 9)
    (grad,) = torch.autograd.grad(loss(x, y), x)
    x, y = x.detach(), y.detach()
    assert_gradient(torch.func.grad(loss)(x, y), grad)
    value, slope = torch.func.jvp(lambda x: loss(x, y), (x,), (direction,))
    assert torch.equal(value, loss(x, y))
    assert_gradient(slope, (grad * direction).sum())
    single = GlobalMutualInformationLoss(kernel, 9, reduction="none")
    mapped = torch.func.vmap(lambda x, y: single(x[None], y[None])[0])(x, y)
    assert_value(mapped, torch.cat([single(x[i : i + 1], y[i : i + 1]) for i in range(2)]))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_where_values_are_not_looked_at_a_broken_voxel_breaks_the_loss(broken: float) -> None:
    """In a transform as on a GPU; elsewhere it is an error."""
    x, y = (v.detach() for v in pair(2, 1, 40))
    x[0, 0, 3] = broken
    loss = GlobalMutualInformationLoss("b-spline", reduction="none", per_sample_range=True)
    value = torch.func.vjp(loss, x, y)[0]
    assert value.isnan().tolist() == [True, False]
    assert bool(torch.func.vjp(GlobalMutualInformationLoss("b-spline"), y, x)[0].isnan())


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_compiles(kernel: str) -> None:
    x, y = pair(2, 1, 50)
    loss = GlobalMutualInformationLoss(kernel, 9)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    values = loss(x, y), compiled(x, y)
    assert_value(*values)
    assert_gradient(*(torch.autograd.grad(value, x)[0] for value in values))


# ---- what is refused -------------------------------------------------------------------------------

X = torch.rand(2, 1, 6, 6)


def call(*arguments: Any, x: Any = X, y: Any = X, **named: Any) -> Tensor:
    return GlobalMutualInformationLoss(*arguments, **named)(x, y)


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: call("box"), ValueError, "kernel_type must be one of 'gaussian', 'b-spline', got 'box'"),
    (lambda: call(num_bins=1), ValueError, "num_bins must be at least 2, got 1"),
    (lambda: call("b-spline", 4), ValueError, "num_bins must be at least 5, got 4"),
    (lambda: call(num_bins=23.0), TypeError, "num_bins must be an int, got 23.0"),
    (lambda: call(sigma_ratio=0.0), ValueError, "sigma_ratio must be from 0.001 to 1000, got 0.0"),
    (lambda: call(reduction="max"), ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'max'"),
    (lambda: call(smooth_nr=-1.0), ValueError, "smooth_nr must not be negative"),
    (lambda: call(smooth_dr=torch.inf), ValueError, "smooth_dr must be finite"),
    (lambda: call(per_sample_range=1), TypeError, "per_sample_range must be True or False"),
    (lambda: call(per_sample_range=True), ValueError, "per_sample_range=True needs kernel_type 'b-spline'"),
    (lambda: call(x=None), TypeError, r"pred must be a torch.Tensor of shape \(B, ...\), got NoneType"),
    (lambda: call(x=X.long()), TypeError, "pred must be float16.*int64"),
    (lambda: call(x=X[0, 0, 0]), ValueError, r"pred must have shape \(B, ...\).*got \(6,\)"),
    (lambda: call(x=X[:0], y=X[:0]), ValueError, "pred must hold at least one value"),
    (lambda: call(y=X[:1]), ValueError, r"target must have the shape of pred, \(2, 1, 6, 6\), got \(1,"),
    (lambda: call("b-spline", x=X / 0), ValueError, "pred must be finite.*got values from inf to inf|nan"),
    (
        lambda: call("b-spline", y=X * torch.nan),
        ValueError,
        "target must be finite.*got values from nan to nan",
    ),
    (lambda: call("b-spline", x=(X - 0.5) * 1e39), ValueError, "pred must be finite"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_named(case: int) -> None:
    function, kind, message = BAD[case]
    with torch.device("cpu"), pytest.raises(kind, match=message):
        function()


def test_monais_enumeration_of_reductions_will_do() -> None:
    from monai.utils import LossReduction

    x, y = pair(2, 1, 20)
    assert GlobalMutualInformationLoss(reduction=LossReduction.NONE)(x, y).shape == (2,)


def test_it_shows_its_arguments_and_has_no_state() -> None:
    loss = GlobalMutualInformationLoss("b-spline", 32)
    assert repr(loss) == (
        "GlobalMutualInformationLoss(kernel_type='b-spline', num_bins=32, sigma_ratio=0.5, reduction='mean', "
        "smooth_nr=1e-07, smooth_dr=1e-07, per_sample_range=False)"
    )
    assert not loss.state_dict()
