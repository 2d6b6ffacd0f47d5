"""What an image should be like, whatever it shows: smooth, colourful.

The arithmetic is float32, or float64 for float64 images, under autocast too. A NaN or infinite pixel makes
the value of its image NaN or infinite: unlike histograms, these losses leave no pixel out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import checks
from ..color import rgb_to_lab
from .common import reduce, show, widen


class TotalVariationLoss(nn.Module):
    r"""The mean over an image's pixels of their distance to the next ones.

    .. math:: \mathcal{L} = \operatorname{mean}_{b, c, i, j}
              \left((x_{i, j+1} - x_{i, j})^2 + (x_{i+1, j} - x_{i, j})^2\right)^{\beta / 2}

    The finite differences :math:`\mathcal{R}_{V^\beta}` of Mahendran and Vedaldi, "Understanding Deep Image
    Representations by Inverting Them", CVPR 2015, here divided by the number of pixels and channels, so that
    a weight fits images of any size. Differences across the border are 0. With other than two spatial
    dimensions there is a square for each.

    Args:
        beta: finite and at least 1. 1 is the total variation, whose gradient is as large for small steps as
            for large ones; the default 2 has the gradient of a quadratic.
        reduction: ``"mean"`` or ``"sum"`` over batch and channels, or ``"none"`` for shape (B, C).

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(self, beta: float = 2.0, *, reduction: str = "mean") -> None:
        super().__init__()
        self.beta = checks.check_order(beta, "beta")
        checks.check_choice("reduction", reduction, checks.REDUCTIONS)
        self.reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        r"""The total variation of images.

        Args:
            x: shape (B, C, \*spatial) with at least one pixel, in any range, float16, bfloat16, float32 or
                float64.

        Returns:
            A scalar, or shape (B, C) with ``reduction="none"``; float32 or float64. A pixel that equals the
            next ones has value and gradient 0.

        Raises:
            TypeError, ValueError: x is not as described.
        """
        checks.check_image("x", x)
        checks.check_not_empty("x", x)
        x = widen(x)
        squares = torch.zeros_like(x)
        for d in range(2, x.ndim):
            squares = squares + x.diff(dim=d, append=x.narrow(d, -1, 1)).square()
        if self.beta != 2:  # a root has no slope at 0
            flat = squares == 0
            squares = torch.where(flat, 0.0, torch.where(flat, 1.0, squares).pow(self.beta / 2))
        return reduce(squares.flatten(2).mean(-1), self.reduction)

    def extra_repr(self) -> str:
        """The arguments."""
        return show(beta=self.beta, reduction=self.reduction)


class ColorVarianceLoss(nn.Module):
    r"""Against grey and against one tint: minus the smaller of an image's two variances of colour.

    .. math:: \mathcal{L} = \operatorname{mean}_b -\min(\operatorname{Var} a_b, \operatorname{Var} b_b)

    with a and b of CIE Lab as in :func:`histloss.color.rgb_to_lab`, so divided by 110: times 12,100 it is in
    the squares of Lab's own units. Each variance is over the pixels of one image, divided by their number.

    Args:
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"`` for shape (B,).

    Raises:
        TypeError, ValueError: the argument is not as described.
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        checks.check_choice("reduction", reduction, checks.REDUCTIONS)
        self.reduction = reduction

    def forward(self, rgb: Tensor) -> Tensor:
        r"""The loss of images.

        Args:
            rgb: shape (B, 3, \*spatial) with at least one pixel, sRGB values in [-1, 1], float16, bfloat16,
                float32 or float64.

        Returns:
            A scalar, or shape (B,) with ``reduction="none"``; float32 or float64, between -0.71 and 0. Greys
            have 0 up to rounding. Where both variances are equal, each has half of the gradient.

        Raises:
            TypeError, ValueError: rgb is not as described.
        """
        checks.check_color_image("rgb", rgb)
        checks.check_not_empty("rgb", rgb)
        variance = rgb_to_lab(rgb)[:, 1:].flatten(2).var(-1, correction=0)
        return reduce(-variance.amin(1), self.reduction)

    def extra_repr(self) -> str:
        """The argument."""
        return show(reduction=self.reduction)
