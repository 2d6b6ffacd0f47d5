"""Methods of colourisation side by side: scores of the same held-out photos, a table, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from histloss import ColorBins, ColorPrior
from shared.evaluation import channel_scores, mean_and_error, number, sample_grid, shown_rows, table
from shared.lab import split_lab
from shared.metrics import auc, colorfulness, random_chroma, top1

BASELINES = "baselines"
BINS, MI_BINS = 64, 32  # of EMD and MI, in YUV


@dataclass(frozen=True)
class Painted:
    """What a method made of the held-out photos, (N, 3, H, W), and how it came to be: values for JSON."""

    family: str
    name: str
    output: Tensor
    training: Mapping[str, Any] | None = None  # with "seconds" and "steps"


def compare(
    painted: list[Painted],
    sources: Tensor,
    real: Tensor,
    *,
    classifier: nn.Module | None = None,
    labels: Tensor | None = None,
    folder: Path,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Score methods and baselines, print the table and write it with the pictures.

    Args:
        painted: the methods' outputs for the sources.
        sources, real: greys and the photos they are of, (N, 3, H, W).
        classifier, labels: gives logits of ImageNet's images, and its answers for the real photos.
        folder: where comparison.json, table.md and a grid for each family go.
        provenance: what else a reader needs to get the same numbers.
    """
    baselines = {"grey": sources, "random": random_chroma(real), "real": real}
    painted = [Painted(BASELINES, name, output) for name, output in baselines.items()] + painted
    weights = balance(real)
    rows = []
    for each in painted:
        scores = score(each.output, sources, real, weights)
        if classifier is not None:
            scores["top1"] = mean_and_error(top1(classifier, each.output, labels))
        rows.append({"family": each.family, "name": each.name, "training": each.training, "scores": scores})
    report = {
        "images": len(real),
        "size": list(real.shape[2:]),
        "units": UNITS,
        "provenance": dict(provenance),
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    text = format_table(report)
    (folder / "table.md").write_text(text)
    print(text)
    shown = shown_rows(len(real))
    for family in dict.fromkeys(each.family for each in painted):
        columns = {"grey photo": sources, "real": real}
        columns |= {each.name: each.output for each in painted if each.family == family}
        grid = sample_grid({name: images[shown] for name, images in columns.items()})
        Image.fromarray(grid).save(folder / f"{family}.png")
    return report


UNITS = {
    "AuC": "area under the curve of ab errors",
    "rebalanced": "the same over all pixels, each bin of ab that occurs having the same weight",
    "colourfulness": "Hasler and Süsstrunk's M",
    "MI": "of the luma of output and source, in nats",
    "EMD": "squared, of a channel's histograms to the real photo's",
    "top-1": "share of the photos that a classifier takes for what it takes the real one for",
}


def balance(real: Tensor) -> Tensor:
    """Weights of the pixels, (N, 1, H, W): one over the number of pixels in their ab bin.

    Those of Zhang 2016, Eq. 4 with lambda 0, of the distribution of these photos.
    """
    ab, bins = split_lab(real)[1], ColorBins()
    prior = ColorPrior(bins)
    prior.update(ab)
    nearest, _ = bins.encode(ab, neighbours=1)
    return 1 / prior.counts.to(real.device)[nearest].double()


def score(output: Tensor, sources: Tensor, real: Tensor, weights: Tensor) -> dict[str, Any]:
    """Means over the photos, with standard errors; the rebalanced AuC is of all pixels together."""
    channels = channel_scores(output, sources, real, color="yuv", bins=BINS, mi_bins=MI_BINS)
    shares = weights.sum((1, 2, 3)).cpu()
    return {
        "auc": mean_and_error(auc(output, real)),
        "auc_rebalanced": ((auc(output, real, weights) * shares).sum() / shares.sum()).item(),
        "colorfulness": mean_and_error(colorfulness(output)),
        "mi": mean_and_error(channels.mi[:, 0]),
        "emd": {name: mean_and_error(channels.emd[:, c]) for c, name in enumerate("YUV")},
    }


def format_table(report: Mapping[str, Any]) -> str:
    """The scores of a report as Markdown."""
    rows, classified = report["rows"], "top1" in report["rows"][0]["scores"]
    header = ["", "method", "AuC, %", "rebalanced", "colourfulness", "MI", "EMD Y", "EMD U", "EMD V"]
    header += ["top-1, %"] * classified + ["training, s", "ms a step"]
    cells, family = [], None
    for row in rows:
        scores, training = row["scores"], row["training"]
        line = [
            row["family"] if row["family"] != family else "",
            row["name"],
            number(scores["auc"], digits=1, scale=100),
            f"{100 * scores['auc_rebalanced']:.1f}",
            number(scores["colorfulness"], digits=1),
            number(scores["mi"], digits=2),
            *(number(value, digits=2) for value in scores["emd"].values()),
        ]
        if classified:
            line.append(number(scores["top1"], digits=0, scale=100))
        if training is None:
            line += ["", ""]
        else:
            seconds, steps = training["seconds"], training["steps"]
            line += [f"{seconds:.0f}", f"{1000 * seconds / steps:.0f}"]
        cells.append(line)
        family = row["family"]
    height, width = report["size"]
    caption = (
        f"Means over {report['images']} held-out photos of {width} x {height} ± standard errors, as if the "
        "photos were independent. "
        + "; ".join(f"{name}: {meaning}" for name, meaning in UNITS.items() if classified or name != "top-1")
        + "."
    )
    return f"{table(header, cells)}\n\n{caption}\n"
