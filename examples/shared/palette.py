"""Palettes that a user types, as reference images: "#b03020:0.6,#203050:0.4"."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
from PIL import ImageColor
from torch import Tensor

from shared.arguments import positive

FORMS = "#rrggbb, #rgb or a CSS name such as navy"


@dataclass(frozen=True)
class Palette:
    """Colours, R, G, B from 0 to 255 each, and their shares, which sum to 1."""

    colors: tuple[tuple[int, int, int], ...]
    weights: tuple[float, ...]

    def image(self, size: int, *, spread: float = 0.1) -> Tensor:
        """An image with these colours in these shares, (1, 3, size, size), RGB in [-1, 1], always the same.

        Shares are rounded to pixels by largest remainder; the colours lie above each other, in order. No
        photo has a histogram of a few spikes, and no generator trained on photos knows one: normal noise of
        standard deviation `spread` in each channel widens every colour: 0.1 is three bins of 64. 0 leaves
        the colours pure.
        """
        colors = torch.tensor(self.colors) / 127.5 - 1
        counts = torch.tensor(apportion(self.weights, size * size))
        pixels = colors.repeat_interleave(counts, dim=0)
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
        return (pixels + spread * noise).clamp(-1, 1).T.reshape(1, 3, size, size)


def parse_palette(text: str) -> Palette:
    """Colours with their shares, "colour:weight,colour:weight", or "colour,colour" in equal shares.

    A colour is #rrggbb, #rgb or a CSS name. Weights are positive and need not sum to 1.
    """
    parts = [part.strip() for part in text.split(",")]
    names, colons, weights = zip(*(part.partition(":") for part in parts), strict=True)
    if any(colons) and not all(colons):
        part = parts[colons.index("")]
        raise argparse.ArgumentTypeError(f"{part!r} has no weight: give all colours one, or none")
    colors = tuple(parse_color(name) for name in names)
    shares = [parse_weight(weight) for weight in weights] if any(colons) else [1.0] * len(parts)
    return Palette(colors, tuple(share / sum(shares) for share in shares))


def parse_color(text: str) -> tuple[int, int, int]:
    try:
        color = ImageColor.getrgb(text.strip())
    except ValueError:
        color = ()
    if len(color) != 3:  # a fourth is transparency
        raise argparse.ArgumentTypeError(f"a colour must be {FORMS}, got {text!r}")
    return color


def parse_weight(text: str) -> float:
    try:
        return positive(text)
    except argparse.ArgumentTypeError:
        message = f"a colour's weight must be a positive number, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def apportion(weights: tuple[float, ...], total: int) -> list[int]:
    """Whole numbers in proportion to weights that sum to 1; they sum to total."""
    exact = [weight * total for weight in weights]
    counts = [math.floor(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
