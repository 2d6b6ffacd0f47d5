"""Measures RebalancedColorLoss beside the dense soft-target cross-entropy in plain PyTorch, on the CPU.

The dense sides build the target (B, Q, H, W) from the same encoding. Each side is timed from ab on ("made"),
and with its target given ("given"): indices and weights (B, n, H, W), or the dense one. It takes a minute and
writes benchmarks/results/<version>/rebalanced-color-<hardware>.json. --quick does a little work to see that
everything runs, and is no measurement.
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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import provenance
from cases import Row, find
from histloss import ColorBins, ColorPrior, RebalancedColorLoss
from histloss.color import rgb_to_lab
from histloss.losses import color_classes
from measure import (
    Sample,
    evaluate,
    interleaved,
    ratios,
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
    """Of the work: images, bins and threads."""

    shape: tuple[int, ...]  # of the images
    grid: float = 10.0
    threads: int = 2


SIDES = ("histloss", "dense", "F.cross_entropy")
TARGETS = ("made", "given")
STAGES = ("forward", "backward", "both")
FULL = Size((4, 3, 256, 256))
QUICK = Size((2, 3, 16, 16), grid=50.0, threads=1)
ROUNDS, QUICK_ROUNDS = 7, 2  # in each every side is called once
LEAST = 3.0  # times faster than a dense side at FULL, whoever makes the target


class Work:
    """Logits, true colours and a prior counted on them."""

    def __init__(self, size: Size) -> None:
        random = torch.Generator().manual_seed(0)
        rgb, _ = pair("photo", size.shape, random)
        self.ab = rgb_to_lab(rgb)[:, 1:].contiguous()
        prior = ColorPrior(ColorBins(size.grid))
        prior.update(self.ab)
        self.loss = RebalancedColorLoss(prior)
        batch, _, *spatial = size.shape
        self.logits = torch.randn(batch, len(prior.bins), *spatial, generator=random).mul_(3).requires_grad_()
        self.upstream = torch.ones(())

    def call(self, side: str, target: str) -> Callable[[], Tensor]:
        """The loss of the logits."""
        if side == "histloss" and target == "made":
            return lambda: self.loss(self.logits, self.ab)
        value, make = VALUES[side], self.sparse if side == "histloss" else self.dense
        x = self.logits.flatten(2)
        if target == "made":
            return lambda: value(x, *make())
        return partial(value, x, *make())

    def sparse(self) -> tuple[Tensor, Tensor, Tensor]:
        """Bins and their shares (B, n, S), and weights (B, S) that make the sum a mean."""
        return self.loss._target(self.ab, self.logits.dtype)

    def dense(self) -> tuple[Tensor, Tensor]:
        """The target (B, Q, S) and the weights."""
        indices, z, v = self.sparse()
        batch, _, pixels = z.shape
        return z.new_zeros(batch, len(self.loss.bins), pixels).scatter_(1, indices, z), v


def sparse_value(logits: Tensor, indices: Tensor, z: Tensor, v: Tensor) -> Tensor:
    return color_classes._CrossEntropy.apply(logits, color_classes._Target(indices, z, v), True)


def dense_value(logits: Tensor, z: Tensor, v: Tensor) -> Tensor:
    return -(v * (z * logits.log_softmax(1)).sum(1)).sum()


def torch_value(logits: Tensor, z: Tensor, v: Tensor) -> Tensor:
    return (v * F.cross_entropy(logits, z, reduction="none")).sum()


VALUES: dict[str, Callable[..., Tensor]] = {
    "histloss": sparse_value,
    "dense": dense_value,
    "F.cross_entropy": torch_value,
}


def measured(size: Size, rounds: int) -> list[Row]:
    """Times of all sides, which take turns, and how many times faster histloss is."""
    work = Work(size)
    inputs = (work.logits,)
    pairs = [(side, target) for target in TARGETS for side in SIDES]
    calls: dict[str, Callable[[], Sample]] = {
        " ".join(each): partial(timed_call, work.call(*each), inputs, work.upstream) for each in pairs
    }
    taken = interleaved(calls, rounds, seconds=0.0)
    rows = []
    for side, target in pairs:
        samples = [sample for of_round in taken[f"{side} {target}"] for sample in of_round]
        for stage in STAGES:
            rows.append(
                row_of(size, "time", side, "ms", target, stage) | summary(stage_times(samples, stage))
            )
    for side, target in pairs:
        if side != "histloss":
            slow, fast = taken[f"{side} {target}"], taken[f"histloss {target}"]
            row = row_of(size, "ratio", "histloss", "x", target, "both")
            rows.append(row | {"against": side} | summary(ratios(slow, fast, "both")))
    return rows


def memory_row(size: Size, side: str) -> Row:
    """Peak memory beyond inputs, value and gradient, from ab on. For a process of its own."""
    tiny = Work(replace(QUICK, grid=size.grid))
    evaluate(tiny.call(side, "made"), (tiny.logits,), tiny.upstream)
    work = Work(size)
    release()
    beyond, _ = resident(partial(evaluate, work.call(side, "made"), (work.logits,), work.upstream))
    return row_of(size, "memory", side, "MB", "made", "both") | {"value": beyond}


def row_of(size: Size, metric: str, side: str, unit: str, target: str, stage: str) -> Row:
    case = asdict(size) | {"bins": len(ColorBins(size.grid)), "dtype": "float32", "device": "cpu"}
    what = {"metric": metric, "target": target, "stage": stage, "side": side, "unit": unit}
    return {"suite": "rebalanced color"} | case | what


def memory_rows(size: Size) -> list[Row]:
    """On the default heap, as benchmarks/README.md says."""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    rows = []
    for side in SIDES:
        command = [sys.executable, __file__, "--memory", side, json.dumps(asdict(size))]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout))
    return rows


def print_rows(rows: Sequence[Row], made_with: dict[str, Any]) -> None:
    row = rows[0]
    images, _, *spatial = row["shape"]
    shape = " x ".join(map(str, (images, row["bins"], *spatial)))
    print(f"{made_with['cpu']}, {row['threads']} threads, load before {made_with['load']}")
    print(f"{shape}, forward + backward; median (p20 to p80)")
    print(f"{'target':<8}{'side':<17}{'ms':<24}{'histloss is faster by':<28}")
    for target in TARGETS:
        for side in SIDES:
            like = {"target": target, "stage": "both"}
            words = spread(found(rows, metric="time", side=side, **like))
            line = f"{target:<8}{side:<17}{words:<24}"
            if side != "histloss":
                ratio = found(rows, metric="ratio", against=side, **like)
                line += f"{spread(ratio):<24}{verdict(ratio)}"
            print(line)
    for row in rows:
        if row["metric"] == "memory":
            print(f"{row['side']}: {significant(row['value'])} MB beyond inputs and gradient")


def found(rows: Sequence[Row], **like: Any) -> Row:
    row = find(rows, **like)
    assert row is not None
    return row


def verdict(ratio: Row) -> str:
    """Whether the target is reached; another size has none."""
    if [*ratio["shape"]] != [*FULL.shape] or ratio["grid"] != FULL.grid:
        return ""
    return f"{'reached' if ratio['value'] >= LEAST else 'MISSED'} ({LEAST:g}x)"


def spread(row: Row) -> str:
    value, p20, p80 = (significant(row[key]) for key in ("value", "p20", "p80"))
    return f"{value} ({p20} to {p80})"


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if options.memory:
        side, size = options.memory
        size = Size(**json.loads(size))
        torch.set_num_threads(size.threads)
        print(json.dumps(memory_row(size, side)))
        return
    size, rounds = (QUICK, QUICK_ROUNDS) if options.quick else (FULL, ROUNDS)
    size = replace(size, threads=options.threads or size.threads)
    torch.set_num_threads(size.threads)
    made_with = provenance.collect() | {
        "command": shlex.join(["python", "benchmarks/rebalanced_color.py", *arguments])
    }
    check_native(made_with, quick=options.quick)
    rows = measured(size, options.rounds or rounds) + memory_rows(size)
    print_rows(rows, made_with)
    publish("rebalanced-color", made_with, rows, options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="small work; writes nothing without --output")
    add("--threads", type=int, help=f"{FULL.threads} by default, with --quick {QUICK.threads}")
    add("--rounds", type=int, help="calls of each side, at least 2")
    add("--output", type=Path, help="where the JSON goes")
    add("--memory", nargs=2, metavar=("SIDE", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    check_least(parser, options, threads=1, rounds=2)
    return options


if __name__ == "__main__":
    if "--memory" not in sys.argv:
        restart_with_kept_pages()
    main(sys.argv[1:])
