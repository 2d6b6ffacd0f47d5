"""Measures histloss.compat beside the packages that it stands in for, MONAI and kornia, on the CPU.

Both sides of a case get the same call with the same images, and take turns, on the heap that a process has.
There the peers wait for the fresh pages of their gigabytes; with --kept-pages they find them, and their time
is that of arithmetic. How far apart results are is kept too. It takes a few minutes and writes
benchmarks/results/<version>/compat-<hardware>.json, or compat-kept-pages-<hardware>.json. --quick does a
little work to see that everything runs, and --volume, --image and --case do a part of it: these write nothing
without --output.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import provenance
from cases import Row, find
from measure import (
    STAGES,
    Sample,
    evaluate,
    gradients,
    interleaved,
    ratios,
    relative_error,
    release,
    resident,
    stage_times,
    summary,
    timed_call,
)
from run import check_least, check_native, publish, restart_with_kept_pages, significant
from work import pair


@dataclass(frozen=True)
class Size:
    """Of the work: the edges of a volume and of the images, and threads."""

    volume: int = 128
    image: int = 512
    threads: int = 2


@dataclass(frozen=True)
class Case:
    """What both sides compute, and what is aimed at."""

    peer: str
    modules: tuple[str, str]  # histloss's and the peer's
    bins: int
    call: Callable[[Any, Tensor, Tensor], Tensor]  # with one of the modules
    shape: Callable[[Size], tuple[int, ...]]
    least: Mapping[str, float]  # times faster, by stage
    most: float | None = None  # megabytes

    @property
    def sides(self) -> tuple[str, str]:
        return "histloss", self.peer

    def module(self, side: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the peers import
            return importlib.import_module(self.modules[self.sides.index(side)])


def mutual_information(kernel: str, module: Any, x: Tensor, y: Tensor) -> Tensor:
    loss: Tensor = module.GlobalMutualInformationLoss(kernel, num_bins=VOLUME_BINS)(x, y)
    return loss


def joint_histogram(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """With a Gaussian whose sigma is the distance of two bins."""
    centres = torch.linspace(0, 1, IMAGE_BINS)
    joint: Tensor = module.histogram2d(x.flatten(1), y.flatten(1), centres, centres[1] - centres[0])
    return joint


VOLUME_BINS, IMAGE_BINS = 32, 128
LOSSES, HISTOGRAMS = ("histloss.compat.monai", "monai.losses"), ("histloss.compat.kornia", "kornia.enhance")
CASES = {
    f"MI, {kernel}": Case(
        "MONAI",
        LOSSES,
        VOLUME_BINS,
        partial(mutual_information, kernel),
        lambda size: (1, 1, *[size.volume] * 3),
        {"both": 60.0},
        most=32.0,
    )
    for kernel in ("gaussian", "b-spline")
} | {
    "histogram2d": Case(
        "kornia",
        HISTOGRAMS,
        IMAGE_BINS,
        joint_histogram,
        lambda size: (4, 1, *[size.image] * 2),
        {"forward": 100.0, "both": 100.0},
    )
}
FULL, QUICK = Size(), Size(volume=12, image=16, threads=1)
ROUNDS, QUICK_ROUNDS = 5, 2
SECONDS = 0.3  # for which the faster side is called again in each round


class Work:
    """The images of a case, from 0 to 1, and an upstream gradient."""

    def __init__(self, case: Case, size: Size) -> None:
        random = torch.Generator().manual_seed(0)
        images = pair("photo", case.shape(size), random)
        self.inputs = tuple(((image + 1) / 2).requires_grad_() for image in images)
        self.upstream = torch.ones(())
        if case.peer == "kornia":
            self.upstream = torch.randn(len(images[0]), case.bins, case.bins, generator=random)

    def call(self, case: Case, side: str) -> Callable[[], Tensor]:
        return partial(case.call, case.module(side), *self.inputs)


def measured(name: str, size: Size, rounds: int, seconds: float) -> list[Row]:
    """Times of both sides, how many times faster histloss is, and how far apart they are."""
    case = CASES[name]
    work = Work(case, size)
    calls: dict[str, Callable[[], Sample]] = {
        side: partial(timed_call, work.call(case, side), work.inputs, work.upstream) for side in case.sides
    }
    taken = interleaved(calls, rounds, seconds)
    rows = []
    for side in case.sides:
        samples = [sample for of_round in taken[side] for sample in of_round]
        for stage in STAGES:
            row = row_of(name, size, "time", side, "ms", stage)
            rows.append(row | summary(stage_times(samples, stage)))
    for stage in STAGES:
        row = row_of(name, size, "ratio", "histloss", "x", stage) | {"against": case.peer}
        rows.append(row | summary(ratios(taken[case.peer], taken["histloss"], stage)))
    return rows + difference_rows(name, size, work)


def difference_rows(name: str, size: Size, work: Work) -> list[Row]:
    """The largest difference of values and of gradients, relative to the largest of the peer's."""
    case = CASES[name]
    found = []
    for side in case.sides:
        value = work.call(case, side)()
        found.append((value.detach(), *gradients(value, work.inputs, work.upstream)))
    value, *of_inputs = (relative_error(ours, theirs) for ours, theirs in zip(*found, strict=True))
    return [
        row_of(name, size, "difference", "histloss", "of the largest", stage)
        | {"against": case.peer, "value": worst}
        for stage, worst in (("forward", value), ("backward", max(of_inputs)))
    ]


