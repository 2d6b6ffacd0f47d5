"""examples/compare_colorization.py: methods trained once and scored alike, at a size that takes seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import compare_colorization
from histloss import ColorBins
from shared.comparison import balance, format_table, score
from shared.data import first_pairs, open_dataset
from shared.lab import lightness, split_lab
from shared.metrics import auc, colorfulness, random_chroma
from shared.training import CHECKPOINT
from trainers import TINY, system

METHODS = [
    compare_colorization.Method(family, name, recipe, options)
    for family, (recipe, rows) in compare_colorization.FAMILIES.items()
    for name, options in rows.items()
]


FEW = {"deephist": ("full", "without MI"), "classes": ("classes", "rebalanced")}


class Darkness(nn.Module):
    """A classifier of two classes that sees lightness alone."""

    def forward(self, x: Tensor) -> Tensor:
        light = x.mean((1, 2, 3))
        return torch.stack([light, -light], dim=1)


def run(out: Path, *options: str) -> None:
    compare_colorization.main(["--out", str(out), *TINY.split(), "--only", "deephist,classes", *options])


@pytest.fixture(scope="module", autouse=True)
def few_methods() -> Iterator[None]:
    """Two of each of two families."""
    with pytest.MonkeyPatch.context() as patch:
        for family, names in FEW.items():
            recipe, rows = compare_colorization.FAMILIES[family]
            few = {name: rows[name] for name in names}
            patch.setitem(compare_colorization.FAMILIES, family, (recipe, few))
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    classifier = str(out / "darkness.pt")
    torch.jit.script(Darkness()).save(classifier)
    run(out, "--steps", "2", "--classifier", classifier)
    return out


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "comparison" / "comparison.json").read_text())


def test_comparison(compared: Path) -> None:
    """A row for each baseline and method, trained as told, as JSON, as a table and in pictures."""
    rows = report(compared)["rows"]
    assert [(row["family"], row["name"]) for row in rows] == [
        *(("baselines", name) for name in ("grey", "random", "real")),
        *((family, name) for family, names in FEW.items() for name in names),
    ]
    for row in rows[3:]:
        assert row["training"]["steps"] == 2
        assert row["training"]["seconds"] > 0
        assert row["training"]["options"]["size"] == 32
        assert 0 < row["scores"]["auc"]["mean"] < 1
    assert rows[4]["training"]["options"]["weights"]["mi"] == 0
    assert rows[5]["training"]["options"]["loss"] == "classes"
    assert report(compared)["images"] == 30
    assert (compared / "comparison" / "table.md").read_text() == format_table(report(compared))
    for family, columns in (("baselines", 4), ("deephist", 4), ("classes", 4)):
        with Image.open(compared / "comparison" / f"{family}.png") as grid:
            assert grid.size == (columns * 164 + 4, 6 * 164 + 32)  # photos of 32 pixels, five times as large


def test_table(compared: Path) -> None:
    lines = [line for line in format_table(report(compared)).splitlines() if line.startswith("|")]
    header, _, grey, _, real, full, *_ = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines
    )
    assert header[:4] == ["", "method", "AuC, %", "rebalanced"]
    assert header[-3:] == ["top-1, %", "training, s", "ms a step"]
    assert grey[:2] == ["baselines", "grey"]
    assert real[:4] == ["", "real", "100.0 ± 0.0", "100.0"]
    assert grey[-2:] == ["", ""]
    assert full[0] == "deephist"
    seconds = report(compared)["rows"][3]["training"]["seconds"]
    assert full[-1] == f"{seconds / 2 * 1000:.0f}"
    assert {len(line.split("|")) for line in lines} == {len(header) + 2}


def test_baselines(compared: Path) -> None:
    """Their scores are those of their definition."""
    scores = {row["name"]: row["scores"] for row in report(compared)["rows"]}
    _, real = first_pairs(open_dataset("colorization_lab", None, split="val", size=32), 200)
    outputs = {"grey": lightness(real), "random": random_chroma(real), "real": real}
    for name, output in outputs.items():
        assert scores[name]["auc"]["mean"] == pytest.approx(auc(output, real).mean().item())
        assert scores[name]["colorfulness"]["mean"] == pytest.approx(colorfulness(output).mean().item())
    assert scores["real"]["auc"]["mean"] == scores["real"]["auc_rebalanced"] == 1
    assert all(value["mean"] == 0 for value in scores["real"]["emd"].values())
    assert scores["grey"]["colorfulness"]["mean"] < 0.1
    assert scores["real"]["top1"]["mean"] == 1


def test_rebalanced_auc_is_the_mean_over_the_bins_that_occur() -> None:
    _, real = first_pairs(open_dataset("colorization_lab", None, split="val", size=32), 4)
    output = random_chroma(real)
    bins = ColorBins().encode(split_lab(real)[1], neighbours=1)[0]
    means = []
    for bin in bins.unique():
        inside = (bins == bin).double()
        shares = inside.sum((1, 2, 3))
        some = shares > 0
        scores = auc(output[some], real[some], inside[some])
        means.append((scores * shares[some]).sum() / shares.sum())
    found = score(output, lightness(real), real, balance(real))["auc_rebalanced"]
    assert found == pytest.approx(torch.stack(means).mean().item(), rel=1e-9)
    assert abs(found - auc(output, real).mean().item()) > 1e-3


def test_what_is_finished_is_not_trained_again(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = sorted(compared.glob(f"*/{CHECKPOINT}"))
    assert [path.parent.name for path in checkpoints] == [
        "classes-classes",
        "classes-rebalanced",
        "deephist-full",
        "deephist-without-mi",
    ]
    before, rows = [path.read_bytes() for path in checkpoints], report(compared)["rows"]
    run(compared)
    assert [path.read_bytes() for path in checkpoints] == before
    again = report(compared)["rows"]
    for row in rows:
        del row["scores"]["top1"]
    assert again == rows
    assert "4 of 4: classes, rebalanced" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.folder)
def test_every_method_learns_and_paints(method: compare_colorization.Method) -> None:
    """From greys of the photos' lightness: DeepHist too, which on its own takes luma."""
    colorizer = system(method.recipe, **method.options)
    wanted = "unpaired_colorization" if method.family == "unpaired" else "colorization_lab"
    assert colorizer.kind == wanted
    photos = torch.rand(2, 3, 32, 32) * 2 - 1
    greys = lightness(photos)
    terms = colorizer.step(greys, photos)
    assert all(terms[name].isfinite() for name in colorizer.terms)
    with torch.no_grad():
        output = colorizer.paint(greys, photos)
    assert output.shape == photos.shape
    assert output.abs().max() <= 1


