"""Benchmarks: how samples are taken and summarised, what a run writes, and that the README says the same."""

from __future__ import annotations

import copy
import dataclasses
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

import cases  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import work  # noqa: E402

CASE = cases.JOINT_REFLECT


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run of one case writes."""
    path = tmp_path_factory.mktemp("results") / "quick.json"
    arguments = ["--quick", "--only", CASE.name, "--output", str(path)]
    environment = os.environ | {"PYTHONPATH": str(Path(histloss.__file__).parent.parent)}
    command = [sys.executable, str(BENCHMARKS / "run.py"), *arguments]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return json.loads(path.read_text())


def rows_of(result: dict[str, Any], metric: str) -> list[cases.Row]:
    return [row for row in result["rows"] if row["metric"] == metric]


def test_sides_take_turns_and_the_first_round_is_dropped() -> None:
    order: list[str] = []

    def side(name: str, seconds: float):
        def call() -> measure.Sample:
            order.append(name)
            return len(order) / 1e9, seconds

        return call

    kept = measure.interleaved({"fast": side("fast", 0.4), "slow": side("slow", 5.0)}, rounds=2, seconds=1.0)
    assert order == ["fast", "fast", "fast", "slow"] * 3
    assert [len(samples) for samples in kept["fast"]] == [3, 3]
    assert [len(samples) for samples in kept["slow"]] == [1, 1]
    assert kept["fast"][0][0][0] == 5 / 1e9, "the warm-up round was kept"


def test_summary_is_the_median_with_its_percentiles() -> None:
    values = [50.0, 10.0, 40.0, 20.0, 30.0, 0.0]
    assert measure.summary(values) == {"value": 25.0, "p20": 10.0, "p80": 40.0, "samples": 6}
    assert measure.summary([1.0, 2.0]) == pytest.approx({"value": 1.5, "p20": 1.2, "p80": 1.8, "samples": 2})


def test_stage_times_and_ratios_by_hand() -> None:
    slow, fast = [[(2.0, 4.0)], [(3.0, 9.0)]], [[(1.0, 1.0), (1.0, 3.0), (1.0, 2.0)], [(2.0, 1.0)]]
    assert measure.stage_times(slow[0], "forward") == [2000.0]
    assert measure.stage_times(slow[0], "backward") == [4000.0]
    assert measure.stage_times(slow[0], "both") == [6000.0]
    assert measure.ratios(slow, fast, "both") == [2.0, 4.0]
    assert measure.ratios(slow, fast, "forward") == [2.0, 1.5]


def test_relative_error_by_hand() -> None:
    exact = torch.tensor([-4.0, 1.0], dtype=torch.float64)
    assert measure.relative_error(torch.tensor([-4.0, 1.5]), exact) == 0.125
    assert measure.relative_error(torch.tensor([-4.0, float("nan")]), exact) == float("inf")


def test_error_rows_see_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = histloss.joint_histogram
    monkeypatch.setattr(histloss, "joint_histogram", lambda *x, **k: honest(*x, **k) * (1 + 1e-3))
    found = measure.error_rows(CASE, cases.QUICK, "uniform")
    errors = {(row["side"], row["stage"]): row["value"] for row in found}
    for stage in ("forward", "backward"):
        assert errors["histloss", stage] == pytest.approx(1e-3, rel=1e-2)
        assert errors["reference", stage] < 1e-5


@pytest.mark.parametrize("content", cases.CONTENTS)
def test_images_stay_in_range_and_are_repeatable(content: str) -> None:
    inputs, upstream = work.prepare(CASE, cases.QUICK, content)
    again = work.prepare(CASE, cases.QUICK, content)
    for image, same in zip(inputs, again.inputs, strict=True):
        assert image.shape == cases.QUICK.shape
        assert image.requires_grad
        assert image.abs().max() <= 1
        assert torch.equal(image, same)
    assert upstream.shape == (1, 3, 16, 16)
    assert upstream.std() > 0.5, "the upstream gradient must not be constant"
    assert torch.equal(upstream, again.upstream)
    assert not torch.equal(*inputs)


def test_targets_hold_only_for_the_size_they_were_set_for() -> None:
    row = {"metric": "ratio", "stage": "both", "side": "histloss", "case": CASE.name, "op": CASE.op}
    full = row | {"bins": 256, "shape": [1, 3, 256, 256]}
    target = cases.target_of(full)
    assert target is not None
    assert (target.reached(900), target.reached(899.9)) == (True, False)
    assert cases.target_of(full | {"bins": 16}) is None
    assert cases.target_of(full | {"stage": "forward"}) is None
    memory = cases.target_of(full | {"metric": "memory"})
    assert memory is not None
    assert (memory.reached(8.0), memory.reached(8.1)) == (True, False)
    assert cases.target_of(full | {"metric": "memory", "side": "reference"}) is None
    assert run.verdict(full | {"value": 899.0}).startswith("MISSED")
    assert run.verdict(full | {"value": 901.0}).startswith("reached")


def test_gpu_targets_hold_for_the_whole_batch_alone() -> None:
    row = {"metric": "saving", "stage": "both", "side": "histloss", "case": CASE.name, "op": CASE.op}
    full = row | {"bins": 256, "shape": [16, 3, 256, 256], "device": "cuda"}
    target = cases.target_of(full)
    assert target is not None
    assert (target.reached(100), target.reached(99.9)) == (True, False)
    assert cases.target_of(full | {"shape": [8, 3, 256, 256]}) is None
    assert cases.target_of(full | {"device": "cpu"}) is None


def test_the_reference_gets_as_many_images_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "prepare", lambda case, settings, content: [settings.shape[0], None])
    monkeypatch.setattr(measure, "function", lambda *_: None)

    def evaluate(call: object, count: int, upstream: object) -> None:
        if count > 5:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(measure, "_evaluate", evaluate)
    for case, fitting in ((cases.JOINT_REFLECT, 4), (cases.MAPS, 4)):
        assert measure.fitting(case, cases.GPU_FULL, "reference").shape == (fitting, 3, 256, 256)
        assert measure.fitting(case, cases.GPU_FULL, "histloss") is cases.GPU_FULL
    assert measure.fitting(CASE, cases.FULL, "reference") is cases.FULL


def test_a_ratio_is_of_equal_work() -> None:
    """Half the images in 6 s against all of them in 2 s."""
    assert measure.ratios([[(4.0, 2.0)]], [[(1.0, 1.0)]], "both", work=2.0) == [6.0]


def test_a_floor_is_the_bytes_that_must_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "gpu_seconds", lambda copy: [2**31 / 4e12])  # 1 GiB is read and written
    settings = dataclasses.replace(cases.GPU_QUICK, device="cpu")
    image, joint = 2 * 3 * 32 * 32 * 4, 2 * 3 * 16 * 16 * 4
    found = [row["value"] for row in measure.floor_rows(CASE, settings, "uniform")]
    forward, backward = 2 * image + joint, 4 * image + joint
    assert found == pytest.approx([count / 4e9 for count in (forward, backward, forward + backward)])


def test_both_sides_of_a_loss_are_one_function() -> None:
    settings = dataclasses.replace(cases.GPU_QUICK, device="cpu")
    inputs, _ = work.prepare(cases.DEEP_HIST, settings, "uniform")
    ours, theirs = (work.function(cases.DEEP_HIST, settings, side)(*inputs) for side in cases.SIDES)
    torch.testing.assert_close(ours, theirs)


def test_a_plan_for_a_gpu_has_every_case() -> None:
    jobs = [job for jobs, _ in run.gpu_processes() for job in jobs]
    assert {case for metric, case, _ in jobs if metric == "time"} == set(cases.GPU_CASES)
    assert {metric for metric, _, _ in jobs} == {"floor", "time", "error", "saving"}
    assert run.hardware({"gpu": "NVIDIA H200", "cpu": "x", "cores": 1, "threads": 1}) == "nvidia-h200"


def test_run_writes_a_row_for_every_measurement(result: dict[str, Any]) -> None:
    common = {"case": str, "op": str, "boundary": str, "bandwidth": float, "bins": int, "shape": list}
    common |= {"dtype": str, "device": str, "threads": int, "content": str, "metric": str, "stage": str}
    common |= {"side": str, "unit": str, "value": float}
    spread = {"p20": float, "p80": float, "samples": int}
    for row in result["rows"]:
        schema = common | (spread if row["metric"] in ("time", "ratio") else {})
        assert {key: type(value) for key, value in row.items()} == schema
    contents, stages, sides = len(cases.TIMED_CONTENTS), len(measure.STAGES), len(cases.SIDES)
    assert len(rows_of(result, "time")) == contents * stages * sides
    assert len(rows_of(result, "ratio")) == contents * stages
    assert len(rows_of(result, "error")) == len(cases.CONTENTS) * 2 * sides
    assert len(rows_of(result, "memory")) == sides


def test_run_writes_plausible_values(result: dict[str, Any]) -> None:
    for row in rows_of(result, "time"):
        assert 0 < row["p20"] <= row["value"] <= row["p80"]
    for row in rows_of(result, "error"):
        assert 0 < row["value"] < 1e-4
    reference = next(row for row in rows_of(result, "memory") if row["side"] == "reference")
    maps = 2 * 3 * 16 * 32 * 32 * 4 / 1e6  # the two activation maps that its backward needs
    assert maps < reference["value"] < 1000


def test_run_says_where_it_was_made(result: dict[str, Any]) -> None:
    made = result["provenance"]
    assert made["version"] == histloss.__version__
    assert made["torch"] == torch.__version__
    assert made["threads"] == cases.QUICK.threads
    assert made["native"] == histloss.backend_info()["cpu"]["loaded"]
    assert made["command"].startswith(f"python benchmarks/run.py --quick --only '{CASE.name}'")
    assert made["malloc"] == run.KIND_HEAP
    for key in ("commit", "dirty", "date", "simd", "compiler", "python", "cpu", "cores", "load", "photo"):
        assert key in made


def test_a_failing_worker_fails_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("print('{}'); raise SystemExit(3)")
    monkeypatch.setattr(run, "HERE", tmp_path)
    output = run.run_jobs([], cases.QUICK, None)
    assert next(output) == {}
    with pytest.raises(subprocess.CalledProcessError, match="3"):
        next(output)


def test_a_readme_is_held_to_its_data(result: dict[str, Any], tmp_path: Path) -> None:
    source = "benchmarks/results/0/quick.json"
    path = tmp_path / source
    run.write(path, result["provenance"], result["rows"])
    assert json.loads(path.read_text()) == result
    text = report.BLOCK.sub(
        lambda _: report.markdown(result, source), "<!-- benchmark -->\n<!-- /benchmark -->"
    )
    assert "does not exist" in str(report.disagreement(text, tmp_path)), "the chart is missing"
    report.draw(result, path.with_suffix(".png"))
    assert report.disagreement(text, tmp_path) is None
    assert report.disagreement("# Fast", tmp_path) is not None
    other = copy.deepcopy(result)
    ratio = next(row for row in rows_of(other, "ratio") if row["stage"] == "both")
    assert report.disagreement(text.replace(f"**{ratio['value']:.0f}x", "**9000x"), tmp_path) is not None
    ratio["value"] += 1000
    run.write(path, other["provenance"], other["rows"])
    assert report.disagreement(text, tmp_path) is not None


def test_the_readme_agrees_with_its_data() -> None:
    """It shows no benchmark before there is a result, and then one that is drawn from it."""
    text = report.README.read_text()
    block = report.BLOCK.search(text)
    assert block is not None
    assert any(run.RESULTS.glob("*/*.json")) == bool(block[0].strip())
    assert not block[0].strip() or report.disagreement(text) is None


@pytest.mark.parametrize(
    "arguments", [["--rounds", "1"], ["--threads", "0"], ["--only", "no such case"], ["--unknown"]]
)
def test_bad_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        run.parse(arguments)
