r"""Adversarial objectives, and the sum of one with L1 and L2.

Each objective has two terms for the discriminator, of which it minimises the sum, and one for the generator:

=========================  ======================  =======================  =======================
loss                       ``real(D(x))``          ``fake(D(G))``           ``forward(D(G))``
=========================  ======================  =======================  =======================
:class:`DCGANLoss`         -log s(D(x))            -log(1 - s(D(G)))        -log s(D(G))
:class:`LSGANLoss`         (D(x) - b)^2 / 2        (D(G) - a)^2 / 2         (D(G) - c)^2 / 2
:class:`EBGANLoss`         D(x)                    max(0, margin - D(G))    D(G)
:class:`WGANLoss`          -D(x)                   D(G)                     -D(G)
=========================  ======================  =======================  =======================

s is the sigmoid, D(x) the discriminator's scores of real images and D(G) those of the generator's. Each term
is the mean over all scores: of images, or of patches and pixels too. Whether a discriminator is conditional,
so whether it sees the source beside the image, is its own business: a loss sees scores alone.

The arithmetic is float32, or float64 for float64 scores, under autocast too. A NaN score makes its term NaN.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checks
from .common import show, widen


class AdversarialLoss(nn.Module, ABC):
    r"""What every objective offers. Called, it is the generator's term.

    The terms of real images and of generated ones are methods of their own, so that each can have its own
    backward. All take scores of any shape with at least one value, float16, bfloat16, float32 or float64, and
    return a scalar, float32 or float64.

    Example::

        loss = LSGANLoss()
        loss.discriminator(d(image), d(output.detach())).backward()  # and a step of d
        loss(d(output)).backward()                                   # and a step of the generator

    Raises:
        TypeError, ValueError: scores are not as described.
    """

    def forward(self, scores: Tensor) -> Tensor:
        """The generator's term, of the discriminator's scores of the generator's images."""
        return self._mean("scores", scores, self._generator)

    def real(self, scores: Tensor) -> Tensor:
        """The discriminator's term of real images."""
        return self._mean("scores", scores, self._real)

    def fake(self, scores: Tensor) -> Tensor:
        """The discriminator's term of the generator's images, which it gets detached."""
        return self._mean("scores", scores, self._fake)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The sum of the discriminator's terms; the shapes may differ."""
        return self._mean("real", real, self._real) + self._mean("fake", fake, self._fake)

    def _mean(self, name: str, scores: Tensor, term: Callable[[Tensor], Tensor]) -> Tensor:
        self._check(name, scores)
        return term(widen(scores)).mean()

    def _check(self, name: str, scores: Tensor) -> None:
        checks.check_scores(name, scores)

    @abstractmethod
    def _generator(self, scores: Tensor) -> Tensor: ...

    @abstractmethod
    def _real(self, scores: Tensor) -> Tensor: ...

    @abstractmethod
    def _fake(self, scores: Tensor) -> Tensor: ...


class DCGANLoss(AdversarialLoss):
    r"""The non-saturating cross-entropy, of logits.

    .. math:: \mathcal{L}_D = -\log \sigma(D(x)) - \log(1 - \sigma(D(G))), \quad
              \mathcal{L}_G = -\log \sigma(D(G))

    Both are in nats, at least 0, and finite for every finite logit. Goodfellow et al., "Generative
    Adversarial Nets", NeurIPS 2014, Sec. 3; the loss of DCGAN: Radford, Metz and Chintala, ICLR 2016. The
    generator's is also the adversarial term of :class:`DeepHistLoss`.
    """

    def _generator(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.ones_like(scores), reduction="none")

    _real = _generator

    def _fake(self, scores: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, torch.zeros_like(scores), reduction="none")


