"""Benchmarks: how samples are taken and summarised, what a run writes, and that the README says the same."""

from __future__ import annotations

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
import floor  # noqa: E402
import measure  # noqa: E402
import run  # noqa: E402
import work  # noqa: E402

CASE = dataclasses.replace(cases.JOINT_REFLECT, content="photo")
SMALL = cases.quick(cases.Comparison(cases.JOINT_REFLECT)).case
BOTH = ("histloss", "reference")


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


def row_of(case: cases.Case, metric: str, **others: Any) -> cases.Row:
    return dataclasses.asdict(case) | {"metric": metric, "stage": "both", "side": "histloss"} | others


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
    found = measure.error_rows(SMALL, BOTH, cases.QUICK)
    errors = {(row["side"], row["stage"]): row["value"] for row in found}
    for stage in ("forward", "backward"):
        assert errors["histloss", stage] == pytest.approx(1e-3, rel=1e-2)
        assert errors["reference", stage] < 1e-5


def test_what_does_not_fit_has_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "available_memory", lambda: 1_000_000)
    *rest, left_out = (row for row in measure.time_rows(SMALL, BOTH, cases.QUICK) if row["metric"] != "floor")
    assert (left_out["metric"], left_out["side"], left_out["value"]) == ("time", "reference", None)
    assert left_out["why"] == "needs about 0 GB, may have 0 GB"
    assert {(row["metric"], row["side"]) for row in rest} == {("time", "histloss")}
    for measured, metric in ((measure.memory_rows, "memory"), (measure.error_rows, "error")):
        (row, *_) = measured(SMALL, ["reference"], cases.QUICK)
        assert (row["metric"], row["value"], row["why"]) == (metric, None, left_out["why"])
    assert "left out: needs about 0 GB" in "\n".join(run.lines_of([*rest, left_out]))


def test_the_largest_batch_is_a_power_of_two_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    one = measure.SIDES["reference"].bytes_needed(SMALL)
    assert SMALL.shape[0] == 1
    for times, images in ((9.9, 8), (0.1, 1), (1000, cases.MOST_IMAGES)):
        monkeypatch.setattr(measure, "available_memory", lambda times=times: times * one / measure.USABLE)
        assert measure.largest_batch(SMALL, "reference").shape == (images, *SMALL.shape[1:])


@pytest.mark.parametrize("content", cases.CONTENTS)
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 1, 8, 16, 16)])
def test_images_stay_in_range_and_are_repeatable(content: str, shape: tuple[int, ...]) -> None:
    case = dataclasses.replace(SMALL, content=content, shape=shape, range=(0.0, 1.0))
    inputs, upstream = work.prepare(case)
    again = work.prepare(case)
    for image, same in zip(inputs, again.inputs, strict=True):
        assert image.shape == case.shape
        assert image.requires_grad
        assert 0 <= image.min() <= image.max() <= 1
        assert torch.equal(image, same)
    assert upstream.shape == (*shape[:2], case.bins, case.bins)
    assert upstream.std() > 0.5, "the upstream gradient must not be constant"
    assert torch.equal(upstream, again.upstream)
    assert not torch.equal(*inputs)


@pytest.mark.parametrize(("dtype", "summed"), [("bfloat16", torch.float32), ("float64", torch.float64)])
def test_work_has_the_dtypes_of_a_call(dtype: str, summed: torch.dtype) -> None:
    case = dataclasses.replace(SMALL, dtype=dtype)
    inputs, upstream = work.prepare(case)
    assert {image.dtype for image in inputs} == {getattr(torch, dtype)}
    assert measure.SIDES["histloss"].build(case, inputs)().dtype == upstream.dtype == summed


def test_a_name_tells_what_differs() -> None:
    assert cases.JOINT_REFLECT.name == "joint histogram"
    wide = dataclasses.replace(cases.JOINT_WIDE, bins=64, shape=(1, 1, 8, 8), content="photo", threads=1)
    assert wide.name == "joint histogram, open, bandwidth 2, K = 64, 1 x 1 x 8 x 8, photo, 1 thread"
    assert cases.case_of(json.loads(json.dumps(row_of(wide, "time")))) == wide


def test_suites_hold_no_work_twice_and_only_sides_that_can_do_it() -> None:
    for name, comparisons in cases.SUITES.items():
        jobs = [(each.case, metric) for each in comparisons for metric in each.metrics]
        assert len(set(jobs)) == len(jobs), name
        for each in comparisons:
            assert each.sides[0] == "histloss"
            assert all(measure.SIDES[side].runs(each.case) for side in each.sides), each.case.name
            assert each.batch_of is None or each.batch_of in each.sides


