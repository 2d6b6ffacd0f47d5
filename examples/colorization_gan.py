"""Colourisation by a GAN: four adversarial objectives, each beside an L1 or an L2 distance.

A U-Net gives the chroma ab of a grey photo. The discriminator sees chroma, and the grey photo too if it is
conditional; under EBGAN it is an autoencoder, under WGAN a critic whose weights are clamped. WGAN's paper
takes --learning-rate 5e-5.

    python examples/colorization_gan.py                                    # DCGAN and L1, on shipped photos
    python examples/colorization_gan.py --adversarial wgan --pixel l2 --data 102flowers/jpg
    python examples/colorization_gan.py --apply grey.jpg
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor

from histloss import DCGANLoss, EBGANLoss, GANLoss, LSGANLoss, WGANLoss
from shared.adversary import Adversary
from shared.arguments import count, positive
from shared.cli import Recipe
from shared.colorization import Colorizer, main
from shared.lab import split_lab
from shared.networks import AutoencoderDiscriminator, Discriminator, UNet
from shared.options import Options, option

OBJECTIVES = ("none", "dcgan", "lsgan", "ebgan", "wgan")


@dataclass(frozen=True, kw_only=True)
class GANOptions(Options):
    """Which losses, and what each needs."""

    adversarial: str = option("objective", "dcgan", choices=OBJECTIVES)
    pixel: str = option("distance to the true chroma", "l1", choices=("l1", "l2"))
    pixel_weight: float = option("of that distance, the adversarial term's being 1", 100.0, type=positive)
    conditional: bool = option(
        "show the discriminator the grey photo too", True, action=argparse.BooleanOptionalAction
    )
    margin: float = option(
        "of EBGAN: energy that painted images need not exceed",
        0.05,
        only={"adversarial": ("ebgan",)},
        type=positive,
    )
    clamp: float = option(
        "of WGAN: the largest weight of the critic", 0.01, only={"adversarial": ("wgan",)}, type=positive
    )
    critic_steps: int = option(
        "of WGAN: steps of the critic for one of the generator",
        5,
        only={"adversarial": ("wgan",)},
        type=count,
    )


class GANColorizer(Colorizer):
    """A U-Net from L to ab, and a discriminator of ab."""

    options_type = GANOptions
    terms = ("total", "adv", "l1", "l2", "discriminator")

    def __init__(self, fabric: Fabric, options: GANOptions) -> None:
        super().__init__(fabric, options)
        generator = UNet(options.size, inputs=1, outputs=2, width=options.width)
        self.generator = self.learns("generator", generator)
        self.adversary = None if options.adversarial == "none" else self._adversary()
        weights = {"adv": float(self.adversary is not None), "l1": 0.0, "l2": 0.0}
        self.loss = GANLoss(
            self.adversary.loss if self.adversary else DCGANLoss(),
            weights | {options.pixel: options.pixel_weight},
        )

    def _adversary(self) -> Adversary:
        options = self.options
        losses = {
            "dcgan": DCGANLoss(),
            "lsgan": LSGANLoss(),
            "ebgan": EBGANLoss(options.margin),
            "wgan": WGANLoss(options.clamp),
        }
        kind = AutoencoderDiscriminator if options.adversarial == "ebgan" else Discriminator
        network = kind(conditional=options.conditional, width=options.width, image=2, condition=1)
        rmsprop = None  # WGAN's paper found momentum to harm a critic
        if options.adversarial == "wgan":
            rmsprop = torch.optim.RMSprop(network.parameters(), lr=options.learning_rate)
        return Adversary(self, network, losses[options.adversarial], rmsprop)

    def step(self, source: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """The discriminator learns, then the generator. A critic learns several times from one batch."""
        lightness, real = split_lab(reference)
        output = self.generator(lightness)
        learned, scores = output.new_zeros((), dtype=torch.float32), None
        if self.adversary:
            condition = lightness if self.options.conditional else None
            wgan = self.options.adversarial == "wgan"
            for _ in range(self.options.critic_steps if wgan else 1):
                learned = self.adversary.learn(real, output, condition)
                if wgan:
                    self.adversary.loss.clamp_(self.adversary.network)
            scores = self.adversary.scores(output, condition)
        terms = self.loss(output, real, scores)
        self.descend(terms.total, "generator")
        return {**terms._asdict(), "discriminator": learned}

    def chroma(self, source: Tensor) -> Tensor:
        return self.generator.module(split_lab(source)[0])


RECIPE = Recipe(name="colorization_gan", description=__doc__, system=GANColorizer, epochs=200)

if __name__ == "__main__":
    main(RECIPE)
