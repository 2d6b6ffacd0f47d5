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
    generator = torch.Generator(settings.device).manual_seed(0)
    x, y = pair(content, settings.shape, generator)
    inputs = (x, y) if case.op in ("joint_histogram", "deep_hist_loss") else (x,)
    planes, bins, spatial = settings.shape[:2], settings.bins, settings.shape[2:]
    shape = {
        "activation_maps": (*planes, bins, *spatial),
        "soft_histogram": (*planes, bins),
        "joint_histogram": (*planes, bins, bins),
        "deep_hist_loss": (),
    }[case.op]
    upstream = torch.randn(shape, generator=generator, device=generator.device)
    return Work(tuple(image.requires_grad_() for image in inputs), upstream)


def function(case: Case, settings: Settings, side: str) -> Callable[..., Tensor]:
    """The public function of a case ("histloss"), or the one it is compared with ("reference")."""
    if case.op == "deep_hist_loss":
        return deep_hist_loss(settings, side)
    module = histloss if side == "histloss" else histloss.reference
    return functools.partial(
        getattr(module, case.op), bins=settings.bins, boundary=case.boundary, bandwidth=case.bandwidth
    )


def deep_hist_loss(settings: Settings, side: str) -> Callable[[Tensor, Tensor], Tensor]:
    """EMD to a flat histogram and MI of both images, by DeepHistLoss or of the reference's functions."""
    bins = settings.bins
    target = torch.full((settings.shape[1], bins), 1 / bins, device=settings.device)
    if side == "histloss":
        loss = histloss.DeepHistLoss(emd=histloss.EMDHistLoss(bins), mi=histloss.MIHistLoss(bins))
        return lambda out, src: loss(out, src, target).total

    def composed(out: Tensor, src: Tensor) -> Tensor:
        reference = histloss.reference
        emd = reference.emd(reference.soft_histogram(out, bins=bins), target)
        mi = reference.mutual_information(reference.joint_histogram(out, src, bins=bins))
        return emd.mean() + mi.mean()

    return composed


def pair(content: str, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two images (B, C, H, W) in [-1, 1].

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
    """What PHOTO names, resampled to a shape (B, C, H, W) with C <= 3."""
    if not HAS_PHOTO:
        coarse = torch.randn(*shape[:2], 8, 8, generator=generator, device=generator.device)
        return torch.tanh(F.interpolate(coarse, shape[2:], mode="bicubic"))
    from skimage.data import astronaut

    image = torch.from_numpy(astronaut()).permute(2, 0, 1)[None] / 127.5 - 1
    image = F.interpolate(image, shape[2:], mode="bilinear", antialias=True).clamp(-1, 1)
    return image[:, : shape[1]].expand(shape).clone().to(generator.device)
