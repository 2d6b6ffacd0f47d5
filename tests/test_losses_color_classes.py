"""Bins of ab, their prior and the rebalanced cross-entropy: the paper's facts, a dense oracle, bad input."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asserters import assert_agrees, assert_gradient, assert_value
from devices import on_cpu
from histloss import ColorBins, ColorPrior, RebalancedColorLoss
from histloss.color import lab_to_rgb, rgb_to_lab
from tolerances import TOLERANCES

pytestmark = pytest.mark.usefixtures("device")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COARSE = ColorBins(50)
AB = 110  # CIE Lab's units in one of an image

PUBLISHED = {  # least and largest b of the bins of each a, in the paper's published network
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100),
    -30: (-50, 100), -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90),
    30: (-90, 90), 40: (-100, 90), 50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70),
    90: (-110, 70), 100: (-90, 0),
}  # fmt: skip


def colors(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """ab of random sRGB colours, shape (B, 2, *spatial)."""
    batch, *spatial = shape
    return rgb_to_lab(torch.rand(batch, 3, *spatial, dtype=torch.float64) * 2 - 1)[:, 1:].to(dtype)


def cube(levels: int) -> Tensor:
    """ab of sRGB with so many levels, (1, 2, N), float64."""
    line = torch.linspace(-1, 1, levels, dtype=torch.float64)
    return rgb_to_lab(torch.cartesian_prod(line, line, line).T[None])[:, 1:]


def prior(bins: ColorBins = COARSE) -> Tensor:
    return torch.rand(len(bins), dtype=torch.float64).softmax(0)


def grey_prior() -> ColorPrior:
    """Of one grey pixel."""
    counted = ColorPrior()
    counted.update(torch.zeros(1, 2, 1))
    return counted


def points(bins: ColorBins) -> Tensor:
    """The centres in CIE Lab, exactly, (Q, 2), float64."""
    return (AB * bins.centers.double() / bins.grid).round().mul(bins.grid).to(torch.get_default_device())


def dense_target(bins: ColorBins, ab: Tensor, neighbours: int = 5, sigma: float = 5.0) -> Tensor:
    """The definition in float64: (B, Q, *spatial) with all its zeros."""
    x = AB * ab.double().movedim(1, -1).unsqueeze(-2)
    squares = (x - points(bins)).square().sum(-1)
    nearest = squares.topk(neighbours, largest=False).indices
    z = torch.full_like(squares, -math.inf).scatter(-1, nearest, 0)
    return (z - squares / (2 * sigma**2)).softmax(-1).movedim(-1, 1)


def dense_loss(loss: RebalancedColorLoss, logits: Tensor, ab: Tensor) -> Tensor:
    """The definition in float64, shape (B, *spatial)."""
    z = dense_target(loss.bins, ab, loss.neighbours, loss.sigma)
    nearest = dense_target(loss.bins, ab, 1).argmax(1)
    w = 1 if loss.weights is None else loss.weights.double()[nearest]
    return -w * (z * logits.double().log_softmax(1)).sum(1)


# ---- bins ------------------------------------------------------------------------------------------


def test_the_bins_are_those_of_the_paper() -> None:
    published = [(a, b) for a, (low, high) in PUBLISHED.items() for b in range(low, high + 1, 10)]
    bins = ColorBins()
    assert len(bins) == len(published) == 313
    assert (AB * bins.centers).round().int().tolist() == [list(point) for point in published]


@pytest.mark.parametrize(("levels", "rounded", "counted"), [(52, 260, 322), (86, 261, 323)])
def test_the_other_counts_of_the_docstring(levels: int, rounded: int, counted: int) -> None:
    """All 256 levels give what every third gives."""
    found = {tuple(point) for point in (AB / 10 * cube(levels)[0]).round().int().unique(dim=1).T.tolist()}
    assert len(found) == rounded
    steps = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    cross = {(a + i, b + j) for a, b in found for i, j in steps}
    assert len(cross) == counted
    ours = {tuple(point) for point in points(ColorBins()).div(10).tolist()}
    assert (ours < cross) == (counted == 323)


@pytest.mark.parametrize("grid", [5, 10, 33.3, 110])
def test_every_color_lies_between_four_bins(grid: float) -> None:
    """On the surface of the cube and inside."""
    bins = ColorBins(grid)
    here = {tuple(point) for point in points(bins).div(bins.grid).round().tolist()}
    lower = (AB * cube(40)[0] / grid).floor().int().unique(dim=1).T.tolist()
    assert all((a + i, b + j) in here for a, b in lower for i in (0, 1) for j in (0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", [5, 10, 50, 110])
def test_every_color_is_in_gamut(grid: float, dtype: torch.dtype) -> None:
    indices, weights = ColorBins(grid).encode(cube(33).to(dtype))
    assert indices.max() < len(ColorBins(grid))
    assert bool(weights.isfinite().all())


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("neighbours", [1, 2, 5, 9, 26])
@pytest.mark.parametrize("grid", [10, 50])
def test_the_nearest_are_found(grid: float, neighbours: int) -> None:
    """Random colours; bins, points between them and beside those, where the nearest change; the rim."""
    bins = ColorBins(grid)
    line = torch.tensor([-0.5, -1e-9, 0, 1e-9, 0.25, 0.5], dtype=torch.float64)
    at = (points(bins)[:, None] + grid * torch.cartesian_prod(line, line)).reshape(-1, 2)
    at = at[distances(at, bins).amin(1) < 0.75 * grid]
    rim = cube(2)[0].T * AB
    lab = torch.cat((colors(1, 500, dtype=torch.float64)[0].T * AB, at, rim))
    indices, _ = bins.encode(lab.T[None] / AB, neighbours)
    every = distances(lab, bins)
    found = every.gather(1, indices[0].T)
    torch.testing.assert_close(found, every.topk(neighbours, largest=False).values, rtol=0, atol=1e-12)
    assert all(len(set(row)) == neighbours for row in indices[0].T.tolist())


def distances(lab: Tensor, bins: ColorBins) -> Tensor:
    """Of every point (N, 2) to every bin, (N, Q)."""
    return (lab[:, None] - points(bins)).norm(dim=-1)


@pytest.mark.usefixtures("path")
def test_equally_near_bins_come_in_their_order() -> None:
    bins = ColorBins()
    middle = torch.tensor([0.0, 0.0]).reshape(1, 2, 1)
    assert points(bins)[bins.encode(middle)[0][0, :, 0]].tolist() == [
        [0, 0],
        [-10, 0],
        [0, -10],
        [0, 10],
        [10, 0],
    ]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", [(2, 7), (1, 3, 4), (2, 2, 3, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_encoding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    bins, ab = ColorBins(), colors(*shape, dtype=dtype).requires_grad_()
    indices, weights = bins.encode(ab)
    assert indices.shape == weights.shape == (shape[0], 5, *shape[1:])
    assert indices.dtype == torch.int64
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not weights.requires_grad
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    assert bool((weights.diff(dim=1) <= 0).all())
    z = torch.zeros(shape[0], len(bins), *shape[1:], dtype=torch.float64)
    z.scatter_(1, indices, weights.double())
    atol = 1e-14 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(z, dense_target(bins, ab.detach()), rtol=0, atol=atol)


def test_one_hot_is_the_limit_of_one_neighbour_and_of_a_narrow_gaussian() -> None:
    bins, ab = ColorBins(), colors(1, 200)
    one, whole = bins.encode(ab, neighbours=1)
    assert bool((whole == 1).all())
    five, weights = bins.encode(ab, sigma=1e-4)
    assert torch.equal(five[:, :1], one)
    assert (weights[:, 0] == 1).float().mean() > 0.99  # but for colours between two bins


def test_decoding_at_both_ends_of_the_temperature() -> None:
    bins, logits = ColorBins(), torch.randn(2, 313, 4, 3)
    centers = bins.centers.to(logits.device)
    mean = torch.einsum("bqhw,qc->bchw", logits.softmax(1), centers)
    assert_value(bins.decode(logits, temperature=1), mean.double())
    mode = centers[logits.argmax(1)].movedim(-1, 1)
    assert torch.equal(bins.decode(logits, temperature=1e-6), mode)
    assert torch.equal(bins.decode(1e30 * logits, temperature=1e-6), mode)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoding_against_the_definition(dtype: torch.dtype) -> None:
    bins, logits = COARSE, torch.randn(3, 26, 5).to(dtype)
    ab = bins.decode(logits)
    centers = bins.centers.to(logits.device).double()
    expected = torch.einsum("bqs,qc->bcs", (logits.double() / 0.38).softmax(1), centers)
    assert ab.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_agrees(ab, expected, TOLERANCES[torch.float32].value)
    assert gradcheck(bins.decode, torch.randn(2, 26, 2, dtype=torch.float64).requires_grad_())


def test_a_decoded_code_is_near_the_color() -> None:
    """Within the grid's half diagonal for one neighbour."""
    bins, ab = ColorBins(), colors(2, 500)
    indices, weights = bins.encode(ab, neighbours=1)
    logits = torch.zeros(2, 313, 500).scatter_(1, indices, 100 * weights)
    distance = AB * (bins.decode(logits) - ab).norm(dim=1)
    assert distance.max() <= 10 / math.sqrt(2) + 1e-3
    assert bool(lab_to_rgb(torch.cat((0 * ab[:, :1], bins.decode(logits)), 1)).isfinite().all())


