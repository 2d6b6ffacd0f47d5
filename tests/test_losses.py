"""The losses: values worked by hand, the reference in float64, the defects of other libraries, bad input."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from asserters import assert_agrees, assert_gradient, assert_value
from devices import here, on_cpu
from histloss import DeepHistLoss, EMDHistLoss, MIHistLoss, color, reference, soft_histogram
from tolerances import TOLERANCES

HARD = 0.001  # a bandwidth at which a pixel at a bin's centre lies in that bin alone
pytestmark = pytest.mark.usefixtures("device")
MI_MODES = ("relative", "mi", "conditional_entropy", "nmi")
FORMS = ("squared", "norm")


def row(*values: float) -> Tensor:
    """One channel of the given pixels, (1, 1, N)."""
    return torch.tensor(values)[None, None]


def images(*shape: int, dtype: torch.dtype = torch.float32, n: int = 2) -> list[Tensor]:
    """Images whose values leave [-1, 1] by a little."""
    return [torch.randn(shape).mul(0.5).to(dtype) for _ in range(n)]


def centre(k: int, bins: int = 256) -> float:
    return -1 + 2 / bins * (k + 0.5)


# ---- EMDHistLoss -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # CDFs 2/4, 2/4, 3/4, 1 and 1/4, 2/4, 3/4, 1 differ by 1/4 in the first bin
        ({"form": "squared", "p": 2}, 1 / 16),
        ({"form": "squared", "p": 1}, 1 / 4),
        ({"form": "squared", "p": 3}, 1 / 64),
        ({"form": "norm", "p": 2}, 1 / 8),
        ({"form": "norm", "p": 1}, 1 / 16),
        # the best offset is 1/16 for p = 2 and 0 for p = 1
        ({"boundary": "cyclic", "cyclic": True, "p": 2}, 9 / 256 + 3 / 256),
        ({"boundary": "cyclic", "cyclic": True, "p": 1}, 1 / 4),
    ],
)
def test_emd_worked_by_hand(path: str, options: dict[str, Any], expected: float) -> None:
    out = row(-0.75, -0.75, 0.25, 0.75)
    loss = EMDHistLoss(bins=4, bandwidth=HARD, **options)
    assert loss(out, torch.full((1, 4), 0.25)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("shift", "squared", "norm"), [(0, 0, 0), (1, 1, 0.0625), (8, 8, 0.1767767), (64, 64, 0.5)]
)
def test_emd_of_a_shift(path: str, shift: int, squared: float, norm: float) -> None:
    out = row(centre(100))
    target = soft_histogram(row(centre(100 + shift)), bandwidth=HARD)
    assert EMDHistLoss(bandwidth=HARD)(out, target).item() == pytest.approx(squared, rel=1e-6)
    assert EMDHistLoss(bandwidth=HARD, form="norm")(out, target).item() == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [1, 2, 2.5])
@pytest.mark.parametrize("boundary", ["reflect", "open", "cyclic"])
def test_emd_against_the_reference(form: str, p: float, boundary: str) -> None:
    """With target histograms far away, so that the CDFs' difference does not cancel in float32."""
    out, ref = images(2, 3, 13, 11)
    ref = 0.3 * ref + 0.6
    weight = torch.rand(2, 1, 13, 11)
    cyclic = boundary == "cyclic"
    loss = EMDHistLoss(40, (-1.2, 1.1), 0.7, boundary, p=p, form=form, cyclic=cyclic, reduction="none")
    target = soft_histogram(ref, **loss.binning)
    upstream = torch.rand(2, 3) + 0.5

    def expected(x: Tensor) -> Tensor:
        h = reference.soft_histogram(
            x, bins=40, range=(-1.2, 1.1), bandwidth=0.7, boundary=boundary, weight=weight.double()
        )
        return reference.emd(h, target.double(), p=p, form=form, cyclic=cyclic)

    assert_agrees_with_gradient(lambda x: loss(x, target, weight=weight), expected, out, upstream)


def test_one_target_for_the_whole_batch(path: str) -> None:
    out, ref = images(3, 2, 9, 9)
    target = soft_histogram(ref)[0]
    loss = EMDHistLoss()
    whole = loss(out, target.expand(3, -1, -1))
    assert torch.equal(loss(out, target), whole)
    assert torch.equal(loss(out, target[None]), whole)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("boundary", ["reflect", "open", "cyclic"])
