"""The README's benchmark, the page of a result and its charts say what the result says."""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cases  # noqa: E402
import charts  # noqa: E402
import reading  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
from measure import stages_of  # noqa: E402
from sides import SIDES  # noqa: E402

SOURCE = "benchmarks/results/0/machine.json"
EMPTY = "# Fast\n\n<!-- benchmark -->\n<!-- /benchmark -->\n"
FREE = 20e9  # bytes
PROVENANCE = {
    "version": "0",
    "commit": "1faebc3bd9b17df5648c1a4f61da456873d1ca88",
    "dirty": False,
    "date": "2026-11-21T12:18:29+00:00",
    "simd": "avx512",
    "torch": "2.13.0",
    "python": "3.11.7",
    "libc": "glibc 2.36",
    "system": "Linux 6.18",
    "cpu": "AMD EPYC",
    "cores": 2,
    "load": 0.5,
    "photo": "a photo",
    "command": "python benchmarks/run.py --suite all",
    "packages": {"kornia": "0.9.0", "monai": "1.6.1", "numpy": "2.4.6", "SimpleITK": "2.5.7"},
}


def made_up(*suites: str) -> dict[str, Any]:
    """A result as run.py writes it, with figures of about the right size."""
    rows = [
        {"suite": suite} | row
        for suite in suites
        for comparison in cases.SUITES[suite]
        for row in rows_of(comparison)
    ]
    return json.loads(json.dumps({"provenance": PROVENANCE, "rows": rows}))


def rows_of(comparison: cases.Comparison) -> Iterator[cases.Row]:
    case, metrics = comparison.case, comparison.metrics
    pixels = math.prod(case.shape)
    milliseconds = {"forward": 5e-6 * pixels, "backward": 7e-6 * pixels, "both": 1.2e-5 * pixels}
    like = vars(case)
    for side in comparison.sides:
        slower = 1 if side == "histloss" else case.bins
        needed = SIDES[side].bytes_needed(case)
        stages = stages_of(side)
        if needed > FREE and case.device == "cpu":
            why = f"needs about {needed / 1e9:.0f} GB, may have {FREE / 1e9:.0f} GB"
            for metric in {"time", "memory"} & set(metrics):
                yield like | row_of(metric, stages[-1], side, None) | {"why": why}
            continue
        if "time" in metrics:
            for stage in stages:
                yield like | row_of("time", stage, side, slower * milliseconds[stage], spread=0.1)
                if side != "histloss":
                    yield like | row_of("ratio", stage, "histloss", slower, spread=0.2) | {"against": side}
        if "memory" in metrics:
            yield like | row_of("memory", stages[-1], side, 6.0 if slower == 1 else 1e-6 * needed)
        if "error" in metrics:
            yield like | row_of("error", "forward", side, slower * 1e-8)
            yield like | row_of("error", "backward", side, slower * 3e-8)
    if "time" in metrics:
        rates = {"copy_gb_per_s": 20.0, "gigaflops": 90.0}
        for stage, time in milliseconds.items():
            yield like | row_of("floor", stage, "floor", 0.1 * time) | rates


def row_of(metric: str, stage: str, side: str, value: float | None, spread: float = 0.0) -> cases.Row:
    units = {"time": "ms", "floor": "ms", "memory": "MB", "ratio": "x", "error": "of the largest value"}
    row = {"metric": metric, "stage": stage, "side": side, "unit": units[metric], "value": value}
    if value is None or not spread:
        return row
    return row | {"p20": (1 - spread) * value, "p80": (1 + spread) * value, "samples": 9}


def write(root: Path, result: dict[str, Any]) -> Path:
    path = root / SOURCE
    run.write(path, result["provenance"], result["rows"])
    return path


def publish(root: Path, result: dict[str, Any]) -> Path:
    path = write(root, result)
    report.publish(reading.Result(path), path)
    return path


def filled(path: Path) -> str:
    return report.BLOCK.sub(lambda _: report.block(reading.Result(path), SOURCE), EMPTY)


