"""A U-Net, and DeepHist's generator: a U-Net that is given the histograms of a reference.

After the authors' TensorFlow code, which follows pix2pix. What differs: LeakyReLU has pix2pix's slope, 0.2
instead of 0.3; the last layer upsamples like all others, where theirs is a transposed convolution; and there
is no batch norm around the 1 x 1 code, whose statistics would be those of a few numbers.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from shared.networks.layers import check_shape, down, initialize, resize, up, upsampled_conv

CODES = ("soft", "counts")
LIMIT = 0.97  # atanh needs room at black and white, which tanh never reaches


class UNet(nn.Module):
    """pix2pix's U-Net (Isola 2017), for GAN colourisation: L in, ab out, both in [-1, 1].

    Dropout in the three deepest layers of the decoder is the noise of this GAN. It stays on in eval mode, as
    the statistics of the batch norms are those of layers with dropout: seed torch to repeat an output.

    Args:
        size: height and width of the images, a power of two, at least 32.
        inputs, outputs: channels of an image and of what is painted on it.
        width: channels of the first layer; the deepest have eight times as many.
        code: a module whose output, (B, code_width), stands beside the 1 x 1 code; None: nothing does.
        code_width: its channels.

    Raises:
        ValueError: size is not as described.
    """

    def __init__(
        self,
        size: int,
        *,
        inputs: int = 1,
        outputs: int = 2,
        width: int = 64,
        code: nn.Module | None = None,
        code_width: int = 0,
    ) -> None:
        super().__init__()
        if size < 32 or size & (size - 1):
            raise ValueError(f"size must be a power of two, at least 32, got {size}")
        self.size, self.inputs = size, inputs

        depth = size.bit_length() - 1
        widths = [width * min(2**i, 8) for i in range(depth)]
        self.downs = nn.ModuleList(
            down(before, after, norm=0 < i < depth - 1)
            for i, (before, after) in enumerate(pairwise([inputs, *widths]))
        )
        self.code = code
        afters = widths[-2::-1]
        befores = [widths[-1] + code_width, *(2 * width for width in afters)]
        layers = [
            up(before, after, norm=i > 0, noise=i < 3)
            for i, (before, after) in enumerate(zip(befores[:-1], afters, strict=True))
        ]
        self.ups = nn.ModuleList([*layers, upsampled_conv(befores[-1], outputs)])
        self.apply(initialize)

    def forward(self, source: Tensor) -> Tensor:
        """An image in [-1, 1], (B, outputs, size, size), of a source (B, inputs, size, size)."""
        return torch.tanh(self.change(source))

    def change(self, source: Tensor, *given: Tensor) -> Tensor:
        """What goes into tanh, (B, outputs, size, size); `given` goes into the code."""
        check_shape("source", source, (source.shape[0], self.inputs, self.size, self.size))
        x, skips = source, []
        for layer in self.downs:
            skips.append(x)
            x = layer(x)
        if self.code is not None:
            x = torch.cat([x, self.code(*given)[:, :, None, None]], dim=1)
        deepest, *ups = self.ups
        x = deepest(x)
        for layer, skip in zip(ups, skips[:0:-1], strict=True):
            x = layer(torch.cat([x, skip], dim=1))
        return x.to(source.dtype)  # in bfloat16 tanh would not even reach 256 levels


class Generator(UNet):
    """A U-Net that paints the source with the colours of three histograms.

    The histograms, of the reference in any colour space, enter at the 1 x 1 code in one of two ways:

    - ``"soft"``: their square roots, through a dense layer. As in RootSIFT, distances become Hellinger's and
      peaks do not drown the rest: the mean square is 1 for every histogram, and a lone peak is sqrt(K), not
      K times a flat one. Nothing depends on how many pixels the reference had.
    - ``"counts"``: the authors' way. Each bin's number of pixels, of size x size in all, is looked up in a
      table of the channel; the numbers found there go through the dense layer.

    It has the noise of a :class:`UNet`. In training mode, batch norm takes out what all pixels of a batch
    share. In a batch of one that is part of what the code says: train on larger ones.

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
        if code not in CODES:
            raise ValueError(f"code must be one of {CODES}, got {code!r}")
        embedding = RootCode() if code == "soft" else CountCode(size * size)
        dense = nn.Sequential(embedding, nn.Linear(3 * bins, 2 * bins), nn.ReLU())
        super().__init__(size, inputs=3, outputs=3, width=width, code=dense, code_width=2 * bins)
        self.bins, self.residual = bins, residual
        if residual:
            nn.init.zeros_(self.ups[-1][-1].weight)

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
        check_shape("ref_hist", ref_hist, (source.shape[0], 3, self.bins))
        return super().change(source, ref_hist)

    def paint(self, source: Tensor, change: Tensor) -> Tensor:
        return torch.tanh(change + torch.atanh(source.clamp(-LIMIT, LIMIT)) if self.residual else change)


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


def hard_histogram(image: Tensor, *, bins: int = 256) -> Tensor:
    """Share of the pixels in each bin of [-1, 1], the end bins' beyond: (B, C, H, W) -> (B, C, K)."""
    pixels = image.flatten(2)
    index = ((pixels + 1) * (bins / 2)).floor().clamp(0, bins - 1).long()
    counts = torch.zeros(*pixels.shape[:2], bins, device=image.device)
    return counts.scatter_add_(2, index, torch.ones_like(pixels, dtype=counts.dtype)) / pixels.shape[2]
