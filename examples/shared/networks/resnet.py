"""The generator of CycleGAN and CUT, whose encoder is compared patch by patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.networks.layers import check_sides, initialize, upsampled_conv


class ResNetGenerator(nn.Module):
    """CycleGAN's generator (Zhu 2017), RGB in and out: c7s1-w, d2w, d4w, R4w ..., u2w, uw, c7s1-3.

    Instance norm and reflected borders throughout; upsamplings are those of the other networks here.

    The contrastive loss of CUT (Park 2020) compares activations of the encoder, at `taps`: indices of
    `layers`. By default they are CUT's: the padded pixels, both downsampling convolutions, the first residual
    block and the fifth, or the last of fewer. CUT's indices, 0, 4, 8, 12 and 16, count its blur layers too.

    Args:
        width: channels of the first layer.
        blocks: residual blocks: CycleGAN has 6 below 256 x 256 pixels and 9 from there on.
        taps: increasing indices of `layers`; None: CUT's.

    Attributes:
        tap_channels: channels of the activations at the taps, for ``PatchNCELoss(tap_channels)``.

    Raises:
        ValueError: there is no block, or the taps are not increasing indices of the encoder.
    """

    def __init__(self, *, width: int = 64, blocks: int = 9, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        w = width
        encoder = [
            nn.ReflectionPad2d(3),
            *normed(w, nn.Conv2d(3, w, 7, bias=False)),
            *normed(2 * w, reflected_conv(w, 2 * w, stride=2)),
            *normed(4 * w, reflected_conv(2 * w, 4 * w, stride=2)),
            *(Residual(4 * w) for _ in range(blocks)),
        ]
        decoder = [
            *normed(2 * w, upsampled_conv(4 * w, 2 * w, bias=False)),
            *normed(w, upsampled_conv(2 * w, w, bias=False)),
            nn.ReflectionPad2d(3),
            nn.Conv2d(w, 3, 7),
        ]
        self.layers = nn.Sequential(*encoder, *decoder)
        first, last = len(encoder) - blocks, len(encoder) - 1
        self.taps = tuple(sorted({0, 4, 7, first, min(first + 4, last)})) if taps is None else tuple(taps)
        if not self.taps or list(self.taps) != sorted({*self.taps} & {*range(len(encoder))}):
            raise ValueError(f"taps must be increasing indices from 0 to {last}, got {self.taps}")
        channels = [3, *[w] * 3, *[2 * w] * 3, *[4 * w] * (3 + blocks)]
        self.tap_channels = [channels[tap] for tap in self.taps]
        self.apply(initialize)

    def forward(self, source: Tensor) -> Tensor:
        """RGB in [-1, 1] for RGB (B, 3, H, W), H and W multiples of 4 from 8 on."""
        check_sides("source", source, channels=3, multiple=4, least=8)
        return torch.tanh(self.layers(source).to(source.dtype))

    def features(self, image: Tensor) -> list[Tensor]:
        """Activations at the taps, (B, tap_channels[i], h, w) each. What follows the last does not run."""
        check_sides("image", image, channels=3, multiple=4, least=8)
        x, found = image, []
        for i, layer in enumerate(self.layers[: self.taps[-1] + 1]):
            x = layer(x)
            if i in self.taps:
                found.append(x)
        return found


class Residual(nn.Module):
    """x + change(x), the change at the scale that instance norm gives it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = (normed(width, reflected_conv(width, width)) for _ in range(2))
        self.change = nn.Sequential(*first, *second[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


def normed(after: int, conv: nn.Module) -> list[nn.Module]:
    return [conv, nn.InstanceNorm2d(after), nn.ReLU()]


def reflected_conv(before: int, after: int, *, stride: int = 1) -> nn.Conv2d:
    """No bias: instance norm takes it out."""
    return nn.Conv2d(before, after, 3, stride, padding=1, padding_mode="reflect", bias=False)
