"""The benchmark of volumes: what it computes, times and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import histloss
from asserters import assert_gradient, assert_value

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import run  # noqa: E402
import volumes  # noqa: E402
from volumes import FULL, SIDES, STAGES  # noqa: E402


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run in a process of its own writes."""
    path = tmp_path_factory.mktemp("results") / "quick.json"
    options = ["--quick", "--size", "20", "--output", str(path)]
    environment = os.environ | {"PYTHONPATH": str(Path(histloss.__file__).parent.parent)}
    command = [sys.executable, str(BENCHMARKS / "volumes.py"), *options]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return json.loads(path.read_text())


def test_a_run_writes_times_and_memory(result: dict[str, Any]) -> None:
    rows = {(row["metric"], row["side"], row["stage"]): row for row in result["rows"]}
    assert set(rows) == {
        *(("time", side, stage) for side in SIDES for stage in STAGES),
        *((metric, side, "both") for side in SIDES for metric in ("memory", "peak")),
    }
    for row in rows.values():
        assert (row["edge"], row["bins"], row["threads"], row["dtype"]) == (20, 64, 1, "float32")
        if row["metric"] == "time":
            assert 0 < row["p20"] <= row["value"] <= row["p80"]
            assert row["samples"] == volumes.QUICK_ROUNDS
        if row["metric"] == "peak":
            assert row["value"] > 50  # Python and PyTorch


def test_a_run_says_where_it_was_made(result: dict[str, Any]) -> None:
    made_with = result["provenance"]
    assert made_with["version"] == histloss.__version__
    assert made_with["malloc"] == run.KEPT_PAGES
    assert made_with["command"].startswith("python benchmarks/volumes.py --quick --size 20 --output")


def test_all_sides_compute_the_same() -> None:
    work = volumes.Work(volumes.QUICK)
    exact, _ = SIDES["histloss, exact"](work)
    assert exact.grad_x.count_nonzero() > exact.grad_x.numel() // 2
    for name, side in SIDES.items():
        found, (forward, backward) = side(work)
        assert min(forward, backward) > 0
        if name == "histloss":
            assert_value(found.loss, exact.loss)
            assert_gradient(found.grad_x, exact.grad_x)
            assert_gradient(found.grad_y, exact.grad_y)
        else:
            for a, b in zip(found, exact, strict=True):
                assert torch.equal(a, b)


def test_memory_is_that_of_volumes_and_gradients() -> None:
    """In processes of their own. Beyond them, a map of activations of these would be 430 MB."""
    size = volumes.Size(edge=120, threads=1)
    rows = {(row["metric"], row["side"]): row["value"] for row in volumes.memory_rows(size)}
    inputs_and_gradients = 4 * 4 * 120**3 / 1e6
    for side in SIDES:
        assert rows["memory", side] < 60
        assert rows["peak", side] > inputs_and_gradients


def test_the_target_is_for_full_size_alone() -> None:
    full = asdict(FULL)
    assert volumes.verdict(full | {"value": 5999.0}) == "reached (6000 MB)"
    assert volumes.verdict(full | {"value": 6000.0}) == "MISSED (6000 MB)"
    assert volumes.verdict(full | {"value": 10.0, "edge": 256}) == ""
    assert volumes.verdict(full | {"value": 10.0, "threads": 1}) == ""


def test_a_run_of_another_size_is_not_kept(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(run, "write", lambda *arguments: pytest.fail("it was written"))
    monkeypatch.setattr(volumes, "memory_rows", lambda size: volumes.memory_of(size, "histloss") * 3)
    monkeypatch.setattr(volumes, "found", lambda rows, **like: rows[0])
    threads = torch.get_num_threads()
    try:
        volumes.main(["--size", "12", "--rounds", "2", "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    assert "two volumes of 12^3 float32, K = 64" in capsys.readouterr().out


def test_the_result_is_one_of_full_size_within_the_target() -> None:
    (path,) = (BENCHMARKS / "results").glob("*/volumes-*.json")
    rows = json.loads(path.read_text())["rows"]
    for side in SIDES:
        peak = volumes.found(rows, metric="peak", side=side)
        assert volumes.verdict(peak) == "reached (6000 MB)"


@pytest.mark.parametrize("arguments", [["--rounds", "1"], ["--threads", "0"], ["--size", "0"], ["--unknown"]])
def test_bad_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        volumes.parse(arguments)