def test_targets_hold_only_for_what_they_were_set_for() -> None:
    full = row_of(CASE, "ratio", against="reference")
    target = cases.target_of(full)
    assert target is not None
    assert (target.reached(900), target.reached(899.9)) == (True, False)
    for other in ({"bins": 32}, {"stage": "forward"}, {"against": "kornia"}, {"threads": 1}):
        assert cases.target_of(full | other) is None
    assert cases.target_of(full | {"shape": [4, 3, 256, 256]}) is target, "the number of planes is free"
    memory = cases.target_of(row_of(CASE, "memory"))
    assert memory is not None
    assert (memory.reached(8.0), memory.reached(8.1)) == (True, False)
    assert cases.target_of(row_of(CASE, "memory", side="reference")) is None
    assert cases.target_of(row_of(CASE, "memory", shape=[4, 3, 256, 256])) is None
    assert run.verdict(full | {"value": 899.0}).startswith("MISSED")
    assert run.verdict(full | {"value": 901.0}).startswith("reached")


def test_every_target_is_for_something_that_is_measured() -> None:
    measured_with = {"ratio": "time", "growth": "time", "peak": "memory"}
    for target in cases.TARGETS:
        against = {"against": target.against} if target.against else {}
        assert any(
            target.applies(row_of(each.case, target.metric, stage=target.stage, **against))
            and measured_with.get(target.metric, target.metric) in each.metrics
            and target.against in (None, *each.sides)
            for comparisons in cases.SUITES.values()
            for each in comparisons
        ), target


def test_gpu_targets_hold_for_the_whole_batch_alone() -> None:
    full = row_of(cases.GPU[0], "saving", against="reference")
    target = cases.target_of(full)
    assert target is not None
    assert (target.reached(100), target.reached(99.9)) == (True, False)
    assert cases.target_of(full | {"shape": [8, 3, 256, 256]}) is None
    assert cases.target_of(full | {"device": "cpu"}) is None


def test_the_reference_gets_as_many_images_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(case: cases.Case, name: str):
        def evaluate() -> None:
            if case.shape[0] > 5:
                raise torch.OutOfMemoryError

        return evaluate

    monkeypatch.setattr(measure, "_call", call)
    for case in cases.GPU[:3]:
        assert measure.fitting(case, "reference").shape == (4, 3, 256, 256)
        assert measure.fitting(case, "histloss") is case
    assert measure.fitting(CASE, "reference") is CASE


def test_a_ratio_is_of_equal_work() -> None:
    """Half the images in 6 s against all of them in 2 s."""
    assert measure.ratios([[(4.0, 2.0)]], [[(1.0, 1.0)]], "both", work=2.0) == [6.0]


def test_a_floor_by_hand() -> None:
    """Of 32 x 32 pixels: 4096 bytes an image, 1024 bytes a joint histogram of 16 bins."""
    case = dataclasses.replace(SMALL, shape=(1, 1, 32, 32), bins=16)
    assert floor.bytes_moved(case, "forward") == 2 * 4096 + 1024
    assert floor.bytes_moved(case, "backward") == 4 * 4096 + 1024
    assert floor.multiply_adds(case, "forward") == 1024 * 16 * 16
    assert floor.multiply_adds(case, "backward") == 1024 * 8 * 16 * 2
    half = dataclasses.replace(case, op="emd_loss", dtype="float16")
    assert floor.bytes_moved(half, "forward") == 2048 + 4
    slow_memory = floor.floor_of(case, "both", floor.Rates(bytes=1e6, multiply_adds=1e12))
    assert slow_memory["bytes"] == 6 * 4096 + 2 * 1024
    assert slow_memory["value"] == pytest.approx(6 * 4.096 + 2 * 1.024)
    slow_sums = floor.floor_of(case, "both", floor.Rates(bytes=1e12, multiply_adds=1e6))
    assert slow_sums["multiply_adds"] == 1024 * 512
    assert slow_sums["value"] == pytest.approx(1.024 * 512)
    assert slow_sums["gigaflops"] == pytest.approx(2e-3)


def test_growth_is_time_a_pixel_by_hand() -> None:
    rows = [
        row_of(dataclasses.replace(SMALL, shape=shape), "time", suite="size", unit="ms", value=value)
        for shape, value in zip(cases.SIZES, (1.0, 2.0, 8.0, 32.0, 160.0), strict=True)
    ]
    (growth,) = run.growth_rows(json.loads(json.dumps(rows)))
    assert growth["value"] == pytest.approx(160 / 2 / 64)
    assert (growth["metric"], growth["shape"], growth["side"]) == ("growth", [1, 1, 2048, 2048], "histloss")


def test_a_plan_for_a_gpu_has_every_case() -> None:
    jobs = [job for process in run.processes(cases.SUITES["gpu"], "cuda") for job in process.jobs]
    assert {dataclasses.replace(job.case, content="uniform") for job in jobs} == set(cases.GPU)
    assert {job.metric for job in jobs} == {"time", "error", "saving"}
    assert run.hardware({"gpu": "NVIDIA H200", "cpu": "x", "cores": 1}) == "nvidia-h200"
    assert run.hardware({"cpu": "AMD EPYC", "cores": 2}) == "amd-epyc-2-cores"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux alone")
