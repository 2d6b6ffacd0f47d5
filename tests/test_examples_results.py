"""examples/RESULTS.md says what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import compare_colorization
from shared.comparison import format_table
from shared.evaluation import format_tables

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / "examples" / "RESULTS.md").read_text()


@pytest.mark.parametrize("task", ["color_transfer", "colorization", "edges2photo"])
def test_tables(task: str) -> None:
    folder = ROOT / "examples" / "results" / task
    assert format_tables(json.loads((folder / "evaluation.json").read_text())) in RESULTS
    for picture in ("grid.png", "figure13.png"):
        assert f"](results/{task}/{picture})" in RESULTS
        assert (folder / picture).exists()


def test_comparison() -> None:
    folder = ROOT / "examples" / "results" / "compare_colorization"
    report = json.loads((folder / "comparison.json").read_text())
    assert format_table(report) in RESULTS
    families = dict.fromkeys(row["family"] for row in report["rows"])
    assert set(families) == {"baselines", *compare_colorization.FAMILIES}
    for family in families:
        assert f"](results/compare_colorization/{family}.png)" in RESULTS
        assert (folder / f"{family}.png").exists()
    trained = {(row["family"], row["name"]): row["training"] for row in report["rows"] if row["training"]}
    assert f"{len(trained)} ways to colour a photo" in RESULTS
    assert {each["steps"] for each in trained.values()} == {compare_colorization.EMBEDDED_STEPS}
    assert f"{compare_colorization.EMBEDDED_STEPS} steps of 4 images each" in RESULTS
    seconds = [each["seconds"] for each in trained.values()]
    text = " ".join(RESULTS.split())
    assert (
        f"{sum(seconds) / 60:.0f} minutes of training on two cores, the longest row {max(seconds):.0f} s"
        in text
    )
    wgan, dcgan = (trained["gan", f"{name} + L1"]["seconds"] for name in ("WGAN", "DCGAN"))
    assert f"takes {wgan / dcgan:.1f} times as long as DCGAN" in text
    assert f"`{report['provenance']['command']}`" in RESULTS


def test_cost_of_the_losses() -> None:
    (path,) = (ROOT / "benchmarks" / "results").glob("*/training-step-*.json")
    assert f"](../benchmarks/results/{path.parent.name}/{path.name})" in RESULTS
    data = json.loads(path.read_text())
    for side in ("histloss", "reference"):
        step, losses, share = (row["value"] for row in data["rows"] if row["side"] == side)
        assert f"| {side} | {step:.0f} | {losses:.1f} | {share:.2f} |" in RESULTS
