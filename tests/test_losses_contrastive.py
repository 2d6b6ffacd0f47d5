"""PatchNCELoss: a softmax written out in float64, what has a gradient, values known exactly, bad input."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck

from asserters import assert_gradient, assert_value
from devices import here
from histloss import PatchNCELoss

pytestmark = pytest.mark.usefixtures("device")


def features(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for shape in shapes]


SHAPES = (2, 4, 3, 5), (2, 6, 2, 3)
CHANNELS = 4, 6


def written_out(loss: PatchNCELoss, queries: list[Tensor], keys: list[Tensor]) -> Tensor:
    """Image by image, place by place, over all places."""
    layers = []
    for i, (query, key) in enumerate(zip(queries, keys, strict=True)):
        terms = []
        for of_query, of_key in zip(query.flatten(2), key.flatten(2), strict=True):
            zq, zk = of_query.T, of_key.T
            if loss.heads is not None:
                head = copy.deepcopy(loss.heads[i]).double()
                zq, zk = (
                    (z @ head.first.weight.T + head.first.bias).clamp(min=0) @ head.second.weight.T
                    + head.second.bias
                    for z in (zq, zk)
                )
            zq, zk = (z / z.square().sum(1, keepdim=True).sqrt() for z in (zq, zk))
            for s, z in enumerate(zq):
                chances = torch.softmax(torch.stack([z @ k for k in zk]) / loss.temperature, 0)
                terms.append(-chances[s].log())
        layers.append(torch.stack(terms).mean())
    return torch.stack(layers).mean()


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 1.3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_against_a_softmax_written_out(heads: bool, temperature: float, dtype: torch.dtype) -> None:
    """With the default `patches`, more than a layer has places."""
    loss = PatchNCELoss(CHANNELS, dim=7, temperature=temperature, heads=heads)
    queries, keys = features(*SHAPES, dtype=dtype), features(*SHAPES, dtype=dtype)
    for q in queries:
        q.requires_grad_()
    wide = [q.detach().double().requires_grad_() for q in queries]
    value, expected = loss(queries, keys), written_out(loss, wide, [k.double() for k in keys])
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_value(value, expected)
    for found, wanted in zip(grad(value, queries), grad(expected, wide), strict=True):
        assert_gradient(found, wanted)


@pytest.mark.parametrize("patches", [2, 5, 12, 50])
def test_the_places_are_the_same_in_queries_and_keys(patches: int) -> None:
    """A direction of its own at each place, so that any other place in the keys would cost more."""
    x = torch.eye(12).reshape(1, 12, 3, 4).expand(2, -1, -1, -1) * (1 + torch.rand(2, 1, 3, 4))
    loss = PatchNCELoss([12], patches, temperature=0.5, heads=False)
    expected = math.log(1 + (min(patches, 12) - 1) * math.exp(-2))
    for _ in range(3):
        assert loss([x], [x]).item() == pytest.approx(expected, rel=1e-5)


def test_the_places_are_drawn_anew_and_by_the_global_generator() -> None:
    loss, queries, keys = PatchNCELoss([4], 6, heads=False), features((1, 4, 5, 5)), features((1, 4, 5, 5))
    query = queries[0].requires_grad_()

    def draw() -> Tensor:
        return grad(loss(queries, keys), query)[0].any(1).flatten()

    places = [draw() for _ in range(60)]
    assert {int(p.sum()) for p in places} == {6}
    assert torch.stack(places).any(0).all()  # each of 25 places at some time
    torch.manual_seed(3)
    first = draw()
    torch.manual_seed(3)
    assert torch.equal(draw(), first)


def test_negatives_are_of_the_same_image() -> None:
    loss, (q,), (k,) = PatchNCELoss([4], heads=False), features((3, 4, 3, 3)), features((3, 4, 3, 3))
    alone = torch.stack([loss([q[i : i + 1]], [k[i : i + 1]]) for i in range(3)])
    torch.testing.assert_close(loss([q], [k]), alone.mean())


def test_keys_have_no_gradient() -> None:
    loss = PatchNCELoss(CHANNELS, dim=7)
    queries, keys = features(*SHAPES), features(*SHAPES)
    for x in (*queries, *keys):
        x.requires_grad_()
    loss(queries, keys).backward()
    assert all(k.grad is None for k in keys)
    assert all(bool(x.grad.any()) for x in (*queries, *loss.parameters()))


def test_the_heads_learn_from_queries_alone() -> None:
    """Their gradient is that of a loss in which the keys' directions are constants."""
    loss = PatchNCELoss([4], dim=7, temperature=1).double()
    (q,), (k,) = features((2, 4, 3, 3), dtype=torch.float64), features((2, 4, 3, 3), dtype=torch.float64)
    parameters = list(loss.parameters())
    constant = copy.deepcopy(loss.heads[0])
    zq, zk = (
        nn.functional.normalize(head(x.flatten(2).mT), dim=-1)
        for head, x in ((loss.heads[0], q), (constant, k))
    )
    labels = torch.arange(9).repeat(2)
    expected = nn.functional.cross_entropy((zq @ zk.detach().mT).flatten(0, 1), labels)
    for found, wanted in zip(grad(loss([q], [k]), parameters), grad(expected, parameters), strict=True):
        assert_gradient(found, wanted, floor=1e-3)


