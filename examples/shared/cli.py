"""The command line that the three trainers share: train, resume, apply, evaluate."""

from __future__ import annotations

import argparse
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
from shared.data import first_pairs, to_bytes
from shared.evaluation import FULL, WITHOUT_MI, evaluate
from shared.networks import CODES
from shared.objective import SPACES
from shared.palette import parse_palette
from shared.study import write_study
from shared.training import CHECKPOINT, Options, Schedule, Trainer, code_histogram, load_generator

Defaults = Mapping[str, Any]

FOLDER: Defaults = {  # with --data: the paper's
    "size": 256,
    "bins": 256,
    "mi_bins": 256,
    "width": 64,
    "residual": False,
    "batch_size": 4,
}
EMBEDDED: Defaults = {  # without: minutes on two cores
    "size": 64,
    "bins": 64,
    "mi_bins": 32,
    "width": 32,
    "residual": True,
    "batch_size": 8,
}
BOTH: Defaults = {
    "data": None,
    "direction": "AtoB",
    "color": "yuv",
    "code": "soft",
    "preset": "paper",
    "learning_rate": 2e-4,
    "seed": 0,
}
HELD_OUT = 200  # pairs to compare, at most
ABLATIONS = {WITHOUT_MI: "mi", "without EMD": "emd", "without ADV": "adv"}  # and the term that has no weight


@dataclass(frozen=True)
class Task:
    """What distinguishes one trainer from the others.

    Args:
        name: as open_dataset knows it.
        description: for --help.
        epochs: of the official code, with --data.
        official: weights of the official code that differ from those of DeepHistLoss's preset.
        steps: of the embedded run, without --data.
        weights: of the embedded run with the preset "paper".
        source: what is to be painted, (1, 3, H, W), of a photo that the user wants painted.
    """

    name: str
    description: str
    epochs: int
    steps: int
    official: Mapping[str, float]
    weights: Mapping[str, float]
    source: Callable[[Tensor], Tensor] = lambda photo: photo


def main(task: Task, argv: Sequence[str] | None = None) -> None:
    parser = make_parser(task)
    args = parser.parse_args(argv)
    try:
        if args.apply:
            apply(task, args)
            return
        fabric = make_fabric(args)
        trainers = {FULL: Trainer(fabric, make_options(task, args), args.out)}
        if args.evaluate:
            trainers |= ablations(trainers[FULL])
    except (ValueError, OSError) as error:
        parser.error(str(error))

    for trainer in trainers.values():
        schedule = make_schedule(task, args, trainer)
        trainer.train(schedule)
        if trainer.step < schedule.steps:
            return  # it was interrupted
    if args.evaluate and fabric.is_global_zero:
        compare(trainers, args.out / "evaluation")


def ablations(full: Trainer) -> dict[str, Trainer]:
    """The same run without one of its terms, each in a folder of its own in the full run's."""
    trainers = {}
    for name, term in ABLATIONS.items():
        options = replace(full.options, weights={**full.options.weights, term: 0.0})
        trainers[name] = Trainer(full.fabric, options, full.folder / name.lower().replace(" ", "-"))
    return trainers


def make_schedule(task: Task, args: argparse.Namespace, trainer: Trainer) -> Schedule:
    epoch = len(trainer.datasets["train"]) // trainer.options.batch_size
    steps = task.steps if trainer.options.data is None else task.epochs * epoch
    return Schedule(args.steps or steps, args.workers, args.log_every, args.sample_every, args.save_every)


