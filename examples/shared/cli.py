"""The command line that the three trainers share: train, resume, apply, evaluate."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

import histloss
from histloss import DeepHistLoss
from shared.arguments import count, natural, positive, read_photo
from shared.data import first_pairs, read_image, to_bytes
from shared.evaluation import FULL, WITHOUT_MI, evaluate
from shared.networks import CODES
from shared.objective import SPACES
from shared.palette import parse_palette
from shared.study import write_study
from shared.training import (
    CHECKPOINT,
    Options,
    Schedule,
    Trainer,
    code_histogram,
    load_generator,
    load_options,
)

FOLDER: dict[str, Any] = {  # with --data: the paper's
    "size": 256,
    "bins": 256,
    "mi_bins": 256,
    "width": 64,
    "residual": False,
}
EMBEDDED: dict[str, Any] = {  # without: minutes on two cores
    "size": 64,
    "bins": 64,
    "mi_bins": 32,
    "width": 32,
    "residual": True,
}
BOTH: dict[str, Any] = {
    "data": None,
    "direction": "AtoB",
    "color": "yuv",
    "code": "soft",
    "preset": "paper",
    "batch_size": 4,
    "learning_rate": 2e-4,
    "seed": 0,
}
EMBEDDED_WEIGHTS = {"emd": 1.0, "mi": 4.0, "adv": 0.1}  # of the preset "paper"
EMBEDDED_STEPS = 1200
HELD_OUT = 200  # pairs to compare, at most
STUDY = 50  # images that a person is shown, at most, half of them real
ABLATIONS = {WITHOUT_MI: "mi", "without EMD": "emd", "without ADV": "adv"}  # and the term that has no weight


@dataclass(frozen=True)
class Task:
    """What distinguishes one trainer from the others.

    Args:
        name: as open_dataset knows it.
        description: for --help.
        epochs: of the official code, with --data.
        official: weights of the official code that differ from those of DeepHistLoss's preset.
        source: what is to be painted, (1, 3, H, W), of a photo that the user wants painted.
    """

    name: str
    description: str
    epochs: int
    official: Mapping[str, float]
    source: Callable[[Tensor], Tensor] = lambda photo: photo


def main(task: Task, argv: Sequence[str] | None = None) -> None:
    parser = make_parser(task)
    args = parser.parse_args(argv)
    if not args.apply and (args.reference is not None or args.palette or args.output):
        parser.error("--reference, --palette and --output go with --apply")
    try:
        if args.apply:
            apply(task, args)
            return
        fabric = make_fabric(args)
        full = Trainer(fabric, make_options(task, args), args.out)
        trainers = {FULL: full, **(ablations(full) if args.evaluate else {})}
        schedule = make_schedule(task, args, trainers)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    for trainer in trainers.values():
        finished = trainer.train(schedule)
        fabric.print(f"{trainer.folder}: {CHECKPOINT}, losses.png and samples at step {trainer.step}")
        if not finished:
            sys.exit(f"stopped by a signal before step {schedule.steps}: --resume goes on")
    if args.evaluate and fabric.is_global_zero:
        compare(trainers, args.out / "evaluation")


def ablations(full: Trainer) -> dict[str, Trainer]:
    """The same run without one of its terms, each in a folder of its own in the full run's."""
    trainers = {}
    weights = full.options.weights
    if sum(weight > 0 for weight in weights.values()) < 2:
        raise ValueError(f"--evaluate takes away one loss at a time: {full.folder} has but one")
    for name, term in ABLATIONS.items():
        if weights[term]:
            options = replace(full.options, weights={**weights, term: 0.0})
            trainers[name] = Trainer(full.fabric, options, full.folder / name.lower().replace(" ", "-"))
    return trainers


def make_schedule(task: Task, args: argparse.Namespace, trainers: Mapping[str, Trainer]) -> Schedule:
    """The same for all of them: --steps, or those of the full run that goes on, or of the task."""
    full = trainers[FULL]
    images = task.epochs * len(full.datasets["train"])
    epochs = math.ceil(images / full.options.batch_size)
    steps = args.steps or full.steps or (EMBEDDED_STEPS if full.options.data is None else epochs)
    for trainer in trainers.values():
        if steps < trainer.step:
            raise ValueError(f"--steps {steps} is less than {trainer.folder} has, {trainer.step}")
    return Schedule(steps, args.workers, args.log_every, args.sample_every, args.save_every)


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
    return fabric


