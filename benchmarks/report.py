"""Draws the README's benchmark and its chart from a result of run.py.

The text goes between the markers <!-- benchmark --> and <!-- /benchmark -->, the chart beside the JSON.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import CASES, CONTENTS, SIDES, TIMED_CONTENTS, Case, Row
from run import RESULTS, significant

ROOT = RESULTS.parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"(?<=<!-- benchmark -->\n).*?(?=<!-- /benchmark -->)", re.DOTALL)
SOURCE = re.compile(r"\]\((benchmarks/results/[^)]+\.json)\)")
COLOURS = {"histloss": "#0b6e4f", "reference": "#b8b8b8"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="a JSON file under benchmarks/results")
    path = parser.parse_args().result.resolve()
    result = json.loads(path.read_text())
    if "gpu" in result["provenance"]:
        parser.error("the README's table is for results of a CPU: there is none yet for those of a GPU")
    text = README.read_text()
    if not BLOCK.search(text):
        parser.error(f"{README.name} must have the lines <!-- benchmark --> and <!-- /benchmark -->")
    source = path.relative_to(ROOT).as_posix()
    draw(result, path.with_suffix(".png"))
    README.write_text(BLOCK.sub(lambda _: markdown(result, source), text))


def disagreement(text: str, root: Path = ROOT) -> str | None:
    """What a README's benchmark should say and does not, or None where it agrees with its data."""
    block = BLOCK.search(text)
    if block is None:
        return "there is no <!-- benchmark --> ... <!-- /benchmark -->"
    source = SOURCE.search(block[0])
    if source is None:
        return "no JSON file is named"
    path = root / source[1]
    if not path.exists() or not path.with_suffix(".png").exists():
        return f"{source[1]} or its chart does not exist"
    expected = markdown(json.loads(path.read_text()), source[1])
    return None if block[0] == expected else f"{source[1]} says\n{expected}"


def markdown(result: dict[str, Any], source: str) -> str:
    """The table, the chart, and where they come from."""
    rows, made = result["rows"], result["provenance"]
    timed = next(row for row in rows if row["metric"] == "time")
    shape = " x ".join(map(str, timed["shape"]))
    commit = made["commit"][:10] if made["commit"] else "no commit"
    changed = " with changes" if made["dirty"] else ""
    lines = [
        "| forward + backward | histloss, ms | eager PyTorch, ms | faster by | extra memory, MB | error |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_line(rows, case) for case in measured(rows)),
        "",
        f"![time and memory]({source.removesuffix('.json')}.png)",
        "",
        f"{timed['dtype']}, K = {timed['bins']}, {shape}, {made['threads']} threads of {made['cpu']} "
        f"({made['simd']}), torch {made['torch']}. Medians on uniform noise / a photo ({made['photo']}),",
        "both sides in one run; `eager PyTorch` is `histloss.reference` on a heap that keeps its pages, the",
        "kindest to it. Extra memory: the peak beyond inputs, outputs and gradients, histloss / eager.",
        "Error: the largest against float64, relative to the largest value, forward / gradients, over "
        f"{len(CONTENTS)} images, constant and saturated ones among them.",
        f"Measured {made['date'][:10]} at {commit}{changed}: [data]({source}).",
        "",
    ]
    return "\n".join(lines)


def measured(rows: Sequence[Row]) -> list[Case]:
    names = {row["case"] for row in rows}
    return [case for case in CASES if case.name in names]


def _line(rows: Sequence[Row], case: Case) -> str:
    def values(metric: str, side: str, stage: str = "both") -> list[float]:
        wanted = (case.name, metric, side, stage)
        return [
            row["value"] for row in rows if (row["case"], row["metric"], row["side"], row["stage"]) == wanted
        ]

    ours, theirs = (" / ".join(map(significant, values("time", side))) for side in SIDES)
    ratio = " / ".join(f"{value:.0f}x" for value in values("ratio", "histloss"))
    memory = " / ".join(significant(value) for side in SIDES for value in values("memory", side))
    error = " / ".join(f"{max(values('error', 'histloss', stage)):.0e}" for stage in ("forward", "backward"))
    return f"| {case.name} | {ours} | {theirs} | **{ratio}** | {memory or '-'} | {error} |"


def draw(result: dict[str, Any], path: Path) -> None:
    """Time (with its 20th to 80th percentile) and memory on uniform noise, on logarithmic axes."""
    from matplotlib.figure import Figure

    made = result["provenance"]
    rows = [row for row in result["rows"] if (row["stage"], row["content"]) == ("both", TIMED_CONTENTS[0])]
    names = [case.name for case in measured(rows)]
    faster = {row["case"]: f" ({row['value']:.0f}x)" for row in rows if row["metric"] == "ratio"}
    figure = Figure(figsize=(11, 4), layout="constrained")
    time, memory = figure.subplots(1, 2, sharey=True)
    for ax, metric in ((time, "time"), (memory, "memory")):
        for side, shift in zip(SIDES, (-0.2, 0.2), strict=True):
            bars = [row for row in rows if (row["metric"], row["side"]) == (metric, side)]
            values = [row["value"] for row in bars]
            positions = [names.index(row["case"]) + shift for row in bars]
            labels = [significant(value) for value in values]
            spread = None
            if metric == "time":
                spread = [[abs(row["value"] - row[end]) for row in bars] for end in ("p20", "p80")]
                if side == "histloss":
                    labels = [label + faster[row["case"]] for label, row in zip(labels, bars, strict=True)]
            drawn = ax.barh(positions, values, height=0.4, xerr=spread, color=COLOURS[side], label=side)
            ax.bar_label(drawn, labels, padding=3)
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        ax.set_xlim(low / 2, high * 5)  # room for the labels
        ax.spines[["top", "right"]].set_visible(False)
    time.set_xlabel("forward + backward, ms")
    memory.set_xlabel("extra peak memory, MB")
    time.set_yticks(range(len(names)), names)
    time.invert_yaxis()
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"{made['cpu']}, {made['threads']} threads, uniform noise")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
