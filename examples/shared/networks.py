"""The networks of DeepHist: a U-Net that is given the histograms of a reference, and a PatchGAN.

After the authors' TensorFlow code, which follows pix2pix. What differs: LeakyReLU has pix2pix's slope, 0.2
instead of 0.3; the last layer upsamples like all others, where theirs is a transposed convolution; and there
is no batch norm around the 1 x 1 code, whose statistics would be those of a few numbers.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CODES = ("soft", "counts")
LIMIT = 0.97  # atanh needs room at black and white, which tanh never reaches


class Generator(nn.Module):
    """A U-Net that paints the source with the colours of three histograms.

    The histograms, of the reference in any colour space, enter at the 1 x 1 code in one of two ways:

    - ``"soft"``: their square roots, through a dense layer. As in RootSIFT, distances become Hellinger's and
      peaks do not drown the rest: the mean square is 1 for every histogram, and a lone peak is sqrt(K), not
      K times a flat one. Nothing depends on how many pixels the reference had.
    - ``"counts"``: the authors' way. Each bin's number of pixels, of size x size in all, is looked up in a
      table of the channel; the numbers found there go through the dense layer.

    Dropout is the noise of this GAN, as in pix2pix, and stays on in eval mode: the statistics that the batch
    norms have gathered are those of layers with dropout. Seed torch to repeat an output.

    In training mode, batch norm takes out what all pixels of a batch share. In a batch of one that is part of
    what the code says: train on larger ones.

    Args:
        size: height and width of the images, a power of two, at least 32.
        bins: bins K of the histograms.
        width: channels of the first layer; the deepest have eight times as many.
        code: ``"soft"`` or ``"counts"``.
        residual: output tanh(atanh(source) + change) instead of tanh(change). The change is 0 at first, so
            that training starts from the source, with black and white moved in by 0.03.

    Raises:
        ValueError: size or code is not as described.
    """

    def __init__(
        self, size: int, *, bins: int = 256, width: int = 64, code: str = "soft", residual: bool = False
    ) -> None:
        super().__init__()
        if size < 32 or size & (size - 1):
            raise ValueError(f"size must be a power of two, at least 32, got {size}")
        if code not in CODES:
            raise ValueError(f"code must be one of {CODES}, got {code!r}")
        self.size, self.bins, self.residual = size, bins, residual

        depth = size.bit_length() - 1
        widths = [width * min(2**i, 8) for i in range(depth)]
        self.downs = nn.ModuleList(
            down(before, after, norm=0 < i < depth - 1)
            for i, (before, after) in enumerate(pairwise([3, *widths]))
        )
        embedding = RootCode() if code == "soft" else CountCode(size * size)
        self.code = nn.Sequential(embedding, nn.Linear(3 * bins, 2 * bins), nn.ReLU())
        afters = widths[-2::-1]
        befores = [widths[-1] + 2 * bins, *(2 * width for width in afters)]
        layers = [
            up(before, after, norm=i > 0, noise=i < 3)
            for i, (before, after) in enumerate(zip(befores[:-1], afters, strict=True))
        ]
        last = upsampled_conv(befores[-1], 3)
        self.ups = nn.ModuleList([*layers, last])
        self.apply(initialize)
        if residual:
            nn.init.zeros_(last[-1].weight)

    def forward(self, source: Tensor, ref_hist: Tensor) -> Tensor:
        """The output, RGB in [-1, 1], of a source (B, 3, size, size) and histograms (B, 3, K) that sum to 1.

        For ``"soft"`` they come from :func:`histloss.soft_histogram`, for ``"counts"`` from
        :func:`hard_histogram`.
        """
        return self.paint(source, self.change(source, ref_hist))

    @torch.no_grad()
    def recolor(self, photo: Tensor, ref_hist: Tensor) -> Tensor:
        """The output for photos of any height and width, (B, 3, H, W): painted small, the change enlarged.

        A residual generator keeps the photo's detail, since the photo itself is not resized.
        """
        change = self.change(resize(photo, (self.size, self.size)), ref_hist)
        return self.paint(photo, resize(change, photo.shape[-2:]))

    def change(self, source: Tensor, ref_hist: Tensor) -> Tensor:
        """What goes into tanh, (B, 3, size, size)."""
        batch = source.shape[0]
        check_shape("source", source, (batch, 3, self.size, self.size))
        check_shape("ref_hist", ref_hist, (batch, 3, self.bins))
        x, skips = source, []
        for layer in self.downs:
            x = layer(x)
            skips.append(x)
        skips[-1] = self.code(ref_hist)[:, :, None, None]
        for layer, skip in zip(self.ups, reversed(skips), strict=True):
            x = layer(torch.cat([x, skip], dim=1))
        return x.to(source.dtype)  # in bfloat16 tanh would not even reach 256 levels

    def paint(self, source: Tensor, change: Tensor) -> Tensor:
        return torch.tanh(change + torch.atanh(source.clamp(-LIMIT, LIMIT)) if self.residual else change)


class Discriminator(nn.Module):
    """A PatchGAN: logits of whether patches of 70 x 70 pixels are real, (B, 1, H / 8 - 2, W / 8 - 2).

    A conditional one sees the source beside the image.
    """

    def __init__(self, *, conditional: bool, width: int = 64) -> None:
        super().__init__()
        self.conditional = conditional
        self.layers = nn.Sequential(
            down(6 if conditional else 3, width, norm=False),
            down(width, 2 * width),
            down(2 * width, 4 * width),
            down(4 * width, 8 * width, stride=1),
            nn.Conv2d(8 * width, 1, 4, padding=1),
        )
        self.apply(initialize)

    def forward(self, image: Tensor, source: Tensor | None = None) -> Tensor:
        """Logits of an image (B, 3, H, W), and its source if this is a conditional discriminator."""
        if (source is not None) != self.conditional:
            wanted = "needs a source" if self.conditional else "takes no source"
            raise ValueError(f"a discriminator with conditional={self.conditional} {wanted}")
        return self.layers(image if source is None else torch.cat([source, image], dim=1))


class RootCode(nn.Module):
    """Square roots of histograms (B, 3, K), flat, with a mean square of 1."""

    def forward(self, ref_hist: Tensor) -> Tensor:
        return (ref_hist * ref_hist.shape[-1]).sqrt().flatten(1)


class CountCode(nn.Module):
    """A learned number for each count of pixels, in each channel, of histograms (B, 3, K); flat."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.tables = nn.ModuleList(nn.Embedding(pixels + 1, 1) for _ in range(3))

    def forward(self, ref_hist: Tensor) -> Tensor:
        counts = (ref_hist * self.pixels).round().long().unbind(1)
        numbers = [table(count) for table, count in zip(self.tables, counts, strict=True)]
        return torch.cat(numbers, dim=1).flatten(1)


