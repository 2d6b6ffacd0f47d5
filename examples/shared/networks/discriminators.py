"""Discriminators of images, alone or beside what they were painted on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.networks.layers import check_sides, down, initialize, up, upsampled_conv


class Pairing(nn.Module):
    """What a discriminator is shown: images or, if `conditional`, conditions and their images.

    For GAN colourisation the condition is L, one channel, and the image ab, two.
    """

    multiple, least = 1, 24  # height and width that it can be shown

    def __init__(self, *, conditional: bool, image: int, condition: int) -> None:
        super().__init__()
        self.conditional, self.image, self.condition = conditional, image, condition
        self.channels = image + condition if conditional else image

    def shown(self, image: Tensor, condition: Tensor | None) -> Tensor:
        if (condition is not None) != self.conditional:
            wanted = "needs a condition" if self.conditional else "takes no condition"
            raise ValueError(f"a discriminator with conditional={self.conditional} {wanted}")
        self.check("image", image, self.image)
        if condition is None:
            return image
        self.check("condition", condition, self.condition)
        return torch.cat([condition, image], dim=1)

    def check(self, name: str, shown: Tensor, channels: int) -> None:
        check_sides(name, shown, channels=channels, multiple=self.multiple, least=self.least)


class Discriminator(Pairing):
    """A PatchGAN: logits of whether patches of 70 x 70 pixels are real, (B, 1, H / 8 - 2, W / 8 - 2).

    A conditional one sees the condition, such as the source, beside the image. As the critic of a WGAN it
    keeps its batch norms, as in that paper.

    Args:
        conditional: whether there is a condition.
        width: channels of the first layer.
        image, condition: channels of the image and of its condition.
    """

    def __init__(self, *, conditional: bool, width: int = 64, image: int = 3, condition: int = 3) -> None:
        super().__init__(conditional=conditional, image=image, condition=condition)
        self.layers = nn.Sequential(
            *encoder(self.channels, width),
            down(4 * width, 8 * width, stride=1),
            nn.Conv2d(8 * width, 1, 4, padding=1),
        )
        self.apply(initialize)

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits of an image (B, image, H, W), and its condition if this is a conditional discriminator."""
        return self.layers(self.shown(image, condition))


class AutoencoderDiscriminator(Pairing):
    """EBGAN's discriminator (Zhao 2017): the energy of an image is how badly an autoencoder repeats it.

    A conditional one repeats the condition too: the energy is that of the pair. Three convolutions of
    stride 2 and their mirror images; the last layer is linear.

    Args:
        conditional, width, image, condition: as in :class:`Discriminator`.
    """

    multiple, least = 8, 8

    def __init__(self, *, conditional: bool, width: int = 64, image: int = 3, condition: int = 3) -> None:
        super().__init__(conditional=conditional, image=image, condition=condition)
        self.layers = nn.Sequential(
            *encoder(self.channels, width),
            up(4 * width, 2 * width),
            up(2 * width, width),
            upsampled_conv(width, self.channels),
        )
        self.apply(initialize)

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        """Mean squared errors, (B,), of an image (B, image, H, W) and its condition; H, W multiples of 8."""
        shown = self.shown(image, condition)
        return (self.layers(shown).to(shown.dtype) - shown).square().mean((1, 2, 3))


def encoder(channels: int, width: int) -> list[nn.Module]:
    """To an eighth of the height and width."""
    return [down(channels, width, norm=False), down(width, 2 * width), down(2 * width, 4 * width)]
