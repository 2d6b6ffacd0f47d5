"""Where and with what a measurement was made."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import histloss
from sides import SIDES
from work import PHOTO

ROOT = Path(__file__).resolve().parent.parent


def collect(device: str = "cpu") -> dict[str, Any]:
    on_gpu = _gpu() if device == "cuda" else {}
    return _common() | on_gpu


def _common() -> dict[str, Any]:
    library = histloss.backend_info()["cpu"]
    return {
        "version": histloss.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results")),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "native": library["loaded"],
        "simd": library["simd"],
        "compiler": library["compiler"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "malloc": os.environ.get("GLIBC_TUNABLES", "default"),
        "libc": " ".join(platform.libc_ver()),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": _cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "packages": {
            side.package: metadata.version(side.package)
            for side in SIDES.values()
            if side.package and side.installed
        },
        "photo": PHOTO,
    }


def _gpu() -> dict[str, Any]:
    """The GPU, its clocks and limits before the run, and the CUDA versions of everything involved."""
    library = histloss.backend_info()["cuda"]
    fields = [
        *("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem"),
        *("power.limit", "temperature.gpu", "utilization.gpu", "persistence_mode", "ecc.mode.current"),
    ]
    return {
        "native": library["loaded"],
        "architectures": library["architectures"],
        "compiler": library["compiler"],
        "runtime": library["runtime"],
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "multiprocessors": torch.cuda.get_device_properties().multi_processor_count,
        "memory": torch.cuda.get_device_properties().total_memory,
        "cuda": torch.version.cuda,
        "nvidia_smi": dict(zip(fields, _nvidia_smi(fields), strict=False)),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def _nvidia_smi(fields: list[str]) -> list[str]:
    """What the driver says of the current GPU; nothing where there is no nvidia-smi."""
    gpu = str(torch.cuda.get_device_properties().uuid)
    query = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader", f"--id=GPU-{gpu}"]
    try:
        done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True)
    except FileNotFoundError:
        return []
    return [field.strip() for field in done.stdout.split(",")] if done.returncode == 0 else []


def _git(*arguments: str) -> str | None:
    """What git prints, or None where there is no repository or no commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
