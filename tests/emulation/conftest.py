"""Lets tests import what build.py has compiled, in the variant that HISTLOSS_EMULATION names, and leaves out
tests that are marked for other variants.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

variant = os.environ.get("HISTLOSS_EMULATION", "plain")
sys.path.insert(0, str(Path(__file__).parents[2] / "build" / "emulation" / variant))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "variants(*names): a test of these variants, not of the others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = [item for item in items if (m := item.get_closest_marker("variants")) and variant not in m.args]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]