# ---- prior -----------------------------------------------------------------------------------------


def test_a_prior_counts_nearest_bins() -> None:
    counted = ColorPrior()
    batches = [colors(2, 5, 6), colors(1, 9)]
    for ab in batches:
        counted.update(ab)
    nearest = torch.cat([counted.bins.encode(ab, neighbours=1)[0].flatten() for ab in batches])
    assert counted.pixels == 69
    assert counted.counts.tolist() == nearest.bincount(minlength=313).tolist()
    torch.testing.assert_close(counted.probabilities(sigma=0), counted.counts.double() / 69)


def test_smoothing_keeps_the_mass_and_spreads_it() -> None:
    counted = ColorPrior()
    counted.update(torch.zeros(1, 2, 4))
    p = counted.probabilities()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    distance = AB * counted.bins.centers.double().norm(dim=1)
    assert p.argmax() == distance.argmin()
    near = distance < 30
    gaussian = (distance**2 / -50).exp()
    torch.testing.assert_close(p[near] / p.max(), gaussian[near], rtol=1e-5, atol=0)


def test_a_prior_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "prior.json"
    saved = ColorPrior(COARSE)
    saved.update(colors(2, 50))
    saved.save(path)
    for loaded in (ColorPrior.load(path), ColorPrior.load(str(path), COARSE)):
        assert loaded.bins == COARSE
        assert torch.equal(loaded.counts, saved.counts)
    with pytest.raises(
        ValueError, match=r"must be a prior of ColorBins\(grid=10.0\), got one of ColorBins\(grid=50"
    ):
        ColorPrior.load(path, ColorBins())
    with pytest.raises(ValueError, match="prior must be a prior of"):
        RebalancedColorLoss(loaded, ColorBins())
    assert RebalancedColorLoss(loaded).bins == COARSE


