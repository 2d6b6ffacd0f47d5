"""Types of command line arguments, whose errors argparse shows."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from shared.data import read_image


def read_photo(path: str) -> Tensor:
    """A photo as RGB in [-1, 1], shape (1, 3, H, W), as read_image reads it."""
    try:
        return read_image(Path(path))[None]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def natural(text: str, least: int = 0) -> int:
    if not text.isdecimal() or not least <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least {least}, got {text!r}")
    return int(text)


def count(text: str) -> int:
    return natural(text, least=1)


def side(text: str) -> int:
    """Of images that networks halve: a power of two, at least 32."""
    value = natural(text)
    if value < 32 or value & (value - 1):
        raise argparse.ArgumentTypeError(f"must be a power of two, at least 32, got {text!r}")
    return value


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def weights_of(*names: str) -> Callable[[str], dict[str, float]]:
    """Weights of a sum's terms, as "emd=1,mi=10": some or all of the names, none of them negative."""

    def parse(text: str) -> dict[str, float]:
        weights = {}
        for part in text.split(","):
            name, _, number = part.partition("=")
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if name.strip() not in names or not 0 <= value < math.inf:
                raise argparse.ArgumentTypeError(
                    f'must be as "{names[0]}=1,{names[1]}=0.5", of {", ".join(names)}, got {text!r}'
                )
            weights[name.strip()] = value
        return weights

    return parse
