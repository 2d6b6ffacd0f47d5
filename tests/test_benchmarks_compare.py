"""benchmarks/compare.py tells changes from noise."""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import compare  # noqa: E402
from cases import JOINT_REFLECT  # noqa: E402


@pytest.fixture
def result() -> dict[str, Any]:
    """As run.py writes it, of one case."""
    common = {"suite": "headline"} | asdict(JOINT_REFLECT) | {"stage": "both", "side": "histloss"}
    measured = [
        {"metric": "time", "unit": "ms"} | around(2.0),
        {"metric": "time", "side": "reference", "unit": "ms"} | around(2700.0),
        {"metric": "ratio", "unit": "x", "against": "reference"} | around(1350.0),
        {"metric": "ratio", "unit": "x", "against": "kornia"} | around(140.0),
        {"metric": "floor", "side": "floor", "unit": "ms", "value": 0.5, "copy_gb_per_s": 20.0},
        {"metric": "memory", "unit": "MB", "value": 6.5},
        {"metric": "memory", "side": "reference", "unit": "MB", "value": None, "why": "needs about 34 GB"},
        {"metric": "error", "stage": "backward", "unit": "of the largest value", "value": 3e-7},
    ]
    return json.loads(
        json.dumps({"provenance": {"cpu": "one", "cores": 2}, "rows": [common | row for row in measured]})
    )


def around(value: float) -> dict[str, float]:
    return {"value": value, "p20": 0.9 * value, "p80": 1.1 * value, "samples": 9}


def row_of(result: dict[str, Any], metric: str) -> dict[str, Any]:
    return next(row for row in result["rows"] if row["metric"] == metric and row["side"] == "histloss")


def scale(row: dict[str, Any], factor: float) -> None:
    for name in ("value", "p20", "p80"):
        if name in row:
            row[name] *= factor


def write(tmp_path: Path, result: dict[str, Any]) -> str:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    return str(path)


def run(tmp_path: Path, old: dict[str, Any], new: dict[str, Any], *options: str) -> int:
    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    for path, result in zip(paths, (old, new), strict=True):
        path.write_text(json.dumps(result))
    return compare.main([*map(str, paths), *options])


def test_equal_results(tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, result, result) == 0
    assert capsys.readouterr().out.endswith(" 0 changed by more than 10 % and noise\n")


@pytest.mark.parametrize(
    ("metric", "factor", "word"),
    [
        ("time", 1.5, "WORSE"),
        ("time", 0.5, "better"),
        ("ratio", 0.5, "WORSE"),
        ("ratio", 2.0, "better"),
        ("memory", 2.0, "WORSE"),
        ("error", 10.0, "WORSE"),
    ],
)
def test_a_change(
    tmp_path: Path,
    result: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    metric: str,
    factor: float,
    word: str,
) -> None:
    new = copy.deepcopy(result)
    scale(row := row_of(new, metric), factor)
    if "p20" in row:  # as narrow as on a quiet machine
        for changed in (row, row_of(result, metric)):
            changed["p20"], changed["p80"] = 0.98 * changed["value"], 1.02 * changed["value"]
    assert run(tmp_path, result, new) == (word == "WORSE")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.split()[0] == word
    assert float(first.split()[1].rstrip("x")) == pytest.approx(max(factor, 1 / factor), rel=0.01)
    assert compare.describe(row) in first
    assert ", 1 changed" in last


@pytest.mark.parametrize(
    ("metric", "old"), [("error", 0.0), ("error", 1e-7), ("memory", -0.2), ("memory", 5.0)]
)
def test_what_has_no_quotient(
    tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str], metric: str, old: float
) -> None:
    """A result that became NaN, which counts as infinitely wrong, and one that was 0 or below."""
    new = copy.deepcopy(result)
    row_of(result, metric)["value"] = old
    for value in (math.inf, 20.0):
        row_of(new, metric)["value"] = value
        assert run(tmp_path, result, new) == 1
        assert capsys.readouterr().out.startswith("WORSE")
        assert run(tmp_path, new, new) == 0
        assert run(tmp_path, new, result) == 0
        assert "better" in capsys.readouterr().out


def test_noise_is_no_change(tmp_path: Path, result: dict[str, Any]) -> None:
    """A median that moves within the spread, one that hardly moves, and a tiny error that doubles."""
    new = copy.deepcopy(result)
    wide, narrow, error = row_of(new, "time"), row_of(new, "ratio"), row_of(new, "error")
    row_of(result, "error")["value"], error["value"] = 3e-8, 6e-8
    wide["value"] *= 2
    wide["p80"] *= 3
    scale(narrow, 0.95)
    assert run(tmp_path, result, new) == 0
    for row in (narrow, row_of(result, "ratio")):
        row["p20"] = row["p80"] = row["value"]
    assert run(tmp_path, result, new, "--noise", "0.01") == 1


def test_times_of_another_machine_are_left_out(tmp_path: Path, result: dict[str, Any]) -> None:
    new = copy.deepcopy(result)
    for row in new["rows"]:
        if row["metric"] == "time":
            scale(row, 3.0)
    assert run(tmp_path, result, new) == 1
    new["provenance"]["cpu"] = "another"
    assert run(tmp_path, result, new) == 0
    scale(row_of(new, "ratio"), 0.01)
    assert run(tmp_path, result, new) == 1


def test_some_metrics_and_a_factor_of_two(
    tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """As the guard compares: absolute times say nothing, and ratios must be less than half to be worse."""
    guard = ("--metric", "ratio", "--noise", "1")
    new = copy.deepcopy(result)
    for row in new["rows"]:
        if row["metric"] == "time":
            scale(row, 9.0)
    scale(row_of(new, "ratio"), 0.55)
    assert run(tmp_path, result, new, *guard) == 0
    assert capsys.readouterr().out.startswith("2 compared, 0 changed")
    scale(row_of(new, "ratio"), 0.5 / 0.55 * 0.9)
    assert run(tmp_path, result, new, *guard) == 1
    assert "both ratio against reference, headline: joint histogram" in capsys.readouterr().out


def test_what_was_left_out_is_no_measurement(
    tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    new = copy.deepcopy(result)
    row_of(new, "memory")["value"] = None
    assert run(tmp_path, result, new) == 0
    assert "gone" in capsys.readouterr().out
    assert run(tmp_path, new, new) == 0


def test_rows_of_one_result_alone(
    tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    new = copy.deepcopy(result)
    row_of(new, "memory")["bins"] = 7
    assert run(tmp_path, result, new) == 0
    out = capsys.readouterr().out
    assert "gone" in out
    assert "new " in out
    assert "K = 7" in out


def test_errors(tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, result)
    for options, message in (
        (["nowhere.json", path], "nowhere.json"),
        ([path, path, "--noise", "-1"], "--noise must be at least 0"),
    ):
        with pytest.raises(SystemExit):
            compare.main(options)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path, result, {**result, "rows": []})
    assert "in common" in capsys.readouterr().err
