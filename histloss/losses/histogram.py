"""The losses of DeepHist: a distance of colour histograms, mutual information, and their weighted sum.

Equation numbers are those of Avi-Aharon, Arbelle and Riklin Raviv, "Differentiable Joint and Color Histogram
Layers for Image-to-Image Translation" (DeepHist), TPAMI 2023, doi 10.1109/TPAMI.2023.3278287.

The arithmetic is float32, or float64 for float64 images, under autocast too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import checks
from ..binning import binning, binning_pair
from ..functional import emd, joint_histogram, mutual_information, soft_histogram
from ..reference import CORRECTIONS, EMD_FORMS, MI_MODES
from .adversarial import DCGANLoss
from .common import no_mass, pixel_count, reduce, show


class EMDHistLoss(nn.Module):
    r"""Earth Mover's Distance between the output's histograms and target histograms (DeepHist Eq. 14, 19).

    .. math:: \mathcal{L} = \operatorname{mean}_{b,c} \mathrm{EMD}(h(out_{b,c}), h^{ref}_{b,c})

    Example::

        loss = EMDHistLoss()
        target = soft_histogram(reference, **loss.binning)
        loss(output, target).backward()

    With ``boundary="cyclic", cyclic=True`` on a hue channel it is Hue-Net's hue loss.

    Args:
        bins, range, bandwidth, boundary, kernel: the output's histogram, as in
            :func:`histloss.soft_histogram`.
        p, form: order and form of the distance, as in :func:`histloss.emd`. The default is Eq. 14, strictly
            a squared Cramer distance. A shift of a narrow histogram by 1, 8 or 64 of 256 bins costs
            1, 8, 64 in the form ``"squared"`` and 0.0625, 0.177, 0.5 in ``"norm"``.
        cyclic: the distance on a circle, for hue; needs ``boundary="cyclic"``.
        reduction: ``"mean"`` or ``"sum"`` over batch and channels, or ``"none"`` for shape (B, C).
        empty: what to do for an image and channel without any weight: ``"error"``, or ``"zero"`` for a loss
            and gradient of 0 wherever one of the histograms has no mass. ``"mean"`` counts it nevertheless.

    Attributes:
        binning: the keywords with which :func:`histloss.soft_histogram` makes a matching target.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        bins: int = 256,
        range: tuple[float, float] = (-1.0, 1.0),
        bandwidth: float | None = None,
        boundary: str = "reflect",
        *,
        kernel: str = "sigmoid",
        p: float = 2,
        form: str = "squared",
        cyclic: bool = False,
        reduction: str = "mean",
        empty: str = "error",
    ) -> None:
        super().__init__()
        axis = binning(bins, range, bandwidth, boundary, kernel)
        self.binning: dict[str, Any] = {
            "bins": axis.bins,
            "range": (axis.lo, axis.hi),
            "bandwidth": axis.bandwidth,
            "boundary": axis.boundary,
            "kernel": axis.kernel,
        }
        self.p = checks.check_order(p)
        checks.check_choice("form", form, EMD_FORMS)
        self.form = form
        checks.check_cyclic(cyclic, boundary)
        self.cyclic = cyclic
        checks.check_choice("reduction", reduction, checks.REDUCTIONS)
        self.reduction = reduction
        checks.check_choice("empty", empty, checks.EMPTY)
        self.empty = empty

    def forward(
        self,
        out: Tensor,
        ref_hist: Tensor,
        *,
        weight: Tensor | None = None,
        range: tuple[float, float] | Tensor | None = None,
        process_group: Any = None,
    ) -> Tensor:
        r"""The distance of the output's histograms to the target.

        Args:
            out: output image, shape (B, C, \*spatial), float16, bfloat16, float32 or float64.
            ref_hist: target histograms, shape (B, C, K), or (C, K) for the whole batch, on the device of
                out. Each sums to 1 (``"open"``: to at most 1); checked on the CPU, not on a GPU.
            weight: non-negative weight per pixel of out, as in :func:`histloss.soft_histogram`.
            range: a range in place of the loss's own, in which the target was made too; a tensor (B, 2) has
                one for each sample.
            process_group: processes whose pixels of out make one histogram, as in
                :func:`histloss.soft_histogram`.

        Returns:
            A scalar, or shape (B, C) with ``reduction="none"``; float32, or float64 if an argument is.
            Where both histograms are equal it is 0 with a zero gradient.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        checks.check_image("out", out)
        checks.check_ref_hist(ref_hist, channels=out.shape[1], batch=out.shape[0], bins=self.binning["bins"])
        checks.check_device("ref_hist", ref_hist, out.device)
        checks.check_ref_hist_values(ref_hist, self.binning["boundary"], self.empty)
        options = self.binning if range is None else {**self.binning, "range": range}
        h = soft_histogram(out, **options, weight=weight, process_group=process_group, empty=self.empty)
        value = emd(h, ref_hist, p=self.p, form=self.form, cyclic=self.cyclic)
        if self.empty == "zero":
            value = torch.where(no_mass(h) | no_mass(ref_hist), 0.0, value)
        return reduce(value, self.reduction)

    def extra_repr(self) -> str:
        """The arguments."""
        return show(
            **self.binning,
            p=self.p,
            form=self.form,
            cyclic=self.cyclic,
            reduction=self.reduction,
            empty=self.empty,
        )


class MIHistLoss(nn.Module):
    """Mutual information of output and source, pixel by pixel, as a loss to minimise (DeepHist Eq. 16, 20).

    =========================  =============================  =============================================
    mode                       loss, J being (out, src)       range
    =========================  =============================  =============================================
    ``"relative"`` (default)   1 - I / H(J)                   0 to 1; 0.43, not 0, for a uniform image with
                                                              itself at 256 bins, since soft bins overlap
    ``"mi"``                   -I, in nats                    -log K to 0
    ``"conditional_entropy"``  H(src given out), in nats      0 to log K; the official code's "MI loss"
    ``"nmi"``                  -(H(out) + H(src)) / H(J)      -2 to -1
    =========================  =============================  =============================================

    A constant image shares no information with any other: value and gradient are finite, and say little.
    With as many cells K x K as pixels the gradient is almost flat; fewer bins serve small images better.

    A correction takes from the loss what it is wrong by:

    - ``"miller_madow"`` makes up for the entropy that few pixels miss, as in
      :func:`histloss.mutual_information`. Their number is that of an image's pixels or, with weights w,
      (sum w)^2 / sum w^2. The gradient of ``"mi"`` and ``"conditional_entropy"`` does not change.
    - ``"self"`` subtracts half the losses of (out, out) and of (src, src), each with the bins of its own, so
      that an image has no distance to itself, whatever bins and kernel. The loss is 0 at out = src, grows
      from there to at most 1 for ``"relative"`` and ``"nmi"``, and is not bound to stay above 0. Its gradient
      is 0 there too, but for ``"conditional_entropy"``, which is not symmetric: that keeps minus half the
      gradient of H(out). It takes three joint histograms in place of one.

    Args:
        bins, range, bandwidth, boundary, kernel: as in :func:`histloss.joint_histogram`; a pair is
            (out, src).
        mode: one of the above.
        reduction: ``"mean"`` or ``"sum"`` over batch and channels, or ``"none"`` for shape (B, C).
        correction: None, ``"miller_madow"`` or ``"self"``.
        empty: what to do for an image and channel without any weight: ``"error"``, or ``"zero"`` for a loss
            and gradient of 0 wherever the joint histogram has no mass. ``"mean"`` counts it nevertheless.

    Attributes:
        binning: the keywords of :func:`histloss.joint_histogram` for (out, src).

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        bins: int | tuple[int, int] = 256,
        range: tuple[float, float] | tuple[tuple[float, float], tuple[float, float]] = (-1.0, 1.0),
        bandwidth: float | tuple[float | None, float | None] | None = None,
        boundary: str | tuple[str, str] = "reflect",
        *,
        kernel: str | tuple[str, str] = "sigmoid",
        mode: str = "relative",
        reduction: str = "mean",
        correction: str | None = None,
        empty: str = "error",
    ) -> None:
        super().__init__()
        x, y = binning_pair(bins, range, bandwidth, boundary, kernel)
        self.binning: dict[str, Any] = {
            "bins": (x.bins, y.bins),
            "range": ((x.lo, x.hi), (y.lo, y.hi)),
            "bandwidth": (x.bandwidth, y.bandwidth),
            "boundary": (x.boundary, y.boundary),
            "kernel": (x.kernel, y.kernel),
        }
        checks.check_choice("mode", mode, MI_MODES)
        self.mode = mode
        checks.check_choice("reduction", reduction, checks.REDUCTIONS)
        self.reduction = reduction
        if correction is not None:
            checks.check_choice("correction", correction, (*CORRECTIONS, "self"))
        self.correction = correction
        checks.check_choice("empty", empty, checks.EMPTY)
        self.empty = empty

    def forward(
        self,
        out: Tensor,
        src: Tensor,
        *,
        weight: Tensor | None = None,
        range: tuple[float, float]
        | Tensor
        | tuple[tuple[float, float] | Tensor, tuple[float, float] | Tensor]
        | None = None,
        process_group: Any = None,
    ) -> Tensor:
        r"""The loss of an output with respect to its source.

        Args:
            out: output image, shape (B, C, \*spatial), float16, bfloat16, float32 or float64.
            src: source image, same shape and device. Both get a gradient.
            weight: non-negative weight per pixel, as in :func:`histloss.joint_histogram`.
            range: a range in place of the loss's own; a tensor (B, 2) has one for each sample, and a pair is
                (out, src).
            process_group: processes whose pixels make one histogram, as in :func:`histloss.soft_histogram`.

        Returns:
            A scalar, or shape (B, C) with ``reduction="none"``; float32, or float64 if an image is.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        checks.check_image("out", out)
        checks.check_image_pair(out, src, names=("out", "src"))
        options = self.binning if range is None else {**self.binning, "range": range}
        options = {**options, "weight": weight, "process_group": process_group, "empty": self.empty}
        joint = joint_histogram(out, src, **options)
        count = pixel_count(out, weight, process_group) if self.correction == "miller_madow" else None
        value = self._loss(joint, count)
        if self.correction == "self":
            of_out, of_src = (
                self._loss(joint_histogram(image, image, **_with_itself(options, axis)), None)
                for axis, image in enumerate((out, src))
            )
            value = value - (of_out + of_src) / 2
        if self.empty == "zero":
            value = torch.where(no_mass(joint.flatten(-2)), 0.0, value)
        return reduce(value, self.reduction)

    def _loss(self, joint: Tensor, count: Tensor | None) -> Tensor:
        correction = None if count is None else "miller_madow"
        value = mutual_information(joint, mode=self.mode, correction=correction, count=count)
        return -value if self.mode in ("mi", "nmi") else value

    def extra_repr(self) -> str:
        """The arguments."""
        return show(
            **self.binning,
            mode=self.mode,
            reduction=self.reduction,
            correction=self.correction,
            empty=self.empty,
        )


def _with_itself(options: dict[str, Any], axis: int) -> dict[str, Any]:
    """The keywords of a joint histogram of the first or second image with itself."""
    pairs = ("bins", "bandwidth", "boundary", "kernel")
    own = {name: (options[name][axis],) * 2 for name in pairs}
    both = options["range"]  # one for both images, or a pair of which either is numbers or a tensor
    apart = not isinstance(both, Tensor) and not isinstance(both[0], (int, float))
    return {**options, **own, "range": both[axis] if apart else both}


class DeepHistTerms(NamedTuple):
    """The value of :class:`DeepHistLoss`: the weighted sum, and its terms as they are before weighting."""

    total: Tensor
    emd: Tensor
    mi: Tensor
    adv: Tensor


class DeepHistLoss(nn.Module):
    r"""The objective of a DeepHist generator (Eq. 18).

    .. math:: \mathcal{L} = \lambda_{EMD} \mathcal{L}_{EMD} + \lambda_{MI} \mathcal{L}_{MI}
              + \lambda_{ADV} \mathcal{L}_{ADV}

    The adversarial term is the generator's of :class:`DCGANLoss`. Loss weights do not carry over between
    forms of a loss, so a preset names both:

    ==============  ===========================  ===============================  ======================
    preset          EMD term                     MI term                          weights emd, mi, adv
    ==============  ===========================  ===============================  ======================
    ``"paper"``     ``form="squared"``, Eq. 14   ``mode="relative"``, Eq. 16      1, 1, 1
    ``"official"``  ``form="norm"``, p = 2       ``mode="conditional_entropy"``   100, 1, 1
    ==============  ===========================  ===============================  ======================

    The paper prints no weights: 1, 1, 1 is this library's choice. ``"official"`` is the authors' TensorFlow
    code for colour transfer and edges to photo; its colourisation is ``weights={"emd": 20}``. Both keep
    the boundary ``"reflect"``, as the official code does; Eq. 6 as printed is ``"open"``. Images are compared
    in the colour space in which they come.

    Args:
        weights: weights that replace the preset's, by name: ``"emd"``, ``"mi"``, ``"adv"``. Finite and not
            negative. A term of weight 0 is not computed and its arguments are not looked at.
        preset: ``"paper"`` or ``"official"``.
        emd: an :class:`EMDHistLoss` that replaces the preset's, e.g. with bins of its own.
        mi: an :class:`MIHistLoss` that replaces the preset's.

    Raises:
        TypeError, ValueError: an argument is not as described, or `emd` or `mi` does not reduce by
            ``"mean"``.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        preset: str = "paper",
        emd: EMDHistLoss | None = None,
        mi: MIHistLoss | None = None,
    ) -> None:
        super().__init__()
        checks.check_choice("preset", preset, tuple(_PRESETS))
        form, mode, defaults = _PRESETS[preset]
        weights = {} if weights is None else weights
        checks.check_term_weights(weights, tuple(defaults))
        self.weights = {term: float(weights.get(term, default)) for term, default in defaults.items()}
        self.preset = preset
        self.emd = EMDHistLoss(form=form) if emd is None else emd
        self.mi = MIHistLoss(mode=mode) if mi is None else mi
        checks.check_term("emd", self.emd, EMDHistLoss)
        checks.check_term("mi", self.mi, MIHistLoss)
        self.adv = DCGANLoss()

    def forward(
        self,
        out: Tensor,
        src: Tensor | None,
        ref_hist: Tensor | None,
        fake_logits: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        range: tuple[float, float] | Tensor | None = None,
        process_group: Any = None,
    ) -> DeepHistTerms:
        r"""The objective and its terms.

        Args:
            out: output image, shape (B, C, \*spatial), float16, bfloat16, float32 or float64.
            src: source image for the MI term, same shape and device; None only with weight 0.
            ref_hist: target histograms for the EMD term, as in :class:`EMDHistLoss`; None only with weight 0.
            fake_logits: the discriminator's logits for out, any shape; None leaves the adversarial term 0.
            weight: non-negative weight per pixel of out, for both histogram terms.
            range, process_group: as in :class:`EMDHistLoss` and :class:`MIHistLoss`, for both of them; the
                range is that of both images.

        Returns:
            Scalars `total`, `emd`, `mi` and `adv`, float32 or float64, all with gradients. The terms are not
            weighted; one that is not computed is 0.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        checks.check_image("out", out)
        zero = torch.zeros((), dtype=checks.accumulation_dtype(out.dtype), device=out.device)
        terms = {"emd": zero, "mi": zero, "adv": zero}
        options = {"weight": weight, "range": range, "process_group": process_group}
        if self.weights["emd"]:
            terms["emd"] = self.emd(out, ref_hist, **options)
        if self.weights["mi"]:
            terms["mi"] = self.mi(out, src, **options)
        if self.weights["adv"] and fake_logits is not None:
            checks.check_scores("fake_logits", fake_logits)
            checks.check_device("fake_logits", fake_logits, out.device)
            terms["adv"] = self.adv(fake_logits)
        total = sum((self.weights[term] * value for term, value in terms.items()), start=zero)
        return DeepHistTerms(total, **terms)

    def extra_repr(self) -> str:
        """The arguments; the losses show themselves."""
        return show(preset=self.preset, weights=self.weights)


_PRESETS = {  # form of the EMD, mode of the MI, weights
    "paper": ("squared", "relative", {"emd": 1.0, "mi": 1.0, "adv": 1.0}),
    "official": ("norm", "conditional_entropy", {"emd": 100.0, "mi": 1.0, "adv": 1.0}),
}