def make_fabric(args: argparse.Namespace) -> Fabric:
    """Fabric, launched: under torchrun in its processes, else in --devices processes."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", args.devices))
    nodes = int(os.environ.get("WORLD_SIZE", local)) // local
    strategy = "ddp" if local * nodes > 1 else "auto"
    fabric = Fabric(
        accelerator=args.accelerator,
        devices=local,
        num_nodes=nodes,
        strategy=strategy,
        precision=args.precision,
    )
    fabric.launch()
    return fabric


def make_options(task: Task, args: argparse.Namespace) -> Options:
    """The options of the run in --out, or those of a new one."""
    names = [field.name for field in fields(Options)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    saved = args.out / CHECKPOINT
    if saved.exists():
        if not (args.resume or args.evaluate):
            raise ValueError(f"--out {args.out} holds a run already: --resume continues it")
        options = load_generator(saved, task.name)[1]
        for name, value in given.items():
            kept = getattr(options, name)
            if value != kept and not (name == "weights" and kept | value == kept):
                raise ValueError(
                    f"--{name.replace('_', '-')} is {kept} in {saved}, and cannot become {value}"
                )
        return options
    size = EMBEDDED if given.get("data") is None else FOLDER
    chosen = {"task": task.name, **BOTH, **size, **given}
    weights = dict(DeepHistLoss(preset=chosen["preset"]).weights)
    if chosen["preset"] == "official":
        weights.update(task.official)
    elif chosen["data"] is None:
        weights.update(task.weights)
    weights.update(given.get("weights", {}))
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
        },
    )
    real = references if options.conditional else sources
    page = write_study(folder / "study", list(real), list(outputs[FULL]), title=options.task)
    print(f"wrote {folder}; the perceptual study is {page}")


def apply(task: Task, args: argparse.Namespace) -> None:
    """Paint one photo, of any size, with the generator in --out."""
    if (args.reference is None) == (args.palette is None):
        raise ValueError("--apply takes its colours from one of --reference and --palette")
    generator, options = load_generator(args.out / CHECKPOINT, task.name)
    source = task.source(read_photo(args.apply))
    reference = args.palette.image(256) if args.reference is None else args.reference
    torch.manual_seed(options.seed)
    output = generator.recolor(source, code_histogram(reference, options))
    path = args.output or args.out / f"{Path(args.apply).stem}-painted.png"
    Image.fromarray(to_bytes(output[0])).save(path)
    print(f"wrote {path}")


def make_parser(task: Task) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=task.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs") / task.name, help="the run's folder (%(default)s)")

    group = parser.add_argument_group("what to do, beside training")
    add = group.add_argument
    add("--resume", action="store_true", help="go on with the run in --out, if there is one")
    add("--evaluate", action="store_true", help="train without MI, EMD and ADV too, and compare all")
    add("--apply", metavar="PHOTO", help="paint a photo of any size with the run in --out")
    add("--reference", type=read_photo, metavar="PHOTO", help="with --apply: the colours")
    add("--palette", type=parse_palette, help='with --apply: the colours, as in "#b03020:0.6,#203050:0.4"')
    add("--output", type=Path, metavar="PNG", help="with --apply: where it goes (into --out)")

    group = parser.add_argument_group(
        "the run, kept in its checkpoint",
        "In brackets the default with --data, and without where it differs.",
    )

    def option(name: str, text: str, **how: Any) -> None:
        dest = name.replace("-", "_")
        defaults = [str({**BOTH, **of}.get(dest)) for of in (FOLDER, EMBEDDED)]
        text += f" ({', '.join(dict.fromkeys(defaults))})" if dest in {**BOTH, **FOLDER} else ""
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **how)

    option("data", "a folder of images; without, photos that come with scikit-image", type=folder)
    option("direction", "which half, or set, is the source", choices=("AtoB", "BtoA"))
    option("size", "height and width, a power of two", type=count)
    option("color", "colour space of the losses", choices=tuple(SPACES))
    option("bins", "bins of EMD, and of the histograms that the generator is given", type=count)
    option("mi-bins", "bins of MI: few where images are small", type=count)
    option("code", "how the histograms enter the generator", choices=CODES)
    option("residual", "start from the source: keeps its content", action=argparse.BooleanOptionalAction)
    option("width", "channels of the networks' first layers", type=count)
    option("preset", "forms and weights of the losses", choices=("paper", "official"))
    option("weights", 'in place of the preset\'s: "emd=1,mi=10,adv=1"', type=parse_weights)
    option("batch-size", "over all processes", type=count)
    option("learning-rate", "of Adam", type=positive)
    option("seed", "the same seed and number of threads give the same bits on a CPU", type=natural)

    group = parser.add_argument_group("how it runs")
    add = group.add_argument
    add("--steps", type=count, help=f"in all ({task.epochs} epochs; without --data {task.steps} steps)")
    add("--workers", type=natural, default=2, help="processes that read images (%(default)s)")
    add("--accelerator", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    add("--devices", type=count, default=1, help="processes, where torchrun does not say (%(default)s)")
    add("--precision", default="32-true", choices=("32-true", "bf16-mixed"), help="(%(default)s)")
    for what, default in (("log", 10), ("sample", 500), ("save", 500)):
        add(f"--{what}-every", type=count, default=default, metavar="STEPS", help="(%(default)s)")
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
