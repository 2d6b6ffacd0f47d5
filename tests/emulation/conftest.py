"""Lets tests import what build.py has compiled, in the variant that HISTLOSS_EMULATION names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

variant = os.environ.get("HISTLOSS_EMULATION", "plain")
sys.path.insert(0, str(Path(__file__).parents[2] / "build" / "emulation" / variant))
