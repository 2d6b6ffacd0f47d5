"""Register a volume to another of a different kind, by mutual information.

A rigid or affine transform is found, coarse to fine, by which one volume tells most about the other: their
joint histogram, and with it mutual information, has a gradient.
Without files, the volumes are scans of a phantom head whose true transform is known.

    python examples/register3d.py                                   # a phantom, affine
    python examples/register3d.py --transform rigid --compare       # and SimpleITK on the same scans
    python examples/register3d.py --fixed ct.nii.gz --moving mr.nii.gz

Files are .npy, or what SimpleITK reads where it is installed; spacing, origin and direction count.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from shared.arguments import count, natural
from shared.mattes import (
    compare,
    draw_times,
    errors,
    fill_in,
    format_table,
    make_pair,
    peak_memory,
    provenance,
    sides,
    summary,
)
from shared.registration import (
    KERNELS,
    MEASURES,
    TRANSFORMS,
    Registration,
    Settings,
    Volume,
    centred,
    common_range,
    compose,
    identity,
    invert,
    register,
    resample,
)
from shared.volumes import read_volume, write_results

PUBLISHED = Path(__file__).resolve().parent / "results" / "register3d"  # with tables in RESULTS.md


def watched(fixed: Volume, moving: Volume, settings: Settings) -> Registration:
    """register, with a progress bar."""
    with tqdm(desc=settings.transform, unit="evaluation") as progress:

        def watch(level: int, value: float) -> None:
            now = {"level": level + 1, settings.measure.upper(): f"{value:.3f}"}
            progress.set_postfix(now, refresh=False)
            progress.update()

        return register(fixed, moving, settings, watch)


def draw(fixed: Volume, before: Tensor, after: Tensor, true: Tensor | None) -> Figure:
    """Three slices through the middle of the volumes, all on the fixed one's grid.

    Checkerboards show the fixed and the moving volume in turns: where they are registered, contours go on
    from square to square. With the moving volume as the truth brings it, the last column is what is left.
    """
    (low, high), (dark, bright) = common_range(fixed.values), common_range(before)
    still = (fixed.values - low) / (high - low)
    before, after = ((volume - dark) / (bright - dark) for volume in (before, after))
    titles = ["fixed", "moving before", "moving after", "fixed and before", "fixed and after"]
    titles += ["after less the truth"] * (true is not None)
    sides = fixed.to_world[:, :3].norm(dim=0) * torch.tensor(still.shape)
    planes = [[side for side in range(3) if side != axis] for axis in range(3)]  # rows and columns of a slice
    inches = [2.2 * (sides[rows] / sides[1:].max()).item() for rows, _ in planes]
    figure = Figure(figsize=(2.2 * len(titles), sum(inches) + 0.4), layout="constrained")
    panels = figure.subplots(3, len(titles), height_ratios=inches)
    for axis, (row, (rows, columns)) in enumerate(zip(panels, planes, strict=True)):
        middle = still.shape[axis] // 2
        a, b, c = (volume.select(axis, middle).numpy() for volume in (still, before, after))
        look: dict[str, Any] = {
            "extent": (0, sides[columns].item(), sides[rows].item(), 0),
            "interpolation": "nearest",
        }
        squares = checkerboard(a.shape)
        images = [a, b, c, np.where(squares, a, b), np.where(squares, a, c)]
        for axes, image in zip(row, images, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, **look)
        if true is not None:
            left = c - (true.select(axis, middle).numpy() - dark) / (bright - dark)
            shown = row[-1].imshow(left, cmap="RdBu_r", vmin=-0.25, vmax=0.25, **look)
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    for axes in panels.flat:
        axes.set(xticks=(), yticks=())
    if true is not None:
        figure.colorbar(shown, ax=panels[:, -1], shrink=0.5, label="of the moving volume's range")
    return figure


def checkerboard(shape: Sequence[int]) -> np.ndarray:
    """True in every other square, of which there are about six on the shorter side."""
    square = max(1, min(shape) // 6)
    rows, columns = (np.arange(side) // square for side in shape)
    return (rows[:, None] + columns) % 2 == 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--fixed", type=Path, metavar="FILE", help="the volume that stays; with --moving, and no phantom")
    add("--moving", type=Path, metavar="FILE", help="the volume that is to come to the fixed one")
    add("--size", type=side, default=96, help="side of the phantom's scans, in voxels (%(default)s)")
    add("--transform", choices=list(TRANSFORMS), default="affine", help="what is searched for (%(default)s)")
    add("--measure", choices=MEASURES, default="nmi", help="normalised or plain MI (%(default)s)")
    add("--bins", type=bins, default=32, help="bins of the joint histogram (%(default)s)")
    add(
        "--kernel",
        type=kernels,
        default="bspline3",
        help=f"of the histogram (%(default)s): {', '.join(KERNELS)}; or a pair, fixed,moving",
    )
    add("--sampling", type=fraction, default=0.2, help="part of the voxels that are used (%(default)s)")
    add("--seed", type=natural, default=0, help="of the phantom and of the points (%(default)s)")
    add("--threads", type=count, help="PyTorch's default, if not given")
    add("--output", type=Path, default=Path("runs/register3d"), help="folder of the results (%(default)s)")
    add("--compare", action="store_true", help="beside SimpleITK, on --pairs pairs of scans")
    add("--pairs", type=count, default=9, help="of scans for --compare (%(default)s)")
    add("--memory", metavar="SIDE", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if (args.fixed is None) != (args.moving is None):
        parser.error("--fixed and --moving go together: give both, or neither for a phantom")
    if args.compare and args.fixed is not None:
        parser.error("--compare needs the phantom, whose truth is known: leave out --fixed and --moving")
    if args.compare and find_spec("SimpleITK") is None:
        parser.error("--compare needs the package SimpleITK")
    try:
        args.volumes = None if args.fixed is None else (read_volume(args.fixed), read_volume(args.moving))
        args.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    names = ("transform", "measure", "bins", "kernel", "sampling", "seed")
    args.settings = Settings(**{name: getattr(args, name) for name in names})
    return args


def side(text: str) -> int:
    return natural(text, least=32)


def bins(text: str) -> int:
    return natural(text, least=2)


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text!r}")
    return value


def kernels(text: str) -> str | tuple[str, str]:
    names = text.split(",")
    if len(names) > 2 or not {*names} <= {*KERNELS}:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(KERNELS)}, or two as a,b, got {text!r}")
    return names[0] if len(names) == 1 else (names[0], names[1])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    settings: Settings = args.settings
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory:
        print(json.dumps(peak_memory(args.memory, settings, args.size)))
        return
    report: dict[str, Any] = {"settings": asdict(settings)}
    if args.volumes:
        fixed, moving = args.volumes
        truth = None
    else:
        scans, truth = make_pair(settings, args.size)
        fixed, moving = (Volume(values, identity()) for values in scans[:2])
    try:
        found = watched(fixed, moving, settings)
    except ValueError as error:
        sys.exit(f"register3d: {error}")
    voxels = compose(invert(moving.to_world), compose(found.matrix, fixed.to_world))
    report |= {
        "matrix": voxels.tolist(),
        "world_matrix": found.matrix.tolist(),
        "seconds": found.seconds,
        "levels": [level._asdict() for level in found.levels],
    }
    evaluations = sum(level.evaluations for level in found.levels)
    print(
        f"{found.seconds:.2f} s, {evaluations} evaluations, "
        f"{settings.measure.upper()} {found.levels[-1].value:.3f}"
    )
    start = centred(fixed, moving)
    before, after = (resample(moving, fixed, matrix) for matrix in (start, found.matrix))
    true, written = None, []
    if truth is None:
        written = write_results(args.output, after, found.matrix, args.fixed)
    else:
        true = resample(moving, fixed, truth)
        report["size"] = args.size
        report["truth"] = truth.tolist()
        for name, matrix in (("before", identity()), ("after", found.matrix)):
            report[name] = errors(scans, matrix, truth)
            print(f"error {name}: {report[name]['mean']:.3f} voxels, {report[name]['max']:.3f} at most")
    figure = draw(fixed, before, after, true)
    figure.savefig(args.output / f"{settings.transform}.png", dpi=110)
    written.append(args.output / f"{settings.transform}.png")
    if args.compare:
        report |= comparison(args, sys.argv[1:] if argv is None else argv)
        written.append(args.output / f"{settings.transform}-times.png")
    path = args.output / f"{settings.transform}.json"
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    if args.compare and args.output.resolve() == PUBLISHED:
        page = PUBLISHED.parents[1] / "RESULTS.md"
        page.write_text(fill_in(page.read_text(), report))
        written.append(page)
    print("wrote", ", ".join(map(str, [*written, path])))


def comparison(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """What a report of --compare has more; printed and drawn too."""
    made_with = provenance(shlex.join(["python", "examples/register3d.py", *argv]))
    rows = compare(args.settings, args.size, args.pairs)
    memory = {}
    for each in tqdm(sides(args.settings), desc="memory"):
        memory[each.name] = memory_of(each.name, argv)
    report = {
        "provenance": made_with,
        "size": args.size,
        "pairs": args.pairs,
        "summary": summary(rows, memory),
        "rows": rows,
    }
    print(format_table(report))
    draw_times(rows).savefig(args.output / f"{args.settings.transform}-times.png", dpi=110)
    return report


def memory_of(name: str, argv: Sequence[str]) -> float | None:
    """peak_memory of a side, in a process of its own."""
    command = [sys.executable, __file__, *argv, "--memory", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak: float | None = json.loads(done.stdout)
    return peak


if __name__ == "__main__":
    main()
