"""How good trained generators are on held-out images, as tables and pictures, beside the DeepHist paper's.

Table 1 is the mutual information of output and source, Table 3 the squared error of the ablations, Fig. 13
the distributions of grey levels. Everything here works on images that are made already, RGB in [-1, 1].
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from histloss import emd, joint_histogram, mutual_information, soft_histogram
from histloss.color import rgb_to_yuv
from shared.data import to_bytes
from shared.objective import SPACES, histograms

FULL, WITHOUT_MI, IDENTITY = "full", "without MI", "identity"  # runs that the tables know by name
CHUNK = 16  # images at a time: what is made of them on the way needs little memory
LEVELS = 64  # of Fig. 13
ROWS = 6  # of a picture grid
NO_INFORMATION = 1e-3  # nats: of less, a ratio would compare rounding errors


class Scores(NamedTuple):
    """Scores of N images: `mi` in nats and `emd` (Eq. 14), both (N, 3), and `mse` of RGB in [0, 1], (N,)."""

    mi: Tensor
    emd: Tensor
    mse: Tensor


def channel_scores(
    output: Tensor, source: Tensor, reference: Tensor, *, color: str, bins: int, mi_bins: int
) -> Scores:
    """Mutual information of output and source, squared EMD and MSE to the reference. All (N, 3, H, W).

    MI of few pixels is too high, by up to about mi_bins**2 / (2 H W): compare runs of one size and mi_bins.
    """
    if color not in SPACES:
        raise ValueError(f"color must be one of {sorted(SPACES)}, got {color!r}")
    chunks = zip(output.split(CHUNK), source.split(CHUNK), reference.split(CHUNK), strict=True)
    scores = [_score(*chunk, color=color, bins=bins, mi_bins=mi_bins) for chunk in chunks]
    return Scores(*(torch.cat(values) for values in zip(*scores, strict=True)))


@torch.no_grad()
def _score(
    output: Tensor, source: Tensor, reference: Tensor, *, color: str, bins: int, mi_bins: int
) -> Scores:
    space = SPACES[color]
    x, y = space.from_rgb(output), space.from_rgb(source)
    out_hist, ref_hist = (histograms(image, color=color, bins=bins) for image in (output, reference))
    mi, distance = [], []
    for of, boundary in space.groups:
        joint = joint_histogram(x[:, of], y[:, of], bins=mi_bins, boundary=boundary)
        mi.append(mutual_information(joint, mode="mi"))
        distance.append(emd(out_hist[:, of], ref_hist[:, of], cyclic=boundary == "cyclic"))
    mse = ((output - reference) / 2).square().mean((1, 2, 3))
    return Scores(torch.cat(mi, dim=1).cpu(), torch.cat(distance, dim=1).cpu(), mse.cpu())


def evaluate(
    outputs: Mapping[str, Tensor],
    sources: Tensor,
    references: Tensor,
    *,
    paired: bool,
    color: str,
    bins: int,
    mi_bins: int,
    folder: Path,
    task: str,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Score runs of one task on the same held-out pairs, print the tables and write them with the pictures.

    Args:
        outputs: images of each run by its name, (N, 3, H, W). Table 1 compares "full" with "without MI".
        sources, references: the pairs they were made of, (N, 3, H, W).
        paired: whether the reference is the source's real image, so that Table 3 means something.
        color: "yuv" or "hsv", the space of MI and EMD, with `mi_bins` and `bins` bins.
        folder: where evaluation.json, tables.md, figure13.png and grid.png go.
        task: a title.
        provenance: what else a reader needs to get the same numbers; values that JSON can hold.
    """
    _check(outputs, sources, references)
    runs = {IDENTITY: sources, **outputs}
    report: dict[str, Any] = {
        "task": task,
        "images": len(sources),
        "size": list(sources.shape[2:]),
        "paired": paired,
        "color": color,
        "bins": bins,
        "mi_bins": mi_bins,
        "units": {"mi": "nats", "emd": "squared EMD, Eq. 14", "mse": "RGB in [0, 1]"},
        "provenance": dict(provenance),
        "runs": {},
    }
    for name, images in runs.items():
        scores = channel_scores(images, sources, references, color=color, bins=bins, mi_bins=mi_bins)
        report["runs"][name] = _summarize(scores, SPACES[color].channels, paired)
    report["mi_ratio"] = _mi_ratio(report["runs"])
    curves = {name: distributions(images) for name, images in {"reference": references, **outputs}.items()}
    report["figure13"] = {
        name: dict(zip("YUV", curve.tolist(), strict=True)) for name, curve in curves.items()
    }

    folder.mkdir(parents=True, exist_ok=True)
    tables = format_tables(report)
    (folder / "evaluation.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (folder / "tables.md").write_text(tables)
    plot_distributions(curves).savefig(folder / "figure13.png", dpi=150)
    rows = shown_rows(len(sources)).to(sources.device)
    columns = {"source": sources, "reference": references, **outputs}
    grid = sample_grid({name: images[rows] for name, images in columns.items()})
    Image.fromarray(grid).save(folder / "grid.png")
    print(tables)
    return report


def _check(outputs: Mapping[str, Tensor], sources: Tensor, references: Tensor) -> None:
    if not outputs:
        raise ValueError("outputs must have at least one run, got none")
    if taken := {"source", "reference", IDENTITY} & outputs.keys():
        raise ValueError(f"outputs must not have a run of the name {min(taken)!r}, which the tables use")
    if sources.ndim != 4 or sources.shape[1] != 3 or sources.numel() == 0:
        raise ValueError(f"sources must have shape (N, 3, H, W) and pixels, got {tuple(sources.shape)}")
    named = {f"outputs[{name!r}]": images for name, images in outputs.items()}
    for name, images in {"sources": sources, "references": references, **named}.items():
        if images.shape != sources.shape:
            raise ValueError(
                f"{name} must have the shape of sources, {tuple(sources.shape)}, got {tuple(images.shape)}"
            )
        if not images.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinite pixels")


def _summarize(scores: Scores, channels: Sequence[str], paired: bool) -> dict[str, Any]:
    """Mean and standard error of every score; "average" is that of the three channels."""
    summary: dict[str, Any] = {}
    for name, values in (("mi", scores.mi), ("emd", scores.emd)):
        columns = [*values.unbind(1), values.mean(1)]
        summary[name] = {
            channel: mean_and_error(column)
            for channel, column in zip((*channels, "average"), columns, strict=True)
        }
    if paired:
        summary["mse"] = mean_and_error(scores.mse)
    return summary


def mean_and_error(values: Tensor) -> dict[str, float | None]:
    """The standard error over images, as if they were independent; one image has none."""
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": values.mean().item(), "standard_error": error}


def _mi_ratio(runs: Mapping[str, Any]) -> dict[str, float | None] | None:
    """How many times higher MI is with the MI loss than without, and the mean of that over the channels."""
    if FULL not in runs or WITHOUT_MI not in runs:
        return None
    ratios: dict[str, float | None] = {}
    for channel, without in runs[WITHOUT_MI]["mi"].items():
        full = runs[FULL]["mi"][channel]["mean"]
        ratios[channel] = full / without["mean"] if without["mean"] > NO_INFORMATION else None
    known = [ratio for channel, ratio in ratios.items() if ratio is not None and channel != "average"]
    return {**ratios, "average": sum(known) / len(known) if known else None}


def format_tables(report: Mapping[str, Any]) -> str:
    """The numbers of a report as Markdown."""
    runs = report["runs"]
    channels = list(runs[IDENTITY]["mi"])
    height, width = report["size"]
    parts = [
        f"## {report['task']}: {report['images']} held-out images of {width} x {height}",
        "Means over the images ± standard errors, as if the images were independent. "
        f"{report['color'].upper()}, {report['mi_bins']} bins for MI and {report['bins']} for EMD.",
        "\n".join(f"- {name}: `{_text(value)}`" for name, value in report["provenance"].items()),
        "### Table 1: mutual information of output and source, in nats",
    ]
    rows = [[name, *map(number, run["mi"].values())] for name, run in runs.items()]
    if report["mi_ratio"] is not None:
        rows.append([f"{FULL} / {WITHOUT_MI}", *map(_ratio, report["mi_ratio"].values())])
    parts += [
        table(["run", *channels], rows),
        "The identity is the source itself, with all the information that these bins can show; "
        "a ratio's average is that of its channels. "
        "In the paper's Table 1, MI is 2.7 to 4 times higher with the MI loss than without, "
        "after full training.",
        "### Squared EMD of the output's histograms to the reference's",
    ]
    identity = runs[IDENTITY]["emd"]["average"]["mean"]
    rows = [
        [
            name,
            *map(number, run["emd"].values()),
            _ratio(run["emd"]["average"]["mean"] / identity if identity else None),
        ]
        for name, run in runs.items()
    ]
    parts.append(table(["run", *channels, "of the identity's"], rows))
    if report["paired"]:
        parts += [
            "### Table 3: mean squared error to the real image, RGB in [0, 1]",
            table(["run", "MSE"], [[name, number(run["mse"], digits=5)] for name, run in runs.items()]),
            "The paper's Table 3 is of its own data and full training, and is not repeated here.",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def number(value: Mapping[str, float | None], digits: int = 3, *, scale: float = 1) -> str:
    mean, error = value["mean"] * scale, value["standard_error"]
    text = f"{round(mean, digits) + 0.0:.{digits}f}"  # + 0.0 makes -0.0 a 0
    return text if error is None else f"{text} ± {error * scale:.{digits}f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in a terminal too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join(f"{cell:{'<' if c == 0 else '>'}{widths[c]}}" for c, cell in enumerate(row)) + " |"
        for row in (header, rule, *rows)
    )


@torch.no_grad()
def distributions(images: Tensor) -> Tensor:
    """The mean histograms of Y, U and V of images (N, 3, H, W): probabilities, shape (3, LEVELS)."""
    chunks = [soft_histogram(rgb_to_yuv(chunk), bins=LEVELS) for chunk in images.split(CHUNK)]
    return torch.cat(chunks).mean(0).cpu()


def plot_distributions(curves: Mapping[str, Tensor]) -> Figure:
    """Fig. 13: the distributions of every run, over those of the references in grey."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    centers = (np.arange(LEVELS) + 0.5) / LEVELS
    names = ("Y: grey level", "U: yellow to blue", "V: cyan to red")
    for c, (axes, name) in enumerate(zip(figure.subplots(1, 3), names, strict=True)):
        levels = centers * 256 if c == 0 else centers * 2 - 1
        for run, curve in curves.items():
            if run == "reference":
                axes.fill_between(levels, curve[c], color="0.8", lw=0, label="references")
            else:
                axes.plot(levels, curve[c], lw=1.5, label=run)
        # Square roots: where most of an image is one colour, its others remain visible.
        axes.set_yscale("function", functions=(lambda p: np.sqrt(np.maximum(p, 0)), np.square))
        axes.set(ylim=(0, None), xlabel=name, xticks=(0, 128, 255) if c == 0 else (-1, 0, 1))
        _despine(axes)
    figure.axes[0].set_ylabel("probability (square-root scale)")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False
    )
    return figure


def shown_rows(count: int) -> Tensor:
    """Which of so many images a grid shows: from the first to the last, evenly."""
    return torch.linspace(0, count - 1, min(ROWS, count)).round().long()


def sample_grid(columns: Mapping[str, Tensor]) -> np.ndarray:
    """Samples side by side under their titles, RGB as uint8, (height, width, 3).

    Args:
        columns: images of every column by its title, all (N, 3, H, W) in [-1, 1]; the n-th of each make
            row n. Small images are enlarged by a whole number, pixel by pixel.
    """
    images = np.stack([to_bytes(column) for column in columns.values()])  # (columns, N, H, W, 3)
    scale = math.ceil(160 / images.shape[3])
    images = images.repeat(scale, axis=2).repeat(scale, axis=3)
    gap, title = 4, 28
    height, width = images.shape[2] + gap, images.shape[3] + gap
    grid = Image.new("RGB", (len(columns) * width + gap, images.shape[1] * height + gap + title), "white")
    draw = ImageDraw.Draw(grid)
    for c, (name, column) in enumerate(zip(columns, images, strict=True)):
        x = gap + c * width
        draw.text((x + width / 2, title / 2), name, "black", ImageFont.load_default(16), anchor="mm")
        for n, image in enumerate(column):
            grid.paste(Image.fromarray(image), (x, title + gap + n * height))
    return np.asarray(grid)


def plot_losses(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw training curves as a picture, smooth over what was measured.

    Args:
        history: rows of a "step" and of the terms of the loss; "discriminator" has a panel of its own. Terms
            that are always 0, since they have no weight, are left out.
        path: where the picture goes; no row, no picture.
    """
    if not history:
        return
    steps = np.array([row["step"] for row in history])
    panels: dict[str, dict[str, np.ndarray]] = {}
    for name in [name for name in history[0] if name != "step"]:
        values = np.array([row[name] for row in history])
        if values.any():
            panels.setdefault("discriminator" if name == "discriminator" else "generator", {})[name] = values
    figure = Figure(figsize=(6 * len(panels), 4), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)
    for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
        for name, values in panel.items():
            (line,) = axes.plot(steps, smooth(values), lw=1.6, label=name)
            axes.plot(steps, values, color=line.get_color(), alpha=0.2, lw=0.8)
        axes.set(xlabel="step", title=title)
        if _spans_decades(np.stack([*panel.values()])):
            axes.set_yscale("log")
        _despine(axes)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _spans_decades(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() > 30 * values.min())


def smooth(values: np.ndarray) -> np.ndarray:
    """Running means over a twentieth of the values; at the ends over those there are."""
    half, at = len(values) // 40, np.arange(len(values))
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[last] - sums[first]) / (last - first)


def _despine(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