def test_equal_images_have_no_distance_and_no_gradient(path: str, form: str, boundary: str) -> None:
    """The gradient is NaN in a known PyTorch port of Hue-Net: the root's slope at 0."""
    (x,) = images(2, 3, 16, 16, n=1)
    loss = EMDHistLoss(boundary=boundary, form=form, cyclic=boundary == "cyclic")
    target = soft_histogram(x, **loss.binning)
    x.requires_grad_()
    value = loss(x, target)
    value.backward()
    assert value.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_hue_is_compared_on_the_circle(path: str) -> None:
    """Hue-Net: reds on both sides of the hue's cut are neighbours, and rotations change no distance."""
    around_red = torch.tensor([[1.0, -1, -0.9], [1.0, -0.9, -1]]).T[None]  # hues just below 1, just above -1
    hue = color.rgb_to_hsv(around_red)[:, :1]
    assert hue[0, 0, 0] > 0.9
    assert hue[0, 0, 1] < -0.9
    circle = EMDHistLoss(64, boundary="cyclic", cyclic=True, form="norm", p=1)
    line = EMDHistLoss(64, boundary="cyclic", form="norm", p=1)
    target = soft_histogram(hue[..., 1:], **circle.binning)
    assert circle(hue[..., :1], target) < 0.05
    assert line(hue[..., :1], target) > 0.5

    a, b = torch.rand(1, 1, 200) * 2 - 1, torch.rand(1, 1, 200).square() * 2 - 1
    turned = [(x + 0.625 + 1) % 2 - 1 for x in (a, b)]  # by 20 bins
    distance = circle(a, soft_histogram(b, **circle.binning))
    assert circle(turned[0], soft_histogram(turned[1], **circle.binning)).item() == pytest.approx(
        distance.item(), rel=1e-4
    )


def test_the_target_has_a_gradient_too(path: str) -> None:
    out, ref = (x.requires_grad_() for x in images(1, 2, 8, 8))
    loss = EMDHistLoss()
    loss(out.detach(), soft_histogram(ref, **loss.binning)).backward()
    assert out.grad is None
    assert bool((ref.grad != 0).any())


# ---- MIHistLoss ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "src", "relative", "mi", "conditional_entropy", "nmi"),
    [
        ((-1, -1, 1, 1), (-1, -1, 1, 1), 0, -math.log(2), 0, -2),  # equal
        ((-1, -1, 1, 1), (1, 1, -1, -1), 0, -math.log(2), 0, -2),  # inverted
        ((-1, -1, 1, 1), (-1, 1, -1, 1), 1, 0, math.log(2), -1),  # independent
        ((-1, -1, -1, -1), (-1, -1, 1, 1), 1, 0, math.log(2), -1),  # a constant output says nothing
        ((-1, -1, 1, 1), (-1, -1, -1, -1), 1, 0, 0, -1),  # a constant source needs nothing said
    ],
)
def test_mi_worked_by_hand(
    path: str,
    out: tuple[float, ...],
    src: tuple[float, ...],
    relative: float,
    mi: float,
    conditional_entropy: float,
    nmi: float,
) -> None:
    """Two bins, with pixels at their centres."""
    x, y = 0.5 * row(*out), 0.5 * row(*src)
    expected = dict(zip(MI_MODES, (relative, mi, conditional_entropy, nmi), strict=True))
    for mode in MI_MODES:
        value = MIHistLoss(bins=2, bandwidth=HARD, mode=mode)(x, y)
        assert value.item() == pytest.approx(expected[mode], abs=1e-6), mode


def test_mi_default_is_relative() -> None:
    out, src = images(1, 1, 20, 20)
    assert torch.equal(MIHistLoss(16)(out, src), MIHistLoss(16, mode="relative")(out, src))


