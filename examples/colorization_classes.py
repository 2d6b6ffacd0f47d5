"""Colourisation as a choice among classes of colour, after Zhang, Isola and Efros (2016).

A mean of possible colours is a grey. So the network gives every pixel a probability for each of a few hundred
bins of ab; rare, vivid colours weigh more (--loss rebalanced); and the colour is the annealed mean of the
bins. --neighbours 1 gives one-hot targets instead of soft ones, --loss l2 learns ab itself.

    python examples/colorization_classes.py                                # rebalanced, on shipped photos
    python examples/colorization_classes.py --loss l2 --data 102flowers/jpg
    python examples/colorization_classes.py --prior runs/colorization_classes/prior.json  # counted before
    python examples/colorization_classes.py --apply grey.jpg
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from histloss import ColorBins, ColorPrior, RebalancedColorLoss
from shared.arguments import count, positive
from shared.cli import Recipe
from shared.colorization import Colorizer, count_colors, main
from shared.data import Samples
from shared.lab import split_lab
from shared.networks import ColorfulNet, resize
from shared.options import Options, absolute, option

LOSSES = ("l2", "classes", "rebalanced")


@dataclass(frozen=True, kw_only=True)
class ClassOptions(Options):
    """What is learned, and how a colour is read from it."""

    loss: str = option("distance of ab, or cross-entropy of colour classes", "rebalanced", choices=LOSSES)
    neighbours: int = option(
        "bins that share a pixel of the target; 1 is one-hot", 5, only={"loss": LOSSES[1:]}, type=count
    )
    temperature: float = option(
        "of the annealed mean: 1 is the mean, towards 0 the mode",
        0.38,
        only={"loss": LOSSES[1:]},
        type=positive,
    )
    prior: str | None = option(
        "colours counted before; without, the run counts its own",
        None,
        only={"loss": LOSSES[2:]},
        type=absolute,
    )


class ClassColorizer(Colorizer):
    """The colourful-colourisation CNN, from L to logits of colour classes or to ab."""

    options_type = ClassOptions
    terms = ("total",)

    def __init__(self, fabric: Fabric, options: ClassOptions) -> None:
        super().__init__(fabric, options)
        self.bins = ColorBins()
        self.classifies = options.loss != "l2"
        network = ColorfulNet(len(self.bins) if self.classifies else 2, width=options.width)
        self.network = self.learns("network", network)
        # Until a new run has counted its colours, or an old one is loaded, all are as frequent.
        self.weigh(torch.full((len(self.bins),), 1 / len(self.bins)))

    def weigh(self, prior: ColorPrior | Tensor) -> None:
        """Make the loss of a distribution of colours; the checkpoint keeps its weights."""
        loss = RebalancedColorLoss(
            prior if self.options.loss == "rebalanced" else None,
            self.bins,
            neighbours=self.options.neighbours,
        )
        self.loss = self.modules["loss"] = self.fabric.to_device(loss)

    def prepare(self, train: Samples, folder: Path) -> None:
        """Weigh the classes. What was counted is kept in the run, as prior.json, for others to use."""
        if self.options.loss != "rebalanced":
            return
        if self.options.prior is not None:
            prior = ColorPrior.load(self.options.prior, self.bins)
        else:
            prior = count_colors(train, self.bins)
            if self.fabric.is_global_zero:
                prior.save(folder / "prior.json")
        self.weigh(prior)

    def step(self, source: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """The network learns the chroma at the resolution of its output."""
        lightness, ab = split_lab(reference)
        output = self.network(lightness)
        target = resize(ab, output.shape[-2:])
        loss = self.loss(output, target) if self.classifies else F.mse_loss(output, target)
        self.descend(loss, "network")
        return {"total": loss}

    def chroma(self, source: Tensor) -> Tensor:
        output = self.network.module(split_lab(source)[0])
        ab = self.bins.decode(output, self.options.temperature) if self.classifies else output
        return resize(ab, source.shape[-2:])


RECIPE = Recipe(name="colorization_classes", description=__doc__, system=ClassColorizer, epochs=200)

if __name__ == "__main__":
    main(RECIPE)
