"""Colourisation without pairs: greys of some photos, colours of others, by contrastive translation (CUT).

A ResNet paints a grey photo; a discriminator (LSGAN) compares it with colour photos of other things. What was
where stays there by PatchNCE: a patch of the output resembles, to the generator's own encoder, the same patch
of the source more than any other. The same holds for a colour photo that is painted, which further terms
want unchanged (L1), and the output smooth (TV) and colourful (variance). A weight of 0 leaves a term out.
LSGANLoss halves its squares: CUT's own balance is adv=2,nce=0.5,style=0.5.

    python examples/unpaired_colorization.py                                # shipped photos
    python examples/unpaired_colorization.py --weights tv=0,l1=0,variance=0
    python examples/unpaired_colorization.py --data summer2winter_yosemite  # greys of A, colours of B
    python examples/unpaired_colorization.py --apply grey.jpg
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from histloss import ColorVarianceLoss, LSGANLoss, PatchNCELoss, TotalVariationLoss
from shared.adversary import Adversary
from shared.arguments import count, positive, weights_of
from shared.cli import Recipe
from shared.colorization import Colorizer, main
from shared.data import Kind
from shared.lab import split_lab
from shared.networks import Discriminator, ResNetGenerator
from shared.options import Options, option

WEIGHTS = {"adv": 1.0, "nce": 1.0, "style": 1.0, "tv": 1.0, "l1": 5.0, "variance": 1.0}


@dataclass(frozen=True, kw_only=True)
class UnpairedOptions(Options):
    """The weights of the terms, and the size of the contrast."""

    weights: Mapping[str, float] = option(
        "some or all of: " + ",".join(f"{name}={weight:g}" for name, weight in WEIGHTS.items()),
        None,
        type=weights_of(*WEIGHTS),
    )
    blocks: int = option("residual blocks of the generator", 9, embedded=3, type=count)
    patches: int = option("places of each layer that are compared", 256, embedded=64, type=count)
    temperature: float = option("of the contrast", 0.07, type=positive)

    @classmethod
    def complete(cls, task: str, given: Mapping[str, Any]) -> UnpairedOptions:
        weights = WEIGHTS | given.get("weights", {})
        if not any(weights.values()):
            raise ValueError(f"--weights leaves no loss: one of {', '.join(WEIGHTS)} must be above 0")
        return super().complete(task, {**given, "weights": weights})


class UnpairedColorizer(Colorizer):
    """CUT from greys to colour photos, with heads for the patches and a PatchGAN."""

    options_type = UnpairedOptions
    terms = ("total", *WEIGHTS, "discriminator")

    def __init__(self, fabric: Fabric, options: UnpairedOptions) -> None:
        super().__init__(fabric, options)
        generator = ResNetGenerator(width=options.width, blocks=options.blocks)
        self.nce = self.learns(
            "heads", PatchNCELoss(generator.tap_channels, options.patches, temperature=options.temperature)
        )
        self.generator = self.learns("generator", generator)
        self.generator.mark_forward_method("features")
        self.adversary = Adversary(self, Discriminator(conditional=False, width=options.width), LSGANLoss())
        self.tv, self.variance = TotalVariationLoss(), ColorVarianceLoss()

    @property
    def kind(self) -> Kind:
        return "unpaired_colorization"

    def pace(self, progress: float) -> float:
        """Half a cosine, from 1 to 0."""
        return (1 + math.cos(math.pi * progress)) / 2

    def step(self, source: Tensor, style: Tensor) -> dict[str, Tensor]:
        """The discriminator learns, then the generator with the heads."""
        weights = self.options.weights
        output = self.generator(source)
        zero = output.new_zeros(())
        terms = dict.fromkeys(WEIGHTS, zero)
        learned = zero
        if weights["adv"]:
            learned = self.adversary.learn(style, output)
            terms["adv"] = self.adversary.loss(self.adversary.scores(output))
        if weights["nce"]:
            terms["nce"] = self.contrast(output, source)
        if weights["style"] or weights["l1"]:
            repeated = self.generator(style)
            if weights["style"]:
                terms["style"] = self.contrast(repeated, style)
            if weights["l1"]:
                terms["l1"] = F.l1_loss(repeated, style)
        if weights["tv"]:
            terms["tv"] = self.tv(output)
        if weights["variance"]:
            terms["variance"] = self.variance(output)
        total = sum((weights[name] * term for name, term in terms.items()), start=zero)
        self.descend(total, "generator", "heads")
        return {"total": total, **terms, "discriminator": learned}

    def contrast(self, output: Tensor, source: Tensor) -> Tensor:
        """PatchNCE of an output and what it was painted on, by the generator's encoder."""
        queries = self.generator.features(output)
        with torch.no_grad():
            keys = self.generator.features(source)
        return self.nce(queries, keys)

    def paint(self, source: Tensor, reference: Tensor) -> Tensor:
        return self.generator.module(source)

    def chroma(self, source: Tensor) -> Tensor:
        return split_lab(self.generator.module(source))[1]


RECIPE = Recipe(name="unpaired_colorization", description=__doc__, system=UnpairedColorizer, epochs=200)

if __name__ == "__main__":
    main(RECIPE)
