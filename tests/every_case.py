"""Every public loss and function as a module of tensors alone: what the tests of PyTorch's world share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import histloss
from histloss import (
    ColorBins,
    ColorVarianceLoss,
    DCGANLoss,
    DeepHistLoss,
    EBGANLoss,
    EMDHistLoss,
    GANLoss,
    LSGANLoss,
    MIHistLoss,
    PatchNCELoss,
    RebalancedColorLoss,
    TotalVariationLoss,
    WGANLoss,
    color,
)

Spatial = tuple[int, ...]
SPATIAL = (6, 8)
BINS = ColorBins(50)


def image(spatial: Spatial) -> Tensor:
    """A little of it outside of the range."""
    return torch.empty(2, 3, *spatial).uniform_(-1.1, 1.1)


def weight(spatial: Spatial) -> Tensor:
    return torch.empty(2, 1, *spatial).uniform_(0.1, 1)


def scores(spatial: Spatial) -> Tensor:
    return torch.empty(2, 1, *spatial).uniform_(0.1, 2)


def logits(spatial: Spatial) -> Tensor:
    return torch.randn(2, len(BINS), *spatial)


def ab(spatial: Spatial) -> Tensor:
    return color.rgb_to_lab(torch.empty(2, 3, *spatial).uniform_(-1, 1))[:, 1:]


def target(spatial: Spatial) -> Tensor:
    return torch.randn(2, 3, 12).softmax(-1)


def one_target(spatial: Spatial) -> Tensor:
    return torch.randn(3, 12).softmax(-1)


def joint(spatial: Spatial) -> Tensor:
    return torch.randn(2, 3, 56).softmax(-1).unflatten(-1, (8, 7))


class OfTensors(nn.Module):
    """A call by the names of its arguments, in a list each if it takes one tensor per layer."""

    def __init__(self, call: Callable[..., Any], names: Sequence[str], layers: bool) -> None:
        super().__init__()
        self.call, self.names, self.layers = call, tuple(names), layers

    def forward(self, *tensors: Tensor) -> Any:
        arguments = [[tensor] for tensor in tensors] if self.layers else tensors
        return self.call(**dict(zip(self.names, arguments, strict=True)))


@dataclass(frozen=True)
class Case:
    """Makes a loss or function, and the tensors it is called with, on the default device."""

    make: Callable[[], Callable[..., Any]]
    arguments: dict[str, Callable[[Spatial], Tensor]]
    layers: bool = False

    def module(self) -> OfTensors:
        return OfTensors(self.make(), list(self.arguments), self.layers)

    def tensors(self, spatial: Spatial = SPATIAL, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [make(spatial).to(dtype) for make in self.arguments.values()]


def case(make: Callable[[], Callable[..., Any]], **arguments: Callable[[Spatial], Tensor]) -> Case:
    return Case(make, arguments)


def deep_hist() -> DeepHistLoss:
    return DeepHistLoss({"emd": 2}, emd=EMDHistLoss(12), mi=MIHistLoss(8))


def prior() -> Tensor:
    return torch.arange(1.0, len(BINS) + 1).softmax(0)


HISTOGRAMS = {  # same bits in any layout of memory, for any number of threads
    "soft_histogram": case(lambda: partial(histloss.soft_histogram, bins=12), x=image),
    "soft_histogram weighted": case(
        lambda: partial(histloss.soft_histogram, bins=12, boundary="cyclic"), x=image, weight=weight
    ),
    "joint_histogram": case(
        lambda: partial(histloss.joint_histogram, bins=(8, 7), boundary=("reflect", "open")),
        x=image,
        y=image,
        weight=weight,
    ),
    "activation_maps": case(lambda: partial(histloss.activation_maps, bins=6), x=image),
    "EMDHistLoss": case(lambda: EMDHistLoss(12, form="norm"), out=image, ref_hist=target, weight=weight),
    "EMDHistLoss cyclic": case(
        lambda: EMDHistLoss(12, boundary="cyclic", cyclic=True, p=1.5, reduction="none"),
        out=image,
        ref_hist=one_target,
    ),
    "MIHistLoss": case(lambda: MIHistLoss((8, 7)), out=image, src=image, weight=weight),
    "DeepHistLoss": case(deep_hist, out=image, src=image, ref_hist=target, weight=weight),
}
LOSSES = {
    **{name: each for name, each in HISTOGRAMS.items() if "Loss" in name},
    "DeepHistLoss adversarial": case(
        deep_hist, out=image, src=image, ref_hist=target, fake_logits=scores, weight=weight
    ),
    "DCGANLoss": case(DCGANLoss, scores=scores),
    "LSGANLoss": case(lambda: LSGANLoss(-1, 1, 0.5), scores=scores),
    "EBGANLoss": case(lambda: EBGANLoss(1), scores=scores),
    "WGANLoss": case(WGANLoss, scores=scores),
    "GANLoss": case(lambda: GANLoss(LSGANLoss(), {"l2": 3}), out=image, target=image, fake_scores=scores),
    "PatchNCELoss": Case(lambda: PatchNCELoss([3], 16, 4), {"queries": image, "keys": image}, layers=True),
    "TotalVariationLoss": case(lambda: TotalVariationLoss(1.5, reduction="none"), x=image),
    "ColorVarianceLoss": case(ColorVarianceLoss, rgb=image),
    "RebalancedColorLoss": case(lambda: RebalancedColorLoss(prior(), BINS), logits=logits, ab=ab),
}
FUNCTIONS = {
    **{name: each for name, each in HISTOGRAMS.items() if "Loss" not in name},
    "emd": case(lambda: partial(histloss.emd, p=1.5, form="norm"), h1=target, h2=one_target),
    "mutual_information": case(lambda: histloss.mutual_information, joint=joint),
    "decode": case(lambda: BINS.decode, logits=logits),
    "rgb_to_yuv": case(lambda: color.rgb_to_yuv, rgb=image),
    "rgb_to_hsv": case(lambda: color.rgb_to_hsv, rgb=image),
    "rgb_to_lab": case(lambda: color.rgb_to_lab, rgb=image),
    "yuv_to_rgb": case(lambda: color.yuv_to_rgb, yuv=image),
    "hsv_to_rgb": case(lambda: color.hsv_to_rgb, hsv=image),
    "lab_to_rgb": case(lambda: color.lab_to_rgb, lab=image),
}
CASES = LOSSES | FUNCTIONS


def values(module: nn.Module, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What it returns, with the same random numbers in every call."""
    torch.manual_seed(1)
    return tree_leaves(module(*tensors))


def scalar(outputs: Sequence[Tensor]) -> Tensor:
    """With an upstream gradient that differs from value to value."""
    parts = [
        (output * torch.linspace(0.5, 1.5, output.numel()).to(output).reshape(output.shape)).sum()
        for output in outputs
    ]
    return torch.stack(parts).sum()


def results(module: nn.Module, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Its values and all gradients there are: of tensors, then of parameters."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = values(module, tensors)
    gradients = torch.autograd.grad(scalar(outputs), [*tensors, *module.parameters()], allow_unused=True)
    return [*(output.detach() for output in outputs), *(g for g in gradients if g is not None)]


def same_bits(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))