class LSGANLoss(AdversarialLoss):
    r"""Least squares, of scores without a sigmoid.

    .. math:: \mathcal{L}_D = \tfrac12 (D(x) - b)^2 + \tfrac12 (D(G) - a)^2, \quad
              \mathcal{L}_G = \tfrac12 (D(G) - c)^2

    Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017, Eq. 2. The default is their
    Eq. 9. With b - c = 1 and b - a = 2, e.g. a = -1, b = 1, c = 0, and with the best discriminator, the
    generator's term plus the same of real images is half the Pearson chi-square divergence of p_data + p_G
    and 2 p_G (Eq. 3 to 6).

    Args:
        a: the discriminator's target for the generator's images.
        b: the discriminator's target for real images.
        c: the generator's target for its images. All finite.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(self, a: float = 0.0, b: float = 1.0, c: float = 1.0) -> None:
        super().__init__()
        self.a = checks.check_finite("a", a)
        self.b = checks.check_finite("b", b)
        self.c = checks.check_finite("c", c)

    def _generator(self, scores: Tensor) -> Tensor:
        return (scores - self.c).square() / 2

    def _real(self, scores: Tensor) -> Tensor:
        return (scores - self.b).square() / 2

    def _fake(self, scores: Tensor) -> Tensor:
        return (scores - self.a).square() / 2

    def extra_repr(self) -> str:
        """The arguments."""
        return show(a=self.a, b=self.b, c=self.c)


class EBGANLoss(AdversarialLoss):
    r"""The hinge of energies, e.g. of an autoencoder's reconstruction errors.

    .. math:: \mathcal{L}_D = D(x) + \max(0, m - D(G)), \quad \mathcal{L}_G = D(G)

    Zhao, Mathieu and LeCun, "Energy-based Generative Adversarial Networks", ICLR 2017, Eq. 1 and 2, with one
    energy per image. The hinge is taken of each score: an image whose energy has reached the margin has no
    gradient in the discriminator's term.

    Args:
        margin: m, positive and finite, in the units of the energy.

    Raises:
        TypeError, ValueError: an argument is not as described. That energies are not negative is checked in
            eager calls on the CPU, not on a GPU.
    """

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = checks.check_positive("margin", margin)

    def _check(self, name: str, scores: Tensor) -> None:
        super()._check(name, scores)
        checks.check_energies(name, scores)

    def _generator(self, scores: Tensor) -> Tensor:
        return scores

    _real = _generator

    def _fake(self, scores: Tensor) -> Tensor:
        return F.relu(self.margin - scores)

    def extra_repr(self) -> str:
        """The argument."""
        return show(margin=self.margin)


class WGANLoss(AdversarialLoss):
    r"""The difference of a critic's means, which bounds the Wasserstein distance from below.

    .. math:: \mathcal{L}_D = D(G) - D(x), \quad \mathcal{L}_G = -D(G)

    It does so up to the critic's Lipschitz constant, which is bounded where its weights are: call
    :meth:`clamp_` after each of its steps. Arjovsky, Chintala and Bottou, "Wasserstein Generative Adversarial
    Networks", ICML 2017, Eq. 3 and Algorithm 1, which makes five steps of the critic for one of the
    generator, by RMSprop with a learning rate of 5e-5.

    Args:
        clamp: the largest absolute weight, positive and finite.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(self, clamp: float = 0.01) -> None:
        super().__init__()
        self.clamp = checks.check_positive("clamp", clamp)

    @torch.no_grad()
    def clamp_(self, critic: nn.Module) -> None:
        """Bring all parameters of a critic into [-clamp, clamp], in place. Buffers stay as they are."""
        checks.check_instance("critic", critic, nn.Module)
        for parameter in critic.parameters():
            parameter.clamp_(-self.clamp, self.clamp)

    def _generator(self, scores: Tensor) -> Tensor:
        return -scores

    _real = _generator

    def _fake(self, scores: Tensor) -> Tensor:
        return scores

    def extra_repr(self) -> str:
        """The argument."""
        return show(clamp=self.clamp)


class GANTerms(NamedTuple):
    """The value of :class:`GANLoss`: the weighted sum, and its terms as they are before weighting."""

    total: Tensor
    adv: Tensor
    l1: Tensor
    l2: Tensor


class GANLoss(nn.Module):
    r"""A generator's objective: an adversarial term beside the distance to a target, pixel by pixel.

    .. math:: \mathcal{L} = \lambda_{adv} \mathcal{L}_G + \lambda_{L1} \operatorname{mean} |out - target|
              + \lambda_{L2} \operatorname{mean} (out - target)^2

    The default is that of pix2pix: Isola et al., "Image-to-Image Translation with Conditional Adversarial
    Networks", CVPR 2017, Eq. 4. The discriminator's objective is `adversarial`'s alone.

    Args:
        adversarial: the objective of which the first term is the generator's.
        weights: weights that replace those of the default, ``{"adv": 1, "l1": 100, "l2": 0}``, by name.
            Finite and not negative. A term of weight 0 is not computed and its arguments are not looked at.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(self, adversarial: AdversarialLoss, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        checks.check_instance("adversarial", adversarial, AdversarialLoss)
        self.adversarial = adversarial
        defaults = {"adv": 1.0, "l1": 100.0, "l2": 0.0}
        weights = {} if weights is None else weights
        checks.check_term_weights(weights, tuple(defaults))
        self.weights = {term: float(weights.get(term, default)) for term, default in defaults.items()}

    def forward(self, out: Tensor, target: Tensor | None, fake_scores: Tensor | None = None) -> GANTerms:
        r"""The objective and its terms.

        Args:
            out: output image, shape (B, C, \*spatial), float16, bfloat16, float32 or float64.
            target: what it should be, same shape and device; None only where L1 and L2 have weight 0.
            fake_scores: the discriminator's scores of out, any shape; None leaves the adversarial term 0.

        Returns:
            Scalars `total`, `adv`, `l1` and `l2`, float32 or float64, all with gradients. The terms are not
            weighted; one that is not computed is 0. NaN pixels and scores make their terms NaN.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        checks.check_image("out", out)
        checks.check_not_empty("out", out)
        zero = torch.zeros((), dtype=checks.accumulation_dtype(out.dtype), device=out.device)
        terms = {"adv": zero, "l1": zero, "l2": zero}
        if self.weights["adv"] and fake_scores is not None:
            checks.check_scores("fake_scores", fake_scores)
            checks.check_device("fake_scores", fake_scores, out.device)
            terms["adv"] = self.adversarial(fake_scores)
        if self.weights["l1"] or self.weights["l2"]:
            checks.check_image_pair(out, target, names=("out", "target"))
            assert target is not None
            error = widen(out) - widen(target)
            if self.weights["l1"]:
                terms["l1"] = error.abs().mean()
            if self.weights["l2"]:
                terms["l2"] = error.square().mean()
        total = sum((self.weights[term] * value for term, value in terms.items()), start=zero)
        return GANTerms(total, **terms)

    def extra_repr(self) -> str:
        """The weights; the adversarial loss shows itself."""
        return show(weights=self.weights)
