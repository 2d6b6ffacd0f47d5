"""examples/recolor.py, at a size that takes seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import recolor

TINY = ("--size", "48", "--bins", "64", "--mi-bins", "16", "--steps", "100")


@pytest.fixture
def photos(tmp_path: Path) -> tuple[str, str]:
    """A blue and an orange gradient with some texture, of different sizes and shapes."""
    paths = []
    for name, color, (height, width) in (
        ("source", (0.2, 0.4, 0.8), (30, 44)),
        ("ref", (0.9, 0.5, 0.2), (50, 21)),
    ):
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        light = (0.3 + 0.5 * y + 0.2 * np.sin(20 * x))[..., None] * np.array(color)
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray((light.clip(0, 1) * 255).astype(np.uint8)).save(paths[-1])
    return str(paths[0]), str(paths[1])


def run(tmp_path: Path, photos: tuple[str, str], *options: str) -> bytes:
    """The recoloured photo of one run."""
    recolor.main(
        ["--source", photos[0], "--reference", photos[1], "--out-dir", str(tmp_path), *TINY, *options]
    )
    return (tmp_path / "recolored.png").read_bytes()


def error(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What a run that must not start says."""
    with pytest.raises(SystemExit) as exit_info:
        recolor.main(list(options))
    assert exit_info.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the photos that scikit-image ships; the MI term keeps more of the source."""
    recolor.main(["--out-dir", str(tmp_path), *TINY])
    rows = capsys.readouterr().out.splitlines()
    (before, _), (emd_alone, fold_alone, mi_alone, _), (emd_both, fold_both, mi_both, _) = (
        [float(number) for number in row[14:].split()] for row in rows[1:4]
    )
    assert before / emd_alone > 20
    assert before / emd_both > 20
    assert fold_alone == pytest.approx(before / emd_alone, rel=0.1)
    assert fold_both == pytest.approx(before / emd_both, rel=0.1)
    assert mi_both > mi_alone + 0.02
    with Image.open(tmp_path / "recolored.png") as photo:
        assert photo.size == (640, 427)  # the source's own
        assert photo.mode == "RGB"
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width == 1800


def test_result_has_the_colors_of_the_reference(tmp_path: Path, photos: tuple[str, str]) -> None:
    run(tmp_path, photos)
    mean, wanted = (
        np.asarray(Image.open(path)).mean((0, 1)) for path in (tmp_path / "recolored.png", photos[1])
    )
    assert np.abs(mean - wanted).max() < 8


def test_seed(tmp_path: Path, photos: tuple[str, str]) -> None:
    first = run(tmp_path, photos, "--no-compare", "--seed", "3")
    assert run(tmp_path, photos, "--compare", "--seed", "3") == first
    assert run(tmp_path, photos, "--no-compare", "--seed", "4") != first


def test_untrained_network_changes_nothing() -> None:
    photo = torch.rand(1, 3, 300, 5) * 1.9 - 0.95
    result = recolor.recolor(recolor.ColorMap(photo), photo)  # more rows than a strip has
    torch.testing.assert_close(result, photo, atol=1e-5, rtol=0)


def test_flat_photo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No variance to divide by, no information to share, and no distance to reduce."""
    Image.new("L", (8, 8), 128).save(tmp_path / "flat.png")
    run(tmp_path, (str(tmp_path / "flat.png"), str(tmp_path / "flat.png")))
    assert "nan" not in capsys.readouterr().out
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "recolored.png")), 128, atol=2)


@pytest.mark.parametrize("argument", ["--source", "--reference"])
def test_unreadable_photo(tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str) -> None:
    missing, text, half, deep = (
        str(tmp_path / name) for name in ("no.png", "text.jpg", "half.png", "deep.tiff")
    )
    Path(text).write_text("not a photo")
    Image.effect_noise((64, 64), 50).save(half)
    Path(half).write_bytes(Path(half).read_bytes()[:1000])
    Image.fromarray(np.ones((4, 4), np.float32)).save(deep)
    assert f"argument {argument}: cannot read {missing!r}" in (message := error(capsys, argument, missing))
    assert "No such file" in message
    assert f"argument {argument}: cannot read {text!r}" in error(capsys, argument, text)
    assert f"argument {argument}: cannot read {half!r}" in error(capsys, argument, half)
    assert f"argument {argument}: cannot read {str(tmp_path)!r}" in error(capsys, argument, str(tmp_path))
    assert f"{deep!r} has 32-bit pixels: save it with 8 or 16 bits" in error(capsys, argument, deep)


@pytest.mark.parametrize("argument", ["--size", "--steps", "--bins", "--mi-bins"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_bad_count(capsys: pytest.CaptureFixture[str], argument: str, value: str) -> None:
    message = error(capsys, f"{argument}={value}")
    assert f"argument {argument}: must be a whole number, at least 1, got {value!r}" in message


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_bad_weight(capsys: pytest.CaptureFixture[str], value: str) -> None:
    assert "argument --mi-weight: must be finite and at least 0, got" in error(capsys, f"--mi-weight={value}")


def test_bad_out_dir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    message = error(capsys, "--out-dir", str(tmp_path / "file"))
    assert "argument --out-dir:" in message
    assert "File exists" in message
