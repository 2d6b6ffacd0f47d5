"""Stands in for HueNet's histogram layers and the losses made of them, without tensors of pixels by bins.

There are two originals: the authors' TensorFlow code, github.com/mor-avi-aharon-bgu/HueNet, and a port of it
to PyTorch, github.com/kmj17211/HueNet-Pytorch. Names are the port's or, where it has none, the authors'; all
images are PyTorch's, (B, C, H, W). The originals agree but for the conditional entropy, where the port adds
1e-9 to each probability in a logarithm: what has the port's name does so too.

Where both images are equal the port's gradient is NaN; here it is 0. A kernel that is nearly as wide as the
range is mirrored again and again here, so that its mass is 1; in the originals once at either end. Their
methods that take activation maps are left out: there are no maps.

Neither original can be installed, so the tests compare with the equations, written out in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import checks
from ..binning import binning
from ..functional import activation_maps, emd, joint_histogram, mutual_information, soft_histogram

PORT_EPSILON = 1e-9
LAYER_OPTIONS = ("bin_num", "min_val", "max_val", "kernel_width_ratio")
WEIGHT_OPTIONS = ("gan_loss_weight", "mi_loss_weight", "hist_loss_weight")
TASKS = ("color_transfer", "SAMPLE")


class HistogramLayers:
    """Histograms of an output and a target, and their losses.

    The authors' code has the same class; its arguments `out` and `tar` are the first two here.

    Args:
        out_img: images, shape (B, ...), whose pixels are one histogram each, whatever their channels: one
            channel is ``images[:, 0]``. float16, bfloat16, float32 or float64.
        tar_img: images that the output is to be like, shape (B, ...).
        args: what has the attributes ``bin_num``, ``min_val`` and ``max_val``, the number and range of the
            bins, and ``kernel_width_ratio``, a bin's width divided by the kernel's scale: 256, -1, 1 and 2.5
            in both originals. A value outside of the range counts as mirrored at its end.
        epsilon: added to each probability in the logarithms of the conditional entropy, not negative. 1e-9 is
            the port's, 0 the authors'.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(self, out_img: Tensor, tar_img: Tensor, args: Any, *, epsilon: float = PORT_EPSILON) -> None:
        checks.check_options("args", args, LAYER_OPTIONS)
        try:
            checks.check_positive("kernel_width_ratio", args.kernel_width_ratio)
            axis = binning(args.bin_num, (args.min_val, args.max_val), 1 / args.kernel_width_ratio, "reflect")
        except (TypeError, ValueError) as error:
            names = ", ".join(LAYER_OPTIONS)
            raise type(error)(f"args must have {names} that make a histogram's bins: {error}") from None
        self._binning: dict[str, Any] = {
            "bins": axis.bins,
            "range": (axis.lo, axis.hi),
            "bandwidth": axis.bandwidth,
            "boundary": axis.boundary,
        }
        self._epsilon = checks.check_not_negative("epsilon", epsilon)
        self.bin_num = axis.bins
        self.min_val, self.max_val = axis.lo, axis.hi
        self.interval_length = axis.width
        self.kernel_width = axis.width * axis.bandwidth
        checks.check_batch("out_img", out_img)
        checks.check_batch("tar_img", tar_img)
        checks.check_device("tar_img", tar_img, out_img.device)
        self._out, self._tar = out_img.unsqueeze(1), tar_img.unsqueeze(1)
        self.n_pixels = out_img[0].numel()
        self.bs = len(out_img)

    def calc_activation_maps(self, img: Tensor) -> Tensor:
        """The activation of every pixel in every bin, shape (B, N, K): K times the size of the image.

        The losses make none.
        """
        checks.check_batch("img", img)
        return activation_maps(img.reshape(len(img), 1, -1), **self._binning)[:, 0].mT

    def calc_hist_loss_tar_out(self) -> Tensor:
        """The distance of the histograms: root mean square of the difference of their cumulative sums.

        The mean over the batch. Where the histograms are equal it is 0 with a zero gradient.
        """
        self._check_batches("tar_img", self._tar)
        tar, out = (soft_histogram(x, **self._binning) for x in (self._tar, self._out))
        return emd(tar, out, form="norm").mean()

    def calc_cond_entropy_loss_tar_out(self) -> Tensor:
        """H(target given output) in nats, pixel by pixel, mean over the batch."""
        return self._conditional_entropy("tar_img", self._tar)

    def _conditional_entropy(self, name: str, x: Tensor) -> Tensor:
        self._check_batches(name, x)
        if x.shape != self._out.shape:
            shapes = [tuple(image[:, 0].shape) for image in (self._out, x)]
            raise ValueError(f"{name} must have the shape of out_img, {shapes[0]}, got {shapes[1]}")
        joint = joint_histogram(self._out, x, **self._binning)
        if not self._epsilon:
            return mutual_information(joint, mode="conditional_entropy").mean()
        marginal = joint.sum(-1)
        given = (marginal * (marginal + self._epsilon).log()).sum(-1)
        return (given - (joint * (joint + self._epsilon).log()).sum((-2, -1))).mean()

    def _check_batches(self, name: str, x: Tensor) -> None:
        if len(x) != self.bs:
            raise ValueError(f"{name} must have a batch of {self.bs} as out_img has, got {len(x)}")