class Noise(nn.Module):
    """Dropout of half the values, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


def hard_histogram(image: Tensor, *, bins: int = 256) -> Tensor:
    """Share of the pixels in each bin of [-1, 1], the end bins' beyond: (B, C, H, W) -> (B, C, K)."""
    pixels = image.flatten(2)
    index = ((pixels + 1) * (bins / 2)).floor().clamp(0, bins - 1).long()
    counts = torch.zeros(*pixels.shape[:2], bins, device=image.device)
    return counts.scatter_add_(2, index, torch.ones_like(pixels, dtype=counts.dtype)) / pixels.shape[2]


def resize(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    return F.interpolate(image, shape, mode="bilinear", antialias=True)


def down(before: int, after: int, *, norm: bool = True, stride: int = 2) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 4, stride, padding=1, bias=not norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(after)] if norm else []), nn.LeakyReLU(0.2))


def up(before: int, after: int, *, norm: bool, noise: bool) -> nn.Sequential:
    rest = [*([nn.BatchNorm2d(after)] if norm else []), *([Noise()] if noise else []), nn.ReLU()]
    return upsampled_conv(before, after, bias=not norm).extend(rest)


def upsampled_conv(before: int, after: int, *, bias: bool = True) -> nn.Sequential:
    """At twice the resolution, without the checkerboards of a transposed convolution."""
    conv = nn.Conv2d(before, after, 3, padding=1, padding_mode="reflect", bias=bias)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), conv)


def initialize(module: nn.Module) -> None:
    """Weights from N(0, 0.02), as in DCGAN and pix2pix."""
    if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
        nn.init.zeros_(module.bias)


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
