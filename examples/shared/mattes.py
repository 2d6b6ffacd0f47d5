"""SimpleITK's registration by Mattes mutual information, and histloss beside it on the same pairs of scans.

SimpleITK is given what serves it best of what was tried: see examples/RESULTS.md.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor
from tqdm import tqdm

import histloss
from shared.evaluation import table
from shared.phantom import Scans, draw_transform, scan_pair
from shared.registration import Settings, Volume, distances, identity, register

SHRINK, SMOOTHING = (4, 2, 1), (2.0, 1.0, 0.0)  # SimpleITK's pyramid: factors, and sigmas in voxels
Run = Callable[[Scans], Tensor]  # the transform that a side finds
Row = dict[str, Any]


@dataclass(frozen=True)
class Mattes:
    """How SimpleITK searches.

    Args:
        optimizer: "descent", "lbfgs" or "lbfgsb".
        sampling: fraction of the voxels that are used, for each level, from coarse to fine.
        iterations: on a level, at most.
        least: step of a descent, in voxels; a shorter one ends a level.
        random: whether these voxels are drawn at random, or at a regular distance.
    """

    optimizer: str
    sampling: tuple[float, float, float]
    iterations: int = 300
    least: float = 1e-4
    random: bool = False


@dataclass(frozen=True)
class Side:
    name: str
    settings: Settings | Mattes


def sides(settings: Settings) -> list[Side]:
    """The first is histloss as it was asked for; SimpleITK's have its transform and number of bins."""
    variants: dict[str, dict[str, Any]] = {
        "5% of the voxels": {"sampling": 0.05},
        "50% of the voxels": {"sampling": 0.5},
        "plain MI": {"measure": "mi"},
        "kernel sigmoid": {"kernel": "sigmoid"},
        "parameters not scaled": {"scaled": False},
    }
    peers = {
        "gradient descent": Mattes("descent", (1.0, 0.2, 0.1)),
        "gradient descent, 5%": Mattes("descent", (1.0, 0.1, 0.05)),
        "gradient descent, 20%": Mattes("descent", (1.0, 0.8, 0.2)),
        "hasty descent": Mattes("descent", (1.0, 0.2, 0.1), iterations=150, least=1e-3),
        "hasty descent, 5%": Mattes("descent", (1.0, 0.1, 0.05), iterations=150, least=1e-3),
        "L-BFGS": Mattes("lbfgs", (1.0, 0.2, 0.1)),
        "L-BFGS, 5%": Mattes("lbfgs", (1.0, 0.1, 0.05), random=True),
        "L-BFGS, 2%": Mattes("lbfgs", (0.5, 0.05, 0.02), random=True),
        "L-BFGS-B": Mattes("lbfgsb", (1.0, 0.2, 0.1), random=True),
    }
    return [
        Side("histloss", settings),
        *(Side(f"histloss, {name}", replace(settings, **changed)) for name, changed in variants.items()),
        *(Side(f"SimpleITK, {name}", own) for name, own in peers.items()),
    ]


def runner(side: Side, settings: Settings) -> Run:
    if isinstance(side.settings, Mattes):
        own = side.settings
        return lambda scans: mattes(scans, own, settings)
    asked = side.settings
    return lambda scans: (
        register(Volume(scans.fixed, identity()), Volume(scans.moving, identity()), asked).matrix
    )