def make_options(task: Task, args: argparse.Namespace) -> Options:
    """The options of the run in --out, or those of a new one."""
    names = [field.name for field in fields(Options)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if (args.out / CHECKPOINT).exists():
        if not (args.resume or args.evaluate):
            raise ValueError(f"--out {args.out} holds a run already: --resume continues it")
        options, _ = load_options(args.out, task.name)
        for name, value in given.items():
            kept = getattr(options, name)
            if value != kept and not (name == "weights" and kept | value == kept):
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {kept} in the run in {args.out}, and cannot become {value}")
        return options
    embedded = given.get("data") is None
    chosen = {"task": task.name, **BOTH, **(EMBEDDED if embedded else FOLDER), **given}
    weights = dict(DeepHistLoss(preset=chosen["preset"]).weights)
    if chosen["preset"] == "official":
        weights.update(task.official)
    elif embedded:
        weights.update(EMBEDDED_WEIGHTS)
    weights.update(given.get("weights", {}))
    if not any(weights.values()):
        raise ValueError("--weights leaves no loss: one of emd, mi and adv must be above 0")
    return Options(**chosen | {"weights": weights})


def compare(runs: Mapping[str, Trainer], folder: Path) -> None:
    """Tables and pictures of the outputs for held-out pairs, and the full run's perceptual study."""
    full = runs[FULL]
    options = full.options
    sources, references = first_pairs(full.datasets["val"], HELD_OUT)
    outputs = {name: run.paint(sources, references) for name, run in runs.items()}
    evaluate(
        outputs,
        sources,
        references,
        paired=options.conditional,
        color=options.color,
        bins=options.bins,
        mi_bins=options.mi_bins,
        folder=folder,
        task=options.task,
        provenance={
            "command": shlex.join(["python", *sys.argv]),
            "steps": {name: run.step for name, run in runs.items()},
            "options": asdict(options),
            "histloss": histloss.__version__,
            "torch": torch.__version__,
            "device": str(full.fabric.device),
            "processes": full.fabric.world_size,
        },
    )
    real = references if options.conditional else sources
    title = "Real or painted: " + options.task.replace("_", " ")
    half = max(min(STUDY, len(real)) // 2, 1)  # each pair is shown but once
    page = write_study(folder / "study", real[:half], outputs[FULL][-half:], title=title)
    print(f"wrote {folder}; the perceptual study is {page}")


def apply(task: Task, args: argparse.Namespace) -> None:
    """Paint one photo, of any size, with the generator in --out."""
    if (args.reference is None) == (args.palette is None):
        raise ValueError("--apply takes its colours from one of --reference and --palette")
    generator, options = load_generator(args.out, task.name)
    source = task.source(read_image(Path(args.apply))[None])
    reference = args.palette.image(256) if args.reference is None else args.reference
    torch.manual_seed(options.seed)
    output = generator.recolor(source, code_histogram(reference, options))
    path = args.output or args.out / f"{Path(args.apply).stem}-painted.png"
    Image.fromarray(to_bytes(output[0])).save(path)
    print(f"wrote {path}")


def make_parser(task: Task) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=task.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs") / task.name, help="the run's folder (%(default)s)")

    group = parser.add_argument_group("what to do; without any of these, a new run begins")
    add = group.add_mutually_exclusive_group().add_argument
    add("--resume", action="store_true", help="go on with the run in --out, if there is one")
    add(
        "--evaluate",
        action="store_true",
        help="train three more runs, each without one of the losses, and compare, into --out/evaluation",
    )
    add("--apply", metavar="PHOTO", help="paint a photo of any size with the run in --out")

    group = parser.add_argument_group("with --apply")
    add = group.add_argument
    add("--reference", type=read_photo, metavar="PHOTO", help="has the colours")
    add("--palette", type=parse_palette, metavar="COLOURS", help='or these: "#b03020:0.6,navy:0.4"')
    add("--output", type=Path, metavar="PNG", help="where it goes (into --out)")

    group = parser.add_argument_group("the run, kept in its checkpoint")

    def option(name: str, text: str, **how: Any) -> None:
        values = [(BOTH | size).get(name.replace("-", "_")) for size in (FOLDER, EMBEDDED)]
        with_data, without = values
        other = f"; {without} without --data" if without != with_data else ""
        text += f" ({with_data}{other})" if with_data is not None else ""
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **how)

    layouts = "images, trainA trainB testA testB, or train and val of pairs side by side"
    option("data", f"a folder of {layouts}; without, photos that come with scikit-image", type=folder)
    option("direction", "which half, or set, is the source", choices=("AtoB", "BtoA"))
    option("size", "height and width, a power of two", type=count)
    option("color", "colour space of the losses", choices=tuple(SPACES))
    option("bins", "bins of EMD, and of the histograms that the generator is given", type=count)
    option("mi-bins", "bins of MI: few where images are small", type=count)
    option("code", "how the histograms enter the generator", choices=CODES)
    option(
        "residual",
        "paint changes of the source, which keeps its content",
        action=argparse.BooleanOptionalAction,
    )
    option("width", "channels of the networks' first layers: fewer train faster", type=count)
    option("preset", "the losses of the paper or of its authors' code", choices=("paper", "official"))
    weights = ",".join(f"{name}={value:g}" for name, value in EMBEDDED_WEIGHTS.items())
    option(
        "weights",
        f"some or all, in place of the preset's (those of paper are 1; {weights} without --data)",
        type=parse_weights,
    )
    option("batch-size", "images in a step, over all processes", type=count)
    option("learning-rate", "of Adam", type=positive)
    option("seed", "the same seed and number of threads give the same bits on a CPU", type=natural)

    group = parser.add_argument_group("how it runs")
    add = group.add_argument
    steps = f"{task.epochs} epochs; {EMBEDDED_STEPS} steps without --data"
    add("--steps", type=count, help=f"in all, also when resumed ({steps})")
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
    return parser


def folder(text: str) -> str:
    """An absolute path, which means the same when the run is resumed elsewhere."""
    return str(Path(text).resolve())


def parse_weights(text: str) -> dict[str, float]:
    weights = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
            DeepHistLoss(weights)  # knows the names and what a weight may be
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f'must be as "emd=1,mi=10,adv=1", got {text!r}: {error}'
            ) from error
    return weights