def damage(**changes: Any) -> Callable[[dict[str, Any]], str]:
    def change(content: dict[str, Any]) -> str:
        ((form, fields),) = content.items()
        return json.dumps({form: fields | changes})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: json.dumps(content)[:-9], "must be a file that ColorPrior.save wrote"),
        (lambda content: "", "must be a file that ColorPrior.save wrote"),
        (lambda content: "[1]", "must be a file that ColorPrior.save wrote"),
        (lambda content: "\udcff", "must be a file that ColorPrior.save wrote"),
        (lambda content: json.dumps({"other": content}), "must be a file that ColorPrior.save wrote"),
        (damage(grid="10"), "must be a file that ColorPrior.save wrote"),
        (damage(grid=-1), "must be a file that ColorPrior.save wrote"),
        (damage(pixels=7), "must be a file that ColorPrior.save wrote"),
        (damage(counts=3), "must be a file that ColorPrior.save wrote"),
        (damage(counts=[math.nan] * 26), "must be a file that ColorPrior.save wrote"),
        (damage(counts=[-1, 101] + [0] * 24), "must be a file that ColorPrior.save wrote"),
        (damage(counts=[4.0] * 25 + [0]), "must be a file that ColorPrior.save wrote"),
        (damage(counts=[0] * 26, pixels=0), "must be a prior that has counted a pixel, got an empty one"),
        (damage(grid=10), "must hold 313 bins, of grid 10, got 26"),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], str], message: str
) -> None:
    path = tmp_path / "prior.json"
    saved = ColorPrior(COARSE)
    saved.update(colors(2, 50))
    saved.save(path)
    path.write_bytes(change(json.loads(path.read_text())).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"prior.json {message}"):
        ColorPrior.load(path)