@pytest.mark.parametrize("mode", MI_MODES)
def test_mi_against_the_reference(mode: str) -> None:
    """With binning of its own for each image, and gradients of both."""
    out, src = images(2, 3, 13, 11)
    weight = torch.rand(13, 11)
    binning: dict[str, Any] = {
        "bins": (20, 12),
        "range": ((-1.2, 1.1), (-1.0, 1.0)),
        "bandwidth": (0.7, 0.4),
        "boundary": ("reflect", "cyclic"),
    }
    loss = MIHistLoss(**binning, mode=mode, reduction="none")
    sign = -1 if mode in ("mi", "nmi") else 1
    upstream = torch.rand(2, 3) + 0.5

    def expected(x: Tensor, y: Tensor) -> Tensor:
        joint = reference.joint_histogram(x, y, **binning, weight=weight.double())
        return sign * reference.mutual_information(joint, mode=mode)

    def of_out(x: Tensor) -> Tensor:
        return loss(x, src.to(x.dtype), weight=weight)

    def of_src(y: Tensor) -> Tensor:
        return loss(out.to(y.dtype), y, weight=weight)

    largest = math.log(12)  # what entropies come to, whose difference MI is
    assert_agrees_with_gradient(of_out, lambda x: expected(x, src.double()), out, upstream, floor=largest)
    assert_agrees_with_gradient(of_src, lambda y: expected(out.double(), y), src, upstream, floor=largest)


def test_mi_of_a_uniform_image_with_itself(path: str) -> None:
    """Soft bins overlap, so it is not the 0 of the paper."""
    x = torch.linspace(-1, 1, 128 * 128).reshape(1, 1, 128, 128)
    assert MIHistLoss()(x, x).item() == pytest.approx(0.428, abs=2e-3)


def test_mi_descends_towards_the_source(path: str) -> None:
    """Of a picture and that picture under noise, the latter knows less of it."""
    src = torch.linspace(-0.9, 0.9, 400).reshape(1, 1, 20, 20)
    noise = torch.rand(1, 1, 20, 20) - 0.5
    for mode in MI_MODES:
        loss = MIHistLoss(bins=16, mode=mode)
        values = [loss(src + strength * noise, src).item() for strength in (0, 0.3, 1.0)]
        assert values == sorted(values), mode
        assert values[0] < values[2] - 1e-2, mode


# ---- DeepHistLoss ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "form", "mode", "weights"),
    [("paper", "squared", "relative", (1, 1, 1)), ("official", "norm", "conditional_entropy", (100, 1, 1))],
)
def test_presets(path: str, preset: str, form: str, mode: str, weights: tuple[float, float, float]) -> None:
    out, src = images(2, 3, 16, 16)
    logits = torch.randn(2, 1, 3, 3)
    target = soft_histogram(src.flip(0).neg())
    terms = DeepHistLoss(preset=preset)(out, src, target, logits)
    emd, mi = EMDHistLoss(form=form, p=2)(out, target), MIHistLoss(mode=mode)(out, src)
    adv = -torch.sigmoid(logits).log().mean()
    assert torch.equal(terms.emd, emd)
    assert torch.equal(terms.mi, mi)
    assert terms.adv.item() == pytest.approx(adv.item(), rel=1e-6)
    total = sum(w * v.item() for w, v in zip(weights, (emd, mi, adv), strict=True))
    assert terms.total.item() == pytest.approx(total, rel=1e-6)


def test_the_paper_is_the_default_preset() -> None:
    assert repr(DeepHistLoss()) == repr(DeepHistLoss(preset="paper"))
    assert repr(DeepHistLoss()) != repr(DeepHistLoss(preset="official"))


def test_weights_replace_single_entries() -> None:
    loss = DeepHistLoss({"emd": 20}, preset="official")
    assert loss.weights == {"emd": 20, "mi": 1, "adv": 1}
    assert DeepHistLoss(preset="official").weights == {"emd": 100, "mi": 1, "adv": 1}


def test_the_gradient_is_the_weighted_sum_of_the_terms(path: str) -> None:
    x, src = images(2, 3, 12, 12, dtype=torch.float64)
    target = soft_histogram(src.neg())
    x.requires_grad_()
    logits = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)
    terms = DeepHistLoss({"emd": 3, "mi": 0.5, "adv": 0.25})(x, src, target, logits)
    of_total, of_logits = torch.autograd.grad(terms.total, (x, logits), retain_graph=True)
    of_emd, of_mi = (torch.autograd.grad(term, x, retain_graph=True)[0] for term in (terms.emd, terms.mi))
    assert_gradient(of_total, 3 * of_emd + 0.5 * of_mi)
    assert_gradient(of_logits, 0.25 * (torch.sigmoid(logits) - 1) / 2)


