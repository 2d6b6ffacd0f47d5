"""The discriminator of a system: what it learns, and what it says of the generator's images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from histloss import AdversarialLoss
from shared.training import System


class Adversary:
    """A discriminator that learns beside a generator.

    Args:
        system: gets the network, under the name "discriminator".
        network: gives scores of what it is shown: an image, and a condition or None.
        loss: one of histloss's adversarial losses, which reads these scores.
        optimizer: instead of the system's own.
    """

    def __init__(
        self,
        system: System,
        network: nn.Module,
        loss: AdversarialLoss,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.system, self.loss = system, loss
        self.network = system.learns("discriminator", network, optimizer)

    def learn(self, real: Tensor, fake: Tensor, condition: Tensor | None = None) -> Tensor:
        """A step towards knowing real images from painted ones, down half its loss, as in pix2pix.

        Returns that half, on top of the objective's own factors.
        """
        optimizer = self.system.optimizers["discriminator"]
        optimizer.zero_grad()
        total = real.new_zeros(())
        # Each with its own backward, as DDP wants it.
        for image, loss in ((real, self.loss.real), (fake.detach(), self.loss.fake)):
            term = loss(self.network(image, condition)) / 2
            self.system.fabric.backward(term)
            total = total + term.detach()
        optimizer.step()
        return total

    def scores(self, fake: Tensor, condition: Tensor | None = None) -> Tensor:
        """What it says of painted images, for the generator to learn from. It does not learn itself."""
        with self.system.frozen("discriminator") as network:
            return network(fake, condition)