def test_an_empty_prior_is_refused(tmp_path: Path) -> None:
    empty = ColorPrior()
    for use in (empty.probabilities, lambda: empty.save(tmp_path / "p"), lambda: RebalancedColorLoss(empty)):
        with pytest.raises(ValueError, match="the prior must have counted a pixel, got an empty one"):
            use()
    assert not (tmp_path / "p").exists()


# ---- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0, 0.25, 0.5, 1])
def test_weights_are_one_on_average(lam: float) -> None:
    p = prior(ColorBins())
    w = RebalancedColorLoss(p, lam=lam).weights
    assert w is not None
    assert (p @ w.double()).item() == pytest.approx(1, abs=1e-7)
    expected = 1 / ((1 - lam) * p + lam / 313)
    torch.testing.assert_close(w.double() / w[0], expected / expected[0], rtol=1e-6, atol=0)


def test_weights_at_both_ends_of_lambda() -> None:
    p = prior()
    one, inverse = (RebalancedColorLoss(p, COARSE, lam=lam).weights for lam in (1, 0))
    torch.testing.assert_close(one.double(), torch.ones_like(p), rtol=0, atol=1e-7)
    torch.testing.assert_close(inverse.double(), 1 / p / 26, rtol=1e-6, atol=0)
    p = torch.eye(26)[3]
    assert RebalancedColorLoss(p, COARSE).weights.tolist() == pytest.approx(
        [1.0 if q == 3 else 27.0 for q in range(26)]
    )
    with pytest.raises(ValueError, match="lam must be positive for a prior with empty bins"):
        RebalancedColorLoss(p, COARSE, lam=0)


# ---- loss ------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"neighbours": 1},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"lam": 0.0, "sigma": 20.0, "neighbours": 3},
]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rebalanced", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_dense_definition(dtype: torch.dtype, rebalanced: bool, options: dict[str, Any]) -> None:
    """Value and gradient, for an upstream gradient that is not 1 and then, again, for 1."""
    loss = RebalancedColorLoss(prior() if rebalanced else None, COARSE, **options)
    ab = colors(3, 4, 5, dtype=torch.float64)
    x = (3 * torch.randn(3, 26, 4, 5)).to(dtype).requires_grad_()
    e = x.detach().double().requires_grad_()
    expected = dense_loss(loss, e, ab)
    expected = {"mean": expected.mean, "sum": expected.sum, "none": lambda: expected}[loss.reduction]()
    found = loss(x, ab)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_agrees(found, expected, TOLERANCES[found.dtype].value)
    for upstream in (torch.rand_like(expected) + 0.5, torch.ones_like(expected)):
        (gradient,) = torch.autograd.grad(found, x, upstream.to(found.dtype), retain_graph=True)
        (exact,) = torch.autograd.grad(expected, e, upstream, retain_graph=True)
        assert gradient.dtype == dtype
        assert_gradient(gradient, exact)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", [(2, 2000), (40, 3), (2000, 1), (2, 50, 61), (1, 2, 3, 4, 5)])
def test_any_number_of_pixels_and_dimensions(shape: tuple[int, ...]) -> None:
    """Also more than the pixels, or the images, that are taken at a time."""
    loss = RebalancedColorLoss(prior(ColorBins()), reduction="none")
    ab, x = colors(*shape), torch.randn(shape[0], 313, *shape[1:]).requires_grad_()
    found, expected = loss(x, ab), dense_loss(loss, x, ab)
    assert_value(found, expected)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)]
    assert_gradient(gradients[0], gradients[1].double())


@pytest.mark.usefixtures("path")
def test_channels_last_and_strided_logits() -> None:
    loss, ab = RebalancedColorLoss(prior(ColorBins())), colors(2, 30, 31)
    x = torch.randn(2, 313, 30, 31)
    expected = torch.autograd.grad(loss(x.requires_grad_(), ab), x)[0]
    for other in (
        x.detach().to(memory_format=torch.channels_last),
        torch.stack((x.detach(), x.detach()), -1)[..., 0],
        x.detach().mT.contiguous().mT,
    ):
        value = loss(other.requires_grad_(), ab)
        torch.testing.assert_close(value, loss(x, ab))
        torch.testing.assert_close(torch.autograd.grad(value, other)[0], expected)