@pytest.mark.parametrize(
    ("logits", "expected"), [(0.0, math.log(2)), (100.0, 0.0), (-100.0, 100.0), (-1e4, 1e4)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_adversarial_term_by_hand(logits: float, expected: float, dtype: torch.dtype) -> None:
    loss = DeepHistLoss({"emd": 0, "mi": 0})
    terms = loss(torch.zeros(1, 3, 4), None, None, torch.full((2, 1, 5, 5), logits, dtype=dtype))
    assert terms.adv.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert terms.adv.item() == pytest.approx(expected, rel=5e-3 if dtype == torch.bfloat16 else 1e-6)
    assert terms.total.item() == terms.adv.item()


def test_a_generator_without_discriminator() -> None:
    out, src = images(1, 3, 8, 8)
    terms = DeepHistLoss()(out, src, soft_histogram(src))
    assert terms.adv.item() == 0
    assert torch.equal(terms.total, terms.emd + terms.mi)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_terms_of_weight_zero_are_not_computed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    loss = DeepHistLoss({"emd": 0, "mi": 0, "adv": 0})

    def fail(*_: object, **__: object) -> Tensor:
        raise AssertionError("a term of weight 0 was computed")

    monkeypatch.setattr(loss.emd, "forward", fail)
    monkeypatch.setattr(loss.mi, "forward", fail)
    terms = loss(torch.zeros(1, 3, 4, 4, dtype=dtype), None, None, torch.tensor([math.nan]))
    assert [term.item() for term in terms] == [0, 0, 0, 0]
    assert {term.dtype for term in terms} == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_losses_with_bins_of_their_own(path: str) -> None:
    out, src = images(2, 3, 16, 16)
    emd, mi = EMDHistLoss(32, boundary="open"), MIHistLoss((8, 16), mode="nmi")
    target = soft_histogram(src.neg(), **emd.binning)
    weight = torch.rand(2, 1, 16, 16)
    terms = DeepHistLoss(preset="official", emd=emd, mi=mi)(out, src, target, weight=weight)
    assert torch.equal(terms.emd, emd(out, target, weight=weight))
    assert torch.equal(terms.mi, mi(out, src, weight=weight))
    assert torch.equal(terms.total, 100 * terms.emd + terms.mi)


# ---- all losses ------------------------------------------------------------------------------------

Loss = Callable[..., Tensor]


def every_loss(reduction: str = "mean") -> dict[str, Loss]:
    """Each as a function of output and source, so that one test serves all."""

    def to_histogram(loss: EMDHistLoss) -> Loss:
        return lambda out, src, **k: loss(out, soft_histogram(src, **loss.binning), **k)

    losses: dict[str, Loss] = {
        f"emd {form}": to_histogram(EMDHistLoss(64, form=form, reduction=reduction)) for form in FORMS
    }
    losses["emd cyclic"] = to_histogram(EMDHistLoss(64, boundary="cyclic", cyclic=True, reduction=reduction))
    return losses | {f"mi {mode}": MIHistLoss(64, mode=mode, reduction=reduction) for mode in MI_MODES}


each_loss = pytest.mark.parametrize("name", every_loss())


@each_loss
def test_reductions(name: str) -> None:
    out, src = images(2, 3, 10, 10)
    none, total, mean = (every_loss(reduction)[name](out, src) for reduction in ("none", "sum", "mean"))
    assert none.shape == (2, 3)
    assert total.shape == mean.shape == ()
    torch.testing.assert_close(total, none.sum())
    torch.testing.assert_close(mean, none.sum() / 6)
    assert torch.equal(mean, every_loss()[name](out, src))


@each_loss
def test_the_images_of_a_batch_do_not_touch_each_other(path: str, name: str) -> None:
    """MONAI takes the range from the batch: there a bright image changes its neighbours' loss."""
    loss = every_loss("none")[name]
    out, src = images(3, 2, 12, 12)
    alone = loss(out[:1], src[:1])
    out[1], src[2] = 50.0, -50.0
    together = loss(out, src)[:1]
    torch.testing.assert_close(together, alone)
    if path == "native":  # the order of a GPU's matrix products depends on the size of the batch
        assert torch.equal(together, alone)


@each_loss
@pytest.mark.parametrize("a", [-1.0, -0.3, 0.0, 1.0, 7.0])
@pytest.mark.parametrize("b", [-1.0, 0.0, 0.999])
def test_constant_images_have_finite_losses(path: str, name: str, a: float, b: float) -> None:
    """NaN in MONAI #9018."""
    out, src = (torch.full((1, 2, 9, 9), value, requires_grad=True) for value in (a, b))
    value = every_loss()[name](out, src)
    value.backward()
    assert bool(value.isfinite())
    assert bool(out.grad.isfinite().all())
    assert bool(src.grad.isfinite().all())


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(device: torch.device, path: str, name: str, dtype: torch.dtype) -> None:
    """-inf in MONAI #7622: the far cells of a float16 joint histogram are 0."""
    loss = every_loss()[name]
    out, src = images(2, 3, 32, 32)
    results = []
    for enabled in (False, True):
        x = out.clone().requires_grad_()
        with torch.autocast(device.type, dtype=dtype, enabled=enabled):
            value = loss(x, src)
        value.backward()
        assert value.dtype == torch.float32
        assert bool(value.isfinite())
        results.append((value, x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(path: str, name: str, dtype: torch.dtype) -> None:
    """Half precision pixels, float32 sums: the value is that of the same pixels in float64."""
    loss = every_loss()[name]
    out, src = images(2, 3, 24, 24, dtype=dtype)
    src = 0.5 * src + 0.5
    value, expected = loss(out, src), loss(out.double(), src.double())
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    largest = math.log(64) if name.startswith("mi") else 0.0  # of the entropies whose difference MI is
    assert_agrees(value, expected, TOLERANCES[value.dtype].value, floor=largest)


@each_loss
def test_a_mask_leaves_pixels_out(path: str, name: str) -> None:
    loss = every_loss()[name]
    out, src = images(1, 2, 8, 10)
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[:, :4] = True
    inside = out[..., :4], src[..., :4]
    out[..., 4:] = 0.8
    if name.startswith("emd"):
        src = src[..., :4]  # the target's histogram is the caller's
    torch.testing.assert_close(loss(out, src, weight=mask), loss(*inside))


@each_loss
@pytest.mark.parametrize("spatial", [(60,), (5, 12), (3, 4, 5)])
def test_any_number_of_spatial_dimensions(name: str, spatial: tuple[int, ...]) -> None:
    loss = every_loss("none")[name]
    out, src = images(2, 2, 60)
    shaped = [x.reshape(2, 2, *spatial) for x in (out, src)]
    assert torch.equal(loss(*shaped), loss(out, src))


@each_loss
def test_gradcheck(path: str, name: str) -> None:
    out, src = (0.8 * torch.rand(1, 2, 6, dtype=torch.float64) - 0.4 for _ in range(2))
    weight = torch.rand(1, 2, 6, dtype=torch.float64) + 0.5
    loss = every_loss("none")[name]

    def of_all(o: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return loss(o, s, weight=w)

    assert gradcheck(of_all, tuple(x.requires_grad_() for x in (out, src, weight)), atol=1e-6)


@each_loss
def test_compiles_into_one_graph(name: str) -> None:
    loss = every_loss()[name]
    x, src = images(2, 3, 8, 8)
    x.requires_grad_()
    values = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, src), loss(x, src)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, x)[0] for value in values))


def test_deephist_compiles_into_one_graph() -> None:
    loss = DeepHistLoss(preset="official", emd=EMDHistLoss(64, form="norm"), mi=MIHistLoss(16))
    x, src = images(2, 3, 8, 8)
    target = soft_histogram(src.neg(), bins=64)
    logits = torch.randn(2, 1)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(tuple(compiled(x, src, target, logits)), tuple(loss(x, src, target, logits)))


@each_loss
def test_torch_func(path: str, name: str) -> None:
    """A gradient for each image of a batch at once: vmap(grad)."""
    loss = every_loss()[name]
    out, src = images(4, 1, 2, 8, 8)
    each = torch.func.vmap(torch.func.grad(loss))(out, src)
    one = torch.stack([torch.func.grad(loss)(o, s) for o, s in zip(out, src, strict=True)])
    torch.testing.assert_close(each, one)


@pytest.mark.parametrize(
    "loss",
    [
        EMDHistLoss(8, (0, 1), 0.5, "cyclic", p=1, form="norm", cyclic=True, reduction="sum"),
        MIHistLoss((8, 16), mode="nmi", reduction="none"),
        DeepHistLoss({"adv": 2}, preset="official"),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_are_modules(loss: nn.Module) -> None:
    assert list(loss.state_dict()) == []
    assert repr(pickle.loads(pickle.dumps(loss))) == repr(copy.deepcopy(loss)) == repr(loss)


def test_repr_shows_the_arguments() -> None:
    loss = EMDHistLoss(8, (0, 1), 0.5, "cyclic", p=1, form="norm", cyclic=True, reduction="sum")
    assert repr(loss) == (
        "EMDHistLoss(bins=8, range=(0.0, 1.0), bandwidth=0.5, boundary='cyclic', kernel='sigmoid', "
        "p=1.0, form='norm', cyclic=True, reduction='sum', empty='error')"
    )
    assert repr(MIHistLoss((8, 16), mode="nmi", reduction="none")) == (
        "MIHistLoss(bins=(8, 16), range=((-1.0, 1.0), (-1.0, 1.0)), bandwidth=(0.4, 0.4), "
        "boundary=('reflect', 'reflect'), kernel=('sigmoid', 'sigmoid'), mode='nmi', reduction='none', "
        "correction=None, empty='error')"
    )
    assert "preset='official', weights={'emd': 20.0, 'mi': 1.0, 'adv': 1.0}" in repr(
        DeepHistLoss({"emd": 20}, preset="official")
    )


# ---- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [EMDHistLoss, MIHistLoss])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bins": 0}, ValueError, "bins must be at least 1, got 0"),
        ({"bins": 2.0}, TypeError, r"bins must be an int, got 2\.0"),
        ({"range": (1, -1)}, ValueError, r"range must be finite with lo < hi, got \(1, -1\)"),
        ({"range": (0, math.inf)}, ValueError, "range must be finite"),
        ({"bandwidth": 0}, ValueError, "bandwidth must be between .* got 0"),
        (
            {"boundary": "mirror"},
            ValueError,
            "boundary must be one of 'open', 'reflect', 'cyclic', got 'mirror'",
        ),
        ({"reduction": "max"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'max'"),
        ({"reduction": None}, TypeError, "reduction must be a string, .* got None"),
    ],
)
def test_bad_options_of_both(
    kind: type[nn.Module], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """At construction, not at the first batch."""
    with pytest.raises(error, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EMDHistLoss(p=0.5), ValueError, r"p must be finite and at least 1, got 0\.5"),
        (lambda: EMDHistLoss(p=math.inf), ValueError, "p must be finite"),
        (lambda: EMDHistLoss(p="2"), TypeError, "p must be a number, got '2'"),
        (lambda: EMDHistLoss(form="root"), ValueError, "form must be one of 'squared', 'norm', got 'root'"),
        (lambda: EMDHistLoss(cyclic=True), ValueError, "cyclic=True needs boundary 'cyclic', got 'reflect'"),
        (lambda: EMDHistLoss(cyclic=1), TypeError, "cyclic must be True or False, got 1"),
        (lambda: MIHistLoss(bins=(4, 0)), ValueError, "bins must be at least 1, got 0"),
        (lambda: MIHistLoss(mode="MI"), ValueError, "mode must be one of .*, got 'MI'"),
        (
            lambda: DeepHistLoss(preset="hue"),
            ValueError,
            "preset must be one of 'paper', 'official', got 'hue'",
        ),
        (lambda: DeepHistLoss([1, 1, 1]), TypeError, r"weights must be a dict .* got \[1, 1, 1\]"),
        (lambda: DeepHistLoss({"gan": 1}), ValueError, "weights must have keys in .*'adv'.*, got 'gan'"),
        (
            lambda: DeepHistLoss({"mi": -1}),
            ValueError,
            r"weights\['mi'\] must be finite and not negative, got -1",
        ),
        (lambda: DeepHistLoss({"mi": math.nan}), ValueError, r"weights\['mi'\] must be finite .* got nan"),
        (lambda: DeepHistLoss({"emd": math.inf}), ValueError, r"weights\['emd'\] must be finite .* got inf"),
        (lambda: DeepHistLoss({"emd": "1"}), TypeError, r"weights\['emd'\] must be a number, got '1'"),
        (lambda: DeepHistLoss({"emd": True}), TypeError, r"weights\['emd'\] must be a number, got True"),
        (lambda: DeepHistLoss(emd=nn.MSELoss()), TypeError, "emd must be EMDHistLoss or None, got MSELoss"),
        (lambda: DeepHistLoss(mi=EMDHistLoss()), TypeError, "mi must be MIHistLoss or None, got EMDHistLoss"),
        (
            lambda: DeepHistLoss(emd=EMDHistLoss(reduction="sum")),
            ValueError,
            "emd must have reduction 'mean', got 'sum'",
        ),
        (
            lambda: DeepHistLoss(mi=MIHistLoss(reduction="none")),
            ValueError,
            "mi must have reduction 'mean', got 'none'",
        ),
    ],
)
def test_bad_options(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


IMAGE = torch.zeros(2, 3, 4, 4)
TARGET = torch.full((2, 3, 256), 1 / 256)


@pytest.mark.parametrize(
    ("loss", "arguments", "error", "message"),
    [
        (EMDHistLoss(), (IMAGE.tolist(), TARGET), TypeError, "out must be a torch.Tensor .* got list"),
        (EMDHistLoss(), (IMAGE.int(), TARGET), TypeError, "out must be float16, .* got torch.int32"),
        (EMDHistLoss(), (IMAGE[0, 0], TARGET), ValueError, r"out must have shape .* got \(4, 4\)"),
        (EMDHistLoss(), (IMAGE, None), TypeError, "ref_hist must be a torch.Tensor, got NoneType"),
        (EMDHistLoss(), (IMAGE, TARGET.long()), TypeError, "ref_hist must be float16, .* got torch.int64"),
        (
            EMDHistLoss(),
            (IMAGE, IMAGE),
            ValueError,
            r"ref_hist must have shape \(B, C, K\) = \(2, 3, 256\) or \(C, K\) = \(3, 256\), got "
            r"\(2, 3, 4, 4\); make it from an image by soft_histogram",
        ),
        (EMDHistLoss(64), (IMAGE, TARGET), ValueError, r"\(2, 3, 64\) .* got \(2, 3, 256\)"),
        (EMDHistLoss(), (IMAGE, TARGET[:, :1]), ValueError, r"ref_hist must have shape .* got \(2, 1, 256\)"),
        (EMDHistLoss(), (IMAGE, TARGET[0, 0]), ValueError, r"ref_hist must have shape .* got \(256,\)"),
        (EMDHistLoss(), (IMAGE, TARGET.to("meta")), ValueError, "ref_hist must be on {device}, got meta"),
        (MIHistLoss(), (IMAGE, None), TypeError, "src must be a torch.Tensor .* got NoneType"),
        (MIHistLoss(), (None, IMAGE), TypeError, "out must be a torch.Tensor .* got NoneType"),
        (MIHistLoss(), (IMAGE, IMAGE.int()), TypeError, "src must be float16, .* got torch.int32"),
        (
            MIHistLoss(),
            (IMAGE, IMAGE[:, :1]),
            ValueError,
            r"src must have the shape of out, \(2, 3, 4, 4\), got \(2, 1, 4, 4\)",
        ),
        (MIHistLoss(), (IMAGE, IMAGE.to("meta")), ValueError, "src must be on {device}, got meta"),
        (DeepHistLoss(), (None, IMAGE, TARGET), TypeError, "out must be a torch.Tensor .* got NoneType"),
        (DeepHistLoss(), (IMAGE, None, TARGET), TypeError, "src must be a torch.Tensor .* got NoneType"),
        (DeepHistLoss(), (IMAGE, IMAGE, None), TypeError, "ref_hist must be a torch.Tensor, got NoneType"),
        (
            DeepHistLoss(),
            (IMAGE, IMAGE, TARGET, 0.5),
            TypeError,
            "fake_logits must be a torch.Tensor, got float",
        ),
        (
            DeepHistLoss(),
            (IMAGE, IMAGE, TARGET, torch.ones(2, 1).bool()),
            TypeError,
            "fake_logits must be float16, .* got torch.bool",
        ),
        (
            DeepHistLoss(),
            (IMAGE, IMAGE, TARGET, torch.ones(0, 1)),
            ValueError,
            r"fake_logits must hold at least one value, got shape \(0, 1\)",
        ),
        (
            DeepHistLoss(),
            (IMAGE, IMAGE, TARGET, torch.ones(2, device="meta")),
            ValueError,
            "fake_logits must be on {device}, got meta",
        ),
    ],
)
def test_bad_arguments(
    device: torch.device,
    loss: nn.Module,
    arguments: tuple[object, ...],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message.replace("{device}", str(device))):
        loss(*here(arguments))


@on_cpu  # elsewhere to look at values would be to wait for them
@pytest.mark.parametrize(
    ("loss", "arguments", "error", "message"),
    [
        (
            EMDHistLoss(),
            (IMAGE, 16 * TARGET),
            ValueError,
            "ref_hist must sum to 1 over its bins, got a sum of 16",
        ),
        (EMDHistLoss(), (IMAGE, 0.5 * TARGET), ValueError, r"ref_hist must sum to 1 .* got a sum of 0\.5"),
        (
            EMDHistLoss(),
            (IMAGE, torch.nan * TARGET),
            ValueError,
            "ref_hist must sum to 1 .* got a sum of nan",
        ),
        (
            EMDHistLoss(boundary="open"),
            (IMAGE, 16 * TARGET),
            ValueError,
            "ref_hist must sum to at most 1 over its bins, got a sum of 16",
        ),
    ],
)
def test_bad_target_values(
    loss: nn.Module, arguments: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        loss(*arguments)


@pytest.mark.parametrize("loss", [EMDHistLoss(), MIHistLoss(16)], ids=["emd", "mi"])
@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        ([1.0], TypeError, "weight must be a torch.Tensor, got list"),
        (torch.ones(5, 4), ValueError, "weight must broadcast to the shape of the image"),
    ],
)
def test_bad_weight(loss: nn.Module, weight: object, error: type[Exception], message: str) -> None:
    image, other, weight = here((IMAGE, TARGET if isinstance(loss, EMDHistLoss) else IMAGE, weight))
    with pytest.raises(error, match=message):
        loss(image, other, weight=weight)


@on_cpu
@pytest.mark.parametrize("loss", [EMDHistLoss(), MIHistLoss(16)], ids=["emd", "mi"])
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (-torch.ones(4, 4), "weight must be non-negative"),
        (torch.zeros(4, 4), "weight must have a positive, finite sum"),
    ],
)
def test_bad_weight_values(loss: nn.Module, weight: Tensor, message: str) -> None:
    other = TARGET if isinstance(loss, EMDHistLoss) else IMAGE
    with pytest.raises(ValueError, match=message):
        loss(IMAGE, other, weight=weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounded_target_is_accepted(dtype: torch.dtype) -> None:
    """The check of its sum leaves room for half precision, which rounds all of these values up."""
    target = torch.full((3, 255), 1 / 255)
    rounded = target.to(dtype)
    assert (rounded.double().sum(-1) - 1).abs().max() < 4e-3
    out, loss = torch.zeros(1, 3, 4), EMDHistLoss(255)
    assert loss(out, rounded).item() == pytest.approx(loss(out, target).item(), rel=1e-2)


def test_an_open_target_may_lose_mass() -> None:
    loss = EMDHistLoss(boundary="open")
    x = torch.ones(1, 3, 4, 4)
    target = soft_histogram(x, **loss.binning)
    assert target.sum(-1).max() < 0.6
    assert loss(x, target).item() == 0


# ---- helpers ---------------------------------------------------------------------------------------


def assert_agrees_with_gradient(
    actual: Callable[[Tensor], Tensor],
    expected: Callable[[Tensor], Tensor],
    x: Tensor,
    upstream: Tensor,
    *,
    floor: float = 0.0,
) -> None:
    """In float32 and float64 against an expression in float64, for an upstream gradient."""
    e = x.double().requires_grad_()
    value = expected(e)
    (gradient,) = torch.autograd.grad(value, e, upstream.double())
    for dtype in (torch.float32, torch.float64):
        a = x.to(dtype).requires_grad_()
        result = actual(a)
        assert_value(result, value, floor=floor)
        assert_gradient(torch.autograd.grad(result, a, upstream.to(dtype))[0], gradient)
