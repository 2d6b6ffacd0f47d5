"""examples/shared/options.py: declared once, completed, parsed, and compared with those of a run."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path

import pytest

from shared.arguments import count, positive
from shared.options import Options, add_options, given, option
from trainers import COLORIZERS, DEEPHIST, trainer


@dataclass(frozen=True, kw_only=True)
class Sample(Options):
    depth: int = option("of a well", 9, embedded=3, type=count)
    scale: float | None = option("of a map", None, type=positive)
    weights: Mapping[str, float] = option("of terms", None)
    open: bool = option("the door", True, action=argparse.BooleanOptionalAction)
    kind: str = option("of lock", "none", choices=("none", "key", "code"))
    digits: int = option("of the code", 4, only={"kind": ("code",)}, type=count)


def parse(*argv: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_options(parser.add_argument_group(), Sample)
    return given(parser.parse_args(argv), Sample)


def test_only_what_is_given_is_given() -> None:
    assert parse() == {}
    assert parse("--depth", "3", "--no-open", "--learning-rate", "0.1") == {
        "depth": 3,
        "open": False,
        "learning_rate": 0.1,
    }


def test_a_folder_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("--data", "photos") == {"data": str(tmp_path.resolve() / "photos")}


@pytest.mark.parametrize(("data", "size", "width", "depth"), [(None, 64, 32, 3), ("/photos", 256, 64, 9)])
def test_complete(data: str | None, size: int, width: int, depth: int) -> None:
    """The defaults depend on whether there are photos of one's own; what is given stays."""
    options = Sample.complete("task", {"data": data, "seed": 7, "open": False})
    assert (options.size, options.width, options.depth) == (size, width, depth)
    assert (options.task, options.data, options.seed, options.open) == ("task", data, 7, False)
    assert (options.scale, options.batch_size) == (None, 4)
    assert Sample.complete("task", {"data": data, "depth": 5}).depth == 5


def test_an_option_that_would_say_nothing() -> None:
    assert Sample.complete("task", {"kind": "code", "digits": 6}).digits == 6
    assert Sample.complete("task", {"kind": "key"}).digits == 4
    with pytest.raises(ValueError, match="--digits goes with --kind code"):
        Sample.complete("task", {"kind": "key", "digits": 6})


def test_check_given() -> None:
    """Some of the weights of a run are no change, nor is what it has."""
    options = Sample.complete("task", {"weights": {"a": 1.0, "b": 2.0}})
    options.check_given({"weights": {"b": 2.0}, "depth": 3, "batch_size": 4}, Path("run"))
    for changed, message in (
        ({"weights": {"b": 3.0}}, "--weights is {'a': 1.0, 'b': 2.0} in the run in run, and cannot become"),
        ({"weights": {"c": 0.0}}, "--weights"),
        ({"batch_size": 8}, "--batch-size is 4 in the run in run, and cannot become 8"),
        ({"data": "/photos"}, "--data is None"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            options.check_given(changed, Path("run"))


@pytest.mark.parametrize("name", [*DEEPHIST, *COLORIZERS])
def test_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """It names every option, and both defaults where there are two."""
    with pytest.raises(SystemExit):
        trainer(name, "--help")
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(import_module(name).RECIPE.system.options_type):
        if field.metadata:
            assert "--" + field.name.replace("_", "-") in text
    assert "height and width, a power of two (256; 64 without --data)" in text
    assert "200 epochs; 1200 steps without --data" in text or name in ("color_transfer", "edges2photo")