def test_one_hot_without_a_prior_is_cross_entropy() -> None:
    ab, x = colors(2, 6, 5), torch.randn(2, 313, 6, 5)
    loss = RebalancedColorLoss(neighbours=1)
    torch.testing.assert_close(loss(x, ab), F.cross_entropy(x, loss.bins.encode(ab, neighbours=1)[0][:, 0]))


def test_one_hot_is_the_limit_of_a_narrow_gaussian() -> None:
    """But for colours between two bins."""
    ab, x = colors(1, 50), torch.randn(1, 313, 50)
    narrow, one_hot = RebalancedColorLoss(sigma=1e-3), RebalancedColorLoss(neighbours=1)
    torch.testing.assert_close(narrow(x, ab), one_hot(x, ab))


def test_the_loss_is_least_at_its_target() -> None:
    """The gradient vanishes, at the entropy of the target times the weight."""
    ab = colors(2, 4, dtype=torch.float64)
    loss = RebalancedColorLoss(prior(), COARSE, sigma=30.0, neighbours=26)
    z = dense_target(COARSE, ab, 26, 30.0)
    x = z.clamp(min=1e-300).log().requires_grad_()
    value = loss(x, ab)
    assert torch.autograd.grad(value, x)[0].abs().max() < 1e-12
    assert value.item() == pytest.approx(dense_loss(loss, x, ab).mean().item(), rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives(reduction: str) -> None:
    loss = RebalancedColorLoss(prior(), COARSE, reduction=reduction)
    ab = colors(2, 3, dtype=torch.float64)
    x = torch.randn(2, 26, 3, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda logits: loss(logits, ab), x)
    assert gradgradcheck(lambda logits: loss(logits, ab), x)


def test_torch_func_gives_the_same_gradient() -> None:
    loss, ab = RebalancedColorLoss(prior(), COARSE), colors(2, 3)
    x = torch.randn(2, 26, 3)
    expected = torch.autograd.grad(loss(x.requires_grad_(), ab), x)[0]
    torch.testing.assert_close(torch.func.grad(loss)(x.detach(), ab), expected)


def test_forward_mode_is_refused() -> None:
    loss, ab, x = RebalancedColorLoss(None, COARSE), colors(2, 3), torch.randn(2, 26, 3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        loss(torch.autograd.forward_ad.make_dual(x, x), ab)


@on_cpu
def test_compiled() -> None:
    """The loss stays out of the graph, which goes on before and after it."""
    loss, ab = RebalancedColorLoss(prior(), COARSE), colors(2, 3)
    x = torch.randn(2, 26, 3).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(lambda logits: 2 * loss(logits * 3, ab), backend="aot_eager")
    values = [f(x) for f in (compiled, lambda logits: 2 * loss(logits * 3, ab))]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*[torch.autograd.grad(value, x)[0] for value in values])


def test_autocast_leaves_it_alone(device: torch.device) -> None:
    loss, ab, x = RebalancedColorLoss(prior(), COARSE), colors(2, 3), torch.randn(2, 26, 3)
    with torch.autocast(device.type, torch.bfloat16):
        value, decoded = loss(x, ab), COARSE.decode(x)
    assert torch.equal(value, loss(x, ab))
    assert torch.equal(decoded, COARSE.decode(x))


@on_cpu
def test_the_target_is_never_built(path: str) -> None:
    """No op of a forward and backward makes a tensor of the logits' size but the gradient; without a gradient
    none does, nor does decoding.
    """
    made: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            given = {
                t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
            }
            for t in tree_leaves(result):
                if not isinstance(t, Tensor) or t.untyped_storage().data_ptr() in given:
                    continue
                if t.untyped_storage().nbytes() >= x.nbytes / 2:
                    made.append(func._opname)
            return result

    loss, ab = RebalancedColorLoss(prior(ColorBins())), colors(4, 64, 64)
    x = torch.randn(4, 313, 64, 64)
    with Watch():
        loss(x, ab)
        loss.bins.decode(x)
    assert made == []
    x.requires_grad_()
    with Watch(), torch.no_grad():
        loss(x, ab)
        loss.bins.decode(x)
    assert made == []
    with Watch():
        gradient = torch.autograd.grad(loss(x, ab), x)[0]
    assert made == ["color_cross_entropy" if path == "native" else "empty_like"]
    assert gradient.untyped_storage().nbytes() == x.nbytes
    x = x.detach().half().requires_grad_()
    made.clear()
    with Watch():
        torch.autograd.grad(loss(x, ab), x)
    assert made == ["color_cross_entropy" if path == "native" else "empty_like"]


@on_cpu
@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("images", [1, 3])
def test_the_same_bits_for_any_number_of_threads(images: int, restore_threads: None) -> None:
    loss, ab = RebalancedColorLoss(prior(), COARSE), colors(images, 300, 301)
    x = torch.randn(images, 26, 300, 301).requires_grad_()
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        value = loss(x, ab)
        results.append((value, *torch.autograd.grad(value, x), COARSE.decode(x)))
    for result in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))