def row_with(result: dict[str, Any], **like: Any) -> cases.Row:
    found = cases.find(result["rows"], **like)
    assert found is not None, f"there is no row with {like}"
    return found


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    return made_up(*(suite for suite in cases.SUITES if suite != "gpu"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, everything: dict[str, Any]) -> Path:
    """The root of a repository with a result and what report.py makes of it."""
    root = tmp_path_factory.mktemp("published")
    path = publish(root, everything)
    (root / "README.md").write_text(filled(path))
    return root


@pytest.fixture
def repository(tmp_path: Path, published: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(published, tmp_path / "copy"))


def disagreement(root: Path) -> str | None:
    return report.disagreement((root / "README.md").read_text(), root)


def test_what_is_published_agrees(published: Path) -> None:
    assert disagreement(published) is None
    path = published / SOURCE
    files = {file.name for file in path.parent.iterdir()}
    charted = {f"machine-{suite}.png" for suite in charts.AXES}
    assert files == {"machine.json", "machine.md", "machine.png"} | charted
    for file in files - {"machine.json", "machine.md"}:
        assert f"({file})" in path.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    "like",
    [
        {"suite": "headline", "metric": "time", "stage": "both", "side": "histloss"},
        {"suite": "headline", "metric": "time", "stage": "both", "side": "reference"},
        {"suite": "headline", "metric": "ratio", "stage": "both", "against": "reference"},
        {"suite": "headline", "metric": "ratio", "stage": "both", "against": "kornia"},
        {"suite": "headline", "metric": "memory", "side": "reference"},
        {"suite": "headline", "metric": "error", "stage": "backward", "side": "histloss"},
        {"suite": "volumes", "metric": "ratio", "stage": "forward", "against": "SimpleITK, Mattes"},
    ],
)
def test_figures_of_the_block_are_the_rows(repository: Path, everything: dict[str, Any], like: Any) -> None:
    result = copy.deepcopy(everything)
    row_with(result, **like)["value"] *= 3
    write(repository, result)
    assert "machine.json says" in str(disagreement(repository))


@pytest.mark.parametrize(
    "like",
    [
        {"suite": "bins", "metric": "time", "stage": "forward", "side": "histloss"},
        {"suite": "dtype", "metric": "error", "stage": "forward", "side": "reference"},
        {"suite": "threads", "metric": "floor", "stage": "both"},
    ],
)
def test_figures_of_the_page_are_the_rows(repository: Path, everything: dict[str, Any], like: Any) -> None:
    result = copy.deepcopy(everything)
    row_with(result, **like)["value"] *= 3
    write(repository, result)
    assert disagreement(repository) == "machine.md is not what report.py makes of machine.json"


def test_edited_text_is_found(repository: Path) -> None:
    readme, page = repository / "README.md", (repository / SOURCE).with_suffix(".md")
    text = readme.read_text()
    assert "**256x**" in text
    readme.write_text(text.replace("**256x**", "**9000x**", 1))
    assert "machine.json says" in str(disagreement(repository))
    readme.write_text(text)
    page.write_text(page.read_text() + "\nAnd it is free.\n")
    assert "machine.md" in str(disagreement(repository))


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"another picture")])
@pytest.mark.parametrize("file", ["machine.png", "machine-bins.png"])
def test_a_missing_or_old_chart_is_found(repository: Path, file: str, change: Callable[[Path], Any]) -> None:
    change((repository / SOURCE).with_name(file))
    assert disagreement(repository) == f"{file} is not drawn from machine.json as it is"


def test_a_readme_without_data_is_found(repository: Path) -> None:
    assert "no <!-- benchmark -->" in str(report.disagreement("# Fast", repository))
    assert "no JSON file" in str(report.disagreement(EMPTY, repository))
    (repository / SOURCE).unlink()
    assert disagreement(repository) == f"{SOURCE} does not exist"


def test_sides_that_were_left_out_say_why(published: Path, everything: dict[str, Any]) -> None:
    why = row_with(everything, suite="size", side="reference", op="joint_histogram", value=None)["why"]
    assert "may have" in why
    page = (published / SOURCE).with_suffix(".md").read_text()
    (line,) = (
        line for line in page.splitlines() if line.startswith("| joint histogram, open, 1 x 1 x 2048²")
    )
    assert f"| eager PyTorch | {why} | - | 6.00 / - |" in line


def test_what_a_peer_lacks_is_beside_its_figure(published: Path) -> None:
    text = (published / "README.md").read_text()
    for name, side in SIDES.items():
        if name not in ("histloss", "reference"):
            package = reading.label(name).split(", ")[0]
            cells = (f"| {side.kernel} |", f"| {side.cannot or '-'} |", "x** |")
            lines = [line for line in text.splitlines() if line.startswith(f"| {package} ")]
            assert sum(all(cell in line for cell in cells) for line in lines) == 1


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, everything: dict[str, Any]) -> None:
    result = copy.deepcopy(everything)
    del result["provenance"]["packages"]["kornia"]
    result["rows"] = [row for row in result["rows"] if "kornia" not in (row["side"], row.get("against"))]
    path = write(tmp_path, result)
    assert "not installed, so left out: kornia" in report.page(reading.Result(path), path.name)
    assert report.unfit(reading.Result(path)) == "not installed: kornia"


@pytest.mark.parametrize("suites", [["headline"], ["bins", "volumes"], ["peers"], ["guard", "dtype"]])
def test_a_part_of_the_suites_has_a_page(tmp_path: Path, suites: list[str]) -> None:
    path = publish(tmp_path, made_up(*suites))
    assert report.stale(path) is None
    page = path.with_suffix(".md").read_text()
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == suites
    assert "were not measured" in str(report.unfit(reading.Result(path)))


