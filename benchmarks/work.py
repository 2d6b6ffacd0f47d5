"""The work of a case: its images, and an upstream gradient."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cases import Case

INPUTS = {  # images that an op takes
    "activation_maps": 1,
    "soft_histogram": 1,
    "joint_histogram": 2,
    "emd_loss": 1,
    "mi_loss": 2,
    "deep_hist_loss": 2,
}
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


def prepare(case: Case) -> Work:
    generator = torch.Generator(case.device).manual_seed(0)
    lo, hi = case.range
    images = pair(case.content, case.shape, generator)[: INPUTS[case.op]]
    inputs = tuple(
        (lo + (image + 1) * ((hi - lo) / 2)).to(getattr(torch, case.dtype)).requires_grad_()
        for image in images
    )
    upstream = torch.randn(output_shape(case), generator=generator, device=case.device)
    return Work(inputs, upstream.to(accumulated(case)))


def output_shape(case: Case) -> tuple[int, ...]:
    planes, spatial = case.shape[:2], case.shape[2:]
    return {
        "activation_maps": (*planes, case.bins, *spatial),
        "soft_histogram": (*planes, case.bins),
        "joint_histogram": (*planes, case.bins, case.bins),
    }.get(case.op, ())


def accumulated(case: Case) -> torch.dtype:
    """The dtype of an op's output: half precision is summed in float32."""
    return torch.float64 if case.dtype == "float64" else torch.float32


def pair(content: str, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two images (B, C, *spatial) in [-1, 1].

    uniform: independent noise. photo: a photo and the same photo shifted. saturated: the same, most pixels
    clipped to the ends of the range. constant: one value, the worst case of a float32 sum.
    """
    device = generator.device
    if content == "uniform":
        x, y = (torch.rand(shape, generator=generator, device=device) * 2 - 1 for _ in range(2))
        return x, y
    if content in CONSTANTS:
        x, y = (torch.full(shape, value, device=device) for value in CONSTANTS[content])
        return x, y
    image = photo(shape, generator)
    if content == "saturated":
        image = (3 * image).clamp(-1, 1)
    return image, image.roll(SHIFT, (-2, -1))


def photo(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """What PHOTO names, resampled to a shape (B, C, *spatial) with C <= 3.

    A volume is a stack of photos, each shifted by a pixel from the one before.
    """
    *outer, height, width = shape
    if len(outer) > 2:
        plane = photo((*outer[:2], height, width), generator)
        return torch.stack([plane.roll(depth, -1) for depth in range(outer[2])], dim=2)
    if not HAS_PHOTO:
        coarse = torch.randn(*outer, 8, 8, generator=generator, device=generator.device)
        return torch.tanh(F.interpolate(coarse, (height, width), mode="bicubic"))
    from skimage.data import astronaut

    image = torch.from_numpy(astronaut()).permute(2, 0, 1)[None] / 127.5 - 1
    image = F.interpolate(image, (height, width), mode="bilinear", antialias=True).clamp(-1, 1)
    return image[:, : shape[1]].expand(shape).clone().to(generator.device)
