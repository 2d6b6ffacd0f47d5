"""Histograms of chunks: the bits of one call, whatever the cuts, and gradients that reach every chunk."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad

import histloss
from asserters import assert_gradient, assert_value
from devices import on_cpu
from histloss import HistogramAccumulator, joint_histogram, mutual_information, soft_histogram
from histloss.binning import BOUNDARIES, KERNELS

pytestmark = [
    pytest.mark.usefixtures("device"),
    # PyTorch's own forward mode scripts its decompositions.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]
SHAPE = (2, 3, 11, 7, 5)
PAIR = {"bins": (9, 6), "range": ((-1.0, 1.0), (0.0, 1.0)), "boundary": ("reflect", "open")}


class Images(NamedTuple):
    """Two images and a weight, cut along a spatial dimension; None for what a case is without."""

    x: Tensor
    y: Tensor | None = None
    weight: Tensor | None = None

    def cut(
        self, order: list[int], dim: int = 2, ends: tuple[int, ...] = (0, 4, 5, 5, 7)
    ) -> Iterator[Images]:
        """Chunks of unequal sizes, one of them without pixels, in some order."""
        ends = (*ends, self.x.shape[dim])
        slices = [slice(*pair) for pair in pairwise(ends)]
        for i in order:
            of = (slice(None),) * dim + (slices[i],)
            yield Images(*(None if tensor is None else tensor[of] for tensor in self))

    def leaves(self) -> Images:
        return Images(
            *(None if tensor is None else tensor.detach().clone().requires_grad_() for tensor in self)
        )

    def there(self) -> list[Tensor]:
        return [tensor for tensor in self if tensor is not None]


ORDERS = [[0, 1, 2, 3, 4], [3, 0, 2, 4, 1]]


def images(joint: bool, weighted: bool, dtype: torch.dtype = torch.float32, shape: Any = SHAPE) -> Images:
    """Pixels in and a little outside of the range; weights from 0 on."""
    x = torch.empty(shape, dtype=dtype).uniform_(-1.2, 1.2)
    y = torch.empty(shape, dtype=dtype).uniform_(-0.1, 1.1) if joint else None
    weight = torch.empty(shape, dtype=dtype).uniform_(-0.3, 2).clamp(min=0) if weighted else None
    return Images(x, y, weight)


def one_call(of: Images, **keywords: Any) -> Tensor:
    if of.y is None:
        return soft_histogram(of.x, weight=of.weight, exact=True, **keywords)
    return joint_histogram(of.x, of.y, weight=of.weight, exact=True, **keywords)


def accumulated(chunks: Iterator[Images], **keywords: Any) -> HistogramAccumulator:
    accumulator = None
    for x, y, weight in chunks:
        accumulator = accumulator or HistogramAccumulator(**keywords, joint=y is not None)
        accumulator.update(x, y, weight=weight)
    assert accumulator is not None
    return accumulator


def gradients(value: Tensor, of: Images, upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, of.there(), upstream)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert b.count_nonzero() > b.numel() // 2
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


each_kind = pytest.mark.parametrize(
    ("joint", "weighted"),
    [(False, False), (False, True), (True, False), (True, True)],
    ids=["soft", "soft, weight", "joint", "joint, weight"],
)


# ---- the bits of one call ------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_any_cuts_in_any_order_have_the_bits_of_one_call(
    joint: bool, weighted: bool, kernel: str, dtype: torch.dtype, path: str
) -> None:
    keywords: dict[str, Any] = (PAIR if joint else {"bins": 12}) | {"kernel": kernel}
    whole = images(joint, weighted, dtype).leaves()
    expected = one_call(whole, **keywords)
    upstream = torch.randn_like(expected)
    expected_gradients = gradients(expected, whole, upstream)
    for order in ORDERS:
        leaves = whole.leaves()
        accumulator = accumulated(leaves.cut(order), **keywords)
        found = accumulator.compute()
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
        assert_same(gradients(found, leaves, upstream), expected_gradients)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_boundaries(boundary: str) -> None:
    of = images(joint=False, weighted=False)
    found = accumulated(of.cut(ORDERS[1], dim=3, ends=(0, 1, 3, 3, 6)), bins=12, boundary=boundary)
    assert torch.equal(found.compute(), one_call(of, bins=12, boundary=boundary))


def test_chunks_may_have_any_spatial_shape() -> None:
    x = torch.rand(2, 3, 60)
    accumulator = HistogramAccumulator(bins=8)
    accumulator.update(x[..., :12].reshape(2, 3, 3, 4))
    accumulator.update(x[..., 12:59].reshape(2, 3, 47))
    accumulator.update(x[..., 59].reshape(2, 3, 1, 1, 1))
    assert torch.equal(accumulator.compute(), soft_histogram(x, bins=8, exact=True))


def test_halves_and_float32_may_follow_each_other() -> None:
    x, y = torch.rand(1, 2, 40), torch.rand(1, 2, 40)
    x[..., 10:30] = x[..., 10:30].bfloat16().float()
    y[..., 20:] = y[..., 20:].half().float()
    accumulator = HistogramAccumulator(bins=8, joint=True)
    accumulator.update(x[..., :10], y[..., :10])
    accumulator.update(x[..., 10:20].bfloat16(), y[..., 10:20])
    accumulator.update(x[..., 20:30].bfloat16(), y[..., 20:30].half())
    accumulator.update(x[..., 30:], y[..., 30:].half())
    assert torch.equal(accumulator.compute(), joint_histogram(x, y, bins=8, exact=True))


@pytest.mark.parametrize(
    ("shape", "floor"),  # the gradient of a weight all alike is 0
    [((), 1.0), ((1, 3, 1, 1, 1), 1.0), ((11, 7, 5), 0.0), ((2, 1, 11, 1, 5), 0.0)],
    ids=str,
)
def test_weights_that_broadcast(shape: tuple[int, ...], floor: float) -> None:
    of = images(joint=False, weighted=False)
    weight = torch.rand(shape) + 0.5
    leaf = weight.clone().requires_grad_()
    accumulator = HistogramAccumulator(bins=8)
    for at in (slice(0, 4), slice(4, None)):
        cut = leaf[..., at, :, :] if leaf.ndim and leaf.shape[-3] > 1 else leaf
        accumulator.update(of.x[:, :, at], weight=cut)
    own = weight.clone().requires_grad_()
    expected = soft_histogram(of.x, bins=8, weight=own, exact=True)
    found = accumulator.compute()
    assert torch.equal(found, expected)
    upstream = torch.randn_like(found)
    (a,), (b,) = (torch.autograd.grad(h, w, upstream) for h, w in ((found, leaf), (expected, own)))
    assert_gradient(a, b, floor=floor)


def test_chunks_with_and_without_a_weight_go_together() -> None:
    of = images(joint=True, weighted=True)
    first, second = of.cut([0, 1], ends=(0, 4))
    assert first.weight is not None
    accumulator = HistogramAccumulator(bins=8, joint=True)
    accumulator.update(first.x, first.y)
    accumulator.update(*second[:2], weight=second.weight)
    assert of.weight is not None
    weight = torch.cat([torch.ones_like(first.weight), of.weight[:, :, 4:]], 2)
    expected = joint_histogram(of.x, of.y, bins=8, weight=weight, exact=True)
    assert_value(accumulator.compute(), expected)
    assert accumulator.weight is not None
    assert_value(accumulator.weight, weight.double().sum((2, 3, 4)))


# ---- gradients -----------------------------------------------------------------------------------


@each_kind
def test_derivatives_are_the_finite_differences(joint: bool, weighted: bool) -> None:
    of = images(joint, weighted, torch.float64, (1, 2, 7))
    if weighted:
        of = of._replace(weight=of.weight + 0.2)
    names = [name for name, tensor in of._asdict().items() if tensor is not None]

    def function(*tensors: Tensor) -> Tensor:
        whole = Images(**dict(zip(names, tensors, strict=True)))
        return accumulated(whole.cut([2, 0, 1], ends=(0, 3, 4)), bins=5, bandwidth=0.7).compute()

    leaves = of.leaves().there()
    assert gradcheck(function, leaves, check_forward_ad=True)
    assert gradgradcheck(function, leaves)


def test_a_gradient_reaches_only_the_chunks_that_need_one() -> None:
    of = images(joint=True, weighted=False)
    assert of.y is not None
    x = of.x.clone().requires_grad_()
    accumulator = HistogramAccumulator(bins=8, joint=True)
    accumulator.update(of.x[:, :, :4], of.y[:, :, :4])
    accumulator.update(x[:, :, 4:9], of.y[:, :, 4:9])
    with torch.no_grad():
        accumulator.update(x[:, :, 9:], of.y[:, :, 9:])
    mutual_information(accumulator.compute()).sum().backward()
    whole = of.x.clone().requires_grad_()
    mutual_information(joint_histogram(whole, of.y, bins=8, exact=True)).sum().backward()
    assert x.grad is not None
    assert whole.grad is not None
    assert torch.equal(x.grad[:, :, 4:9], whole.grad[:, :, 4:9])
    assert x.grad[:, :, 4:9].any()
    assert not x.grad[:, :, :4].any()
    assert not x.grad[:, :, 9:].any()


def test_gradients_flow_on_into_what_made_the_chunks() -> None:
    x = torch.rand(1, 2, 30)
    scale, same = torch.tensor(0.9, requires_grad=True), torch.tensor(0.9, requires_grad=True)
    accumulator = HistogramAccumulator(bins=8)
    for chunk in x.split(7, -1):
        accumulator.update(scale * chunk)
    accumulator.compute().square().sum().backward()
    soft_histogram(same * x, bins=8, exact=True).square().sum().backward()
    assert scale.grad is not None
    assert same.grad is not None
    assert_gradient(scale.grad, same.grad)


def test_nothing_is_kept_of_chunks_without_a_gradient() -> None:
    accumulator = HistogramAccumulator(bins=8)
    kept = torch.rand(1, 1, 100, requires_grad=True)
    plain = torch.rand(1, 1, 100)
    references = [weakref.ref(kept), weakref.ref(plain)]
    accumulator.update(kept)
    accumulator.update(plain)
    assert not accumulator.update(plain, weight=torch.rand(100))
    del kept, plain
    gc.collect()
    assert [reference() is not None for reference in references] == [True, False]
    accumulator.reset()
    gc.collect()
    assert references[0]() is None


def test_of_chunks_with_a_gradient_the_pixels_alone_are_kept() -> None:
    x = torch.rand(1, 1, 100, requires_grad=True)
    accumulator = HistogramAccumulator(bins=8)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        accumulator.update(x)
    assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr()]


def test_under_no_grad_there_is_no_gradient() -> None:
    x = torch.rand(1, 1, 100, requires_grad=True)
    accumulator = HistogramAccumulator(bins=8)
    with torch.no_grad():
        accumulator.update(x)
    assert not accumulator.compute().requires_grad
    accumulator.update(x)
    assert accumulator.compute().requires_grad
    with torch.no_grad():
        assert not accumulator.compute().requires_grad
    with torch.inference_mode():
        accumulator.update(x.detach())
        inferred = accumulator.compute()
    assert torch.equal(inferred, soft_histogram(x.repeat(1, 1, 3), bins=8, exact=True))


def test_a_chunk_changed_in_place_is_found_out() -> None:
    x = torch.rand(1, 1, 100, requires_grad=True)
    accumulator = HistogramAccumulator(bins=8)
    accumulator.update(x)
    with torch.no_grad():
        x.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        accumulator.compute().sum().backward()


def test_several_computes_and_updates_in_between() -> None:
    x = torch.rand(1, 2, 90)
    leaf = x.clone().requires_grad_()
    accumulator = HistogramAccumulator(bins=8)
    upstream = torch.randn(1, 2, 8)
    for end in (30, 60, 90):
        accumulator.update(leaf[..., end - 30 : end])
        whole = x[..., :end].clone().requires_grad_()
        expected = soft_histogram(whole, bins=8, exact=True)
        for _ in range(2):
            found = accumulator.compute()
            assert torch.equal(found, expected)
        (gradient,) = torch.autograd.grad(found, leaf, upstream, retain_graph=True)
        (one,) = torch.autograd.grad(expected, whole, upstream)
        assert torch.equal(gradient[..., :end], one)
        assert not gradient[..., end:].any()
    accumulator.compute().sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        accumulator.compute().sum().backward()


def test_forward_mode() -> None:
    x, step = torch.rand(1, 2, 30, dtype=torch.float64), torch.randn(1, 2, 30, dtype=torch.float64)
    with forward_ad.dual_level():
        accumulator = HistogramAccumulator(bins=8)
        for part in forward_ad.make_dual(x, step).split(11, -1):
            accumulator.update(part)
        found = forward_ad.unpack_dual(accumulator.compute()).tangent
        dual = soft_histogram(forward_ad.make_dual(x, step), bins=8, exact=True)
        expected = forward_ad.unpack_dual(dual).tangent
    assert found is not None
    assert expected is not None
    assert_gradient(found, expected)


def test_in_a_compiled_function() -> None:
    def function(x: Tensor) -> Tensor:
        accumulator = HistogramAccumulator(bins=8)
        for part in x.split(11, -1):
            accumulator.update(part)
        return accumulator.compute()

    x, upstream = torch.rand(1, 2, 30, requires_grad=True), torch.randn(1, 2, 8)
    found, expected = torch.compile(function, backend="aot_eager")(x), soft_histogram(x, bins=8, exact=True)
    assert torch.equal(found, expected)
    (a,), (b,) = (torch.autograd.grad(h, x, upstream) for h in (found, expected))
    assert torch.equal(a, b)


def test_transforms_are_refused() -> None:
    def function(x: Tensor) -> Tensor:
        accumulator = HistogramAccumulator(bins=8)
        accumulator.update(x)
        return accumulator.compute().sum()

    with pytest.raises(
        RuntimeError, match=r"HistogramAccumulator .* cannot be used in a torch\.func transform"
    ):
        grad(function)(torch.rand(1, 1, 10))


# ---- the second pass -----------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_second_pass_has_the_gradients_of_one_call(
    joint: bool, weighted: bool, dtype: torch.dtype, path: str
) -> None:
    of = images(joint, weighted, dtype)
    keywords: dict[str, Any] = (PAIR if joint else {"bins": 12}) | {"kernel": "gaussian"}
    accumulator = accumulated(of.cut(ORDERS[0]), **keywords)
    h = accumulator.compute()
    assert not h.requires_grad
    upstream = torch.randn_like(h)
    leaves = of.leaves()
    expected = Images(
        **dict(zip(present(of), gradients(one_call(leaves, **keywords), leaves, upstream), strict=True))
    )
    for chunk, of_chunk in zip(of.cut(ORDERS[1]), expected.cut(ORDERS[1]), strict=True):
        found = accumulator.gradient(upstream, chunk.x, chunk.y, weight=chunk.weight)
        assert present(Images(*found)) == present(of)
        for a, b in zip(Images(*found).there(), of_chunk.there(), strict=True):
            assert a.dtype == dtype
            assert not a.requires_grad
            assert torch.equal(a, b)
            assert b.numel() == 0 or b.any()


def present(of: Images) -> list[str]:
    return [name for name, tensor in of._asdict().items() if tensor is not None]


def test_a_second_pass_of_weights_that_broadcast() -> None:
    of = images(joint=False, weighted=False)
    mask, weight = torch.rand(11, 7, 5) > 0.3, torch.rand(11, 7, 5).half().requires_grad_()
    for w in (mask, weight):
        accumulator = HistogramAccumulator(bins=8)
        accumulator.update(of.x, weight=w.detach())
        upstream = torch.randn(2, 3, 8)
        found = accumulator.gradient(upstream, of.x, weight=w.detach())
        assert found.x.any()
        if w is mask:
            assert found.weight is None
            continue
        (expected,) = torch.autograd.grad(soft_histogram(of.x, bins=8, weight=w, exact=True), w, upstream)
        assert torch.equal(found.weight, expected)


def test_the_second_pass_of_the_documentation() -> None:
    volumes = torch.rand(2, 1, 1, 24, 9, 9)
    chunks = list(zip(*(volume.split(5, 2) for volume in volumes), strict=True))
    histogram = HistogramAccumulator(bins=16, joint=True)
    for x, y in chunks:
        histogram.update(x, y)
    h = histogram.compute().requires_grad_()
    (by_h,) = torch.autograd.grad(mutual_information(h).mean(), h)
    found = [histogram.gradient(by_h, x, y) for x, y in chunks]
    leaves = volumes.clone().requires_grad_()
    mutual_information(joint_histogram(*leaves, bins=16, exact=True)).mean().backward()
    assert leaves.grad is not None
    for which in (0, 1):
        assert torch.equal(torch.cat([each[which] for each in found], 2), leaves.grad[which])


def test_everything_in_inference_mode() -> None:
    of = images(joint=True, weighted=True)
    leaves = of.leaves()
    expected = one_call(leaves, bins=8)
    upstream = torch.randn_like(expected)
    with torch.inference_mode():
        chunks = Images(*(tensor.clone() for tensor in of.there()))
        accumulator = accumulated(chunks.cut(ORDERS[0]), bins=8)
        assert torch.equal(accumulator.compute(), expected)
        found = accumulator.gradient(upstream.clone(), chunks.x, chunks.y, weight=chunks.weight)
    assert_same(tuple(Images(*found).there()), gradients(expected, leaves, upstream))


# ---- parts ---------------------------------------------------------------------------------------


def halves(joint: bool = True) -> tuple[Images, HistogramAccumulator, HistogramAccumulator]:
    of = images(joint, weighted=False)
    first, second = (accumulated(of.cut([i], ends=(0, 4)), bins=8) for i in range(2))
    return of, first, second


def sent(accumulator: HistogramAccumulator) -> HistogramAccumulator:
    return pickle.loads(pickle.dumps(accumulator))


def loaded(accumulator: HistogramAccumulator) -> HistogramAccumulator:
    """By way of a file."""
    file = io.BytesIO()
    torch.save(accumulator.state_dict(), file)
    file.seek(0)
    new = HistogramAccumulator(bins=8, joint=accumulator.joint)
    new.update(*[torch.rand(1, 1, 3)] * (1 + accumulator.joint))
    new.load_state_dict(torch.load(file, weights_only=True))
    return new


@pytest.mark.parametrize("joint", [False, True], ids=["soft", "joint"])
@pytest.mark.parametrize("way", [lambda each: each, sent, loaded, copy.copy, copy.deepcopy])
def test_parts_are_merged(joint: bool, way: Callable[[HistogramAccumulator], HistogramAccumulator]) -> None:
    of, first, second = halves(joint)
    part = second.compute()
    whole = HistogramAccumulator(bins=8, joint=joint)
    for each in (HistogramAccumulator(bins=8, joint=joint), first, second):
        whole.merge(way(each))
    assert torch.equal(whole.compute(), one_call(of, bins=8))
    assert whole.pixels == of.x[0, 0].numel()
    assert torch.equal(second.compute(), part)
    assert repr(way(first)) == repr(first)


def test_merging_keeps_gradients() -> None:
    of = images(joint=True, weighted=True).leaves()
    first, second = (accumulated(of.cut([i], ends=(0, 4)), bins=8) for i in range(2))
    second.merge(first)
    expected = one_call(of, bins=8)
    upstream = torch.randn_like(expected)
    assert_same(gradients(second.compute(), of, upstream), gradients(expected, of, upstream))


@pytest.mark.parametrize("way", [sent, copy.copy, copy.deepcopy, HistogramAccumulator.state_dict])
def test_gradients_cannot_be_sent(way: Callable[[HistogramAccumulator], Any]) -> None:
    accumulator = HistogramAccumulator(bins=8)
    accumulator.update(torch.rand(1, 1, 3, requires_grad=True))
    with pytest.raises(
        RuntimeError, match="must hold no chunk that needs a gradient to be copied, pickled or"
    ):
        way(accumulator)


def test_a_weight_alone_may_need_the_gradient() -> None:
    weight, x = torch.rand(1, 1, 30, requires_grad=True), torch.rand(1, 1, 30)
    accumulator = HistogramAccumulator(bins=8)
    accumulator.update(x, weight=weight)
    upstream = torch.randn(1, 1, 8)
    (found,) = torch.autograd.grad(accumulator.compute(), weight, upstream)
    maps = histloss.activation_maps(x, bins=8)  # dh / dw = (Pi - h) / total
    h = (maps * weight[:, :, None]).sum(-1) / weight.sum()
    expected = ((maps - h[..., None]) / weight.sum() * upstream[..., None]).sum(2)
    assert_gradient(found, expected.detach())


def test_what_an_accumulator_says_of_itself() -> None:
    accumulator = HistogramAccumulator(8, (0.0, 1.0), kernel="bspline3")
    words = (
        "HistogramAccumulator(bins=8, range=(0.0, 1.0), bandwidth=1.0, boundary='reflect', kernel='bspline3'"
    )
    assert repr(accumulator) == f"<{words}, joint=False): nothing counted>"
    assert accumulator.weight is None
    x, weight = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    accumulator.update(x)
    assert repr(accumulator) == f"<{words}, joint=False): 20 pixels of 2 x 3 planes counted>"
    assert torch.equal(accumulator.weight, torch.full((2, 3), 20.0, dtype=torch.float64))
    accumulator.reset()
    accumulator.update(x, weight=weight)
    assert accumulator.pixels == 20
    assert_value(accumulator.weight, weight.double().sum((2, 3)))
    assert torch.equal(
        accumulator.compute(), soft_histogram(x, weight=weight, exact=True, **accumulator.binning)
    )
    joint = HistogramAccumulator(**PAIR, joint=True)
    joint.update(x, x)
    assert torch.equal(joint.compute(), joint_histogram(x, x, exact=True, **joint.binning))


def test_reset_forgets_all_but_the_binning() -> None:
    accumulator = HistogramAccumulator(bins=8)
    accumulator.update(torch.rand(2, 3, 10, requires_grad=True))
    accumulator.reset()
    x = torch.rand(1, 1, 10, dtype=torch.float64)
    accumulator.update(x)
    assert accumulator.pixels == 10
    assert torch.equal(accumulator.compute(), soft_histogram(x, bins=8, exact=True))


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"bins": 0}, ValueError, "bins must be at least 1, got 0"),
        ({"bins": (4, 5)}, TypeError, r"bins must be an int, got \(4, 5\)"),
        ({"kernel": "box"}, ValueError, "kernel must be one of"),
        ({"joint": 1}, TypeError, "joint must be True or False, got 1"),
        ({"range": torch.tensor([[0.0, 1.0]])}, TypeError, "range must be a pair of numbers"),
    ],
)
def test_constructor_errors(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HistogramAccumulator(**keywords)


X = torch.zeros(2, 3, 5)


@pytest.mark.parametrize(
    ("joint", "arguments", "error", "message"),
    [
        (
            False,
            {"x": None},
            TypeError,
            r"x must be a torch.Tensor of shape \(B, C, \*spatial\), got NoneType",
        ),
        (False, {"x": X[0]}, ValueError, r"x must have shape \(B, C, \*spatial\), got \(3, 5\)"),
        (
            False,
            {"x": X.int()},
            TypeError,
            "x must be float16, bfloat16, float32 or float64, got torch.int32",
        ),
        (
            False,
            {"x": X[:1]},
            ValueError,
            r"x must have \(B, C\) \[2, 3\] as the accumulator has, got \[1, 3\]",
        ),
        (
            False,
            {"x": X.double()},
            ValueError,
            "x must have dtype float32 as the accumulator has, got float64",
        ),
        (False, {"x": X.to("meta")}, ValueError, "x must be on .*, got meta"),
        (False, {"x": X, "y": X}, TypeError, "y must be None unless joint=True"),
        (True, {"x": X}, TypeError, "y must be an image that pairs with x for a joint histogram, got None"),
        (True, {"x": X, "y": X[:, :, :2]}, ValueError, "y must have the shape of x"),
        (
            True,
            {"x": X, "y": X.double()},
            ValueError,
            "x must have dtype float32 as the accumulator has, got",
        ),
        (False, {"x": X, "weight": 2.0}, TypeError, "weight must be a torch.Tensor, got float"),
        (
            False,
            {"x": X, "weight": X[:, :, :2]},
            ValueError,
            "weight must broadcast to the shape of the image",
        ),
    ],
)
def test_update_errors_leave_everything_as_it_was(
    joint: bool, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    x = torch.rand(2, 3, 5)
    accumulator = HistogramAccumulator(bins=8, joint=joint)
    accumulator.update(*[x] * (1 + joint))
    before = accumulator.compute()
    at = {name: value.to(x.device) if is_on_cpu(value) else value for name, value in arguments.items()}
    with pytest.raises(error, match=message):
        accumulator.update(**at)
    assert torch.equal(accumulator.compute(), before)
    assert accumulator.pixels == 5
    with pytest.raises(error, match=message):
        accumulator.gradient(torch.ones_like(before), **at)


def is_on_cpu(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"


@on_cpu
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-1.0, "weight must be non-negative and not NaN, its smallest value is -1.0"),
        (float("nan"), "weight must be non-negative and not NaN"),
        (float("inf"), "weight must have a finite sum for every image and channel"),
        (2.0**21, r"weight must be at most 2\*\*20 for exact sums"),
    ],
)
def test_weights_out_of_range_are_refused(weight: float, message: str) -> None:
    accumulator = HistogramAccumulator(bins=8)
    with pytest.raises(ValueError, match=message):
        accumulator.update(torch.rand(1, 1, 4), weight=torch.tensor([1.0, weight, 1.0, 1.0]))
    assert accumulator.weight is None


@on_cpu
def test_weights_that_sum_to_0() -> None:
    accumulator = HistogramAccumulator(bins=8)
    x, weight = torch.rand(2, 1, 4), torch.tensor([[[1.0] * 4], [[0.0] * 4]])
    accumulator.update(x, weight=weight)
    message = r"weight must have a positive sum for every image and channel, got \[\[4.0\], \[0.0\]\]"
    with pytest.raises(ValueError, match=message):
        accumulator.compute()
    with pytest.raises(ValueError, match=message):
        accumulator.gradient(torch.ones(2, 1, 8), x, weight=weight)
    accumulator.update(x, weight=1 - weight)
    expected = soft_histogram(x, bins=8, weight=torch.ones_like(x), exact=True)
    assert torch.equal(accumulator.compute(), expected)


def test_nothing_counted() -> None:
    accumulator = HistogramAccumulator(bins=8)
    with pytest.raises(RuntimeError, match=r"compute\(\) needs an update\(\) before it"):
        accumulator.compute()
    with pytest.raises(RuntimeError, match=r"gradient\(\) needs an update\(\) before it"):
        accumulator.gradient(torch.ones(1, 1, 8), torch.rand(1, 1, 4))
    accumulator.update(torch.rand(1, 1, 0, 4))
    accumulator.update(torch.rand(1, 1, 0), weight=torch.rand(0))
    with pytest.raises(RuntimeError, match=r"compute\(\) needs an update\(\) with a pixel before it"):
        accumulator.compute()


@on_cpu
def test_weights_that_add_up_to_too_much() -> None:
    """2^12 pixels of 2^20 are half of what 63 bits hold."""
    accumulator = HistogramAccumulator(bins=8)
    x, weight = torch.rand(1, 1, 2**12), torch.tensor(2.0**20)
    accumulator.update(x, weight=weight)
    expected = accumulator.compute()
    other = sent(accumulator)
    with pytest.raises(ValueError, match="which does not fit into 63 bits"):
        accumulator.update(x, weight=weight)
    with pytest.raises(ValueError, match="which does not fit into 63 bits"):
        accumulator.merge(other)
    assert torch.equal(accumulator.compute(), expected)
    accumulator.update(x[..., :-1], weight=weight)
    assert accumulator.pixels == 2**13 - 1


def test_pixels_that_are_too_many() -> None:
    accumulator = HistogramAccumulator(bins=8)
    x = torch.rand(1, 1, 2**10, dtype=torch.float64)
    accumulator.update(x)
    expected = accumulator.compute()
    while accumulator.pixels < 2**32:
        accumulator.merge(sent(accumulator))
    assert torch.equal(accumulator.compute(), expected)
    with pytest.raises(ValueError, match=r"at most 2\*\*32 pixels per image and channel, got 4294968320"):
        accumulator.update(x)
    with pytest.raises(ValueError, match=r"at most 2\*\*32 pixels per image and channel, got 8589934592"):
        accumulator.merge(sent(accumulator))
    assert accumulator.pixels == 2**32


OTHERS: list[tuple[HistogramAccumulator, str]] = [
    (HistogramAccumulator(9), "other must have bins of x 8 as the accumulator has, got 9"),
    (
        HistogramAccumulator(8, (0.0, 1.0)),
        r"other must have range of x \[-1.0, 1.0\] as .*, got \[0.0, 1.0\]",
    ),
    (
        HistogramAccumulator(8, bandwidth=1.0),
        "other must have bandwidth of x 0.4 as the accumulator has, got 1.0",
    ),
    (HistogramAccumulator(8, boundary="open"), "other must have boundary of x reflect as .*, got open"),
    (
        HistogramAccumulator(8, kernel="gaussian", bandwidth=0.4),
        "other must have kernel of x sigmoid as .*, got",
    ),
    (HistogramAccumulator(8, joint=True), "other must have joint False as the accumulator has, got True"),
]


@pytest.mark.parametrize(("other", "message"), OTHERS)
def test_unlike_accumulators_are_not_merged(other: HistogramAccumulator, message: str) -> None:
    accumulator = HistogramAccumulator(8)
    accumulator.update(torch.rand(1, 1, 4))
    with pytest.raises(ValueError, match=message):
        accumulator.merge(other)
    with pytest.raises(ValueError, match=message.replace("other", "state", 1)):
        accumulator.load_state_dict(other.state_dict())
    assert accumulator.pixels == 4


def test_unlike_images_are_not_merged() -> None:
    accumulator, unlike = HistogramAccumulator(8), HistogramAccumulator(8)
    accumulator.update(torch.rand(2, 3, 4))
    for x, message in (
        (torch.rand(2, 1, 4), r"other must have \(B, C\) \[2, 3\] as the accumulator has, got \[2, 1\]"),
        (torch.rand(2, 3, 4).double(), "other must have dtype float32 as the accumulator has, got float64"),
    ):
        unlike.reset()
        unlike.update(x)
        with pytest.raises(ValueError, match=message):
            accumulator.merge(unlike)
    with pytest.raises(ValueError, match="other must be another accumulator, got this one itself"):
        accumulator.merge(accumulator)
    with pytest.raises(TypeError, match="other must be of type HistogramAccumulator, got Tensor"):
        accumulator.merge(torch.ones(3))


def test_states_that_are_none() -> None:
    accumulator = HistogramAccumulator(8)
    with pytest.raises(TypeError, match=r"state must be what state_dict\(\) gave, got int"):
        accumulator.load_state_dict(3)
    with pytest.raises(ValueError, match=r"state must have the keys .*'binning'.*, got \['counts'\]"):
        accumulator.load_state_dict({"counts": 3})


def test_gradients_that_do_not_fit() -> None:
    accumulator = HistogramAccumulator(8)
    x = torch.rand(2, 3, 4)
    accumulator.update(x)
    with pytest.raises(
        ValueError, match=r"grad must have the shape of the histogram, \(2, 3, 8\), got \(2, 3\)"
    ):
        accumulator.gradient(torch.ones(2, 3), x)
    with pytest.raises(TypeError, match=r"grad must be a torch.Tensor, got float"):
        accumulator.gradient(1.0, x)
    with pytest.raises(TypeError, match=r"grad must be float16, .*, got torch.int64"):
        accumulator.gradient(torch.ones(2, 3, 8, dtype=torch.int64), x)
