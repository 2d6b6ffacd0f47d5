"""The perceptual study's files and its summary. What the page does is tested in tests/browser."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from shared import study


def images(count: int, level: float) -> list[Tensor]:
    """Flat images of 3 x 5 pixels, each of another grey, from `level` up."""
    return [torch.full((3, 3, 5), level + i / 127.5) for i in range(count)]


def key(page: Path) -> list[dict[str, str]]:
    match = re.search(r'type="application/json">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert match is not None
    return json.loads(match[1])["images"]


def test_every_image_is_written_with_its_class(tmp_path: Path) -> None:
    page = study.write_study(tmp_path / "new" / "study", images(4, -1.0), images(6, 0.5), title="T")
    assert page == tmp_path / "new" / "study" / "index.html"
    names = [f"images/{number:03d}.png" for number in range(1, 11)]
    assert [row["image"] for row in key(page)] == names
    assert sorted(path.name for path in page.parent.iterdir()) == ["images", "index.html"]
    assert sorted(f"images/{path.name}" for path in (page.parent / "images").iterdir()) == names
    greys: dict[str, list[int]] = {"real": [], "painted": []}
    for row in key(page):
        pixels = np.asarray(Image.open(page.parent / row["image"]))
        assert pixels.shape == (3, 5, 3)
        assert pixels.min() == pixels.max()
        greys[row["truth"]].append(int(pixels.min()))
    assert sorted(greys["real"]) == [0, 1, 2, 3]
    assert sorted(greys["painted"]) == [191, 192, 193, 194, 195, 196]


def test_numbers_do_not_tell_the_class(tmp_path: Path) -> None:
    """Over many seeds, the first number and the last are as often real as painted."""
    orders = []
    for seed in range(60):
        page = study.write_study(tmp_path, images(3, -1.0), images(3, 0.5), title="T", seed=seed)
        orders.append(tuple(row["truth"] for row in key(page)))
    assert len(set(orders)) > 12  # of 20
    for place in (0, -1):
        assert 15 < sum(order[place] == "real" for order in orders) < 45
    again = study.write_study(tmp_path, images(3, -1.0), images(3, 0.5), title="T", seed=59)
    assert tuple(row["truth"] for row in key(again)) == orders[-1]


def test_page_is_self_contained_and_its_title_is_escaped(tmp_path: Path) -> None:
    title = "Shoes & <b>bags</b> \"{{study}}\" '</script>' été"
    text = study.write_study(tmp_path, images(1, 0), images(1, 0.5), title=title).read_text(encoding="utf-8")
    assert text.count(html.escape(title)) == 2  # the window's and the heading
    assert "<b>bags" not in text
    assert "http" not in text
    assert not re.search(r"<(script|img|link)[^>]*(src|href)=\"(?!data:)", text)


def test_studies_have_ids_of_their_own(tmp_path: Path) -> None:
    """Answers kept for an earlier study in the same folder are not taken for this one's."""

    def text(real: list[Tensor], painted: list[Tensor], seed: int = 0) -> str:
        page = study.write_study(tmp_path, real, painted, title="T", seed=seed)
        match = re.search(r'"id": "([0-9a-f]{12})"', page.read_text(encoding="utf-8"))
        assert match is not None
        return match[1]

    real, painted = images(4, 0.0), images(4, 0.5)
    ids = [text(real, painted), text(painted, real), text(real, painted[:3]), text(real, painted, seed=1)]
    assert len(set(ids)) == 4
    assert text(real, painted) == ids[0]


def test_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("notes.txt", "images/mine.png"):
        (tmp_path / name).write_text("mine")
    study.write_study(tmp_path, images(1, 0.0), images(1, 0.5), title="T")
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "images/mine.png").read_text() == "mine"


def test_batch_of_bfloat16_with_a_gradient(tmp_path: Path) -> None:
    painted = torch.zeros(2, 3, 3, 5, dtype=torch.bfloat16, requires_grad=True)
    assert len(key(study.write_study(tmp_path, images(1, 0.0), painted, title="T"))) == 3


GOOD = torch.zeros(3, 3, 5)