def test_times_share_a_heap_and_memory_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(run.processes(cases.SUITES["threads"], "cpu")) <= 2
    monkeypatch.setattr(run, "available_memory", lambda: 1e12)
    first, *others = run.processes(cases.SUITES["losses"], "cpu")
    assert {job.metric for job in first.jobs} == {"time", "error"}
    assert first.heap == run.KEPT_PAGES
    assert [(len(each.jobs), each.jobs[0].metric, each.heap) for each in others] == [(1, "memory", None)] * 6


def test_a_heap_that_would_grow_too_large_does_not_keep_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    job = run.Job("time", CASE, BOTH)
    needed = sum(measure.SIDES[side].bytes_needed(CASE) for side in BOTH)
    for times, heap in ((3.4, run.HUGE_PAGES), (3.6, run.KEPT_PAGES)):
        monkeypatch.setattr(run, "available_memory", lambda times=times: times * needed)
        assert run.heap_of(job) == heap


def test_quick_work_is_small_and_done_once() -> None:
    suites = run.planned(run.parse(["--suite", "all", "--quick"]))
    assert suites.keys() == cases.SUITES.keys() - {"gpu"}
    for comparisons in suites.values():
        assert len(set(comparisons)) == len(comparisons)
        for each in comparisons:
            assert each.case.bins <= 16
            assert torch.Size(each.case.shape).numel() <= 2 * 3 * 32 * 32


def test_run_writes_a_row_for_every_measurement(result: dict[str, Any]) -> None:
    common = {"suite": str, "op": str, "boundary": str, "bandwidth": float, "bins": int, "shape": list}
    common |= {"dtype": str, "content": str, "range": list, "threads": int, "device": str}
    common |= {"metric": str, "stage": str, "side": str, "unit": str, "value": float}
    spread = {"p20": float, "p80": float, "samples": int, "heap": str}
    rates = {"bytes": int, "multiply_adds": int, "copy_gb_per_s": float, "gigaflops": float, "heap": str}
    more = {"time": spread, "ratio": {"against": str} | spread, "floor": rates}
    for row in result["rows"]:
        schema = common | more.get(row["metric"], {})
        assert {key: type(value) for key, value in row.items()} == schema
    stages, sides = len(measure.STAGES), len(BOTH)
    assert len(rows_of(result, "time")) == stages * sides
    assert len(rows_of(result, "ratio")) == len(rows_of(result, "floor")) == stages
    assert {(row["side"], row["against"]) for row in rows_of(result, "ratio")} == {BOTH}
    assert len(rows_of(result, "error")) == 2 * sides
    assert len(rows_of(result, "memory")) == len(rows_of(result, "peak")) == sides


def test_run_writes_plausible_values(result: dict[str, Any]) -> None:
    for row in rows_of(result, "time"):
        assert 0 < row["p20"] <= row["value"] <= row["p80"]
    for row in rows_of(result, "error"):
        assert 0 < row["value"] < 1e-4
    for row in rows_of(result, "floor"):
        assert 0.1 < row["copy_gb_per_s"] < 1e4
        assert 0.1 < row["gigaflops"] < 1e5
    reference, peak = (
        next(row["value"] for row in rows_of(result, metric) if row["side"] == "reference")
        for metric in ("memory", "peak")
    )
    maps = 2 * 3 * 16 * 32 * 32 * 4 / 1e6  # the two activation maps that its backward needs
    assert maps < reference < peak < 2000


def test_run_says_where_it_was_made(result: dict[str, Any]) -> None:
    made = result["provenance"]
    assert made["version"] == histloss.__version__
    assert made["torch"] == torch.__version__
    assert made["native"] == histloss.backend_info()["cpu"]["loaded"]
    assert made["command"].startswith(f"python benchmarks/run.py --quick --only '{CASE.name}'")
    assert made["malloc"] == run.KEPT_PAGES
    for key in (
        "commit",
        "dirty",
        "date",
        "simd",
        "compiler",
        "python",
        "cpu",
        "cores",
        "load",
        "photo",
        "packages",
    ):
        assert key in made


def test_a_failing_worker_fails_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("print('{}'); raise SystemExit(3)")
    monkeypatch.setattr(run, "HERE", tmp_path)
    output = run.run_jobs(run.Process([]), cases.QUICK)
    assert next(output) == {}
    with pytest.raises(subprocess.CalledProcessError, match="3"):
        next(output)


def test_only_a_complete_run_is_kept_by_itself() -> None:
    for arguments, kept in (
        (["--suite", "all"], True),
        (["--suite", "all", "--rounds", "5"], True),
        (["--suite", "all", "--quick"], False),
        (["--suite", "all", "--only", "soft"], False),
        (["--suite", "size"], False),
        ([], False),
    ):
        assert run.complete(run.parse(arguments)) == kept, arguments
    assert run.file_of({"version": "1.2", "cpu": "A", "cores": 2}) == "1.2/a-2-cores.json"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "1"],
        ["--threads", "0"],
        ["--only", "no such case"],
        ["--suite", "no such"],
        ["--unknown"],
    ],
)
def test_bad_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        run.parse(arguments)
