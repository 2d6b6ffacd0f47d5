"""The benchmark of the rebalanced cross-entropy: what it computes, times and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import histloss

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import rebalanced_color  # noqa: E402
import run  # noqa: E402
from rebalanced_color import SIDES, STAGES, TARGETS  # noqa: E402

SIZE = rebalanced_color.QUICK


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run in a process of its own writes."""
    path = tmp_path_factory.mktemp("results") / "quick.json"
    command = [sys.executable, str(BENCHMARKS / "rebalanced_color.py"), "--quick", "--output", str(path)]
    environment = os.environ | {"PYTHONPATH": str(Path(histloss.__file__).parent.parent)}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return json.loads(path.read_text())


def test_a_run_writes_times_ratios_and_memory(result: dict[str, Any]) -> None:
    names = ("metric", "target", "stage", "side", "against")
    rows = {tuple(row.get(name) for name in names): row for row in result["rows"]}
    assert set(rows) == {
        *(("time", target, stage, side, None) for target in TARGETS for stage in STAGES for side in SIDES),
        *(("ratio", target, "both", "histloss", side) for target in TARGETS for side in SIDES[1:]),
        *(("memory", "made", "both", side, None) for side in SIDES),
    }
    for row in rows.values():
        assert (row["shape"], row["bins"], row["threads"]) == ([2, 3, 16, 16], 26, 1)
        if row["metric"] != "memory":
            assert 0 < row["p20"] <= row["value"] <= row["p80"]
            assert row["samples"] == rebalanced_color.QUICK_ROUNDS
    for target in TARGETS:
        forward, backward, both = (rows["time", target, stage, "dense", None]["p80"] for stage in STAGES)
        assert max(forward, backward) < both <= 1.01 * (forward + backward)


def test_a_run_says_where_it_was_made(result: dict[str, Any]) -> None:
    made_with = result["provenance"]
    assert made_with["version"] == histloss.__version__
    assert made_with["malloc"] == run.KEPT_PAGES
    assert made_with["command"].startswith("python benchmarks/rebalanced_color.py --quick --output")


def test_all_sides_compute_the_same() -> None:
    work = rebalanced_color.Work(SIZE)
    expected = None
    for side in SIDES:
        for target in TARGETS:
            value = work.call(side, target)()
            found = (value, *torch.autograd.grad(value, work.logits))
            expected = expected or found
            torch.testing.assert_close(found, expected)
    assert expected is not None
    assert expected[1].abs().max() > 1e-4


def test_memory_is_that_of_the_dense_target() -> None:
    """In a process of its own; the target of this size is 10 MB, and the other side has less."""
    size = rebalanced_color.Size((1, 3, 100, 80), threads=1)
    rows = {row["side"]: row for row in rebalanced_color.memory_rows(size)}
    assert set(rows) == set(SIDES)
    target = 4 * 313 * 100 * 80 / 1e6
    assert rows["dense"]["value"] > target
    assert rows["F.cross_entropy"]["value"] > target
    assert rows["histloss"]["value"] < rows["dense"]["value"] / 2


def test_the_target_is_for_full_size_alone() -> None:
    full = {"grid": 10.0, "shape": [4, 3, 256, 256]}
    assert rebalanced_color.verdict(full | {"value": 3.1}) == "reached (3x)"
    assert rebalanced_color.verdict(full | {"value": 2.9}) == "MISSED (3x)"
    assert rebalanced_color.verdict(full | {"value": 2.9, "grid": 50.0}) == ""


def test_the_readme_says_what_was_measured() -> None:
    """Of the target made in the same call, against the faster of the dense sides."""
    (path,) = (BENCHMARKS / "results").glob("*/rebalanced-color-*.json")
    rows = json.loads(path.read_text())["rows"]
    full = {"metric": "time", "target": "made", "stage": "both"}
    ours, dense = (rebalanced_color.found(rows, side=side, **full)["value"] for side in SIDES[:2])
    other = rebalanced_color.found(rows, side=SIDES[2], **full)["value"]
    memory = {row["side"]: row["value"] for row in rows if row["metric"] == "memory"}
    ratio = rebalanced_color.found(rows, metric="ratio", target="made", against="dense")["value"]
    assert dense <= other
    readme = " ".join((BENCHMARKS.parent / "README.md").read_text().split())
    assert (
        f"{ours:.0f} ms and {memory['histloss']:.0f} MB; in plain PyTorch a dense target takes "
        f"{dense:.0f} ms, {ratio:.1f} times as long, and {memory['dense']:.0f} MB" in readme
    )
    assert f"(benchmarks/{path.relative_to(BENCHMARKS)})" in readme


@pytest.mark.parametrize("arguments", [["--rounds", "1"], ["--threads", "0"], ["--unknown"]])
def test_bad_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        rebalanced_color.parse(arguments)
