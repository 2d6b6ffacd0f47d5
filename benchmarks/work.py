"""The work of a case: images, an upstream gradient, and the function on either side."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import histloss
from cases import Case, Settings

HAS_PHOTO = importlib.util.find_spec("skimage") is not None  # scikit-image is optional
PHOTO = "scikit-image's astronaut" if HAS_PHOTO else "synthetic smooth noise"
SHIFT = (3, 5)  # pixels between the two photos of a pair, as in registration
CONSTANTS = {  # x, y: half a bin of 256 from the ends (at them a gradient is 0), on bin edges, anywhere
    "constant, end": (-0.996, 0.996),
    "constant, edge": (0.0, 0.25),
    "constant, inside": (0.613, -0.377),
}


class Work(NamedTuple):
    inputs: tuple[Tensor, ...]
    upstream: Tensor  # normal, because a gradient of ones hides faults and shortcuts


def prepare(case: Case, settings: Settings, content: str) -> Work:
    generator = torch.Generator().manual_seed(0)
    x, y = pair(content, settings.shape, generator)
    inputs = (x, y) if case.op == "joint_histogram" else (x,)
    bins, spatial = settings.bins, settings.shape[2:]
    trailing = {
        "activation_maps": (bins, *spatial),
        "soft_histogram": (bins,),
        "joint_histogram": (bins, bins),
    }[case.op]
    upstream = torch.randn(*settings.shape[:2], *trailing, generator=generator)
    return Work(tuple(image.requires_grad_() for image in inputs), upstream)


def function(case: Case, settings: Settings, side: str) -> Callable[..., Tensor]:
    """The public function of a case ("histloss"), or the one it is compared with ("reference")."""
    module = histloss if side == "histloss" else histloss.reference
    return functools.partial(
        getattr(module, case.op), bins=settings.bins, boundary=case.boundary, bandwidth=case.bandwidth
    )


def pair(content: str, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two images (B, C, H, W) in [-1, 1].

    uniform: independent noise. photo: a photo and the same photo shifted. saturated: the same, most pixels
    clipped to the ends of the range. constant: one value, the worst case of a float32 sum.
    """
    if content == "uniform":
        return torch.rand(shape, generator=generator) * 2 - 1, torch.rand(shape, generator=generator) * 2 - 1
    if content in CONSTANTS:
        x, y = CONSTANTS[content]
        return torch.full(shape, x), torch.full(shape, y)
    image = photo(shape, generator)
    if content == "saturated":
        image = (3 * image).clamp(-1, 1)
    return image, image.roll(SHIFT, (-2, -1))


def photo(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """What PHOTO names, resampled to a shape (B, C, H, W) with C <= 3."""
    if not HAS_PHOTO:
        coarse = torch.randn(*shape[:2], 8, 8, generator=generator)
        return torch.tanh(F.interpolate(coarse, shape[2:], mode="bicubic"))
    from skimage.data import astronaut

    image = torch.from_numpy(astronaut()).permute(2, 0, 1)[None] / 127.5 - 1
    image = F.interpolate(image, shape[2:], mode="bilinear", antialias=True).clamp(-1, 1)
    return image[:, : shape[1]].expand(shape).clone()