@pytest.mark.parametrize("heads", [False, True])
def test_features_without_a_direction(heads: bool) -> None:
    """Places where an encoder's ReLU leaves nothing: finite, and without a gradient."""
    loss = PatchNCELoss([4], dim=7, heads=heads)
    (q,), (k,) = features((1, 4, 3, 3)), features((1, 4, 3, 3))
    q[..., 0, 0] = k[..., 1, 1] = 0
    q.requires_grad_()
    value = loss([q], [k])
    (gradient,) = grad(value, q)
    assert bool(value.isfinite())
    assert bool(gradient.isfinite().all())
    if not heads:
        assert not gradient[..., 0, 0].any()


@pytest.mark.parametrize("spatial", [(30,), (2, 3, 5)])
def test_any_number_of_spatial_dimensions(spatial: tuple[int, ...]) -> None:
    loss, (q,), (k,) = PatchNCELoss([4], heads=False), features((2, 4, 30)), features((2, 4, 30))
    shaped = loss([q.reshape(2, 4, *spatial)], [k.reshape(2, 4, *spatial)])
    torch.testing.assert_close(shaped, loss([q], [k]))


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kept", [torch.float16, torch.float32])
def test_autocast_and_half_heads_leave_the_arithmetic_alone(
    device: torch.device, low: torch.dtype, kept: torch.dtype
) -> None:
    loss, queries, keys = PatchNCELoss(CHANNELS, dim=7).to(kept), features(*SHAPES), features(*SHAPES)
    expected = written_out(loss, [q.double() for q in queries], [k.double() for k in keys])
    with torch.autocast(device.type, dtype=low):
        value = loss(queries, keys)
    assert value.dtype == torch.float32
    assert_value(value, expected)


def test_layers_and_keys_of_other_dtypes() -> None:
    loss = PatchNCELoss(CHANNELS, heads=False)
    queries, keys = features(*SHAPES), features(*SHAPES, dtype=torch.float64)
    queries[1] = queries[1].half()
    expected = written_out(loss, [q.double() for q in queries], keys)
    value = loss(queries, keys)
    assert value.dtype == torch.float64
    assert_value(value, expected)


@pytest.mark.parametrize("heads", [False, True])
def test_gradients(heads: bool) -> None:
    loss = PatchNCELoss([3], dim=4, temperature=1, heads=heads).double()
    (q,), keys = features((1, 3, 2, 2), dtype=torch.float64), features((1, 3, 2, 2), dtype=torch.float64)
    q.requires_grad_()
    assert gradcheck(lambda x: loss([x], keys), q)
    assert gradgradcheck(lambda x: loss([x], keys), q)


@pytest.mark.parametrize("place", ["query", "key"])
def test_nan_is_not_hidden(place: str) -> None:
    queries, keys = features(*SHAPES), features(*SHAPES)
    (queries if place == "query" else keys)[1][0, 0, 0, 0] = math.nan
    assert bool(PatchNCELoss(CHANNELS)(queries, keys).isnan())


