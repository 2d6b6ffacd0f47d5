"""What the networks are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Noise(nn.Module):
    """Dropout of half the values, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


def down(before: int, after: int, *, norm: bool = True, stride: int = 2) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 4, stride, padding=1, bias=not norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(after)] if norm else []), nn.LeakyReLU(0.2))


def up(before: int, after: int, *, norm: bool = True, noise: bool = False) -> nn.Sequential:
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


def resize(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """To another height and width. Bilinear: means of colours in gamut are in gamut."""
    return F.interpolate(image, shape, mode="bilinear", antialias=True)


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def check_sides(name: str, tensor: Tensor, *, channels: int, multiple: int, least: int) -> None:
    """That a batch of images has these channels, and a height and width that the strides divide."""
    fits = tensor.ndim == 4 and tensor.shape[1] == channels
    if not fits or any(side < least or side % multiple for side in tensor.shape[2:]):
        raise ValueError(
            f"{name} must have shape (B, {channels}, H, W), H and W multiples of {multiple} from {least} on, "
            f"got {tuple(tensor.shape)}"
        )
