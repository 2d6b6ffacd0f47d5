"""Each side of the benchmarks does what its name says, checked against something known."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cases  # noqa: E402
import measure  # noqa: E402
import run  # noqa: E402
from sides import ALL_OPS, SIDES  # noqa: E402
from work import prepare  # noqa: E402

CASE = cases.Case("joint_histogram", "open", bins=16, shape=(2, 3, 24, 24), range=(0.0, 1.0), threads=1)
PIXELS = 24 * 24


def evaluated(case: cases.Case, *names: str) -> list[tuple[torch.Tensor, ...]]:
    """Output and gradients of each side, of the same work."""
    work = prepare(case)
    return [measure.evaluate(SIDES[name].build(case, work.inputs), *work) for name in names]


def value(name: str, case: cases.Case, *inputs: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(SIDES[name].build(case, inputs)()).detach()


@pytest.mark.parametrize("op", ALL_OPS)
@pytest.mark.parametrize("boundary", ["reflect", "open"])
def test_the_library_and_the_reference_are_one_function(op: str, boundary: str) -> None:
    ours, theirs = evaluated(replace(CASE, op=op, boundary=boundary), "histloss", "reference")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_reference_is_the_eager_one() -> None:
    case = replace(CASE, op="soft_histogram", shape=(1, 1, 16, 16))
    torch.testing.assert_close(*evaluated(case, "compiled", "reference"), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("op", ["soft_histogram", "joint_histogram"])
def test_kornia_sums_to_one_and_has_gaussian_bins(op: str) -> None:
    pytest.importorskip("kornia")
    case = replace(CASE, op=op)
    inputs = prepare(case).inputs
    found = value("kornia", case, *inputs)
    assert found.shape == (2, 3, *[16] * len(inputs))
    torch.testing.assert_close(found.flatten(2).sum(-1), torch.ones(2, 3))
    centres = (torch.arange(16) + 0.5) / 16
    maps = [torch.exp(-0.5 * ((x[1, 2].flatten() - centres[:, None]) * 16 / 0.4) ** 2) for x in inputs]
    wanted = maps[0].sum(-1) if len(maps) == 1 else maps[0] @ maps[1].T
    torch.testing.assert_close(found[1, 2], wanted / wanted.sum())


@pytest.mark.parametrize("name", ["MONAI, gaussian", "MONAI, B-spline"])
def test_monai_is_the_mean_over_the_planes_of_minus_the_mutual_information(name: str) -> None:
    pytest.importorskip("monai")
    case = replace(CASE, op="mi_loss")
    x, y = prepare(case).inputs
    assert value(name, case, x, x) < value(name, case, x, y) - 1, "an image knows most of itself"
    if name == "MONAI, gaussian":  # the other takes its range from the batch
        planes = [x[i : i + 1, j : j + 1] for x in (x, y) for i in range(2) for j in range(3)]
        one = replace(case, shape=(1, 1, 24, 24))
        alone = [value(name, one, *pair) for pair in zip(planes[:6], planes[6:], strict=True)]
        torch.testing.assert_close(value(name, case, x, y), torch.stack(alone).mean())


def test_mattes_agrees_with_the_other_b_splines() -> None:
    """Both are Mattes' metric: a cubic B-spline for one image, boxes for the other."""
    pytest.importorskip("monai")
    pytest.importorskip("SimpleITK")
    volume = replace(CASE, op="mi_loss", bins=32, shape=(1, 1, 16, 64, 64), content="photo")
    for case in (volume, replace(volume, shape=(1, 1, 64, 64))):
        x, y = prepare(case).inputs
        for pair in ((x, x), (x, y)):
            itk, monai = value("SimpleITK, Mattes", case, *pair), value("MONAI, B-spline", case, *pair)
            assert itk.item() == pytest.approx(monai.item(), rel=0.05)


def test_counts_are_those_of_the_pixels() -> None:
    case = replace(CASE, op="soft_histogram")
    x, y = prepare(CASE).inputs
    counts = value("torch.histc", case, x)
    assert counts.shape == (2, 3, 16)
    assert counts.sum(-1).eq(PIXELS).all()
    wanted = torch.stack([(x[1, 2] * 16).long().eq(k).sum() for k in range(16)])
    torch.testing.assert_close(counts[1, 2], wanted.float())
    pytest.importorskip("numpy")
    torch.testing.assert_close(value("NumPy", case, x), counts.flatten(0, 1).long())
    joint = value("NumPy", CASE, x, y)
    torch.testing.assert_close(joint.sum(-1), counts.flatten(0, 1).double())
    torch.testing.assert_close(joint.sum(-2), value("torch.histc", case, y).flatten(0, 1).double())


def test_a_side_without_a_gradient_is_timed_forward() -> None:
    case = replace(CASE, op="soft_histogram")
    rows = measure.time_rows(case, ["histloss", "reference", "torch.histc"], cases.QUICK)
    compared = {(row["side"], row["against"], row["stage"]) for row in rows if row["metric"] == "ratio"}
    assert compared == {
        ("histloss", "torch.histc", "forward"),
        *(("histloss", "reference", stage) for stage in measure.STAGES),
    }
    timed = [row["stage"] for row in rows if (row["metric"], row["side"]) == ("time", "torch.histc")]
    assert timed == ["forward"]
    assert "faster forward than torch.histc" in "\n".join(run.lines_of(rows))


def test_a_side_with_another_kernel_has_no_error() -> None:
    found = measure.error_rows(CASE, ["histloss", "kornia"], cases.QUICK)
    assert {row["side"] for row in found} == {"histloss"}


def test_an_absent_package_is_said_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    arguments = ["--suite", "peers", "--quick"]
    planned = run.planned(run.parse(arguments))["peers"]
    assert {side for each in planned for side in each.sides} == {"histloss", "torch.histc"}
    monkeypatch.setattr(run, "run_jobs", lambda *_: pytest.skip("the rest of the run is tested elsewhere"))
    with pytest.raises(pytest.skip.Exception):
        run.main(arguments)
    error = capsys.readouterr().err
    for name, package in (("kornia", "kornia"), ("MONAI, gaussian", "monai"), ("NumPy", "numpy")):
        assert f"{name} is left out: {package} is missing" in error


def test_every_side_says_what_it_is_and_what_it_cannot() -> None:
    for name, side in SIDES.items():
        assert side.name == name
        assert side.kernel
        assert bool(side.cannot) == (name not in ("histloss", "reference", "compiled"))
        assert side.has_gradient or "gradients" in side.cannot
