"""Every way to colour a photo that this project has, trained alike and compared in one table.

All methods get the same grey photos, as many steps and as many images in each. Only DeepHist is told
something of the answer: the histograms of the real photo.

    python examples/compare_colorization.py                         # photos that come with scikit-image
    python examples/compare_colorization.py --only classes,deephist # these families alone
    python examples/compare_colorization.py --data 102flowers/jpg --classifier vgg16
    python examples/compare_colorization.py --list                  # families and methods

Every method has a run of its own in --out: what was stopped goes on, what is finished is not trained again.
The table and a picture for each family, of its methods side by side, go to --out/comparison.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import histloss
from colorization import RECIPE as DEEPHIST
from colorization_classes import RECIPE as CLASSES
from colorization_gan import OBJECTIVES
from colorization_gan import RECIPE as GAN
from shared.cli import Recipe, add_schedule, make_fabric, make_schedule, options_of, train
from shared.comparison import Painted, compare
from shared.data import first_pairs, open_dataset
from shared.deephist import ABLATIONS
from shared.metrics import classify, load_classifier
from shared.options import Options, add_options, declared, flag, given
from shared.training import CHECKPOINT, Trainer
from unpaired_colorization import RECIPE as UNPAIRED

HELD_OUT = 200  # photos to compare, at most
EPOCHS, EMBEDDED_STEPS = 20, 700  # of every method


@dataclass(frozen=True, eq=False)
class Method:
    """A row of the table: what is trained, and how it differs from its recipe."""

    family: str
    name: str
    recipe: Recipe
    options: Mapping[str, Any]

    @property
    def folder(self) -> str:
        return "-".join(
            "".join(c if c.isalnum() else " " for c in f"{self.family} {self.name}").lower().split()
        )


TITLES = {objective: objective.upper() for objective in OBJECTIVES} | {"none": "none"}
FAMILIES: dict[str, tuple[Recipe, dict[str, dict[str, Any]]]] = {
    "deephist": (
        replace(DEEPHIST, name="colorization_lab"),  # with the others' sources: greys by lightness
        {"full": {}, **{name: {"weights": {term: 0.0}} for name, term in ABLATIONS.items()}},
    ),
    "gan": (
        GAN,
        {
            f"{name} + {pixel.upper()}": {"adversarial": objective, "pixel": pixel}
            for objective, name in TITLES.items()
            for pixel in ("l1", "l2")
        },
    ),
    "unconditional": (
        GAN,
        {
            f"{name} + L1": {"adversarial": objective, "conditional": False}
            for objective, name in TITLES.items()
            if objective != "none"
        },
    ),
    "unpaired": (
        UNPAIRED,
        {
            "CUT": {"weights": {"tv": 0.0, "l1": 0.0, "variance": 0.0}},
            "CUT + TV": {"weights": {"l1": 0.0, "variance": 0.0}},
            "CUT + L1": {"weights": {"tv": 0.0, "variance": 0.0}},
            "CUT + variance": {"weights": {"tv": 0.0, "l1": 0.0}},
            "CUT + all three": {},
        },
    ),
    "classes": (
        CLASSES,
        {
            "L2": {"loss": "l2"},
            "classes": {"loss": "classes"},
            "rebalanced": {},
            "rebalanced, one-hot": {"neighbours": 1},
        },
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    methods = [
        Method(family, name, recipe, options)
        for family, (recipe, rows) in FAMILIES.items()
        for name, options in rows.items()
        if family in args.only
    ]
    if args.list:
        for method in methods:
            print(f"{method.family}: {method.name}")
        return
    try:
        classifier = None if args.classifier is None else load_classifier(args.classifier)
        chosen = {method: options_for(method, args) for method in methods}
        common = common_options(chosen)
        folder = None if common.data is None else Path(common.data)
        photos, held_out = (
            open_dataset("colorization_lab", folder, split=split, size=common.size)
            for split in ("train", "val")
        )
        epochs = math.ceil(EPOCHS * len(photos) / common.batch_size)
        args.steps = args.steps or kept_steps(methods, args.out)
        args.steps = args.steps or (EMBEDDED_STEPS if folder is None else epochs)
        pairs = first_pairs(held_out, HELD_OUT)
        labels = None if classifier is None else classify(classifier, pairs.reference)
        fabric = make_fabric(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    painted = []
    for number, (method, options) in enumerate(chosen.items(), start=1):
        fabric.print(f"{number} of {len(methods)}: {method.family}, {method.name}")
        try:
            trainer = Trainer(fabric, method.recipe.system, options, args.out / method.folder)
            schedule = make_schedule(method.recipe, args, [trainer])
        except (ValueError, OSError) as error:
            parser.error(str(error))
        train([trainer], schedule, again="the same command")
        training = {"steps": trainer.step, "seconds": trainer.seconds, "options": asdict(options)}
        painted.append(Painted(method.family, method.name, trainer.paint(*pairs), training))
    if fabric.is_global_zero:
        compare(
            painted,
            *pairs,
            classifier=classifier,
            labels=labels,
            folder=args.out / "comparison",
            provenance={
                "command": shlex.join(["python", *sys.argv]),
                "histloss": histloss.__version__,
                "torch": torch.__version__,
                "device": str(fabric.device),
                "threads": torch.get_num_threads(),
                "processes": fabric.world_size,
            },
        )
        print(f"wrote {args.out / 'comparison'}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--out", type=Path, default=Path("runs/compare_colorization"), help="folder of the runs (%(default)s)"
    )
    add("--only", type=families, default=list(FAMILIES), help=f"some of {','.join(FAMILIES)}")
    add("--list", action="store_true", help="name the methods and do nothing")
    add("--classifier", metavar="FILE", help="of ImageNet: a file of TorchScript or torch.export, or vgg16")
    add_options(parser.add_argument_group("options of every method, kept in the checkpoints"), Options)
    add_schedule(parser, f"of every method ({EPOCHS} epochs; {EMBEDDED_STEPS} steps without --data)")
    return parser


def families(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise argparse.ArgumentTypeError(f"must be some of {','.join(FAMILIES)}, got {unknown[0]!r}")
    return names


def options_for(method: Method, args: argparse.Namespace) -> Options:
    """Those of the method's run in --out, or of a new one."""
    chosen = {**given(args, Options), **method.options}
    kind = method.recipe.system.options_type
    return options_of(method.recipe.name, kind, chosen, args.out / method.folder, goes_on=True)


def common_options(chosen: Mapping[Method, Options]) -> Options:
    """Those of the first method. ValueError where what all share is not the same in another's run."""
    (first, common), *others = chosen.items()
    for method, options in others:
        for name in (field.name for field in declared(Options)):
            ours, theirs = getattr(common, name), getattr(options, name)
            if ours != theirs:
                raise ValueError(
                    f"{flag(name)} must be the same for all methods: "
                    f"it is {ours} in {first.folder} and {theirs} in {method.folder}"
                )
    return common


def kept_steps(methods: Sequence[Method], folder: Path) -> int | None:
    """How long the runs there are to go on. ValueError where that is not the same for all."""
    paths = [folder / method.folder / CHECKPOINT for method in methods]
    kept = {torch.load(path, weights_only=True, mmap=True)["steps"] for path in paths if path.exists()}
    if len(kept) > 1:
        raise ValueError(f"the runs in {folder} have {sorted(kept)} steps: --steps must say how many")
    return next(iter(kept), None)


if __name__ == "__main__":
    main()