def memory_row(name: str, size: Size, side: str) -> Row:
    """Peak memory beyond inputs, value and gradients. For a process of its own."""
    case = CASES[name]
    tiny = Work(case, QUICK)
    evaluate(tiny.call(case, side), tiny.inputs, tiny.upstream)
    work = Work(case, size)
    release()
    beyond, _ = resident(partial(evaluate, work.call(case, side), work.inputs, work.upstream))
    return row_of(name, size, "memory", side, "MB", "both") | {"value": beyond}


def memory_rows(name: str, size: Size) -> list[Row]:
    """On the default heap, as benchmarks/README.md says."""
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    rows = []
    for side in CASES[name].sides:
        command = [sys.executable, __file__, "--memory", name, side, json.dumps(asdict(size))]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
    return rows


def row_of(name: str, size: Size, metric: str, side: str, unit: str, stage: str) -> Row:
    case = CASES[name]
    work = {"case": name, "shape": case.shape(size), "bins": case.bins, "threads": size.threads}
    made = {"content": "photo", "dtype": "float32", "device": "cpu"}
    what = {"metric": metric, "stage": stage, "side": side, "unit": unit}
    return {"suite": "compat"} | work | made | what


def print_rows(rows: Sequence[Row], made_with: dict[str, Any]) -> None:
    print(f"{made_with['cpu']}, {rows[0]['threads']} threads, load before {made_with['load']}")
    print(f"{'case':<14}{'stage':<9}{'side':<10}{'ms, median (p20 to p80)':<26}histloss is faster by")
    for name, case in CASES.items():
        if find(rows, case=name) is None:
            continue
        for stage in ("forward", "both"):
            for side in (case.peer, "histloss"):
                words = spread(found(rows, case=name, metric="time", stage=stage, side=side))
                line = f"{name:<14}{stage:<9}{side:<10}{words:<26}"
                if side == "histloss":
                    ratio = found(rows, case=name, metric="ratio", stage=stage)
                    line += f"{spread(ratio)} {verdict(ratio)}"
                print(line.rstrip())
        forward, backward = (
            found(rows, case=name, metric="difference", stage=stage)["value"] for stage in STAGES[:2]
        )
        print(f"  differ by {forward:.0e} of the largest value, {backward:.0e} of the largest gradient")
        for side in (case.peer, "histloss"):
            row = found(rows, case=name, metric="memory", side=side)
            words = f"  {side}: {significant(row['value'])} MB beyond images and gradients {verdict(row)}"
            print(words.rstrip())


def found(rows: Sequence[Row], **like: Any) -> Row:
    row = find(rows, **like)
    assert row is not None
    return row


def verdict(row: Row) -> str:
    """Whether a target is reached; another size has none."""
    case = CASES[row["case"]]
    if [*row["shape"]] != [*case.shape(FULL)] or row["side"] != "histloss":
        return ""
    if row["metric"] == "memory":
        if case.most is None:
            return ""
        return f"{'reached' if row['value'] < case.most else 'MISSED'} (below {case.most:g} MB)"
    least = case.least.get(row["stage"])
    if least is None:
        return ""
    return f"{'reached' if row['value'] >= least else 'MISSED'} ({least:g}x)"


def spread(row: Row) -> str:
    value, p20, p80 = (significant(row[key]) for key in ("value", "p20", "p80"))
    return f"{value} ({p20} to {p80})"


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if options.memory:
        name, side, size = options.memory
        size = Size(**json.loads(size))
        torch.set_num_threads(size.threads)
        print(json.dumps(memory_row(name, size, side)))
        return
    size, rounds, seconds = (QUICK, QUICK_ROUNDS, 0.0) if options.quick else (FULL, ROUNDS, SECONDS)
    asked = {name: getattr(options, name) for name in asdict(size)}
    size = replace(size, **{name: value for name, value in asked.items() if value is not None})
    torch.set_num_threads(size.threads)
    made_with = provenance.collect() | {"command": shlex.join(["python", "benchmarks/compat.py", *arguments])}
    check_native(made_with, quick=options.quick)
    rows = []
    for name in options.case or CASES:
        rows += measured(name, size, options.rounds or rounds, seconds) + memory_rows(name, size)
    print_rows(rows, made_with)
    options.quick = options.quick or (size.volume, size.image) != (FULL.volume, FULL.image) or options.case
    publish("compat-kept-pages" if options.kept_pages else "compat", made_with, rows, options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="small work; writes nothing without --output")
    add("--kept-pages", action="store_true", help="on a heap that keeps its pages, the kindest to the peers")
    add("--case", action="append", choices=CASES, help="only this one, may be repeated")
    add("--volume", type=int, metavar="EDGE", help=f"{FULL.volume} by default")
    add("--image", type=int, metavar="EDGE", help=f"{FULL.image} by default")
    add("--threads", type=int, help=f"{FULL.threads} by default, with --quick {QUICK.threads}")
    add("--rounds", type=int, help="in which every side is called, at least 2")
    add("--output", type=Path, help="where the JSON goes")
    add("--memory", nargs=3, metavar=("CASE", "SIDE", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    check_least(parser, options, threads=1, rounds=2, volume=2, image=2)
    missing = [name for name in ("kornia", "monai") if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{' and '.join(missing)} must be installed: pip install 'histloss[bench]'")
    return options


if __name__ == "__main__":
    if "--kept-pages" in sys.argv:
        restart_with_kept_pages()
    main(sys.argv[1:])