def test_methods_have_folders_of_their_own() -> None:
    assert len({method.folder for method in METHODS}) == len(METHODS) == 27


def test_all_methods_have_the_same_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those whose runs are there already."""
    run(tmp_path, "--only", "classes", "--steps", "1")
    with pytest.raises(SystemExit):
        compare_colorization.main(["--out", str(tmp_path), "--only", "deephist,classes"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--size must be the same for all methods: it is 64 in deephist-full and 32 in classes-" in message


def test_all_methods_have_the_same_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are there say how many, where --steps does not, and must agree."""
    run(tmp_path, "--only", "classes", "--steps", "2")
    methods = [method for method in METHODS if method.family in ("classes", "deephist")]
    assert compare_colorization.kept_steps(methods, tmp_path) == 2
    shutil.copytree(tmp_path / "classes-classes", tmp_path / "deephist-full")
    path = tmp_path / "deephist-full" / CHECKPOINT
    torch.save(torch.load(path, weights_only=True) | {"steps": 3}, path)
    with pytest.raises(ValueError, match=r"have \[2, 3\] steps: --steps must say how many"):
        compare_colorization.kept_steps(methods, tmp_path)
    assert compare_colorization.kept_steps(methods, tmp_path / "none") is None


def test_errors(tmp_path: Path, compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(out: Path, *options: str) -> str:
        with pytest.raises(SystemExit) as exit_info:
            run(out, *options)
        assert exit_info.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "must be some of deephist,gan" in message(tmp_path, "--only", "classes,colours")
    assert "'nothing.pt'" in message(tmp_path, "--classifier", "nothing.pt")
    assert "is not a folder" in message(tmp_path, "--data", str(tmp_path / "none"))
    assert "power of two" in message(tmp_path, "--size", "48")
    assert not list(tmp_path.iterdir())
    assert "--width is 4" in message(compared, "--width", "8")
    assert "--steps 1 is less than" in message(compared, "--steps", "1")


def test_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    compare_colorization.main(["--list", "--only", "gan,classes", "--out", str(tmp_path / "none")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gan: none + L1"
    assert lines[-1] == "classes: rebalanced"
    assert len(lines) == 12
    assert not (tmp_path / "none").exists()