def test_the_gradient_is_the_callers_own() -> None:
    """Of a second backward too, and where the first is changed in place."""
    loss, ab = RebalancedColorLoss(None, COARSE), colors(2, 3)
    x = torch.randn(2, 26, 3).requires_grad_()
    value = loss(x, ab)
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    kept = first.clone()
    first.zero_()
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], kept)


def test_it_is_a_module() -> None:
    loss = RebalancedColorLoss(prior(), COARSE, neighbours=3)
    ab, x = colors(2, 3), torch.randn(2, 26, 3)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(x, ab), loss(x, ab))
    other = RebalancedColorLoss(torch.full((26,), 1 / 26), COARSE, neighbours=3)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(x, ab), loss(x, ab))
    assert repr(loss) == (
        "RebalancedColorLoss(rebalanced=True, bins=ColorBins(grid=50.0), neighbours=3, sigma=5.0, lam=0.5, "
        "reduction='mean')"
    )


# ---- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ColorBins("10"), TypeError, "grid must be a number, got '10'"),
        (lambda: ColorBins(4), ValueError, "grid must be from 5 to 110, got 4"),
        (lambda: ColorBins(math.nan), ValueError, "grid must be from 5 to 110, got nan"),
        (lambda: ColorPrior(10), TypeError, "bins must be of type ColorBins, got int"),
        (lambda: RebalancedColorLoss(bins=10), TypeError, "bins must be of type ColorBins, got int"),
        (lambda: RebalancedColorLoss([1.0]), TypeError, "prior must be a ColorPrior, .* got list"),
        (lambda: RebalancedColorLoss(torch.ones(313).long()), TypeError, "prior must be float16, .*int64"),
        (lambda: RebalancedColorLoss(torch.ones(26)), ValueError, r"prior must .* \(313,\), got \(26,\)"),
        (lambda: RebalancedColorLoss(torch.ones(313)), ValueError, "sum to 1, .* a sum of 313"),
        (lambda: RebalancedColorLoss(torch.full((313,), math.nan)), ValueError, "sum to 1, .* a sum of nan"),
        (
            lambda: RebalancedColorLoss(torch.tensor([-1.0, 2.0] + [0] * 24), COARSE),
            ValueError,
            "prior must be non-negative .* a smallest value of -1",
        ),
        (lambda: RebalancedColorLoss(neighbours=2.0), TypeError, "neighbours must be an int, got 2.0"),
        (lambda: RebalancedColorLoss(neighbours=0), ValueError, "neighbours must be at least 1, got 0"),
        (lambda: RebalancedColorLoss(neighbours=314), ValueError, "at most the number of bins, 313, got 314"),
        (lambda: RebalancedColorLoss(sigma=0), ValueError, "sigma must be positive, got 0"),
        (lambda: RebalancedColorLoss(lam=2), ValueError, "lam must be from 0 to 1, got 2"),
        (lambda: RebalancedColorLoss(lam=None), TypeError, "lam must be a number, got None"),
        (lambda: RebalancedColorLoss(reduction="max"), ValueError, "reduction must be one of .* got 'max'"),
        (lambda: ColorPrior().probabilities(), ValueError, "the prior must have counted a pixel"),
        (lambda: grey_prior().probabilities(-1), ValueError, "sigma must not be negative, got -1"),
    ],
)
def test_bad_options(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


LOGITS, COLORS = (2, 26, 4), (2, 2, 4)


@pytest.mark.parametrize(
    ("logits", "ab", "error", "message"),
    [
        (None, COLORS, TypeError, "logits must be a torch.Tensor .* got NoneType"),
        ((2, 26), COLORS, ValueError, r"logits must have shape .* got \(2, 26\)"),
        ((2, 313, 4), COLORS, ValueError, r"logits must .* Q = 26 bins, got \(2, 313, 4\)"),
        ((0, 26, 4), (0, 2, 4), ValueError, "logits must hold at least one value"),
        (LOGITS, None, TypeError, "ab must be a torch.Tensor .* got NoneType"),
        (LOGITS, (2, 3, 4), ValueError, r"ab must .* = \(2, 2, 4\), got \(2, 3, 4\)"),
        (LOGITS, (2, 2, 5), ValueError, r"= \(2, 2, 4\), got \(2, 2, 5\)"),
        (LOGITS, (1, 2, 4), ValueError, r"= \(2, 2, 4\), got \(1, 2, 4\)"),
    ],
)
def test_bad_shapes(logits: Any, ab: Any, error: type[Exception], message: str) -> None:
    loss = RebalancedColorLoss(bins=COARSE)
    with pytest.raises(error, match=message):
        loss(*(None if shape is None else torch.zeros(shape) for shape in (logits, ab)))


def test_bad_dtypes_and_devices() -> None:
    loss, x, ab = RebalancedColorLoss(bins=COARSE), torch.zeros(LOGITS), torch.zeros(COLORS)
    with pytest.raises(TypeError, match=r"logits must be float16, .* got torch\.int64"):
        loss(x.long(), ab)
    with pytest.raises(TypeError, match=r"ab must be float16, .* got torch\.bool"):
        loss(x, ab.bool())
    with pytest.raises(ValueError, match=r"ab must be on .* got meta"):
        loss(x, ab.to("meta"))
    with pytest.raises(ValueError, match=r"ab must have shape \(B, 2, \*spatial\), got \(2, 3, 4\)"):
        COARSE.encode(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        COARSE.decode(x, 0)
    with pytest.raises(ValueError, match="Q = 313 bins"):
        ColorBins().decode(x)


BAD_COLORS = [
    (math.nan, r"ab must be finite, got a pixel of \(nan, 0\)"),
    (math.inf, r"ab must be finite, got a pixel of \(inf, 0\)"),
    (1.5, r"ab must be that of sRGB colours, .* got a pixel of \(1\.5, 0\)"),
    (50, r"ab must be that of sRGB colours, .* got a pixel of \(50, 0\)"),
]


@on_cpu  # elsewhere to look at values would be to wait for them
@pytest.mark.parametrize(("value", "message"), BAD_COLORS)
def test_bad_colors(value: float, message: str) -> None:
    ab = torch.zeros(COLORS)
    ab[1, 0, 2] = value
    for use in (
        lambda: RebalancedColorLoss(bins=COARSE)(torch.zeros(LOGITS), ab),
        lambda: COARSE.encode(ab),
    ):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize(("value", "message"), BAD_COLORS)
def test_bad_colors_are_not_counted(value: float, message: str) -> None:
    """On any device: a prior that holds them would spoil what is trained with it."""
    ab, counted = torch.zeros(COLORS), ColorPrior(COARSE)
    ab[1, 0, 2] = value
    with pytest.raises(ValueError, match=message):
        counted.update(ab)
    assert counted.pixels == 0


@pytest.mark.parametrize("ab", [(-90, -40), (-101, 40)])
def test_a_color_just_out_of_gamut_is_refused(ab: tuple[float, float]) -> None:
    """The whole square of ab would allow both."""
    with pytest.raises(ValueError, match="ab must be that of sRGB colours"):
        ColorPrior().update(torch.tensor(ab).reshape(1, 2, 1) / AB)


@on_cpu
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bad_logits(value: float, reduction: str) -> None:
    x = torch.zeros(LOGITS)
    x[1, 3, 2] = value
    with pytest.raises(ValueError, match="logits must be finite, got NaN or infinite ones"):
        RebalancedColorLoss(bins=COARSE, reduction=reduction)(x, torch.zeros(COLORS))
