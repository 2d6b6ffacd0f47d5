"""What is measured and what it must reach: data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # one measurement, as it is written to JSON

SIDES = ("histloss", "reference")  # the public API against histloss.reference, eager
TIMED_CONTENTS = ("uniform", "photo")
CONTENTS = ("uniform", "photo", "saturated", "constant, end", "constant, edge", "constant, inside")
PAPER_BANDWIDTH = 0.4


@dataclass(frozen=True)
class Case:
    """One public function and how it is called."""

    op: str
    boundary: str
    bandwidth: float = PAPER_BANDWIDTH

    @property
    def name(self) -> str:
        wide = "" if self.bandwidth == PAPER_BANDWIDTH else f", bandwidth {self.bandwidth:g}"
        return f"{self.op.replace('_', ' ')}, {self.boundary}{wide}"


@dataclass(frozen=True)
class Settings:
    """The size of the work and how long each measurement takes."""

    bins: int = 256
    shape: tuple[int, ...] = (1, 3, 256, 256)
    device: str = "cpu"
    threads: int = 2
    rounds: int = 5
    seconds: float = 0.15  # each side in each round


@dataclass(frozen=True)
class Target:
    """A limit on every row of a metric, a floor for ratios and a ceiling otherwise; None stands for any."""

    metric: str
    stage: str
    limit: float
    case: Case | None = None
    op: str | None = None

    def applies(self, row: Row) -> bool:
        return (
            row["side"] == "histloss"
            and (row["metric"], row["stage"]) == (self.metric, self.stage)
            and (self.case is None or row["case"] == self.case.name)
            and (self.op is None or row["op"] == self.op)
        )

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.metric in ("ratio", "saving") else value <= self.limit


JOINT_REFLECT = Case("joint_histogram", "reflect")
JOINT_OPEN = Case("joint_histogram", "open")
JOINT_WIDE = Case("joint_histogram", "open", 2.0)
SOFT_REFLECT = Case("soft_histogram", "reflect")
SOFT_OPEN = Case("soft_histogram", "open")
MAPS = Case("activation_maps", "reflect")

CASES = (JOINT_REFLECT, JOINT_OPEN, JOINT_WIDE, SOFT_REFLECT, SOFT_OPEN, MAPS)
MEMORY_CASES = (JOINT_REFLECT, JOINT_OPEN, JOINT_WIDE, SOFT_REFLECT)

DEEP_HIST = Case("deep_hist_loss", "reflect")
GPU_CASES = (JOINT_REFLECT, SOFT_REFLECT, MAPS, DEEP_HIST)
GPU_TIMED_CONTENTS = ("uniform", "photo", "saturated", "constant, inside")
GPU_MEMORY_CASES = (JOINT_REFLECT, SOFT_REFLECT, DEEP_HIST)

FULL = Settings()
QUICK = Settings(bins=16, shape=(1, 3, 32, 32), threads=1, rounds=2, seconds=0.005)
GPU_FULL = Settings(shape=(16, 3, 256, 256), device="cuda", seconds=0.05)
GPU_QUICK = Settings(bins=16, shape=(2, 3, 32, 32), device="cuda", threads=1, rounds=2, seconds=0.002)

TARGETS = (  # float32 on two cores, at the size of FULL
    Target("ratio", "both", 900, case=JOINT_REFLECT),
    Target("ratio", "both", 400, case=JOINT_OPEN),
    Target("ratio", "both", 150, case=JOINT_WIDE),
    Target("ratio", "both", 900, case=SOFT_REFLECT),
    Target("ratio", "both", 350, case=SOFT_OPEN),
    Target("memory", "both", 8, op="joint_histogram"),
    Target("error", "forward", 1e-6),
    Target("error", "backward", 3e-6),
)


GPU_TARGETS = (  # float32 on an H200, at the size of GPU_FULL; milliseconds
    Target("time", "forward", 0.20, case=JOINT_REFLECT),
    Target("time", "backward", 0.20, case=JOINT_REFLECT),
    Target("time", "both", 0.05, case=SOFT_REFLECT),
    Target("time", "replay", 0.50, case=DEEP_HIST),
    Target("ratio", "both", 100, case=JOINT_REFLECT),
    Target("ratio", "both", 100, case=SOFT_REFLECT),
    Target("ratio", "both", 100, case=DEEP_HIST),
    Target("saving", "both", 100),
)


def target_of(row: Row) -> Target | None:
    """The target that a row is held to; rows of another size have none."""
    gpu = row.get("device") == "cuda"
    full, targets = (GPU_FULL, GPU_TARGETS) if gpu else (FULL, TARGETS)
    size = slice(0 if gpu else 2, None)  # more images take as long each on the CPU, but not on a GPU
    if (row["bins"], tuple(row["shape"][size])) != (full.bins, full.shape[size]):
        return None
    return next((target for target in targets if target.applies(row)), None)


def find(rows: Sequence[Row], like: Row) -> Row:
    """The row that measured the same as `like`: equal in everything but the figures."""
    keys = ("case", "content", "metric", "stage", "side")
    return next(row for row in rows if all(row[key] == like[key] for key in keys))
