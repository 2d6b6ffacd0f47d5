"""The network of "Colorful Image Colorization" (Zhang, Isola and Efros, ECCV 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from shared.networks.layers import check_sides


class ColorfulNet(nn.Module):
    """conv1 to conv8: what colours L may have, at a quarter of its height and width.

    The network that the authors published: blocks of 3 x 3 convolutions with ReLU, each closed by a batch
    norm. conv1 to conv3 halve the resolution, conv5 and conv6 are dilated by 2, conv8 doubles it again. A
    1 x 1 convolution gives the outputs, which are linear: logits of Q bins, or a and b as in the paper's L2
    regression, which its loss alone keeps in gamut.

    :func:`resize` brings the output to the size of L; the paper does so with ab, not with logits, and
    trains on ab brought down to a quarter.

    Args:
        outputs: channels of the output, Q for classification or 2 for regression.
        width: channels of conv1; 64 is the paper's, and the deepest have eight times as many.
    """

    def __init__(self, outputs: int, *, width: int = 64) -> None:
        super().__init__()
        w = width
        self.blocks = nn.Sequential(
            block(1, w, convs=2, stride=2),
            block(w, 2 * w, convs=2, stride=2),
            block(2 * w, 4 * w, convs=3, stride=2),
            block(4 * w, 8 * w, convs=3),
            block(8 * w, 8 * w, convs=3, dilation=2),
            block(8 * w, 8 * w, convs=3, dilation=2),
            block(8 * w, 8 * w, convs=3),
            nn.Sequential(
                nn.ConvTranspose2d(8 * w, 4 * w, 4, stride=2, padding=1),
                nn.ReLU(),
                *block(4 * w, 4 * w, convs=2)[:-1],
            ),
        )
        self.head = nn.Conv2d(4 * w, outputs, 1)
        self.apply(initialize)
        nn.init.normal_(self.head.weight, std=0.01)  # at first all bins are about equal, or all pixels grey

    def forward(self, lightness: Tensor) -> Tensor:
        """(B, outputs, H / 4, W / 4) for L in [-1, 1], (B, 1, H, W), H and W multiples of 8."""
        check_sides("lightness", lightness, channels=1, multiple=8, least=8)
        return self.head(self.blocks(lightness)).to(lightness.dtype)


def block(before: int, after: int, *, convs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolutions with ReLU, the last one with the stride, and a batch norm."""
    layers: list[nn.Module] = []
    for i in range(convs):
        step = stride if i == convs - 1 else 1
        layers += [nn.Conv2d(after if i else before, after, 3, step, dilation, dilation), nn.ReLU()]
    return nn.Sequential(*layers, nn.BatchNorm2d(after))


def initialize(module: nn.Module) -> None:
    """He's weights, which keep the scale through the three ReLUs of a block."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)
