"""What the tests of the trainers share: runs at a size that takes seconds, and their checkpoints."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from shared import cli
from shared.cli import Recipe
from shared.training import CHECKPOINT, System

EXAMPLES = Path(cli.__file__).parents[1]
DEEPHIST = ("color_transfer", "colorization", "edges2photo")
COLORIZERS = ("colorization_gan", "unpaired_colorization", "colorization_classes")
TINY = "--size 32 --width 4 --batch-size 2 --workers 0"
MORE = dict.fromkeys(DEEPHIST, "--bins 16 --mi-bins 8")
MORE["unpaired_colorization"] = "--blocks 1 --patches 16"


def tiny(name: str) -> list[str]:
    return f"{TINY} {MORE.get(name, '')}".split()


def run(name: str, out: Path, *options: str) -> None:
    """A trainer's command line."""
    trainer(name, "--out", str(out), *tiny(name), *options)


def trainer(name: str, *argv: str) -> None:
    module = import_module(name)
    module.main(module.RECIPE, argv)


def error(capsys: pytest.CaptureFixture[str], name: str, out: Path, *options: str) -> str:
    """What a run that must not start says."""
    with pytest.raises(SystemExit) as exit_info:
        run(name, out, *options)
    assert exit_info.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def system(of: str | Recipe, **given: Any) -> System:
    """An untrained system on the CPU, as a run has it at first."""
    recipe: Recipe = import_module(of).RECIPE if isinstance(of, str) else of
    options = recipe.system.options_type.complete(
        recipe.name, {"size": 32, "width": 4, "batch_size": 2, **given}
    )
    torch.manual_seed(options.seed)
    return recipe.system(Fabric(accelerator="cpu", devices=1), options)


def state(out: Path) -> dict[str, Any]:
    """All of a checkpoint but the seconds of training, which no two runs share."""
    kept = torch.load(out / CHECKPOINT, weights_only=True)
    del kept["seconds"]
    return kept


def seconds(out: Path) -> float:
    return torch.load(out / CHECKPOINT, weights_only=True)["seconds"]


def flat(value: object) -> list[object]:
    """The leaves of nested dictionaries and lists."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in flat(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def assert_same_bits(a: object, b: object) -> None:
    a, b = flat(a), flat(b)
    assert len(a) == len(b) > 20
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y