def mattes(scans: Scans, own: Mattes, settings: Settings) -> Tensor:
    """The transform (3, 4) from voxels of the fixed scan to voxels of the moving one."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
    # In a world of side 2 about 0, parameters are of one size: L-BFGS-B has no scales for them.
    unit = 1.0 if own.optimizer == "descent" else 2 / max(scans.fixed.shape)
    images = []
    for values in (scans.fixed, scans.moving):
        image = sitk.GetImageFromArray(values.numpy())
        image.SetSpacing([unit] * 3)
        image.SetOrigin([-unit * (side - 1) / 2 for side in reversed(values.shape)])
        images.append(image)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(settings.bins)
    method.SetMetricSamplingStrategy(method.RANDOM if own.random else method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel(own.sampling, settings.seed + 1)  # 0 would be the clock
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricUseFixedImageGradientFilter(
        False
    )  # faster, and closer too, than slopes of smoothed images
    method.SetMetricUseMovingImageGradientFilter(False)
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel(SMOOTHING)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    if own.optimizer == "descent":
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=4.0,
            minStep=own.least,
            numberOfIterations=own.iterations,
            relaxationFactor=0.8,
            gradientMagnitudeTolerance=1e-8,
        )
        method.SetOptimizerScalesFromPhysicalShift()
    elif own.optimizer == "lbfgsb":
        method.SetOptimizerAsLBFGSB(gradientConvergenceTolerance=1e-6, numberOfIterations=own.iterations)
    else:
        method.SetOptimizerAsLBFGS2(
            solutionAccuracy=1e-7, numberOfIterations=own.iterations, deltaConvergenceTolerance=1e-7
        )
    transform = sitk.AffineTransform(3) if settings.transform == "affine" else sitk.Euler3DTransform()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(*images)
    linear = torch.tensor(transform.GetMatrix(), dtype=torch.float64).view(3, 3).flip(0, 1)
    shift = torch.tensor(transform.GetTranslation(), dtype=torch.float64).flip(0) / unit
    middles = [(torch.tensor(values.shape, dtype=torch.float64) - 1) / 2 for values in scans[:2]]
    return torch.cat([linear, (middles[1] + shift - linear @ middles[0])[:, None]], dim=1)


def errors(scans: Scans, matrix: Tensor, truth: Tensor) -> dict[str, float]:
    """Of a transform in voxels: the mean and the largest over the head."""
    apart = distances(scans.foreground.nonzero().double(), matrix, truth)
    return {"mean": apart.mean().item(), "max": apart.max().item()}


# ---- the comparison


def compare(settings: Settings, size: int, pairs: int) -> list[Row]:
    """Seconds and errors of every side on every pair. The sides take turns; a first, small pair warms up."""
    chosen = sides(settings)
    small, _ = make_pair(settings, 32)
    for side in chosen:
        runner(side, settings)(small)
    rows = []
    progress = tqdm(total=pairs * len(chosen), desc="comparison")
    for seed in range(settings.seed, settings.seed + pairs):
        scans, truth = make_pair(replace(settings, seed=seed), size)
        before = errors(scans, identity(), truth)
        for side in chosen:
            progress.set_postfix_str(side.name)
            start = perf_counter()
            try:
                matrix = runner(side, replace(settings, seed=seed))(scans)
            except RuntimeError as error:  # SimpleITK's, when its search has left the image
                found: Row = {"mean": None, "max": None, "why": str(error).strip().splitlines()[-1]}
            else:
                found = errors(scans, matrix, truth)
            seconds = perf_counter() - start
            rows.append(
                {"seed": seed, "side": side.name, "seconds": seconds, **found, "before": before["mean"]}
            )
            progress.update()
    progress.close()
    return rows


def make_pair(settings: Settings, size: int) -> tuple[Scans, Tensor]:
    truth = draw_transform(settings.transform, size, settings.seed)
    return scan_pair(size, truth, seed=settings.seed), truth


def peak_memory(name: str, settings: Settings, size: int) -> float | None:
    """Megabytes that a side takes at most, beyond the scans and what a registration of small ones left.

    For a process of its own; None where the system does not tell.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    run = runner(next(side for side in sides(settings) if side.name == name), settings)
    small, _ = make_pair(settings, 32)
    run(small)
    scans, _ = make_pair(settings, size)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc: gives what is free back to the system
    if trim:
        trim(0)
    reset.write_text("5")
    before = _kilobytes(status, "VmRSS")
    run(scans)
    return (_kilobytes(status, "VmHWM") - before) / 1e3


def _kilobytes(status: Path, field: str) -> float:
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return 1.024 * int(line.split()[1])


def summary(rows: Sequence[Row], memory: Mapping[str, float | None]) -> list[Row]:
    """A row for each side: medians over the pairs, and how it stands to the first side, pair by pair."""
    names = list(dict.fromkeys(row["side"] for row in rows))
    of = {name: [row for row in rows if row["side"] == name] for name in names}
    ours = of[names[0]]
    result = []
    for name in names:
        found = [row for row in of[name] if row["mean"] is not None]
        beaten = [
            a["seconds"] <= b["seconds"] and (b["mean"] is None or a["mean"] <= b["mean"])
            for a, b in zip(ours, of[name], strict=True)
        ]
        result.append(
            {
                "side": name,
                "seconds": statistics.median(row["seconds"] for row in of[name]),
                "times": statistics.median(
                    b["seconds"] / a["seconds"] for a, b in zip(ours, of[name], strict=True)
                ),
                "mean": statistics.median(row["mean"] for row in found) if found else None,
                "worst": max(row["mean"] for row in found) if found else None,
                "max": statistics.median(row["max"] for row in found) if found else None,
                "failed": len(of[name]) - len(found),
                "beaten": sum(beaten) if name != names[0] else None,
                "megabytes": memory.get(name),
            }
        )
    return result


