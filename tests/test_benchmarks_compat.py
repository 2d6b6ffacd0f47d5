"""The benchmark of histloss.compat: what it calls, times and writes, and the memory that its losses take."""

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

for package in ("kornia", "monai"):
    pytest.importorskip(package)
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import compat  # noqa: E402
from compat import CASES, QUICK, STAGES  # noqa: E402


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run writes. Memory is measured in this process, which is quicker and says nothing."""
    path = tmp_path_factory.mktemp("results") / "quick.json"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            compat,
            "memory_rows",
            lambda name, size: [compat.memory_row(name, size, side) for side in CASES[name].sides],
        )
        compat.main(["--quick", "--image", "8", "--output", str(path)])
    torch.set_num_threads(threads)
    return json.loads(path.read_text())


def test_a_run_writes_times_ratios_differences_and_memory(result: dict[str, Any]) -> None:
    rows = {tuple(row.get(key) for key in ("case", "metric", "stage", "side")): row for row in result["rows"]}
    expected = set()
    for name, case in CASES.items():
        for stage in STAGES:
            expected |= {(name, "time", stage, side) for side in ("histloss", case.peer)}
            expected.add((name, "ratio", stage, "histloss"))
        expected |= {(name, "difference", stage, "histloss") for stage in ("forward", "backward")}
        expected |= {(name, "memory", "both", side) for side in ("histloss", case.peer)}
    assert set(rows) == expected
    for (name, metric, stage, side), row in rows.items():
        edge = [12, 12, 12] if name.startswith("MI") else [8, 8]
        assert row["shape"] == [4 if len(edge) == 2 else 1, 1, *edge]
        assert (row["bins"], row["threads"]) == (32 if len(edge) == 3 else 128, 1)
        if metric in ("time", "ratio"):
            assert 0 < row["p20"] <= row["value"] <= row["p80"]
        if metric == "difference":
            assert row["value"] < 1e-5
        if metric == "time" and stage == "both":
            forward = rows[name, metric, "forward", side]["value"]
            assert forward < row["value"]


def test_a_run_says_where_it_was_made(result: dict[str, Any]) -> None:
    made_with = result["provenance"]
    assert made_with["version"] == histloss.__version__
    assert {"kornia", "monai"} <= set(made_with["packages"])
    assert made_with["command"].startswith("python benchmarks/compat.py --quick")


@pytest.mark.parametrize("name", CASES)
def test_both_sides_compute_the_same(name: str) -> None:
    case = CASES[name]
    work = compat.Work(case, QUICK)
    assert case.sides == ("histloss", case.peer)
    results = []
    for side, package in zip(case.sides, ("histloss", case.peer.lower()), strict=True):
        assert case.module(side).__name__.split(".")[0] == package
        value = work.call(case, side)()
        results.append((value, torch.autograd.grad(value, work.inputs[0], work.upstream)[0]))
    for ours, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 1e-6
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_a_volume_takes_less_memory_than_was_promised() -> None:
    """128^3 voxels, forward and backward, in a process of its own: a copy of one image is 8.4 MB."""
    names = [name for name in CASES if CASES[name].most]
    assert len(names) == 2
    code = (
        "import json, compat, torch; torch.set_num_threads(1); "
        f"print(json.dumps([compat.memory_row(name, compat.FULL, 'histloss') for name in {names}]))"
    )
    environment = os.environ | {"PYTHONPATH": f"{BENCHMARKS}:{Path(histloss.__file__).parent.parent}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    for row in json.loads(done.stdout):
        assert row["shape"] == [1, 1, 128, 128, 128]
        assert row["value"] < CASES[row["case"]].most


def test_targets_are_for_full_size_alone() -> None:
    row = {"case": "MI, gaussian", "metric": "ratio", "stage": "both", "side": "histloss"}
    full = row | {"shape": [1, 1, 128, 128, 128]}
    assert compat.verdict(full | {"value": 60.1}) == "reached (60x)"
    assert compat.verdict(full | {"value": 59.9}) == "MISSED (60x)"
    assert compat.verdict(full | {"value": 59.9, "stage": "forward"}) == ""
    assert compat.verdict(full | {"metric": "memory", "value": 32.5}) == "MISSED (below 32 MB)"
    assert compat.verdict(full | {"metric": "memory", "value": 32.5, "side": "MONAI"}) == ""
    assert compat.verdict(row | {"shape": [1, 1, 64, 64, 64], "value": 1.0}) == ""


@pytest.mark.parametrize(
    "arguments", [["--rounds", "1"], ["--threads", "0"], ["--volume", "1"], ["--case", "MI"], ["--unknown"]]
)
def test_bad_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        compat.parse(arguments)


def test_the_readme_says_what_was_measured() -> None:
    readme = " ".join((BENCHMARKS.parent / "README.md").read_text().split())
    (path,) = (BENCHMARKS / "results").glob("*/compat-amd*.json")
    (kept_path,) = (BENCHMARKS / "results").glob("*/compat-kept-pages-*.json")
    rows, kept = (json.loads(p.read_text())["rows"] for p in (path, kept_path))
    for case, peer in (("MI, gaussian", "MONAI"), ("MI, b-spline", "MONAI"), ("histogram2d", "kornia")):
        like = {"case": case, "stage": "both"}
        ours = compat.found(rows, **like, metric="time", side="histloss")["value"]
        ratio, slower = (
            compat.found(some, **like, metric="ratio", side="histloss")["value"] for some in (rows, kept)
        )
        memory = [
            compat.found(rows, **like, metric="memory", side=side)["value"] for side in ("histloss", peer)
        ]
        cells = f"| {ours:.0f} ms | **{ratio:.0f}x** ({slower:.0f}x) | {memory[0]:.2g} / {memory[1]:.0f} |"
        assert cells in readme
    for source in (path, kept_path):
        assert f"(benchmarks/{source.relative_to(BENCHMARKS)})" in readme
