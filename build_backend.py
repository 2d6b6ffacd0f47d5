"""The PEP 517 backend: setuptools', but it fetches PyTorch to compile against only where none is installed.

A plain `requires = ["torch"]` would make every isolated build download PyTorch, gigabytes of it on most
machines, to compile against headers that are usually there already.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "find_torch",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

OLDEST_TORCH = (2, 10)


def find_torch() -> Path | None:
    """The folder of an installed PyTorch that is new enough to compile against, found without importing it.

    In an isolated build the environment that will use the wheel is not on sys.path; sysconfig names it.
    """
    spec = importlib.util.find_spec("torch")
    folders = [
        os.environ.get("HISTLOSS_TORCH_DIR"),
        *(spec.submodule_search_locations or () if spec else ()),
        *(os.path.join(sysconfig.get_path(scheme), "torch") for scheme in ("platlib", "purelib")),
    ]
    return next(
        (Path(folder) for folder in folders if folder and torch_version(folder) >= OLDEST_TORCH), None
    )


def torch_version(folder: str) -> tuple[int, ...]:
    """(major, minor) of the PyTorch in this folder; () if its headers are not there."""
    header = Path(folder, "include", "torch", "headeronly", "version.h")
    if not header.is_file():
        return ()
    numbers = dict(re.findall(r"#define TORCH_VERSION_(MAJOR|MINOR) (\d+)", header.read_text()))
    return int(numbers["MAJOR"]), int(numbers["MINOR"])


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_requirement()


def _torch_requirement() -> list[str]:
    if os.environ.get("HISTLOSS_BUILD") == "0" or find_torch():
        return []
    return [f"torch>={'.'.join(map(str, OLDEST_TORCH))}"]
