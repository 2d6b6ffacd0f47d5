"""Measures the mutual information of two volumes, forward and backward, in one call and chunk by chunk.

Two volumes of 512^3 float32 voxels, K = 64 bins, on the CPU: through one call of the fast kernels, through
one with `exact=True`, and through `HistogramAccumulator`, which sees a slab at a time, twice. Times are of
all sides in turn; peak memory is that of a fresh process for each side, everything included. It takes some
minutes and writes benchmarks/results/<version>/volumes-<hardware>.json. --quick does a little work to see
that everything runs, and is no measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

import provenance
from cases import Row, find
from histloss import HistogramAccumulator, joint_histogram, mutual_information
from measure import Sample, interleaved, release, resident, stage_times, summary
from run import check_least, check_native, publish, restart_with_kept_pages, significant
from work import pair


@dataclass(frozen=True)
class Size:
    """Of the work: voxels along an edge, bins, slices of a slab, and threads."""

    edge: int = 512
    bins: int = 64
    slab: int = 16
    threads: int = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 1, self.edge, self.edge, self.edge)


class Result(NamedTuple):
    loss: Tensor
    grad_x: Tensor
    grad_y: Tensor


STAGES = ("forward", "backward", "both")
FULL = Size()
QUICK = Size(edge=24, slab=5, threads=1)
ROUNDS, QUICK_ROUNDS = 3, 2  # in each every side is called once
MOST = 6000.0  # MB of a process at FULL, with volumes and gradients


class Work:
    """Two volumes: a stack of photos, and the same shifted."""

    def __init__(self, size: Size) -> None:
        self.size = size
        volumes = pair("photo", size.shape, torch.Generator().manual_seed(0))
        self.x, self.y = (volume.contiguous() for volume in volumes)

    def one_call(self, exact: bool) -> tuple[Result, Sample]:
        x, y = (volume.detach().requires_grad_() for volume in (self.x, self.y))
        start = perf_counter()
        loss = mutual_information(joint_histogram(x, y, bins=self.size.bins, exact=exact)).mean()
        middle = perf_counter()
        gradients = torch.autograd.grad(loss, (x, y))
        return Result(loss.detach(), *gradients), (middle - start, perf_counter() - middle)

    def slab_by_slab(self) -> tuple[Result, Sample]:
        start = perf_counter()
        histogram = HistogramAccumulator(bins=self.size.bins, joint=True)
        for slab in self.slabs(self.x, self.y):
            histogram.update(*slab)
        h = histogram.compute().requires_grad_()
        loss = mutual_information(h).mean()
        middle = perf_counter()
        (by_h,) = torch.autograd.grad(loss, h)
        gradients = torch.empty_like(self.x), torch.empty_like(self.y)
        for x, y, grad_x, grad_y in self.slabs(self.x, self.y, *gradients):
            found = histogram.gradient(by_h, x, y)
            grad_x.copy_(found.x)
            grad_y.copy_(found.y)
        return Result(loss.detach(), *gradients), (middle - start, perf_counter() - middle)

    def slabs(self, *volumes: Tensor) -> Any:
        return zip(*(volume.split(self.size.slab, 2) for volume in volumes), strict=True)


SIDES: dict[str, Callable[[Work], tuple[Result, Sample]]] = {
    "histloss": partial(Work.one_call, exact=False),
    "histloss, exact": partial(Work.one_call, exact=True),
    "histloss, slab by slab": Work.slab_by_slab,
}


def time_rows(size: Size, rounds: int) -> list[Row]:
    """Of all sides, which take turns."""
    work = Work(size)
    calls = {name: partial(timed, side, work) for name, side in SIDES.items()}
    taken = interleaved(calls, rounds, seconds=0.0)
    rows = []
    for name in SIDES:
        samples = [sample for of_round in taken[name] for sample in of_round]
        for stage in STAGES:
            row = row_of(size, "time", name, "ms", stage)
            rows.append(row | summary(stage_times(samples, stage)))
    return rows


def timed(side: Callable[[Work], tuple[Result, Sample]], work: Work) -> Sample:
    _result, sample = side(work)
    return sample


def memory_rows(size: Size) -> list[Row]:
    """On the default heap, as benchmarks/README.md says."""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    rows = []
    for name in SIDES:
        command = [sys.executable, __file__, "--memory", name, json.dumps(asdict(size))]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        rows += json.loads(done.stdout)
    return rows


def memory_of(size: Size, name: str) -> list[Row]:
    """Peak memory of this process, and what of it is beyond volumes, value and gradients."""
    SIDES[name](Work(replace(QUICK, bins=size.bins, threads=size.threads)))
    work = Work(size)
    release()
    beyond, peak = resident(lambda: SIDES[name](work)[0])
    return [
        row_of(size, "memory", name, "MB", "both") | {"value": beyond},
        row_of(size, "peak", name, "MB", "both") | {"value": peak},
    ]


def row_of(size: Size, metric: str, side: str, unit: str, stage: str) -> Row:
    case = asdict(size) | {
        "op": "mutual_information",
        "dtype": "float32",
        "content": "photo",
        "device": "cpu",
    }
    return {"suite": "volumes"} | case | {"metric": metric, "stage": stage, "side": side, "unit": unit}


def print_rows(rows: Sequence[Row], made_with: dict[str, Any]) -> None:
    first = rows[0]
    print(f"{made_with['cpu']}, {first['threads']} threads, load before {made_with['load']}")
    print(f"two volumes of {first['edge']}^3 float32, K = {first['bins']}; median (p20 to p80)")
    for side in SIDES:
        of_stages = (found(rows, metric="time", side=side, stage=stage) for stage in STAGES)
        times = ", ".join(f"{row['stage']} {spread(row)} ms" for row in of_stages)
        peak, more = (found(rows, metric=metric, side=side) for metric in ("peak", "memory"))
        beyond = f"{significant(more['value'])} MB beyond volumes and gradients"
        print(f"{side:<24}{times}")
        print(f"{'':<24}peak {significant(peak['value'])} MB, {beyond} {verdict(peak)}".rstrip())


def found(rows: Sequence[Row], **like: Any) -> Row:
    row = find(rows, **like)
    assert row is not None
    return row


def verdict(peak: Row) -> str:
    """Whether the target is reached; another size has none."""
    if any(peak[name] != value for name, value in asdict(FULL).items() if name != "slab"):
        return ""
    return f"{'reached' if peak['value'] < MOST else 'MISSED'} ({MOST:g} MB)"


def spread(row: Row) -> str:
    value, p20, p80 = (significant(row[key]) for key in ("value", "p20", "p80"))
    return f"{value} ({p20} to {p80})"


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if options.memory:
        name, text = options.memory
        size = Size(**json.loads(text))
        torch.set_num_threads(size.threads)
        print(json.dumps(memory_of(size, name)))
        return
    size, rounds = (QUICK, QUICK_ROUNDS) if options.quick else (FULL, ROUNDS)
    size = replace(size, edge=options.size or size.edge, threads=options.threads or size.threads)
    torch.set_num_threads(size.threads)
    made_with = provenance.collect() | {
        "command": shlex.join(["python", "benchmarks/volumes.py", *arguments])
    }
    check_native(made_with, quick=options.quick)
    rows = time_rows(size, options.rounds or rounds) + memory_rows(size)
    print_rows(rows, made_with)
    options.quick = size != FULL
    publish("volumes", made_with, rows, options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="small work")
    add("--size", type=int, help=f"voxels along an edge; that of {FULL.edge}, the default, alone is kept")
    add("--threads", type=int, help=f"{FULL.threads} by default, with --quick {QUICK.threads}")
    add("--rounds", type=int, help="calls of each side, at least 2")
    add("--output", type=Path, help="where the JSON goes")
    add("--memory", nargs=2, metavar=("SIDE", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    check_least(parser, options, size=1, threads=1, rounds=2)
    return options


if __name__ == "__main__":
    if "--memory" not in sys.argv:
        restart_with_kept_pages()
    main(sys.argv[1:])
