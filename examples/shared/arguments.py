"""Types of command line arguments, whose errors argparse shows."""

from __future__ import annotations

import argparse
import math
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


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value