class HistogramLayersCT(HistogramLayers):
    """The same for colour transfer, with the conditional entropy of a source.

    The authors' code has the same class; its arguments `out`, `tar` and `src` are the first three here.

    Args:
        out_img, tar_img, args, epsilon: as in :class:`HistogramLayers`; the target's size may be its own.
        src_img: images that the output was made of, of its shape.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        out_img: Tensor,
        tar_img: Tensor,
        src_img: Tensor,
        args: Any,
        *,
        epsilon: float = PORT_EPSILON,
    ) -> None:
        super().__init__(out_img, tar_img, args, epsilon=epsilon)
        checks.check_batch_pair(out_img, src_img, ("out_img", "src_img"))
        self._src = src_img.unsqueeze(1)

    def calc_cond_entropy_loss_src_out(self) -> Tensor:
        """H(source given output) in nats, pixel by pixel, mean over the batch."""
        return self._conditional_entropy("src_img", self._src)


class GeneratorLoss(NamedTuple):
    """The weighted sum, and its terms as they are before weighting."""

    total: Tensor
    gan: Tensor
    mi: Tensor
    hist: Tensor


def G_loss_color_transfer(  # noqa: N802
    disc_generated_output: Tensor, gen_output: Tensor, src_img: Tensor, tar_img: Tensor, args: Any
) -> GeneratorLoss:
    """The port's generator loss.

    Args:
        disc_generated_output: the discriminator's logits for gen_output, any shape.
        gen_output: generated images, shape (B, C, H, W).
        src_img: the images that they were made of, same shape.
        tar_img: the images whose colours they are to have.
        args: as in :class:`HistogramLayers`, and ``gan_loss_weight``, ``mi_loss_weight``,
            ``hist_loss_weight``, finite, and ``task``: ``"color_transfer"`` takes the mean over the first
            three channels, ``"SAMPLE"`` has one.

    Returns:
        The weighted sum, then the terms: adversarial, mutual information (the conditional entropy of
        src_img), histogram.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    checks.check_options("args", args, ("task",))
    checks.check_choice("args.task", args.task, TASKS)
    channels = 3 if args.task == "color_transfer" else 1
    images = {"gen_output": gen_output, "tar_img": tar_img, "src_img": src_img}
    out, tar, src = _channels(images, channels, exactly=channels == 1)
    checks.check_image_pair(gen_output, src_img, ("gen_output", "src_img"))
    layers = HistogramLayersCT(out, tar, src, args)
    mi = layers.calc_cond_entropy_loss_src_out()
    return _weighted(disc_generated_output, mi, layers.calc_hist_loss_tar_out(), args)