HEADER = ("", "seconds", "times histloss", "error", "worst", "largest", "histloss wins", "memory, MB")


def format_table(report: Mapping[str, Any]) -> str:
    """The summary of a report as Markdown, and what to see in it."""
    rows, pairs = report["summary"], report["pairs"]
    cells = [
        [
            row["side"] + (f" ({row['failed']} failed)" if row["failed"] else ""),
            f"{row['seconds']:.2f}",
            f"{row['times']:.1f}",
            *(_voxels(row[key]) for key in ("mean", "worst", "max")),
            "" if row["beaten"] is None else f"{row['beaten']} of {pairs}",
            "-" if row["megabytes"] is None else f"{row['megabytes']:.0f}",
        ]
        for row in rows
    ]
    ours = rows[0]
    peers = [row for row in rows if row["side"].startswith("SimpleITK") and row["mean"] is not None]
    closest, fastest = (min(peers, key=lambda row: row[key]) for key in ("mean", "seconds"))
    return (
        f"{table(HEADER, cells)}\n\n"
        f"Medians over {pairs} pairs of {report['size']}³ voxels. Error: the mean distance to the truth over "
        "the head, in voxels; worst: of all pairs; largest: of any voxel. histloss wins a pair when it is as "
        "fast and as close or better. Memory: the peak beyond the scans.\n\n"
        f"{closest['side']}, comes closest of SimpleITK's: {closest['mean']:.2f} voxels in "
        f"{closest['seconds']:.2f} s. {fastest['side']}, is its fastest: {fastest['mean']:.2f} voxels in "
        f"{fastest['seconds']:.2f} s. histloss is within {ours['mean']:.2f} voxels in "
        f"{ours['seconds']:.2f} s.\n"
    )


def fill_in(page: str, report: Mapping[str, Any]) -> str:
    """A page of Markdown with the report's table between the comments that name its transform."""
    name, made_with = report["settings"]["transform"], report["provenance"]
    threads = f"{made_with['threads']} thread{'s' if made_with['threads'] > 1 else ''}"
    table_and_source = (
        f"{format_table(report)}\n`{made_with['command']}`, {threads} of an {made_with['cpu']}, "
        f"SimpleITK {made_with['SimpleITK'].split()[0]}: [data](results/register3d/{name}.json).\n"
    )
    before, rest = page.split(f"<!-- {name} -->\n")
    _, after = rest.split(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n{table_and_source}<!-- /{name} -->{after}"


def _voxels(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def draw_times(rows: Sequence[Row]) -> Figure:
    """Error over time: a dot for each pair, a large one for each side's medians."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["side"] for row in rows))
    for number, name in enumerate(names):
        found = [row for row in rows if row["side"] == name and row["mean"] is not None]
        if not found:
            continue
        seconds, error = ([row[key] for row in found] for key in ("seconds", "mean"))
        look: dict[str, Any] = {
            "marker": "os^vDP*X<>"[number % 10],
            "color": COLORS[not name.startswith("histloss")],
        }
        axes.plot(seconds, error, ls="", ms=4, alpha=0.35, mec="none", **look)
        middle = statistics.median(seconds), statistics.median(error)
        axes.plot(*middle, ls="", ms=10, mec="k", label=name, **look)
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="mean error over the head, voxels")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


COLORS = ("#0072B2", "#E69F00")  # histloss, SimpleITK


def provenance(command: str) -> dict[str, Any]:
    import SimpleITK as sitk  # noqa: N813

    library = histloss.backend_info()["cpu"]
    return {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!examples/results")),
        "histloss": histloss.__version__,
        "native": library["loaded"],
        "simd": library["simd"],
        "torch": torch.__version__,
        "SimpleITK": sitk.Version.VersionString(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", path.read_text(), re.M) if path.exists() else None
    return found[1] if found else platform.machine()