def test_compiles_into_one_graph() -> None:
    loss, queries, keys = PatchNCELoss(CHANNELS, dim=7), features(*SHAPES), features(*SHAPES)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(queries, keys), loss(queries, keys))


def test_it_is_a_module() -> None:
    loss, queries, keys = PatchNCELoss(CHANNELS, dim=7), features(*SHAPES), features(*SHAPES)
    other = PatchNCELoss(CHANNELS, dim=7)
    expected = loss(queries, keys)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(other(queries, keys), expected)
    other.load_state_dict(loss.state_dict())
    for same in (other, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(same) == repr(loss)
        torch.testing.assert_close(same(queries, keys), expected)
    assert list(PatchNCELoss(CHANNELS, heads=False).state_dict()) == []
    assert "channels=(4, 6), patches=256, dim=7, temperature=0.07, heads=True" in repr(loss)


# ---- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PatchNCELoss(64), TypeError, "channels must be a sequence of ints, one per layer, got 64"),
        (lambda: PatchNCELoss([]), ValueError, r"channels must name at least one layer, got \[\]"),
        (lambda: PatchNCELoss([64, 0]), ValueError, r"channels\[1\] must be at least 1, got 0"),
        (lambda: PatchNCELoss([64.0]), TypeError, r"channels\[0\] must be an int, got 64\.0"),
        (lambda: PatchNCELoss([4], 1), ValueError, "patches must be at least 2, got 1"),
        (lambda: PatchNCELoss([4], dim=0), ValueError, "dim must be at least 1, got 0"),
        (lambda: PatchNCELoss([4], temperature=0), ValueError, "temperature must be positive, got 0"),
        (lambda: PatchNCELoss([4], temperature=-1), ValueError, "temperature must be positive, got -1"),
        (lambda: PatchNCELoss([4], temperature=math.nan), ValueError, "temperature must be finite, got nan"),
        (lambda: PatchNCELoss([4], heads=1), TypeError, "heads must be True or False, got 1"),
    ],
)
def test_bad_options(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


X = torch.zeros(2, 4, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, [X]), TypeError, "queries must be a sequence of tensors, one per layer, got Tensor"),
        (([X], None), TypeError, "keys must be a sequence of tensors, one per layer, got NoneType"),
        (([X, X], [X]), ValueError, "queries must have one tensor for each of 1 layers, got 2"),
        (([X], []), ValueError, "keys must have one tensor for each of 1 layers, got 0"),
        (([X.int()], [X]), TypeError, r"queries\[0\] must be float16, .* got torch.int32"),
        (([X[0, 0]], [X]), ValueError, r"queries\[0\] must have shape \(B, C, \*spatial\), got \(3, 3\)"),
        (
            ([X[:0]], [X[:0]]),
            ValueError,
            r"queries\[0\] must hold at least one value, got shape \(0, 4, 3, 3\)",
        ),
        (([X[:, :3]], [X]), ValueError, r"queries\[0\] must have 4 channels, got shape \(2, 3, 3, 3\)"),
        (
            ([X[..., :1, :1]], [X]),
            ValueError,
            r"queries\[0\] must have at least 2 places, got .*\(2, 4, 1, 1\)",
        ),
        (
            ([X], [X[:, :3]]),
            ValueError,
            r"keys\[0\] must have the shape of queries\[0\], .* got \(2, 3, 3, 3\)",
        ),
        (
            ([X], [X[..., :2]]),
            ValueError,
            r"keys\[0\] must have the shape of queries\[0\], .* \(2, 4, 3, 2\)",
        ),
        (([X], [X[:1]]), ValueError, r"keys\[0\] must have the shape of queries\[0\], .* got \(1, 4, 3, 3\)"),
        (([X], [[1.0]]), TypeError, r"keys\[0\] must be a torch.Tensor .* got list"),
        (([X], [X.to("meta")]), ValueError, r"keys\[0\] must be on {device}, got meta"),
        (([X.to("meta")], [X]), ValueError, r"queries\[0\] must be on {device}, got meta"),
    ],
)
def test_bad_arguments(
    device: torch.device, arguments: tuple[Any, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace("{device}", str(device))):
        PatchNCELoss([4], dim=3)(*here(arguments))