def generator_loss_color_transfer(
    disc_generated_output: Tensor, gen_output: Tensor, inp: Tensor, target: Tensor, args: Any
) -> GeneratorLoss:
    """The authors' generator loss for colour transfer: of each of the first three channels.

    Args:
        disc_generated_output: the discriminator's logits for gen_output, any shape.
        gen_output: generated images, shape (B, C, H, W).
        inp: the images that they were made of, same shape.
        target: the images whose colours they are to have.
        args: as in :class:`HistogramLayers`, and ``gan_loss_weight``, ``mi_loss_weight``,
            ``hist_loss_weight``, finite.

    Returns:
        The weighted sum, then the terms: adversarial, mutual information (the conditional entropy of inp),
        histogram.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    out, tar, src = _channels({"gen_output": gen_output, "target": target, "inp": inp}, 3)
    checks.check_image_pair(gen_output, inp, ("gen_output", "inp"))
    layers = HistogramLayersCT(out, tar, src, args, epsilon=0.0)
    mi = layers.calc_cond_entropy_loss_src_out()
    return _weighted(disc_generated_output, mi, layers.calc_hist_loss_tar_out(), args)


def generator_loss(
    disc_generated_output: Tensor, gen_output: Tensor, target: Tensor, args: Any
) -> GeneratorLoss:
    """The authors' generator loss for paired images: as for colour transfer, with the target as the source.

    Args:
        disc_generated_output, gen_output, args: as in :func:`generator_loss_color_transfer`.
        target: the images that they are to be like, of the shape of gen_output.

    Returns:
        As :func:`generator_loss_color_transfer`; the conditional entropy is that of the target.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    out, tar = _channels({"gen_output": gen_output, "target": target}, 3)
    checks.check_image_pair(gen_output, target, ("gen_output", "target"))
    layers = HistogramLayers(out, tar, args, epsilon=0.0)
    mi = layers.calc_cond_entropy_loss_tar_out()
    return _weighted(disc_generated_output, mi, layers.calc_hist_loss_tar_out(), args)


def discriminator_loss(disc_real_output: Tensor, disc_generated_output: Tensor) -> Tensor:
    """The discriminator's loss: binary cross-entropy of its logits for real and for generated images.

    Args:
        disc_real_output: logits for real images, any shape.
        disc_generated_output: logits for generated images, any shape.

    Returns:
        The sum of both's means.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    checks.check_scores("disc_real_output", disc_real_output)
    checks.check_scores("disc_generated_output", disc_generated_output)
    real = F.binary_cross_entropy_with_logits(disc_real_output, torch.ones_like(disc_real_output))
    generated = torch.zeros_like(disc_generated_output)
    return real + F.binary_cross_entropy_with_logits(disc_generated_output, generated)


D_loss = discriminator_loss  # the port's name


def _channels(images: dict[str, Tensor], channels: int, *, exactly: bool = False) -> list[Tensor]:
    """The first channels of each (B, C, H, W) as (B C, H, W): a mean over these is one over both."""
    batch = None
    for name, image in images.items():
        checks.check_image(name, image)
        if image.shape[1] < channels or (exactly and image.shape[1] != channels):
            number = f"{channels} channel" if exactly else f"at least {channels} channels"
            raise ValueError(f"{name} must have {number}, got shape {tuple(image.shape)}")
        batch = len(image) if batch is None else batch
        if len(image) != batch:
            raise ValueError(f"{name} must have a batch of {batch} as gen_output has, got {len(image)}")
    return [image[:, :channels].flatten(0, 1) for image in images.values()]


def _weighted(logits: Tensor, mi: Tensor, hist: Tensor, args: Any) -> GeneratorLoss:
    checks.check_scores("disc_generated_output", logits)
    checks.check_options("args", args, WEIGHT_OPTIONS)
    weights = [checks.check_finite(f"args.{name}", getattr(args, name)) for name in WEIGHT_OPTIONS]
    gan = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    return GeneratorLoss(weights[0] * gan + weights[1] * mi + weights[2] * hist, gan, mi, hist)
