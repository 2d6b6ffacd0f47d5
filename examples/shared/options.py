"""What makes a run the run it is, declared once: as fields, command line options and their defaults."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from shared.arguments import count, natural, positive, side

SAME = object()
SomeOptions = TypeVar("SomeOptions", bound="Options")


def option(
    text: str,
    default: Any,
    *,
    embedded: Any = SAME,
    only: Mapping[str, tuple[Any, ...]] | None = None,
    **how: Any,
) -> Any:
    """A field that is an option of the command line.

    Args:
        text: its help.
        default: its value where a run does not say.
        embedded: the same, without --data.
        only: the values of other options with which it says something.
        how: what argparse is to know: type, choices, action.
    """
    embedded = default if embedded is SAME else embedded
    return field(
        metadata={"help": text, "default": default, "embedded": embedded, "only": only or {}, "how": how}
    )


def absolute(text: str) -> str:
    """A path that means the same when the run is resumed elsewhere."""
    return str(Path(text).resolve())


@dataclass(frozen=True, kw_only=True)
class Options:
    """Those of every run. Kept in its checkpoint."""

    task: str
    data: str | None = option(
        "a folder of images, of trainA trainB testA testB or, for edges2photo, of train and val of pairs "
        "side by side; without, photos that come with scikit-image",
        None,
        type=absolute,
    )
    direction: str = option(
        "of pairs, or two sets for unpaired training: which is the source", "AtoB", choices=("AtoB", "BtoA")
    )
    size: int = option("height and width, a power of two", 256, embedded=64, type=side)
    width: int = option(
        "channels of the networks' first layers: fewer train faster", 64, embedded=32, type=count
    )
    batch_size: int = option("images in a step, over all processes", 4, type=count)
    learning_rate: float = option("of the optimizers, at first", 2e-4, type=positive)
    seed: int = option("the same seed and number of threads give the same bits on a CPU", 0, type=natural)

    @classmethod
    def complete(cls: type[SomeOptions], task: str, given: Mapping[str, Any]) -> SomeOptions:
        """The options of a new run: those that are given, and the defaults.

        Raises:
            ValueError: they do not fit together.
        """
        defaults = "embedded" if given.get("data") is None else "default"
        options = cls(**{"task": task, **{f.name: f.metadata[defaults] for f in declared(cls)}, **given})
        for f in declared(cls):
            for name, values in f.metadata["only"].items():
                if f.name in given and getattr(options, name) not in values:
                    raise ValueError(f"{flag(f.name)} goes with {flag(name)} {' or '.join(values)}")
        return options

    def check_given(self, given: Mapping[str, Any], folder: Path) -> None:
        """ValueError where the run in a folder, which is to go on, is given other options than its own."""
        for name, value in given.items():
            kept = getattr(self, name)
            part = isinstance(kept, dict) and kept | value == kept
            if value != kept and not part:
                raise ValueError(f"{flag(name)} is {kept} in the run in {folder}, and cannot become {value}")


def flag(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


def declared(kind: type[Options]) -> list[Field[Any]]:
    """The fields that are options of the command line."""
    return [f for f in fields(kind) if f.metadata]


def add_options(parser: argparse._ArgumentGroup, kind: type[Options]) -> None:
    """Those of a kind of run. One that is not given is not in the namespace."""
    for f in declared(kind):
        with_data, without = f.metadata["default"], f.metadata["embedded"]
        other = f"; {without} without --data" if without != with_data else ""
        text = f.metadata["help"] + (f" ({with_data}{other})" if with_data is not None else "")
        parser.add_argument(flag(f.name), default=argparse.SUPPRESS, help=text, **f.metadata["how"])


def given(args: argparse.Namespace, kind: type[Options]) -> dict[str, Any]:
    """The options of the command line that were given."""
    return {f.name: getattr(args, f.name) for f in declared(kind) if hasattr(args, f.name)}
