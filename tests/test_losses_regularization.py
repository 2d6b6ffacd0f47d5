"""Total variation and colour variance: values by hand and written out, flat and grey images, bad input."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck

from asserters import assert_gradient, assert_value
from devices import here
from histloss import ColorVarianceLoss, TotalVariationLoss, color

pytestmark = pytest.mark.usefixtures("device")

BETAS = (1, 1.5, 2, 3)
LOSSES = [*map(TotalVariationLoss, BETAS), ColorVarianceLoss()]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=repr)


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape).mul(1.8).sub(0.9).to(dtype)


# ---- TotalVariationLoss ----------------------------------------------------------------------------


@pytest.mark.parametrize("beta", BETAS)
def test_total_variation_by_hand(beta: float) -> None:
    x = torch.tensor([[0.0, 3.0, 3.0], [4.0, 4.0, 0.0]])[None, None]
    # steps right and down: (3, 4), (0, 1), (0, -3); (0, 0), (-4, 0), none; those across the border are 0
    expected = (5**beta + 1 + 3**beta + 0 + 4**beta + 0) / 6
    assert TotalVariationLoss(beta)(x).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_total_variation_written_out(beta: float, dtype: torch.dtype) -> None:
    x = image(2, 3, 4, 5, dtype=dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for i in range(4):
        for j in range(5):
            right = wide[..., i, j + 1] - wide[..., i, j] if j < 4 else torch.zeros(2, 3)
            down = wide[..., i + 1, j] - wide[..., i, j] if i < 3 else torch.zeros(2, 3)
            square = right**2 + down**2
            if i < 3 or j < 4:
                expected = expected + square ** (beta / 2) / 20
    value = TotalVariationLoss(beta, reduction="none")(x)
    upstream = torch.rand(2, 3)
    assert_value(value, expected)
    (found,), (wanted,) = (grad(v, of, upstream.to(v.dtype)) for v, of in ((value, x), (expected, wide)))
    assert_gradient(found, wanted)


def test_total_variation_in_other_dimensions() -> None:
    x = image(2, 3, 6)
    assert_value(TotalVariationLoss(1)(x), x.double().diff().abs().sum(-1).mean() / 6)
    flat = x[:, :, None, :, None].expand(-1, -1, 4, -1, 5)
    torch.testing.assert_close(TotalVariationLoss(1)(flat), TotalVariationLoss(1)(x))


@pytest.mark.parametrize("beta", [1, 1.01, 1.5, 2, 3])
@pytest.mark.parametrize("level", [0.0, 0.3, -1.0])
def test_a_constant_image_has_no_variation_and_no_gradient(beta: float, level: float) -> None:
    """The slope of a root at 0 is infinite, and times 0 it is NaN."""
    x = torch.full((1, 2, 5, 5), level, requires_grad=True)
    value = TotalVariationLoss(beta)(x)
    (gradient,) = grad(value, x, create_graph=True)
    (second,) = grad(gradient.sum(), x)
    assert value.item() == 0
    assert not gradient.any()
    assert bool(second.isfinite().all())


def test_total_variation_where_it_is_quadratic() -> None:
    """With beta = 2 the second derivative of a flat image is that of any other."""
    flat, other = torch.zeros(1, 1, 3, 3), image(1, 1, 3, 3)
    hessian = torch.func.hessian(TotalVariationLoss())
    assert hessian(flat).any()
    torch.testing.assert_close(hessian(flat), hessian(other))


@pytest.mark.parametrize("beta", BETAS)
def test_total_variation_gradients(beta: float) -> None:
    x = image(1, 2, 3, 3, dtype=torch.float64).requires_grad_()
    assert gradcheck(TotalVariationLoss(beta), x)
    assert gradgradcheck(TotalVariationLoss(beta), x)


# ---- ColorVarianceLoss -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_color_variance_written_out(dtype: torch.dtype) -> None:
    x = image(3, 3, 5, 4, dtype=dtype)
    x[0, 1] = x[0, 0]  # neither red nor green, so that a varies least
    x[1, 2] = x[1, :2].mean(0)  # neither yellow nor blue: b
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    expected, least = [], []
    for lab in color.rgb_to_lab(wide):
        a, b = lab[1].flatten(), lab[2].flatten()
        variances = [(c - c.mean()).square().mean() for c in (a, b)]
        least.append(int(variances[1] < variances[0]))
        expected.append(-variances[least[-1]])
    assert least[:2] == [0, 1]
    value, wanted = ColorVarianceLoss(reduction="none")(x), torch.stack(expected)
    assert_value(value, wanted)
    upstream = torch.rand(3)
    assert_gradient(*(grad(v, of, upstream.to(v.dtype))[0] for v, of in ((value, x), (wanted, wide))))


@pytest.mark.parametrize(("a", "b"), [((-30.0, 30.0), (-20.0, 20.0)), ((5.0, 5.0), (-60.0, 10.0))])
def test_color_variance_in_units_of_lab(a: tuple[float, float], b: tuple[float, float]) -> None:
    """Two halves of an image: each variance is the square of half the difference."""
    halves = [[20.0 / 50 - 1, p / 110, q / 110] for p, q in zip(a, b, strict=True)]
    lab = torch.tensor(halves, dtype=torch.float64).T[None].repeat_interleave(4, -1)
    expected = min(((v[1] - v[0]) / 2) ** 2 for v in (a, b))
    value = ColorVarianceLoss()(color.lab_to_rgb(lab)).item()
    assert -value * 110**2 == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_color_variance_of_greys() -> None:
    x = torch.linspace(-1, 1, 64).expand(1, 3, 64).clone().requires_grad_()
    value = ColorVarianceLoss()(x)
    (gradient,) = grad(value, x)
    assert abs(value.item()) < 1e-12
    assert gradient.abs().max() < 1e-6


def test_color_variance_of_one_colour() -> None:
    x = torch.tensor([0.8, -0.3, 0.1])[None, :, None].expand(1, 3, 32).clone().requires_grad_()
    value = ColorVarianceLoss()(x)
    (gradient,) = grad(value, x)
    assert abs(value.item()) < 1e-12
    assert bool(gradient.isfinite().all())


def test_color_variance_has_a_bound() -> None:
    """The colours of which a is smallest and largest, and those of b, half of the pixels each."""
    cube = torch.cartesian_prod(*[torch.linspace(-1, 1, 17)] * 3).T[None]
    lab = color.rgb_to_lab(cube)[0]
    values = []
    for c in (1, 2):
        ends = cube[..., [int(lab[c].argmin()), int(lab[c].argmax())]]
        values.append(color.rgb_to_lab(ends)[0, c].var(correction=0).item())
    assert 0.70 < min(values) < 0.71


def test_color_variance_gradients() -> None:
    x = image(2, 3, 2, 3, dtype=torch.float64).requires_grad_()
    assert gradcheck(ColorVarianceLoss(), x)
    assert gradgradcheck(ColorVarianceLoss(), x)


# ---- both ------------------------------------------------------------------------------------------


@each_loss
def test_reductions(loss: nn.Module) -> None:
    x = image(2, 3, 6, 6)
    values = {}
    for reduction in ("none", "sum", "mean"):
        loss = copy.deepcopy(loss)
        loss.reduction = reduction
        values[reduction] = loss(x)
    assert values["none"].shape == ((2,) if isinstance(loss, ColorVarianceLoss) else (2, 3))
    torch.testing.assert_close(values["sum"], values["none"].sum())
    torch.testing.assert_close(values["mean"], values["none"].mean())


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(loss: nn.Module, dtype: torch.dtype) -> None:
    """Half precision pixels, float32 arithmetic: the value is that of the same pixels in float64."""
    x = image(2, 3, 16, 16, dtype=dtype)
    value = loss(x)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_value(value, loss(x.double()))
    x.requires_grad_()
    (gradient,) = grad(loss(x), x)
    assert gradient.dtype == dtype
    assert bool(gradient.isfinite().all())


@each_loss
@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(device: torch.device, loss: nn.Module, low: torch.dtype) -> None:
    x = image(2, 3, 8, 8).requires_grad_()
    results = []
    for enabled in (False, True):
        with torch.autocast(device.type, dtype=low, enabled=enabled):
            value = loss(x)
        results.append((value, grad(value, x)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@each_loss
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_pixel_is_not_hidden(loss: nn.Module, bad: float) -> None:
    """Nor does it spread to other images."""
    x = image(2, 3, 4, 4)
    x[1, 2, 1, 1] = bad
    assert not bool(loss(x).isfinite())
    assert bool(loss(x[:1]).isfinite())


@each_loss
def test_compiles_into_one_graph(loss: nn.Module) -> None:
    x = image(2, 3, 4, 4).requires_grad_()
    values = torch.compile(loss, fullgraph=True, backend="aot_eager")(x), loss(x)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(grad(value, x)[0] for value in values))


@each_loss
def test_losses_are_modules(loss: nn.Module) -> None:
    assert list(loss.state_dict()) == []
    assert repr(pickle.loads(pickle.dumps(loss))) == repr(copy.deepcopy(loss)) == repr(loss)


def test_repr_shows_the_arguments() -> None:
    assert repr(TotalVariationLoss(1, reduction="sum")) == "TotalVariationLoss(beta=1.0, reduction='sum')"
    assert repr(ColorVarianceLoss()) == "ColorVarianceLoss(reduction='mean')"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TotalVariationLoss(0.5), ValueError, r"beta must be finite and at least 1, got 0\.5"),
        (lambda: TotalVariationLoss(math.nan), ValueError, "beta must be finite and at least 1, got nan"),
        (lambda: TotalVariationLoss("2"), TypeError, "beta must be a number, got '2'"),
        (lambda: TotalVariationLoss(reduction="max"), ValueError, "reduction must be one of .* got 'max'"),
        (lambda: ColorVarianceLoss(reduction=None), TypeError, "reduction must be a string, .* got None"),
    ],
)
def test_bad_options(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(("loss", "name"), [(TotalVariationLoss(), "x"), (ColorVarianceLoss(), "rgb")])
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (None, TypeError, "must be a torch.Tensor .* got NoneType"),
        (torch.zeros(1, 3, 4).int(), TypeError, "must be float16, .* got torch.int32"),
        (torch.zeros(3, 4), ValueError, r"must have shape .* got \(3, 4\)"),
        (torch.zeros(0, 3, 4), ValueError, r"must hold at least one value, got shape \(0, 3, 4\)"),
        (torch.zeros(1, 3, 4, 0), ValueError, r"must hold at least one value, got shape \(1, 3, 4, 0\)"),
    ],
)
def test_bad_images(loss: nn.Module, name: str, bad: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"{name} {message}"):
        loss(here(bad))


def test_color_variance_needs_three_channels() -> None:
    with pytest.raises(ValueError, match=r"rgb must have shape \(B, 3, \*spatial\), got \(1, 1, 4, 4\)"):
        ColorVarianceLoss()(torch.zeros(1, 1, 4, 4))
