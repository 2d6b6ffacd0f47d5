"""The perceptual study of the paper's section 3.1: do people take painted images for real ones?

`write_study` writes a static web page. It needs no server and no network: open index.html, or put the folder
on any web host. Every participant sees all images in an order of their own, says "real" or "painted" to each,
sees the confusion matrix and downloads the answers as JSON. In the page's address, `?seconds=1` hides each
image after one second, as in pix2pix's study, and `?seed=5` fixes the order. Names and alternative texts do
not tell which images are real. The page's source does, in plain text: the study trusts its participants.

The files of all participants, as one confusion matrix:

    python examples/shared/study.py answers/*.json
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

CLASSES = ("real", "painted")
Confusion = dict[str, dict[str, int]]  # truth, answer: count


def write_study(
    folder: Path, real: Sequence[Tensor], painted: Sequence[Tensor], *, title: str, seed: int = 0
) -> Path:
    """Write folder/index.html and folder/images/NNN.png, numbered in random order; return the page's path.

    Images are (3, H, W) in [-1, 1], all of one size, since two would tell the classes apart. There may be
    more of one class than of the other. Files of the same names are overwritten, others in the folder stay.
    """
    images = []
    for truth, group in zip(CLASSES, (real, painted), strict=True):
        if len(group) == 0:
            raise ValueError(f"{truth} must have at least one image, got none")
        for i, tensor in enumerate(group):
            image = to_image(f"{truth}[{i}]", tensor)
            images.append((image, truth))
            size = images[0][0].size
            if image.size != size:
                raise ValueError(f"{truth}[{i}] must have the size of real[0], {size}, got {image.size}")
    random.Random(seed).shuffle(images)

    (folder / "images").mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    key = []
    for number, (image, truth) in enumerate(images, start=1):
        name = f"images/{number:03d}.png"
        image.save(folder / name)
        digest.update(image.tobytes() + truth.encode())
        key.append({"image": name, "truth": truth})
    study = {"id": digest.hexdigest()[:12], "width": size[0], "height": size[1], "images": key}

    template = Path(__file__).with_name("study.html").read_text(encoding="utf-8")
    text = template.replace("{{study}}", json.dumps(study)).replace("{{title}}", html.escape(title))
    page = folder / "index.html"
    page.write_text(text, encoding="utf-8")
    return page


def to_image(name: str, image: Tensor) -> Image.Image:
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"{name} must have shape (3, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise ValueError(f"{name} must be of a floating-point type, got {image.dtype}")
    low, high = image.min().item(), image.max().item()
    if not (low >= -1 and high <= 1):  # nor NaN
        raise ValueError(f"{name} must be in [-1, 1], got values from {low:g} to {high:g}")
    from shared.data import to_bytes  # here, since a script in this folder does not find it, nor need it

    return Image.fromarray(to_bytes(image))


def summarise(paths: Sequence[Path]) -> Confusion:
    """The confusion matrix of several participants' answers to one study."""
    confusion = {truth: dict.fromkeys(CLASSES, 0) for truth in CLASSES}
    seen: dict[str, Path] = {}
    study = None
    for path in paths:
        answers = read_answers(path)
        if study not in (None, answers["study"]):
            raise ValueError(f"{path} has answers to study {answers['study']!r}, others to {study!r}")
        study = answers["study"]
        rows = json.dumps(answers["answers"])
        if rows in seen:
            raise ValueError(f"{path} has the same answers as {seen[rows]}")
        seen[rows] = path
        for row in answers["answers"]:
            confusion[row["truth"]][row["answer"]] += 1
    if study is None:
        raise ValueError("paths must name at least one file, got none")
    return confusion


def read_answers(path: Path) -> dict:
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
        truths, said = ({row[name] for row in answers["answers"]} for name in ("truth", "answer"))
        valid = isinstance(answers["study"], str) and truths == set(CLASSES) and said <= set(CLASSES)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"cannot read {path} as a study's answers: {error!r}") from error
    if not valid:
        raise ValueError(f"{path} must have answers of {CLASSES} to images of both, got {said} to {truths}")
    return answers


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, answers taken as independent."""
    z = 1.96
    centre = (count + z**2 / 2) / (total + z**2)
    half = z / (total + z**2) * math.sqrt(count * (total - count) / total + z**2 / 4)
    return max(0.0, centre - half), centre + half  # not -0.0%


def table(confusion: Confusion) -> str:
    """Counts and each row's percentages, accuracy, and how often painted images were taken for real."""
    lines = [f"{'':<9}{'said real':>18}{'said painted':>18}"]
    for truth, row in confusion.items():
        cells = (f"{count} ({count / sum(row.values()):.1%})" for count in row.values())
        lines.append(f"{truth:<9}" + "".join(f"{cell:>18}" for cell in cells))
    right = sum(confusion[truth][truth] for truth in CLASSES)
    painted = sum(confusion["painted"].values())
    lines.append("")
    for name, count, total in (
        ("accuracy", right, painted + sum(confusion["real"].values())),
        ("painted taken for real", confusion["painted"]["real"], painted),
    ):
        low, high = wilson(count, total)
        lines.append(
            f"{name}: {count / total:.1%} ({count} of {total}; 95% interval {low:.1%} to {high:.1%})"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The confusion matrix of a perceptual study.")
    parser.add_argument("answers", type=Path, nargs="+", help="JSON files that participants downloaded")
    paths = parser.parse_args(argv).answers
    try:
        confusion = summarise(paths)
    except ValueError as error:
        parser.error(str(error))
    print(f"{len(paths)} participant{'s' * (len(paths) > 1)}")
    print(table(confusion))


if __name__ == "__main__":
    main()
