"""What a generator is trained for: DeepHist's Eq. 18, in the colour space of choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from histloss import DeepHistLoss, EMDHistLoss, MIHistLoss, soft_histogram
from histloss.color import rgb_to_hsv, rgb_to_yuv


class ColorSpace(NamedTuple):
    """Names of the channels, how RGB becomes them, and which of them have histograms of which boundary."""

    channels: tuple[str, str, str]
    from_rgb: Callable[[Tensor], Tensor]
    groups: tuple[tuple[slice, str], ...]

    @property
    def boundaries(self) -> list[str]:
        """Of the channels one by one."""
        return [boundary for of, boundary in self.groups for _ in range(of.start, of.stop)]


SPACES = {
    "yuv": ColorSpace(("Y", "U", "V"), rgb_to_yuv, ((slice(0, 3), "reflect"),)),
    "hsv": ColorSpace(("H", "S", "V"), rgb_to_hsv, ((slice(0, 1), "cyclic"), (slice(1, 3), "reflect"))),
}


def histograms(rgb: Tensor, *, color: str, bins: int) -> Tensor:
    """Soft histograms (B, 3, K) of the channels that an RGB image (B, 3, H, W) has in a colour space."""
    space = SPACES[color]
    x = space.from_rgb(rgb)
    parts = [soft_histogram(x[:, of], bins=bins, boundary=boundary) for of, boundary in space.groups]
    return torch.cat(parts, dim=1)


class Objective(nn.Module):
    """EMD to the reference's histograms, mutual information with the source, and the adversarial term.

    The terms of DeepHistLoss, meant over the three channels of the colour space. In HSV the hue has a loss of
    its own, with cyclic histograms and a cyclic EMD (Hue-Net). EMD and MI have bins of their own: a joint
    histogram with as many cells as pixels says little.
    """

    def __init__(
        self, *, color: str, preset: str, bins: int, mi_bins: int, weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.space = SPACES[color]
        default = DeepHistLoss(preset=preset)
        self.losses = nn.ModuleList(
            DeepHistLoss(
                weights,
                preset,
                emd=EMDHistLoss(bins, boundary=b, cyclic=b == "cyclic", form=default.emd.form),
                mi=MIHistLoss(mi_bins, boundary=b, mode=default.mi.mode),
            )
            for _, b in self.space.groups
        )

    def forward(
        self, output: Tensor, source: Tensor, ref_hist: Tensor, fake_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted sum `total`, and `emd`, `mi`, `adv` before weighting. Images are RGB in [-1, 1]."""
        x, y = self.space.from_rgb(output), self.space.from_rgb(source)
        terms = dict.fromkeys(("total", "emd", "mi", "adv"), x.new_zeros(()))
        for (of, _), loss in zip(self.space.groups, self.losses, strict=True):
            share = (of.stop - of.start) / 3
            values = loss(x[:, of], y[:, of], ref_hist[:, of], fake_logits)._asdict()
            terms = {name: term + share * values[name] for name, term in terms.items()}
        return terms
