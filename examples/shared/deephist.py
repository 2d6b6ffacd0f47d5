"""DeepHist: a generator that is told the histograms of a reference and trained by Eq. 18."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

import histloss
from histloss import DCGANLoss, DeepHistLoss
from shared.adversary import Adversary
from shared.arguments import count, read_photo, weights_of
from shared.cli import Recipe, make_fabric, make_options, make_parser, make_schedule, save_painted, train
from shared.data import Kind, first_pairs, read_image
from shared.evaluation import FULL, WITHOUT_MI, evaluate
from shared.networks import CODES, Discriminator, Generator, hard_histogram
from shared.objective import SPACES, Objective, histograms
from shared.options import Options, option
from shared.palette import parse_palette
from shared.study import write_study
from shared.training import System, Trainer, load_system

EMBEDDED_WEIGHTS = {"emd": 1.0, "mi": 4.0, "adv": 0.1}  # of the preset "paper"
OFFICIAL_WEIGHTS = {"colorization": {"emd": 20.0}}  # the authors', not DeepHistLoss's
HELD_OUT = 200  # pairs to compare, at most
STUDY = 50  # images that a person is shown, at most, half of them real
ABLATIONS = {WITHOUT_MI: "mi", "without EMD": "emd", "without ADV": "adv"}  # and the term that has no weight


@dataclass(frozen=True, kw_only=True)
class DeepHistOptions(Options):
    """Bins, colour space, weights and generator. With --data: the paper's."""

    color: str = option("colour space of the losses", "yuv", choices=tuple(SPACES))
    bins: int = option(
        "bins of EMD, and of the histograms that the generator is given", 256, embedded=64, type=count
    )
    mi_bins: int = option("bins of MI: few where images are small", 256, embedded=32, type=count)
    code: str = option("how the histograms enter the generator", "soft", choices=CODES)
    residual: bool = option(
        "paint changes of the source, which keeps its content",
        False,
        embedded=True,
        action=argparse.BooleanOptionalAction,
    )
    preset: str = option(
        "the losses of the paper or of its authors' code", "paper", choices=("paper", "official")
    )
    weights: Mapping[str, float] = option(
        "some or all, in place of the preset's (those of paper are 1; "
        + ",".join(f"{name}={value:g}" for name, value in EMBEDDED_WEIGHTS.items())
        + " without --data)",
        None,
        type=weights_of(*EMBEDDED_WEIGHTS),
    )

    @classmethod
    def complete(cls, task: str, given: Mapping[str, Any]) -> DeepHistOptions:
        options = super().complete(task, given)
        weights = dict(DeepHistLoss(preset=options.preset).weights)
        if options.preset == "official":
            weights.update(OFFICIAL_WEIGHTS.get(task, {}))
        elif options.data is None:
            weights.update(EMBEDDED_WEIGHTS)
        weights.update(given.get("weights", {}))
        if not any(weights.values()):
            raise ValueError("--weights leaves no loss: one of emd, mi and adv must be above 0")
        return replace(options, weights=weights)

    @property
    def conditional(self) -> bool:
        """Whether the discriminator sees the source too: not where the source is its real image."""
        return self.task != "color_transfer"


class DeepHist(System):
    """A U-Net that is told histograms, and a PatchGAN."""

    options_type = DeepHistOptions
    terms = ("total", "emd", "mi", "adv", "discriminator")

    def __init__(self, fabric: Fabric, options: DeepHistOptions) -> None:
        super().__init__(fabric, options)
        generator = Generator(
            options.size,
            bins=options.bins,
            width=options.width,
            code=options.code,
            residual=options.residual,
        )
        self.generator = self.learns("generator", generator)
        discriminator = Discriminator(width=options.width, conditional=options.conditional)
        self.adversary = Adversary(self, discriminator, DCGANLoss())
        self.objective = Objective(
            color=options.color,
            preset=options.preset,
            bins=options.bins,
            mi_bins=options.mi_bins,
            weights=options.weights,
        )

    @property
    def kind(self) -> Kind:
        return self.options.task

    def step(self, source: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """The discriminator learns, then the generator. Without pairs, the source is the real image."""
        options = self.options
        told = self.told(reference)
        soft = options.code == "soft"
        ref_hist = told if soft else histograms(reference, color=options.color, bins=options.bins)
        output = self.generator(source, told)
        learned, scores = output.new_zeros((), dtype=torch.float32), None
        if options.weights["adv"]:
            real, condition = (reference, source) if options.conditional else (source, None)
            learned = self.adversary.learn(real, output, condition)
            scores = self.adversary.scores(output, condition)
        terms = self.objective(output, source, ref_hist, scores)
        self.descend(terms["total"], "generator")
        return {**terms, "discriminator": learned}

    def paint(self, source: Tensor, reference: Tensor) -> Tensor:
        return self.generator.module(source, self.told(reference))

    def told(self, reference: Tensor) -> Tensor:
        """What the generator is told of a reference (B, 3, H, W): histograms of its channels, (B, 3, K)."""
        options = self.options
        if options.code == "counts":
            return hard_histogram(SPACES[options.color].from_rgb(reference), bins=options.bins)
        return histograms(reference, color=options.color, bins=options.bins)


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> None:
    parser = deephist_parser(recipe)
    args = parser.parse_args(argv)
    if not args.apply and (args.reference is not None or args.palette or args.output):
        parser.error("--reference, --palette and --output go with --apply")
    try:
        if args.apply:
            apply(recipe, args)
            return
        options = make_options(recipe, args, goes_on=args.resume or args.evaluate)
        full = Trainer(make_fabric(args), recipe.system, options, args.out)
        trainers = {FULL: full, **(ablations(full) if args.evaluate else {})}
        schedule = make_schedule(recipe, args, list(trainers.values()))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    train(trainers.values(), schedule)
    if args.evaluate and full.fabric.is_global_zero:
        compare(trainers, args.out / "evaluation")


def deephist_parser(recipe: Recipe) -> argparse.ArgumentParser:
    parser, actions, with_apply = make_parser(recipe)
    actions.add_argument(
        "--evaluate",
        action="store_true",
        help="train three more runs, each without one of the losses, and compare, into --out/evaluation",
    )
    add = with_apply.add_argument
    add("--reference", type=read_photo, metavar="PHOTO", help="has the colours")
    add("--palette", type=parse_palette, metavar="COLOURS", help='or these: "#b03020:0.6,navy:0.4"')
    return parser


def ablations(full: Trainer) -> dict[str, Trainer]:
    """The same run without one of its terms, each in a folder of its own in the full run's."""
    trainers = {}
    weights = full.options.weights
    if sum(weight > 0 for weight in weights.values()) < 2:
        raise ValueError(f"--evaluate takes away one loss at a time: {full.folder} has but one")
    for name, term in ABLATIONS.items():
        if weights[term]:
            options = replace(full.options, weights={**weights, term: 0.0})
            folder = full.folder / name.lower().replace(" ", "-")
            trainers[name] = Trainer(full.fabric, type(full.system), options, folder)
    return trainers


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


def apply(recipe: Recipe, args: argparse.Namespace) -> None:
    """Paint one photo, of any size, with the generator in --out."""
    if (args.reference is None) == (args.palette is None):
        raise ValueError("--apply takes its colours from one of --reference and --palette")
    system = load_system(args.out, recipe.name, recipe.system)
    source = recipe.source(read_image(Path(args.apply))[None])
    reference = args.palette.image(256) if args.reference is None else args.reference
    torch.manual_seed(system.options.seed)
    output = system.generator.module.recolor(source, system.told(reference))
    save_painted(output, args)