def test_a_part_of_a_suite_does_not_fill_the_readme(tmp_path: Path, everything: dict[str, Any]) -> None:
    result = copy.deepcopy(everything)
    result["rows"] = [row for row in result["rows"] if (row["suite"], row["bins"]) != ("headline", 64)]
    path = write(tmp_path, result)
    assert str(report.unfit(reading.Result(path))).startswith("cases of headline were not measured")
    assert "headline" in str(
        report.disagreement(EMPTY.replace("<!-- /", f"[data]({SOURCE})\n<!-- /"), tmp_path)
    )


def test_a_batch_of_what_fits_is_shown(tmp_path: Path) -> None:
    result = made_up("peers")
    for row in result["rows"]:
        row["shape"][0] = 16
    page = publish(tmp_path, result).with_suffix(".md").read_text()
    assert "16 x 3 x 256²" in page


def test_a_gpu_has_a_page_and_no_place_in_the_readme(tmp_path: Path) -> None:
    result = made_up("gpu")
    result["provenance"] |= {"gpu": "NVIDIA H200", "cuda": "13.0", "nvidia_smi": {"clocks.sm": "1980 MHz"}}
    for row in result["rows"]:
        if row["side"] == "reference" and row["metric"] == "time":
            row["shape"][0] = 4
    path = publish(tmp_path, result)
    page = path.with_suffix(".md").read_text()
    assert page.startswith("# Benchmarks: NVIDIA H200")
    assert "for 4 images" in page
    assert "| 10x / 10,240x |" in page, "the floor of all images is not that of four"
    assert "a CPU" in str(report.unfit(reading.Result(path)))
    assert report.stale(path) is None


def test_targets_are_judged_by_their_worst_row(tmp_path: Path) -> None:
    result = made_up("headline")
    page = publish(tmp_path, result).with_suffix(".md").read_text()
    missed = "| **MISSED** | joint histogram, reflect, photo | faster than eager PyTorch | at least 900x |"
    assert f"{missed} 256x |" in page
    assert "| reached | " in page


def test_every_suite_side_and_target_has_its_words() -> None:
    assert report.ABOUT.keys() == cases.SUITES.keys()
    assert charts.STYLES.keys() == SIDES.keys()
    assert {target.metric for target in cases.TARGETS} <= report.WHAT.keys()


def test_names_say_what_is_not_usual() -> None:
    wide = replace(cases.JOINT_OPEN, bandwidth=2.0)
    found = reading.names([cases.JOINT_REFLECT, cases.JOINT_OPEN, wide, cases.MI])
    assert list(found.values()) == [
        "joint histogram, reflect",
        "joint histogram, open",
        "joint histogram, open, bandwidth 2",
        "MI loss",
    ]
    of_bins = reading.names([replace(cases.JOINT_OPEN, bins=bins) for bins in (16, 256)])
    assert list(of_bins.values()) == ["joint histogram, K = 16", "joint histogram, K = 256"]
    assert reading.name_of(replace(cases.SOFT_REFLECT, threads=1)) == "soft histogram, reflect, 1 thread"


def test_factors_have_two_figures() -> None:
    assert [reading.times(value) for value in (0.456, 4.56, 45.6, 4560)] == ["0.46x", "4.6x", "46x", "4,560x"]


def test_the_command_leaves_the_readme_of_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(EMPTY)
    monkeypatch.setattr(report, "README", readme)
    path = write(tmp_path, made_up("headline"))
    monkeypatch.setattr(sys, "argv", ["report.py", str(path)])
    report.main()
    assert "README.md is left as it is: cases of size, content were not measured" in capsys.readouterr().out
    assert readme.read_text() == EMPTY
    assert report.stale(path) is None


def test_what_is_no_result_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, {"provenance": PROVENANCE, "rows": [{"metric": "time"}]})
    monkeypatch.setattr(sys, "argv", ["report.py", str(path)])
    with pytest.raises(SystemExit):
        report.main()
    assert "machine.json has rows of no suite" in capsys.readouterr().err


def test_a_quick_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = made_up("guard")
    result["provenance"] |= {"command": "python benchmarks/run.py --quick"}
    monkeypatch.setattr(sys, "argv", ["report.py", str(write(tmp_path, result))])
    with pytest.raises(SystemExit):
        report.main()


def test_the_readme_agrees_with_its_data() -> None:
    """It shows no benchmark before there is a result, and then one that is drawn from it."""
    text = report.README.read_text()
    block = report.BLOCK.search(text)
    assert block is not None
    assert any(run.RESULTS.glob("*/*.json")) == bool(block[0].strip())
    assert not block[0].strip() or report.disagreement(text) is None


@pytest.mark.parametrize("page", sorted(run.RESULTS.glob("*/*.md")), ids=lambda page: page.stem)
def test_every_page_agrees_with_its_data(page: Path) -> None:
    assert report.stale(page.with_suffix(".json")) is None
