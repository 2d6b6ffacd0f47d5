"""examples/shared/evaluation.py, on images whose scores are known."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from histloss.color import hsv_to_rgb
from shared import evaluation

SIZE = 64


def photos(*names: str) -> Tensor:
    """Photos that come with scikit-image, as RGB in [-1, 1], (N, 3, SIZE, SIZE)."""
    images = [
        Image.open(str(files("skimage.data") / name)).convert("RGB").resize((SIZE, SIZE)) for name in names
    ]
    return torch.from_numpy(np.stack(images)).movedim(-1, 1) / 127.5 - 1


def flat(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float32).reshape(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)


def scores(
    output: Tensor, source: Tensor, reference: Tensor | None = None, color: str = "yuv"
) -> evaluation.Scores:
    reference = source if reference is None else reference
    return evaluation.channel_scores(output, source, reference, color=color, bins=64, mi_bins=16)


def noisy(images: Tensor, amount: float) -> Tensor:
    return (images + amount * torch.randn_like(images)).clamp(-1, 1)


@pytest.fixture
def sources() -> Tensor:
    return photos("astronaut.png", "chelsea.png", "coffee.png")


@pytest.fixture
def references() -> Tensor:
    return photos("rocket.jpg", "astronaut.png", "chelsea.png")


def evaluate(
    folder: Path, outputs: dict[str, Tensor], sources: Tensor, references: Tensor, **options: Any
) -> dict[str, Any]:
    keywords = {
        "paired": True,
        "color": "yuv",
        "bins": 64,
        "mi_bins": 16,
        "folder": folder,
        "task": "colorization",
        "provenance": {"command": "python examples/colorization.py", "steps": {"full": 300}},
    }
    return evaluation.evaluate(outputs, sources, references, **{**keywords, **options})


@pytest.mark.parametrize("color", ["yuv", "hsv"])
def test_mi_is_highest_with_the_image_itself(sources: Tensor, references: Tensor, color: str) -> None:
    itself, noise, unrelated = (
        scores(image, sources, color=color).mi for image in (sources, noisy(sources, 0.2), references)
    )
    assert itself.shape == (3, 3)
    assert (itself > noise).all()
    assert (itself > 1.4 * unrelated).all()
    assert (noise.mean(0) > 3 * unrelated.mean(0)).all()


@pytest.mark.parametrize("color", ["yuv", "hsv"])
def test_mi_with_a_flat_image_is_zero(sources: Tensor, color: str) -> None:
    output = flat(0.3, -0.2, 0.6).expand_as(sources)
    torch.testing.assert_close(scores(output, sources, color=color).mi, torch.zeros(3, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("color", ["yuv", "hsv"])
def test_emd_is_that_of_colors_alone(sources: Tensor, references: Tensor, color: str) -> None:
    turned = sources.flip(2).rot90(dims=(2, 3))
    same = scores(turned, sources, sources, color).emd
    torch.testing.assert_close(same, torch.zeros(3, 3), atol=1e-6, rtol=0)
    assert (scores(sources, sources, references, color).emd > 0.05).all()


def test_emd_of_a_known_shift() -> None:
    """Y moves by 8 bins of 64, which soft bins of bandwidth 0.4 see as a little less; U and V stay 0."""
    low, high = 20.5, 28.5
    edges = np.arange(1, 65)
    sums = [1 / (1 + np.exp((position - edges) / 0.4)) for position in (low, high)]
    expected = np.square(sums[0] - sums[1]).sum()
    dark, light = (flat(*[position / 32 - 1] * 3) for position in (low, high))
    distance = scores(dark, dark, light).emd[0]
    torch.testing.assert_close(distance, torch.tensor([expected, 0, 0]).float(), atol=1e-4, rtol=0)
    assert 7 < expected < 8


def test_emd_of_hue_goes_round_the_circle() -> None:
    """From 0.97 to 0.03 turns it is as far as from 0.47 to 0.53, and not the other way round."""

    def of(hue: float) -> Tensor:
        return hsv_to_rgb(flat(2 * hue - 1, 0.6, 0.4))

    def distance(first: float, second: float) -> float:
        return scores(of(first), of(second), color="hsv").emd[0, 0].item()

    assert distance(0.97, 0.03) == pytest.approx(distance(0.47, 0.53), rel=0.05)
    assert distance(0.97, 0.03) < 0.2 * distance(0.25, 0.75)


def test_mi_of_hue_goes_round_the_circle() -> None:
    """Reds on both sides of the ends of the range share as much as the cyans across from them."""
    source = 0.1 * torch.randn(1, 1, SIZE, SIZE)
    output = source + 0.02 * torch.randn(1, 1, SIZE, SIZE)
    rest = torch.full((1, 2, SIZE, SIZE), 0.5)

    def shared(center: float) -> float:
        hues = [(hue + center + 1) % 2 - 1 for hue in (output, source)]
        images = [hsv_to_rgb(torch.cat([hue, rest], dim=1)) for hue in hues]
        return scores(*images, color="hsv").mi[0, 0].item()

    assert shared(-1) == pytest.approx(shared(0), rel=1e-3)


def test_mse_is_that_of_rgb_from_0_to_1(sources: Tensor) -> None:
    output = sources * 0.5
    target = output + torch.tensor([0.4, -0.2, 0.0]).reshape(1, 3, 1, 1)
    expected = torch.full((3,), (0.2**2 + 0.1**2) / 3)
    torch.testing.assert_close(scores(output, sources, target).mse, expected)


def test_scores_do_not_depend_on_the_chunks(
    sources: Tensor, references: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = noisy(sources, 0.2)
    whole = scores(output, sources, references)
    monkeypatch.setattr(evaluation, "CHUNK", 2)
    torch.testing.assert_close(scores(output, sources, references), whole)


def test_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sources: Tensor, references: Tensor
) -> None:
    outputs = {"full": noisy(sources, 0.05), "without MI": noisy(sources, 0.5), "without EMD": sources * 0.9}
    report = evaluate(tmp_path / "new" / "folder", outputs, sources, references)
    folder = tmp_path / "new" / "folder"
    assert json.loads((folder / "evaluation.json").read_text()) == report
    assert report["images"] == 3
    assert report["size"] == [SIZE, SIZE]
    assert (report["color"], report["bins"], report["mi_bins"]) == ("yuv", 64, 16)
    assert report["provenance"]["steps"] == {"full": 300}
    assert [*report["runs"]] == ["identity", *outputs]
    for name, images in {"identity": sources, **outputs}.items():
        expected = scores(images, sources, references)
        run = report["runs"][name]
        for values, summary in ((expected.mi, run["mi"]), (expected.emd, run["emd"])):
            columns = dict(zip(("Y", "U", "V", "average"), [*values.T, values.mean(1)], strict=True))
            assert summary == {
                channel: {
                    "mean": pytest.approx(column.mean().item(), rel=1e-5),
                    "standard_error": pytest.approx(column.std().item() / 3**0.5, rel=1e-4),
                }
                for channel, column in columns.items()
            }
        assert run["mse"]["mean"] == pytest.approx(expected.mse.mean().item(), rel=1e-5)
    assert [*report["figure13"]] == ["reference", *outputs]
    assert all(
        sum(curve) == pytest.approx(1) for run in report["figure13"].values() for curve in run.values()
    )

    tables = (folder / "tables.md").read_text()
    assert tables in capsys.readouterr().out
    assert "- command: `python examples/colorization.py`" in tables
    assert tables.count("| identity ") == 3
    assert "2.7 to 4 times" in tables
    assert "Table 3" in tables


def test_mi_ratio(tmp_path: Path, sources: Tensor, references: Tensor) -> None:
    outputs = {"full": noisy(sources, 0.05), "without MI": noisy(sources, 0.5)}
    report = evaluate(tmp_path, outputs, sources, references)
    full, without = (scores(output, sources).mi.mean(0) for output in outputs.values())
    ratios = (full / without).tolist()
    assert [*report["mi_ratio"].values()] == pytest.approx([*ratios, sum(ratios) / 3], rel=1e-4)
    row = next(row for row in (tmp_path / "tables.md").read_text().splitlines() if "full / " in row)
    assert [float(cell) for cell in row.split("|")[2:-1]] == pytest.approx(
        [*ratios, sum(ratios) / 3], abs=0.006
    )


def test_no_mi_ratio_where_there_is_nothing_to_share(tmp_path: Path, references: Tensor) -> None:
    """A grey source has flat U and V."""
    grey = references.mean(1, keepdim=True).expand_as(references)
    outputs = {"full": noisy(references, 0.05), "without MI": noisy(references, 0.5)}
    ratio = evaluate(tmp_path, outputs, grey, references)["mi_ratio"]
    assert ratio["U"] is None
    assert ratio["V"] is None
    assert ratio["average"] == ratio["Y"] > 1.5


def test_no_mi_ratio_without_both_runs(tmp_path: Path, sources: Tensor, references: Tensor) -> None:
    assert evaluate(tmp_path, {"full": sources}, sources, references)["mi_ratio"] is None
    assert "full / " not in (tmp_path / "tables.md").read_text()


def test_no_table_3_without_pairs(tmp_path: Path, sources: Tensor, references: Tensor) -> None:
    report = evaluate(tmp_path, {"full": sources}, sources, references, paired=False, color="hsv")
    assert [*report["runs"]["full"]] == ["mi", "emd"]
    assert [*report["runs"]["full"]["mi"]] == ["H", "S", "V", "average"]
    assert "Table 3" not in (tmp_path / "tables.md").read_text()


def test_one_image_has_no_standard_error(tmp_path: Path, sources: Tensor) -> None:
    """And one that is its own reference has no distance to divide by."""
    report = evaluate(tmp_path, {"full": sources[:1]}, sources[:1], sources[:1])
    assert report["runs"]["full"]["mi"]["Y"]["standard_error"] is None
    assert json.loads((tmp_path / "evaluation.json").read_text())["runs"]["full"]["mse"] == {
        "mean": 0.0,
        "standard_error": None,
    }
    tables = (tmp_path / "tables.md").read_text()
    assert "nan" not in tables
    assert "0.000 ±" not in tables
    assert "- |\n" in tables


def test_pictures(tmp_path: Path, sources: Tensor, references: Tensor) -> None:
    many = [images.repeat(3, 1, 1, 1) for images in (sources, references)]
    evaluate(tmp_path, {"full": many[0], "without MI": many[1]}, *many)
    with Image.open(tmp_path / "figure13.png") as figure:
        assert figure.size == (1800, 600)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (4 * (3 * SIZE + 4) + 4, 28 + 6 * (3 * SIZE + 4) + 4)


def test_sample_grid_enlarges_pixel_by_pixel(sources: Tensor, references: Tensor) -> None:
    grid = evaluation.sample_grid({"source": sources, "output": references})
    assert grid.dtype == np.uint8
    top = 28 + 4 + 196  # the second row, under the title
    for left, images in ((4, sources), (4 + 196, references)):
        block = grid[top : top + 192 : 3, left : left + 192 : 3]
        np.testing.assert_array_equal(block, evaluation.to_bytes(images[1]))
        np.testing.assert_array_equal(block, grid[top + 2 : top + 192 : 3, left + 2 : left + 192 : 3])
    assert (grid[:28, :200] < 128).any(), "the title"


def test_to_bytes() -> None:
    values = torch.tensor([-1.5, -1, 0.0, 1, 1.5], dtype=torch.bfloat16).expand(3, 1, 5)
    assert evaluation.to_bytes(values)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_wrong_arguments(tmp_path: Path, sources: Tensor, references: Tensor) -> None:
    def message(outputs: dict[str, Tensor], **options: Any) -> str:
        with pytest.raises(ValueError, match="must") as error:
            evaluate(tmp_path / "none", outputs, sources, references, **options)
        assert not (tmp_path / "none").exists()
        return str(error.value)

    assert message({}) == "outputs must have at least one run, got none"
    assert "'identity'" in message({"identity": sources})
    assert message({"full": sources[:2]}) == (
        "outputs['full'] must have the shape of sources, (3, 3, 64, 64), got (2, 3, 64, 64)"
    )
    broken = sources.clone()
    broken[1, 2, 3, 4] = torch.nan
    assert message({"full": broken}) == "outputs['full'] must be finite, got NaN or infinite pixels"
    assert message({"full": sources}, color="lab") == "color must be one of ['hsv', 'yuv'], got 'lab'"


def rows(count: int, **terms: float) -> list[dict[str, float]]:
    return [{"step": step, "total": 1 / (step + 1), **terms} for step in range(count)]


@pytest.mark.parametrize("count", [1, 2, 100])
def test_plot_losses(tmp_path: Path, count: int) -> None:
    evaluation.plot_losses(rows(count, emd=0.5, discriminator=0.7), tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as figure:
        assert figure.size == (1800, 600)


def test_plot_losses_leaves_out_what_has_no_weight(tmp_path: Path) -> None:
    evaluation.plot_losses(rows(100, adv=0.0, discriminator=0.0), tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as figure:
        assert figure.size == (900, 600)


def test_plot_losses_before_the_first_row(tmp_path: Path) -> None:
    evaluation.plot_losses([], tmp_path / "losses.png")
    assert not (tmp_path / "losses.png").exists()


def test_smooth_keeps_a_line_and_flattens_noise() -> None:
    np.testing.assert_allclose(evaluation.smooth(np.full(200, 3.0)), 3)
    line = np.arange(200.0)
    np.testing.assert_allclose(evaluation.smooth(line)[5:-5], line[5:-5])
    noise = np.random.default_rng(0).normal(size=200)
    assert evaluation.smooth(noise).std() < 0.5 * noise.std()
