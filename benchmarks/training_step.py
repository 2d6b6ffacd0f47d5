"""Measures what the histogram losses take of a training step on the CPU, beside histloss.reference.

A step is that of the example trainers in the paper's setting: a conditional discriminator, then the generator
with DeepHistLoss on YUV, Adam for both. It takes a few minutes and writes
benchmarks/results/<version>/training-step-<hardware>.json. --quick does a little work to see that everything
runs, and is no measurement.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

import provenance
from cases import DEEP_HIST, Case, Comparison, Row, quick
from histloss import DeepHistLoss, EMDHistLoss, MIHistLoss, native, soft_histogram
from histloss.color import rgb_to_yuv
from measure import Rounds, Sample, interleaved, summary
from run import check_least, check_native, publish, restart_with_kept_pages, significant
from work import pair

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from shared.networks import Discriminator, Generator

SIDES = ("histloss", "reference")
FULL = replace(DEEP_HIST, shape=(4, 3, 256, 256), content="photo")
QUICK = quick(Comparison(FULL)).case
ROUNDS, QUICK_ROUNDS = 5, 2  # in each every side makes one step
FULL_WIDTH, QUICK_WIDTH = 64, 4
TARGET = 2.0  # per cent of a step of FULL


class Trainer:
    """Networks, optimizers and images of a training step.

    The generator is a residual one, whose outputs look like photos from the first step on.
    """

    def __init__(self, case: Case, width: int) -> None:
        torch.manual_seed(0)
        random = torch.Generator().manual_seed(0)
        self.source, self.real = pair(case.content, case.shape, random)
        size, bins = case.shape[-1], case.bins
        self.generator = Generator(size, bins=bins, width=width, residual=True)
        self.discriminator = Discriminator(conditional=True, width=width)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        ]
        self.bins = bins
        self.loss = DeepHistLoss({"adv": 0}, emd=EMDHistLoss(bins), mi=MIHistLoss(bins))

    def step(self, side: str) -> Sample:
        """Seconds of the histogram losses and of everything else."""
        start = perf_counter()
        target, seconds_of_target = timed(partial(self.target, side))
        output = self.generator(self.source, target)
        self.improve_discriminator(output.detach())
        gradient, seconds_of_gradient = timed(partial(self.gradient, side, output.detach(), target))
        self.improve_generator(output, gradient)
        losses = seconds_of_target + seconds_of_gradient
        return losses, perf_counter() - start - losses

    def target(self, side: str) -> Tensor:
        """The histograms of the real image, for the generator and for EMD."""
        with path(side):
            return torch.cat(
                [soft_histogram(rgb_to_yuv(rgb), bins=self.bins) for rgb in parts(side, self.real)]
            )

    def gradient(self, side: str, output: Tensor, target: Tensor) -> Tensor:
        """Of the histogram losses of the batch, at the output."""
        output.requires_grad_()
        with path(side):
            images = (parts(side, batch) for batch in (output, self.source, target))
            for out, src, hist in zip(*images, strict=True):
                total = self.loss(rgb_to_yuv(out), rgb_to_yuv(src), hist).total
                (total * len(out) / len(output)).backward()
        assert output.grad is not None
        return output.grad

    def improve_discriminator(self, output: Tensor) -> None:
        self.discriminator.requires_grad_(True)
        real, fake = (self.discriminator(image, self.source) for image in (self.real, output))
        (adversarial(real, 1.0) + adversarial(fake, 0.0)).backward()
        update(self.optimizers[1])

    def improve_generator(self, output: Tensor, gradient: Tensor) -> None:
        """By the adversarial loss and, at the output, the gradient of the histogram losses."""
        self.discriminator.requires_grad_(False)
        loss = adversarial(self.discriminator(output, self.source), 1.0)
        torch.autograd.backward([loss, output], [None, gradient])
        update(self.optimizers[0])


def parts(side: str, batch: Tensor) -> Sequence[Tensor]:
    """The reference gets the images one by one: its activation maps take 4 GB for each."""
    return [batch] if side == "histloss" else batch.split(1)


def path(side: str) -> AbstractContextManager[Any]:
    return nullcontext() if side == "histloss" else patch.object(native, "available", lambda x: False)


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = perf_counter()
    return work(), perf_counter() - start


def adversarial(logits: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def update(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()


def measured(case: Case, width: int, rounds: int) -> list[Row]:
    """Rows for both sides, whose steps take turns in training one pair of networks."""
    trainer = Trainer(case, width)
    taken = interleaved({side: partial(trainer.step, side) for side in SIDES}, rounds, seconds=0.0)
    return [row for side in SIDES for row in rows_of(case, width, side, taken[side])]


def rows_of(case: Case, width: int, side: str, rounds: Rounds) -> list[Row]:
    samples = [sample for samples in rounds for sample in samples]
    common = asdict(case) | {
        "suite": "training step",
        "width": width,
        "images at once": len(parts(side, torch.empty(case.shape))[0]),
        "side": side,
    }
    figures = {
        ("time", "step", "ms"): [1e3 * (losses + rest) for losses, rest in samples],
        ("time", "losses", "ms"): [1e3 * losses for losses, _ in samples],
        ("share", "losses", "%"): [100 * losses / (losses + rest) for losses, rest in samples],
    }
    return [
        common | {"metric": metric, "stage": stage, "unit": unit} | summary(values)
        for (metric, stage, unit), values in figures.items()
    ]


def print_rows(rows: Sequence[Row], made_with: dict[str, Any]) -> None:
    row = rows[0]
    shape = " x ".join(map(str, row["shape"]))
    print(f"{made_with['cpu']}, {row['threads']} threads, load before {made_with['load']}")
    print(f"{shape}, {row['bins']} bins, networks of width {row['width']}; median (p20 to p80)")
    print(f"{'':<10} {'step, ms':<28}{'histogram losses, ms':<28}share, %")
    for side in SIDES:
        step, losses, share = (row for row in rows if row["side"] == side)
        print(f"{side:<10} {spread(step):<28}{spread(losses):<28}{spread(share):<22}{verdict(share)}")


def verdict(share: Row) -> str:
    """Whether the target is reached; a step of another size has none."""
    if share["side"] == "reference" or (share["bins"], *share["shape"][1:]) != (FULL.bins, *FULL.shape[1:]):
        return ""
    return f"{'reached' if share['value'] < TARGET else 'MISSED'} ({TARGET:g})"


def spread(row: Row) -> str:
    value, p20, p80 = (significant(row[key]) for key in ("value", "p20", "p80"))
    return f"{value} ({p20} to {p80})"


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    case, width, rounds = (QUICK, QUICK_WIDTH, QUICK_ROUNDS) if options.quick else (FULL, FULL_WIDTH, ROUNDS)
    if options.threads:
        case = replace(case, threads=options.threads)
    if options.batch:
        case = replace(case, shape=(options.batch, *case.shape[1:]))
    torch.set_num_threads(case.threads)
    made_with = provenance.collect() | {
        "command": shlex.join(["python", "benchmarks/training_step.py", *arguments])
    }
    check_native(made_with, quick=options.quick)
    rows = measured(case, width, options.rounds or rounds)
    print_rows(rows, made_with)
    publish("training-step", made_with, rows, options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="small work; writes nothing without --output")
    add("--batch", type=int, help=f"images of a step, {FULL.shape[0]} by default")
    add("--threads", type=int, help=f"{FULL.threads} by default, with --quick {QUICK.threads}")
    add("--rounds", type=int, help="steps of each side, at least 2")
    add("--output", type=Path, help="where the JSON goes")
    options = parser.parse_args(arguments)
    check_least(parser, options, batch=1, threads=1, rounds=2)
    return options


if __name__ == "__main__":
    restart_with_kept_pages()
    main(sys.argv[1:])
