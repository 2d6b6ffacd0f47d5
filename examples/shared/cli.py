"""The command line that the trainers share: train, resume, apply."""

from __future__ import annotations

import argparse
import atexit
import gc
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from shared.arguments import count, natural
from shared.data import to_bytes
from shared.options import Options, add_options, given
from shared.training import CHECKPOINT, Schedule, System, Trainer, load_checkpoint

EMBEDDED_STEPS = 1200


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one trainer from the others.

    Args:
        name: of the task.
        description: for --help.
        system: what is trained.
        epochs: how long, with --data; without, EMBEDDED_STEPS.
        source: what is to be painted, (1, 3, H, W), of a photo that the user wants painted.
    """

    name: str
    description: str
    system: type[System]
    epochs: int
    source: Callable[[Tensor], Tensor] = lambda photo: photo


def make_parser(
    recipe: Recipe,
) -> tuple[argparse.ArgumentParser, argparse._ActionsContainer, argparse._ActionsContainer]:
    """The parser, its group of things to do, and its group of what goes with --apply."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=recipe.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs") / recipe.name, help="the run's folder (%(default)s)")

    group = parser.add_argument_group("what to do; without any of these, a new run begins")
    actions = group.add_mutually_exclusive_group()
    actions.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    actions.add_argument("--apply", metavar="PHOTO", help="paint a photo of any size with the run in --out")

    with_apply = parser.add_argument_group("with --apply")
    with_apply.add_argument("--output", type=Path, metavar="PNG", help="where it goes (into --out)")

    group = parser.add_argument_group("the run, kept in its checkpoint")
    add_options(group, recipe.system.options_type)
    steps = f"{recipe.epochs} epochs; {EMBEDDED_STEPS} steps without --data"
    add_schedule(parser, f"in all, also when resumed ({steps})")
    return parser, actions, with_apply


def add_schedule(parser: argparse.ArgumentParser, steps: str) -> None:
    """How runs run: what Fabric and a Schedule are made of."""
    group = parser.add_argument_group("how it runs")
    add = group.add_argument
    add("--steps", type=count, help=steps)
    add("--workers", type=natural, default=2, help="processes that read images (%(default)s)")
    add("--accelerator", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    add("--devices", type=count, default=1, help="processes, where torchrun does not say (%(default)s)")
    add(
        "--precision",
        default="32-true",
        choices=("32-true", "bf16-mixed"),
        help="of the networks (%(default)s)",
    )
    for what, default in (("log", 10), ("sample", 500), ("save", 500)):
        add(f"--{what}-every", type=count, default=default, metavar="STEPS", help="%(default)s")


def make_fabric(args: argparse.Namespace) -> Fabric:
    """Fabric, launched: under torchrun in its processes, else in --devices processes."""
    processes, nodes = args.devices, 1
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun's
        processes = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // processes
    try:
        fabric = Fabric(
            accelerator=args.accelerator,
            devices=processes,
            num_nodes=nodes,
            strategy="ddp" if processes * nodes > 1 else "auto",
            precision=args.precision,
        )
    except RuntimeError as error:  # such as a GPU that is not there
        raise ValueError(f"--accelerator {args.accelerator}: {error}") from error
    fabric.launch()
    if fabric.world_size > 1:
        atexit.register(close_processes)
    return fabric


def close_processes() -> None:
    """Where networks under DDP live on when the interpreter ends, gloo may abort a run that is complete."""
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def make_options(recipe: Recipe, args: argparse.Namespace, *, goes_on: bool) -> Any:
    """The options of the run in --out, or those of a new one."""
    kind = recipe.system.options_type
    return options_of(recipe.name, kind, given(args, kind), args.out, goes_on=goes_on)


def options_of(
    task: str, kind: type[Options], chosen: dict[str, Any], folder: Path, *, goes_on: bool
) -> Options:
    if not (folder / CHECKPOINT).exists():
        return kind.complete(task, chosen)
    if not goes_on:
        raise ValueError(f"--out {folder} holds a run already: --resume continues it")
    options, _ = load_checkpoint(folder, task, kind)
    options.check_given(chosen, folder)
    return options


def make_schedule(recipe: Recipe, args: argparse.Namespace, trainers: Sequence[Trainer]) -> Schedule:
    """The same for all of them: --steps, or those of the first run, which goes on, or its recipe's."""
    first = trainers[0]
    epochs = math.ceil(recipe.epochs * len(first.datasets["train"]) / first.options.batch_size)
    steps = args.steps or first.steps or (EMBEDDED_STEPS if first.options.data is None else epochs)
    for trainer in trainers:
        if steps < trainer.step:
            raise ValueError(f"--steps {steps} is less than {trainer.folder} has, {trainer.step}")
    return Schedule(steps, args.workers, args.log_every, args.sample_every, args.save_every)


def train(trainers: Iterable[Trainer], schedule: Schedule, again: str = "--resume") -> None:
    """Train one after the other. A signal ends the process, after saving; `again` is what goes on."""
    for trainer in trainers:
        finished = trainer.train(schedule)
        trainer.fabric.print(f"{trainer.folder}: {CHECKPOINT}, losses.png and samples at step {trainer.step}")
        if not finished:
            sys.exit(f"stopped by a signal before step {schedule.steps}: {again} goes on")


def save_painted(output: Tensor, args: argparse.Namespace) -> None:
    """Write what --apply has painted, (1, 3, H, W)."""
    path = args.output or args.out / f"{Path(args.apply).stem}-painted.png"
    Image.fromarray(to_bytes(output[0])).save(path)
    print(f"wrote {path}")