@pytest.mark.parametrize(
    ("real", "painted", "message"),
    [
        ([], [GOOD], "real must have at least one image, got none"),
        ([GOOD], [], "painted must have at least one image, got none"),
        ([GOOD], [GOOD, GOOD[None]], r"painted\[1\] must have shape \(3, H, W\), got \(1, 3, 3, 5\)"),
        ([GOOD[:1]], [GOOD], r"real\[0\] must have shape \(3, H, W\), got \(1, 3, 5\)"),
        ([GOOD[:, :0]], [GOOD], r"real\[0\] must have shape \(3, H, W\), got \(3, 0, 5\)"),
        ([GOOD.byte()], [GOOD], r"real\[0\] must be of a floating-point type, got torch.uint8"),
        ([GOOD, GOOD + 1.1], [GOOD], r"real\[1\] must be in \[-1, 1\], got values from 1.1 to 1.1"),
        ([GOOD], [GOOD * torch.nan], r"painted\[0\] must be in \[-1, 1\], got values from nan to nan"),
        (
            [GOOD],
            [GOOD.mT],
            r"painted\[0\] must have the size of real\[0\], \(5, 3\), got \(3, 5\)",
        ),
    ],
)
def test_bad_images(tmp_path: Path, real: list[Tensor], painted: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study.write_study(tmp_path / "study", real, painted, title="T")
    assert not (tmp_path / "study").exists()


def write_answers(path: Path, *counts: int, study_id: str = "a", milliseconds: int = 1) -> Path:
    """Answers with these counts of real-real, real-painted, painted-real and painted-painted."""
    pairs = [(truth, answer) for truth in study.CLASSES for answer in study.CLASSES]
    rows = [
        {"image": "images/001.png", "truth": truth, "answer": answer, "milliseconds": milliseconds}
        for (truth, answer), count in zip(pairs, counts, strict=True)
        for _ in range(count)
    ]
    path.write_text(json.dumps({"study": study_id, "seed": 1, "answers": rows}))
    return path


def test_summary_of_several_participants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        write_answers(tmp_path / "a.json", 15, 5, 4, 16),
        write_answers(tmp_path / "b.json", 10, 10, 3, 17),
    ]
    confusion = study.summarise(paths)
    assert confusion == {"real": {"real": 25, "painted": 15}, "painted": {"real": 7, "painted": 33}}
    study.main([str(path) for path in paths])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 participants"
    assert lines[1].split() == ["said", "real", "said", "painted"]
    assert lines[2].split() == ["real", "25", "(62.5%)", "15", "(37.5%)"]
    assert lines[3].split() == ["painted", "7", "(17.5%)", "33", "(82.5%)"]
    assert lines[5].startswith("accuracy: 72.5% (58 of 80; 95% interval ")
    assert lines[6].startswith("painted taken for real: 17.5% (7 of 40; 95% interval ")


@pytest.mark.parametrize(
    ("count", "total", "interval"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (5, 10, (0.2366, 0.7634)), (81, 263, (0.2553, 0.3662))],
)
def test_wilson_interval(count: int, total: int, interval: tuple[float, float]) -> None:
    """Newcombe's published example, 81 of 263, and limits that stay in [0, 1]."""
    assert study.wilson(count, total) == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize("total", range(1, 30))
def test_interval_of_nothing_starts_at_zero(total: int) -> None:
    assert f"{study.wilson(0, total)[0]:.1%}" == "0.0%"


def test_script(tmp_path: Path) -> None:
    path = write_answers(tmp_path / "a.json", 1, 0, 0, 1)
    done = subprocess.run([sys.executable, study.__file__, path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 participant\n")
    assert "accuracy: 100.0% (2 of 2" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        "[]",
        "{}",
        '{"study": "a", "answers": []}',
        '{"study": "a", "answers": ["real"]}',
        '{"study": "a", "answers": [{"truth": "real", "answer": "real"}]}',
        '{"study": "a", "answers": [{"truth": "real"}, {"truth": "painted"}]}',
        '{"study": "a", "answers": [{"truth": "real", "answer": "x"}, {"truth": "painted", "answer": "x"}]}',
    ],
)
def test_bad_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json"):
        study.summarise([path])
    with pytest.raises(SystemExit):
        study.main([str(path)])
    assert str(path) in capsys.readouterr().err


def test_answers_that_do_not_belong_together(tmp_path: Path) -> None:
    first = write_answers(tmp_path / "first.json", 2, 1, 1, 2)
    copy = write_answers(tmp_path / "copy.json", 2, 1, 1, 2)
    with pytest.raises(ValueError, match=r"copy\.json has the same answers as .*first\.json"):
        study.summarise([first, copy])
    other = write_answers(tmp_path / "other.json", 2, 1, 1, 2, study_id="b", milliseconds=2)
    with pytest.raises(ValueError, match=r"other\.json has answers to study 'b', others to 'a'"):
        study.summarise([first, other])
    with pytest.raises(ValueError, match=r"cannot read .*missing\.json"):
        study.summarise([tmp_path / "missing.json"])
    with pytest.raises(ValueError, match="at least one file"):
        study.summarise([])
