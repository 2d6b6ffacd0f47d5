"""The networks of the examples, one family a file."""

from shared.networks.colorful import ColorfulNet
from shared.networks.discriminators import AutoencoderDiscriminator, Discriminator
from shared.networks.layers import resize
from shared.networks.resnet import ResNetGenerator
from shared.networks.unet import CODES, LIMIT, CountCode, Generator, RootCode, UNet, hard_histogram

__all__ = [
    "CODES",
    "LIMIT",
    "AutoencoderDiscriminator",
    "ColorfulNet",
    "CountCode",
    "Discriminator",
    "Generator",
    "ResNetGenerator",
    "RootCode",
    "UNet",
    "hard_histogram",
    "resize",
]
