"""The adversarial objectives: cross-entropy, optima known in closed form, hinges, clamps, sums, bad input."""

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
from torch.nn import functional as F

from asserters import assert_gradient, assert_value
from devices import here, on_cpu
from histloss import (
    AdversarialLoss,
    DCGANLoss,
    DeepHistLoss,
    EBGANLoss,
    GANLoss,
    LSGANLoss,
    WGANLoss,
)

pytestmark = pytest.mark.usefixtures("device")

LOSSES = [DCGANLoss(), LSGANLoss(), LSGANLoss(-1, 1, 0), EBGANLoss(1.5), WGANLoss()]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=repr)
each_term = pytest.mark.parametrize("term", ["forward", "real", "fake"])


def scores(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Not negative, so that they may be energies, and on both sides of a margin of 1.5."""
    return torch.rand(shape).mul(3).to(dtype)


# ---- DCGAN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dcgan_is_binary_cross_entropy(dtype: torch.dtype) -> None:
    loss = DCGANLoss()
    logits = (5 * torch.randn(2, 1, 5, 7)).to(dtype).requires_grad_()
    wide = logits.detach().double().requires_grad_()
    for term, label in ((loss, 1.0), (loss.real, 1.0), (loss.fake, 0.0)):
        expected = F.binary_cross_entropy(torch.sigmoid(wide), torch.full_like(wide, label))
        assert_value(term(logits), expected)
        assert_gradient(grad(term(logits), logits)[0], grad(expected, wide)[0])


@pytest.mark.parametrize("logit", [-1e4, -100.0, 100.0, 1e4])
def test_dcgan_of_a_sure_discriminator(logit: float) -> None:
    """The sigmoid is 0 or 1 there, of which the logarithm is infinite or lost."""
    x = torch.full((3,), logit, requires_grad=True)
    assert DCGANLoss()(x).item() == pytest.approx(max(-logit, 0), rel=1e-6)
    assert DCGANLoss().fake(x).item() == pytest.approx(max(logit, 0), rel=1e-6)
    assert bool(grad(DCGANLoss().discriminator(x, x), x)[0].isfinite().all())


def test_dcgan_of_a_discriminator_that_guesses() -> None:
    """Goodfellow 2014, Theorem 1: where both distributions are equal the best one loses log 4."""
    guess = torch.zeros(4, 1)
    assert DCGANLoss().discriminator(guess, guess).item() == pytest.approx(math.log(4), rel=1e-6)


def test_deephist_has_the_same_term() -> None:
    logits = torch.randn(2, 1, 3, 3)
    terms = DeepHistLoss({"emd": 0, "mi": 0})(torch.zeros(1, 3, 4), None, None, logits)
    assert torch.equal(terms.adv, DCGANLoss()(logits))


# ---- LSGAN -----------------------------------------------------------------------------------------

# Samples of two distributions over four images; image 0 is never painted, image 3 never real.
REAL = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
FAKE = torch.tensor([1, 2, 2, 3])


def distributions() -> tuple[Tensor, Tensor]:
    return tuple(here(x).bincount(minlength=4).double() / len(x) for x in (REAL, FAKE))  # type: ignore[return-value]


@pytest.mark.parametrize(("a", "b", "c"), [(0, 1, 1), (-1, 1, 0), (0.3, -2, 5)])
def test_lsgan_optimum(a: float, b: float, c: float) -> None:
    """Mao 2017, Eq. 5: the best discriminator for fixed distributions."""
    loss, (p, q), (real, fake) = LSGANLoss(a, b, c), distributions(), here((REAL, FAKE))
    best = (b * p + a * q) / (p + q)

    def objective(d: Tensor) -> Tensor:
        return loss.discriminator(d[real], d[fake])

    at_zero = torch.zeros(4, dtype=torch.float64)
    slope = torch.func.grad(objective)
    hessian = torch.func.hessian(objective)(at_zero)
    torch.testing.assert_close(slope(best), at_zero, atol=1e-14, rtol=0)
    assert (
        torch.linalg.eigvalsh(hessian).min() > 0.1
    )  # a quadratic with one minimum, which Newton finds at once
    torch.testing.assert_close(at_zero - torch.linalg.solve(hessian, slope(at_zero)), best)


@pytest.mark.parametrize("c", [0.0, 0.5, -3.0])
def test_lsgan_is_pearson_chi_square(c: float) -> None:
    """Mao 2017, Eq. 3 to 6: b - c = 1, b - a = 2, and a term of real images, which G does not change."""
    loss, (p, q), (real, fake) = LSGANLoss(c - 1, c + 1, c), distributions(), here((REAL, FAKE))
    best = (loss.b * p + loss.a * q) / (p + q)
    value = loss(best[real]) + loss(best[fake])
    divergence = ((2 * q - (p + q)).square() / (p + q)).sum()
    torch.testing.assert_close(value, divergence / 2)


# ---- EBGAN -----------------------------------------------------------------------------------------


def test_ebgan_by_hand() -> None:
    loss = EBGANLoss(2)
    real, fake = (
        torch.tensor([0.5, 3.0], requires_grad=True),
        torch.tensor([0.0, 1.5, 2, 7], requires_grad=True),
    )
    assert loss.real(real).item() == 1.75
    assert loss.fake(fake).item() == (2 + 0.5) / 4
    assert loss(fake).item() == 10.5 / 4
    assert loss.discriminator(real, fake).item() == 1.75 + 0.625
    of_real, of_fake = grad(loss.discriminator(real, fake), (real, fake))
    assert of_real.tolist() == [0.5, 0.5]
    assert of_fake.tolist() == [-0.25, -0.25, 0, 0]  # none at the margin and beyond
    assert grad(loss(fake), fake)[0].tolist() == [0.25] * 4


# ---- WGAN ------------------------------------------------------------------------------------------


def test_wgan_is_the_difference_of_means() -> None:
    loss, real, fake = WGANLoss(), torch.randn(6, 1), torch.randn(3, 1, 2, 2)
    assert loss.discriminator(real, fake).item() == pytest.approx(
        (fake.mean() - real.mean()).item(), rel=1e-6
    )
    assert loss(fake).item() == pytest.approx(-fake.mean().item(), rel=1e-6)


def test_wgan_weights_stay_in_the_clamp() -> None:
    loss = WGANLoss(0.02)
    critic = nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    optimizer = torch.optim.RMSprop(critic.parameters(), lr=0.01)
    real, fake = torch.randn(16, 5), torch.randn(16, 5) + 1
    for _ in range(8):
        value = loss.discriminator(critic(real), critic(fake))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        assert max(p.abs().max() for p in critic.parameters()) > 0.02  # the step left the clamp
        loss.clamp_(critic)
        assert all(p.abs().max() <= 0.02 for p in critic.parameters())
    assert value.item() < -1e-4  # it learned something nevertheless
    assert all(p.requires_grad for p in critic.parameters())


def test_a_clamp_is_of_weights_alone() -> None:
    norm = nn.BatchNorm1d(3)
    WGANLoss().clamp_(norm)
    assert norm.weight.tolist() == pytest.approx([0.01] * 3)
    assert norm.running_var.tolist() == [1, 1, 1]


# ---- all objectives --------------------------------------------------------------------------------


@each_loss
def test_the_discriminator_s_objective_is_the_sum_of_its_terms(loss: AdversarialLoss) -> None:
    real, fake = scores(2, 1, 4, 4), scores(3)
    assert torch.equal(loss.discriminator(real, fake), loss.real(real) + loss.fake(fake))


@each_loss
def test_the_terms_pull_where_they_should(loss: AdversarialLoss) -> None:
    """The generator wants of its images what the discriminator wants of real ones, and not of them."""
    x = torch.tensor([0.7], requires_grad=True)
    of_generator, of_real, of_fake = (grad(term(x), x)[0].sign() for term in (loss, loss.real, loss.fake))
    assert of_real == -of_fake
    if repr(loss) != repr(LSGANLoss(-1, 1, 0)):  # which wants the middle
        assert of_generator == of_real


@each_loss
@each_term
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(loss: AdversarialLoss, term: str, dtype: torch.dtype) -> None:
    """Half precision scores, float32 arithmetic: the value is that of the same scores in float64."""
    x = scores(2, 1, 30, 30, dtype=dtype)
    value = getattr(loss, term)(x)
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_value(value, getattr(loss, term)(x.double()))


@each_loss
@each_term
@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(
    device: torch.device, loss: AdversarialLoss, term: str, low: torch.dtype
) -> None:
    x = scores(2, 1, 8, 8)
    with torch.autocast(device.type, dtype=low):
        value = getattr(loss, term)(x)
    assert torch.equal(value, getattr(loss, term)(x))


@each_loss
@each_term
def test_gradients(loss: AdversarialLoss, term: str) -> None:
    x = torch.tensor([0.1, 0.9, 1.4, 2.6], dtype=torch.float64, requires_grad=True)
    assert gradcheck(getattr(loss, term), x)
    assert gradgradcheck(getattr(loss, term), x)


@each_loss
@each_term
def test_a_nan_score_is_not_hidden(loss: AdversarialLoss, term: str) -> None:
    assert bool(getattr(loss, term)(torch.tensor([1.0, math.nan])).isnan())


@each_loss
def test_compiles_into_one_graph(loss: AdversarialLoss) -> None:
    real, fake = scores(2, 1, 4, 4), scores(2, 1, 4, 4)
    compiled = torch.compile(loss.discriminator, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(real, fake), loss.discriminator(real, fake))


@pytest.mark.parametrize("loss", [*LOSSES, GANLoss(LSGANLoss(), {"l2": 3})], ids=repr)
def test_losses_are_modules(loss: nn.Module) -> None:
    assert list(loss.state_dict()) == []
    assert repr(pickle.loads(pickle.dumps(loss))) == repr(copy.deepcopy(loss)) == repr(loss)


def test_repr_shows_the_arguments() -> None:
    assert repr(DCGANLoss()) == "DCGANLoss()"
    assert repr(LSGANLoss(-1, 1, 0)) == "LSGANLoss(a=-1.0, b=1.0, c=0.0)"
    assert repr(EBGANLoss(2)) == "EBGANLoss(margin=2.0)"
    assert repr(WGANLoss()) == "WGANLoss(clamp=0.01)"
    assert "weights={'adv': 1.0, 'l1': 100.0, 'l2': 5.0}" in repr(GANLoss(WGANLoss(), {"l2": 5}))


# ---- GANLoss ---------------------------------------------------------------------------------------


@each_loss
def test_the_sum_and_its_gradient(loss: AdversarialLoss) -> None:
    out = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    target, fake = torch.randn(2, 3, 5, 5), scores(2, 1, 3, 3, dtype=torch.float64).requires_grad_()
    terms = GANLoss(loss, {"adv": 0.5, "l1": 10, "l2": 3})(out, target, fake)
    assert torch.equal(terms.adv, loss(fake))
    torch.testing.assert_close(terms.l1, F.l1_loss(out, target.double()))
    torch.testing.assert_close(terms.l2, F.mse_loss(out, target.double()))
    torch.testing.assert_close(terms.total, 0.5 * terms.adv + 10 * terms.l1 + 3 * terms.l2)
    of_out, of_scores = grad(terms.total, (out, fake))
    error = out.detach() - target
    assert_gradient(of_out, (10 * error.sign() + 6 * error) / error.numel())
    assert_gradient(of_scores, 0.5 * grad(loss(fake), fake)[0])


def test_the_default_is_pix2pix() -> None:
    out, target = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.25)
    terms = GANLoss(DCGANLoss())(out, target, torch.zeros(1, 1))
    assert terms.total.item() == pytest.approx(math.log(2) + 25, rel=1e-6)
    assert terms.l2.item() == 0  # of weight 0, so not computed


def test_terms_of_weight_zero_are_not_computed() -> None:
    out, bad = torch.zeros(1, 3, 4, 4), torch.full((2, 1), math.nan)
    terms = GANLoss(DCGANLoss(), {"adv": 0})(out, out, bad)
    assert [term.item() for term in terms] == [0, 0, 0, 0]
    terms = GANLoss(DCGANLoss(), {"l1": 0})(out, None, torch.zeros(2, 1))
    assert terms.total.item() == terms.adv.item() == pytest.approx(math.log(2))


def test_a_generator_without_discriminator() -> None:
    out, target = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    terms = GANLoss(WGANLoss())(out, target)
    assert terms.adv.item() == 0
    assert torch.equal(terms.total, 100 * terms.l1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images(dtype: torch.dtype) -> None:
    """The square of an error of 1000 overflows float16."""
    out, target = (torch.full((1, 1, 64, 64), v, dtype=dtype) for v in (1000.0, 0.0))
    terms = GANLoss(LSGANLoss(), {"l1": 1, "l2": 1})(out, target, torch.zeros(1, dtype=dtype))
    assert {term.dtype for term in terms} == {torch.float32}
    assert terms.l1.item() == 1000
    assert terms.l2.item() == 1_000_000


@pytest.mark.parametrize("place", ["out", "target", "fake_scores"])
def test_nan_is_not_hidden(place: str) -> None:
    arguments = {"out": torch.zeros(1, 3, 4), "target": torch.zeros(1, 3, 4), "fake_scores": torch.zeros(2)}
    arguments[place].flatten()[0] = math.nan
    terms = GANLoss(DCGANLoss(), {"l2": 1})(**arguments)
    assert bool(terms.total.isnan())
    assert bool(terms.adv.isnan()) == (place == "fake_scores")


# ---- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LSGANLoss(a="0"), TypeError, "a must be a number, got '0'"),
        (lambda: LSGANLoss(b=math.nan), ValueError, "b must be finite, got nan"),
        (lambda: LSGANLoss(c=math.inf), ValueError, "c must be finite, got inf"),
        (lambda: EBGANLoss(-1), ValueError, "margin must be positive, got -1"),
        (lambda: EBGANLoss(0), ValueError, "margin must be positive, got 0"),
        (lambda: EBGANLoss(math.inf), ValueError, "margin must be finite, got inf"),
        (lambda: EBGANLoss(None), TypeError, "margin must be a number, got None"),
        (lambda: WGANLoss(0), ValueError, "clamp must be positive, got 0"),
        (lambda: WGANLoss(-0.01), ValueError, r"clamp must be positive, got -0\.01"),
        (lambda: WGANLoss(True), TypeError, "clamp must be a number, got True"),
        (lambda: WGANLoss().clamp_([1.0]), TypeError, "critic must be of type Module, got list"),
        (
            lambda: GANLoss(nn.MSELoss()),
            TypeError,
            "adversarial must be of type AdversarialLoss, got MSELoss",
        ),
        (
            lambda: GANLoss(WGANLoss, {}),
            TypeError,
            "adversarial must be of type AdversarialLoss, got ABCMeta",
        ),
        (lambda: GANLoss(WGANLoss(), {"L1": 1}), ValueError, "weights must have keys in .*'l1'.*, got 'L1'"),
        (
            lambda: GANLoss(WGANLoss(), {"l1": -1}),
            ValueError,
            r"weights\['l1'\] must be finite and not neg.*-1",
        ),
        (lambda: GANLoss(WGANLoss(), [1, 2, 3]), TypeError, r"weights must be a dict .* got \[1, 2, 3\]"),
    ],
)
def test_bad_options(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@each_loss
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (0.5, TypeError, "must be a torch.Tensor, got float"),
        (torch.ones(2).int(), TypeError, "must be float16, .* got torch.int32"),
        (torch.ones(0, 1), ValueError, r"must hold at least one value, got shape \(0, 1\)"),
    ],
)
def test_bad_scores(loss: AdversarialLoss, bad: Any, error: type[Exception], message: str) -> None:
    for term in (loss, loss.real, loss.fake):
        with pytest.raises(error, match="scores " + message):
            term(bad)
    with pytest.raises(error, match="real " + message):
        loss.discriminator(bad, torch.ones(2))
    with pytest.raises(error, match="fake " + message):
        loss.discriminator(torch.ones(2), bad)


@on_cpu  # elsewhere to look at values would be to wait for them
def test_negative_energies() -> None:
    with pytest.raises(ValueError, match=r"fake must be energies of at least 0, got -0\.5"):
        EBGANLoss(1).discriminator(torch.ones(2), torch.tensor([1.0, -0.5]))


IMAGE = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, IMAGE), TypeError, "out must be a torch.Tensor .* got NoneType"),
        ((IMAGE.int(), IMAGE), TypeError, "out must be float16, .* got torch.int32"),
        ((IMAGE[:0], IMAGE[:0]), ValueError, r"out must hold at least one value, got shape \(0, 3, 4, 4\)"),
        ((IMAGE, None), TypeError, "target must be a torch.Tensor .* got NoneType"),
        ((IMAGE, IMAGE[:, :1]), ValueError, r"target must have the shape of out, .* got \(2, 1, 4, 4\)"),
        ((IMAGE, IMAGE.to("meta")), ValueError, "target must be on {device}, got meta"),
        ((IMAGE, IMAGE, [0.5]), TypeError, "fake_scores must be a torch.Tensor, got list"),
        ((IMAGE, IMAGE, torch.ones(0)), ValueError, "fake_scores must hold at least one value"),
        (
            (IMAGE, IMAGE, torch.ones(2, device="meta")),
            ValueError,
            "fake_scores must be on {device}, got meta",
        ),
    ],
)
def test_bad_arguments(
    device: torch.device, arguments: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message.replace("{device}", str(device))):
        GANLoss(DCGANLoss())(*here(arguments))
