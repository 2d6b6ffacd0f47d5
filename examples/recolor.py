"""Recolour a photo with another photo's palette.

A small network maps every colour of the source to a new one. It is fitted to this one pair of photos: EMD
pulls the histograms of its output to the reference's, mutual information holds the output's luma to the
source's. What was fitted on a grid of pixels then recolours the source at full resolution.

    python examples/recolor.py --source photo.jpg --reference palette.jpg
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from histloss import EMDHistLoss, MIHistLoss, soft_histogram
from histloss.color import rgb_to_yuv
from shared.arguments import count, read_photo
from shared.data import to_bytes


class ColorMap(nn.Module):
    """A smooth map of RGB in [-1, 1] to itself, the same for every pixel; at first it changes nothing.

    Black and white, at the ends of the range, are moved in by 0.03: tanh never reaches them.
    """

    def __init__(self, source: Tensor, width: int = 32) -> None:
        super().__init__()
        self.register_buffer("mean", source.mean((0, 2, 3), keepdim=True))
        self.register_buffer("std", source.std((0, 2, 3), correction=0, keepdim=True).clamp(min=0.01))
        last = nn.Linear(width, 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.shift = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last)

    def forward(self, rgb: Tensor) -> Tensor:
        pixels = ((rgb - self.mean) / self.std).movedim(1, -1)
        return torch.tanh(torch.atanh(rgb.clamp(-0.97, 0.97)) + self.shift(pixels).movedim(-1, 1))


def palette(rgb: Tensor) -> Tensor:
    """R, G, B, Y, U, V: the histograms of two colour spaces say more of a palette than those of one."""
    return torch.cat([rgb, rgb_to_yuv(rgb)], dim=1)


def luma(rgb: Tensor) -> Tensor:
    return rgb_to_yuv(rgb)[:, :1]


def fit(
    source: Tensor, reference: Tensor, *, bins: int, mi_bins: int, mi_weight: float, steps: int
) -> ColorMap:
    """The colour map that brings the source's histograms to the reference's. Both (1, 3, H, W)."""
    network = ColorMap(source)
    emd_loss, mi_loss = EMDHistLoss(bins), MIHistLoss(mi_bins)
    target = soft_histogram(palette(reference), bins=bins)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    progress = tqdm(range(steps), desc=f"MI weight {mi_weight:g}", leave=False)
    for _ in progress:
        output = network(source)
        emd = emd_loss(palette(output), target)
        loss = emd + mi_weight * mi_loss(luma(output), luma(source))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        progress.set_postfix(EMD=f"{emd.item():.3f}", refresh=False)
    return network


def recolor(network: ColorMap, photo: Tensor) -> Tensor:
    """The photo with its new colours, made strip by strip: a large photo needs little memory."""
    with torch.no_grad():
        return torch.cat([network(strip) for strip in photo.split(128, dim=2)], dim=2)


def draw(source: Tensor, reference: Tensor, result: Tensor) -> Figure:
    """The three photos above the histograms of their channels."""
    photos = {"source": source, "reference": reference, "result": result}
    aspects = [photo.shape[3] / photo.shape[2] for photo in photos.values()]
    heights = [12 / sum(aspects) + 0.4, 2.2]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    for axes, (title, photo) in zip(top.subplots(1, 3, width_ratios=aspects), photos.items(), strict=True):
        axes.imshow(to_bytes(photo[0]))
        axes.set_title(title)
        axes.axis("off")

    bins = 64
    levels = (np.arange(bins) + 0.5) * 256 / bins
    before, wanted, after = (soft_histogram(photo, bins=bins, bandwidth=1.0)[0] for photo in photos.values())
    channels = {"red": "tab:red", "green": "tab:green", "blue": "tab:blue"}
    panels = bottom.subplots(1, 3)
    for c, (axes, (name, color)) in enumerate(zip(panels, channels.items(), strict=True)):
        axes.fill_between(levels, wanted[c], color=color, alpha=0.25, lw=0, label="reference")
        axes.plot(levels, before[c], color="0.5", lw=1.2, ls="--", label="source")
        axes.plot(levels, after[c], color=color, lw=1.8, label="result")
        axes.set(xlim=(0, 256), ylim=(0, None), xticks=(0, 128, 255), yticks=(), xlabel=name)
        axes.spines[["left", "top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    return figure


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    photos = files("skimage.data")  # photos that come with scikit-image
    parser = argparse.ArgumentParser(
        description="Recolour a photo with another photo's palette.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--source", type=read_photo, default=str(photos / "rocket.jpg"), help="photo to recolour")
    add("--reference", type=read_photo, default=str(photos / "coffee.png"), help="photo with the palette")
    add("--out-dir", type=Path, default=Path("recolored"), help="where recolored.png and figure.png go")
    add("--size", type=count, default=256, help="fit on size x size pixels")
    add("--steps", type=count, default=200, help="optimiser steps")
    add("--bins", type=count, default=256, help="bins of EMD")
    add("--mi-bins", type=count, default=64, help="bins of MI: few, since joint cells need pixels")
    add("--mi-weight", type=float, default=10.0, help="weight of MI beside that of EMD, 1")
    add("--compare", action=argparse.BooleanOptionalAction, default=True, help="fit without MI too")
    add("--seed", type=int, default=0, help="the same seed and number of threads give the same bits")
    args = parser.parse_args(argv)
    if not 0 <= args.mi_weight < math.inf:
        parser.error(f"argument --mi-weight: must be finite and at least 0, got {args.mi_weight}")
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out-dir: {error}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    # Histograms do not see where a pixel is: a grid of pixels keeps the palette, averages would dull it.
    source = F.interpolate(args.source, (args.size, args.size))
    reference = F.interpolate(args.reference, (args.size, args.size))

    emd, mi = EMDHistLoss(args.bins), MIHistLoss(args.mi_bins, mode="mi")
    target = soft_histogram(palette(reference), bins=args.bins)
    before = emd(palette(source), target).item()
    print(f"{'':<14}{'EMD to reference':>17}{'fold':>7}{'MI in nats':>14}{'seconds':>9}")
    print(f"{'source':<14}{before:17.3f}{'':>7}{-mi(luma(source), luma(source)).item():14.3f}")
    for mi_weight in sorted({0.0, args.mi_weight}) if args.compare else [args.mi_weight]:
        torch.manual_seed(args.seed)
        start = time.perf_counter()
        network = fit(
            source, reference, bins=args.bins, mi_bins=args.mi_bins, mi_weight=mi_weight, steps=args.steps
        )
        seconds = time.perf_counter() - start
        output = recolor(network, source)
        after = emd(palette(output), target).item()
        fold = before / after if after else math.inf
        shared = -mi(luma(output), luma(source)).item()
        print(f"{f'MI weight {mi_weight:g}':<14}{after:17.3f}{fold:7.0f}{shared:14.3f}{seconds:9.1f}")

    result = recolor(network, args.source)
    Image.fromarray(to_bytes(result[0])).save(args.out_dir / "recolored.png")
    draw(args.source, args.reference, result).savefig(args.out_dir / "figure.png", dpi=150)
    print(f"wrote {args.out_dir / 'recolored.png'} and {args.out_dir / 'figure.png'}")


if __name__ == "__main__":
    main()
