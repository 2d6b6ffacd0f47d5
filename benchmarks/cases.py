"""What is measured and what it must reach: data only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

Row = dict[str, Any]  # one measurement, as it is written to JSON: a case's fields and what was measured
FIGURES = (  # of a row: what was measured; the rest says of what
    *("value", "p20", "p80", "samples", "heap", "why"),
    *("bytes", "multiply_adds", "copy_gb_per_s", "gigaflops"),
)

CONTENTS = ("uniform", "photo", "saturated", "constant, end", "constant, edge", "constant, inside")


@dataclass(frozen=True)
class Case:
    """Everything that defines the work: a public function or loss, how it is called, and on which images."""

    op: str  # activation_maps, soft_histogram, joint_histogram, emd_loss, mi_loss or deep_hist_loss
    boundary: str = "reflect"
    bandwidth: float = 0.4
    bins: int = 256
    shape: tuple[int, ...] = (1, 3, 256, 256)
    dtype: str = "float32"
    content: str = "uniform"
    range: tuple[float, float] = (-1.0, 1.0)
    threads: int = 2
    device: str = "cpu"

    @property
    def name(self) -> str:
        """The op and what differs from the defaults."""
        words = {
            "boundary": self.boundary,
            "bandwidth": f"bandwidth {self.bandwidth:g}",
            "bins": f"K = {self.bins}",
            "shape": " x ".join(map(str, self.shape)),
            "dtype": self.dtype,
            "content": self.content,
            "range": "from {:g} to {:g}".format(*self.range),
            "threads": f"{self.threads} thread{'s' * (self.threads > 1)}",
            "device": self.device,
        }
        default = Case(self.op)
        differs = (word for name, word in words.items() if getattr(self, name) != getattr(default, name))
        return ", ".join([self.op.replace("_", " "), *differs])


def case_of(row: Row) -> Case:
    values = {field.name: row[field.name] for field in fields(Case)}
    return Case(**values | {"shape": tuple(row["shape"]), "range": tuple(row["range"])})


@dataclass(frozen=True)
class Comparison:
    """A case on several sides of sides.py, and what is measured of each.

    `time` gives ratios too and the floor, on a GPU `saving` gives memory.
    """

    case: Case
    sides: tuple[str, ...] = ("histloss", "reference")
    metrics: tuple[str, ...] = ("time", "memory", "error")
    batch_of: str | None = None  # the side whose largest batch that fits into memory all sides get


@dataclass(frozen=True)
class Effort:
    """How long a timing takes."""

    rounds: int = 3
    seconds: float = 0.15  # each side in each round, or one call


QUICK = Effort(rounds=2, seconds=0.005)
MOST_IMAGES = 64  # in a largest batch

PHOTO = "photo"
PLANE = (1, 1, 256, 256)
UNIT = (0.0, 1.0)  # the range that MONAI's Gaussians need
TIME = ("time",)
TIME_MEMORY = ("time", "memory")
TIME_ERROR = ("time", "error")
ALONE = ("histloss",)

JOINT_REFLECT = Case("joint_histogram")
JOINT_OPEN = Case("joint_histogram", "open")
JOINT_WIDE = Case("joint_histogram", "open", 2.0)
SOFT_REFLECT = Case("soft_histogram")
SOFT_OPEN = Case("soft_histogram", "open")
MAPS = Case("activation_maps")
MI = Case("mi_loss")
EMD = Case("emd_loss")
DEEP_HIST = Case("deep_hist_loss")

KORNIA, MONAI, MONAI_SPLINE = "kornia", "MONAI, gaussian", "MONAI, B-spline"
HISTC, NUMPY, MATTES = "torch.histc", "NumPy", "SimpleITK, Mattes"


def vary(cases: Iterable[Case], name: str, values: Iterable[Any]) -> Iterator[Case]:
    """Every case with every value of a field."""
    values = tuple(values)
    return (replace(case, **{name: value}) for case in cases for value in values)


HEADLINE = (
    Comparison(JOINT_REFLECT),
    Comparison(JOINT_OPEN, metrics=TIME_ERROR),
    Comparison(JOINT_WIDE, metrics=TIME_ERROR),
    Comparison(SOFT_REFLECT),
    Comparison(SOFT_OPEN, metrics=TIME_ERROR),
    Comparison(MAPS, metrics=TIME_ERROR),
    Comparison(MI, metrics=TIME_ERROR),
    Comparison(EMD, metrics=TIME_ERROR),
    Comparison(DEEP_HIST, metrics=TIME_ERROR),
    Comparison(replace(JOINT_OPEN, bins=64, range=UNIT), ("histloss", KORNIA), TIME),
    Comparison(replace(MI, bins=64, range=UNIT), ("histloss", MONAI), TIME),
)

SIZES = tuple((1, 1, n, n) for n in (128, 256, 512, 1024, 2048))
VOLUMES = tuple((1, 1, n, n, n) for n in (128, 256))
BINS = (16, 32, 64, 128, 256, 512, 1024)
BATCHES = tuple((n, 3, 256, 256) for n in (1, 4, 16))
BANDWIDTHS = (0.1, 0.2, 0.4, 1.0, 2.0, 4.0)
DTYPES = ("float16", "bfloat16", "float32", "float64")

SUITES: dict[str, tuple[Comparison, ...]] = {
    "headline": tuple(replace(each, case=replace(each.case, content=PHOTO)) for each in HEADLINE),
    "size": tuple(
        Comparison(case, metrics=TIME_MEMORY) for case in vary((JOINT_OPEN, SOFT_REFLECT), "shape", SIZES)
    ),
    "volumes": tuple(
        Comparison(case, ("histloss", "reference", MONAI, MONAI_SPLINE, MATTES), TIME_MEMORY)
        for case in vary((replace(MI, bins=64, content=PHOTO, range=UNIT),), "shape", VOLUMES)
    ),
    "bins": tuple(
        Comparison(replace(case, shape=PLANE), metrics=TIME)
        for case in vary((JOINT_OPEN, JOINT_REFLECT, SOFT_REFLECT), "bins", BINS)
    ),
    "batch": tuple(
        Comparison(case, metrics=TIME_MEMORY) for case in vary((JOINT_OPEN, SOFT_REFLECT), "shape", BATCHES)
    ),
    "bandwidth": tuple(
        Comparison(replace(case, shape=PLANE), metrics=TIME_ERROR)
        for case in vary(
            (*vary((JOINT_OPEN,), "bins", (64, 256)), replace(JOINT_REFLECT, bins=16)),
            "bandwidth",
            BANDWIDTHS,
        )
    ),
    "threads": tuple(
        Comparison(case, metrics=TIME) for case in vary((JOINT_OPEN, SOFT_REFLECT, MAPS), "threads", (1, 2))
    ),
    "dtype": tuple(
        Comparison(replace(case, shape=PLANE), metrics=TIME_ERROR)
        for case in vary((JOINT_OPEN, SOFT_REFLECT), "dtype", DTYPES)
    ),
    "content": tuple(
        comparison
        for case in vary((JOINT_REFLECT, JOINT_OPEN, SOFT_REFLECT, MAPS), "content", CONTENTS)
        for comparison in (Comparison(case, ALONE, TIME), Comparison(case, metrics=("error",)))
    ),
    "losses": tuple(Comparison(case) for case in (MI, EMD, DEEP_HIST)),
    "peers": (
        *(
            Comparison(case, ("histloss", KORNIA), TIME_MEMORY, batch_of=KORNIA)
            for case in vary((replace(JOINT_OPEN, range=UNIT),), "bins", (16, 64))
        ),
        *(
            Comparison(case, ("histloss", MONAI, MONAI_SPLINE), TIME_MEMORY, batch_of=MONAI)
            for case in vary((replace(MI, range=UNIT),), "bins", (16, 64))
        ),
        Comparison(replace(SOFT_OPEN, range=UNIT), ("histloss", KORNIA, HISTC, NUMPY), TIME_MEMORY),
        Comparison(replace(JOINT_OPEN, range=UNIT), ("histloss", KORNIA, NUMPY), TIME),
    ),
    "compiled": tuple(
        Comparison(replace(case, shape=(4, 3, 256, 256)), ("histloss", "compiled"), TIME_MEMORY)
        for case in (JOINT_OPEN, JOINT_REFLECT, SOFT_REFLECT)
    ),
    "guard": tuple(  # on one thread, which a busy machine slows alike on both sides
        Comparison(replace(case, shape=(1, 1, 128, 128), threads=1), metrics=TIME)
        for case in (JOINT_REFLECT, JOINT_OPEN, JOINT_WIDE, SOFT_REFLECT, SOFT_OPEN, MAPS, MI, EMD, DEEP_HIST)
    ),
}

IMAGES_ON_GPU = (16, 3, 256, 256)
GPU_TIMED = ("uniform", "photo", "saturated", "constant, inside")
GPU = tuple(
    replace(case, shape=IMAGES_ON_GPU, device="cuda")
    for case in (JOINT_REFLECT, SOFT_REFLECT, MAPS, DEEP_HIST)
)
SUITES["gpu"] = (
    *(Comparison(case, metrics=TIME) for case in vary(GPU, "content", GPU_TIMED)),
    *(
        Comparison(case, metrics=("error",))
        for case in vary(GPU, "content", CONTENTS)
        if case.op != DEEP_HIST.op
    ),
    *(Comparison(case, metrics=("saving",)) for case in GPU if case.op != MAPS.op),
)


def quick(comparison: Comparison) -> Comparison:
    """The same of little work."""
    case = comparison.case
    images, channels, *spatial = case.shape
    small = (min(images, 2), channels, *([32] * 2 if len(spatial) == 2 else [16] * len(spatial)))
    return replace(
        comparison, case=replace(case, bins=min(case.bins, 16), shape=small, threads=1), batch_of=None
    )


# ---- targets


@dataclass(frozen=True)
class Target:
    """What histloss must reach in a case: a floor for ratios and savings, a ceiling for everything else."""

    metric: str
    stage: str
    limit: float
    case: Case
    against: str | None = None  # of a ratio
    free: tuple[str, ...] = ("content", "planes")  # what of the case may differ; planes: the number of them

    def applies(self, row: Row) -> bool:
        if row["side"] != "histloss" or (row["metric"], row["stage"]) != (self.metric, self.stage):
            return False
        return row.get("against") == self.against and self._held(case_of(row)) == self._held(self.case)

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.metric in ("ratio", "saving") else value <= self.limit

    def _held(self, case: Case) -> dict[str, Any]:
        planes, spatial = case.shape[:2], case.shape[2:]
        values = asdict(case) | {"shape": spatial, "planes": planes}
        return {name: value for name, value in values.items() if name not in self.free}


def _at(case: Case, bins: int, side: int) -> Case:
    return replace(case, bins=bins, shape=(1, 1, side, side))


TARGETS = (  # two cores
    Target("ratio", "both", 900, JOINT_REFLECT, "reference"),
    Target("ratio", "both", 400, JOINT_OPEN, "reference"),
    Target("ratio", "both", 150, JOINT_WIDE, "reference"),
    Target("ratio", "both", 900, SOFT_REFLECT, "reference"),
    Target("ratio", "both", 350, SOFT_OPEN, "reference"),
    Target("ratio", "both", 600, _at(JOINT_OPEN, 256, 1024), "reference"),
    Target("ratio", "both", 1500, _at(JOINT_OPEN, 1024, 256), "reference"),
    Target("ratio", "both", 10, _at(JOINT_OPEN, 16, 256), "reference", ("boundary", "content", "planes")),
    Target("ratio", "both", 20, _at(JOINT_WIDE, 64, 256), "reference"),
    Target("ratio", "both", 300, JOINT_OPEN, "compiled", ("boundary", "content", "planes")),
    Target("ratio", "both", 100, replace(JOINT_OPEN, bins=64, range=UNIT), KORNIA),
    Target("ratio", "both", 100, replace(MI, bins=64, range=UNIT), MONAI),
    Target("memory", "both", 8, JOINT_OPEN, free=("boundary", "bandwidth", "content")),
    Target("peak", "both", 2000, replace(MI, bins=64, range=UNIT, shape=VOLUMES[-1])),
    Target("growth", "both", 1.3, replace(JOINT_OPEN, shape=SIZES[-1])),
    Target("growth", "both", 1.3, replace(SOFT_REFLECT, shape=SIZES[-1])),
    *(
        Target("error", stage, limit, case, free=("boundary", "bandwidth", "content", "planes"))
        for stage, limit in (("forward", 1e-6), ("backward", 3e-6))
        for case in (JOINT_OPEN, SOFT_OPEN, MAPS)
    ),
)

_JOINT_GPU, _SOFT_GPU, _, _DEEP_GPU = GPU
TARGETS += (  # an H200; times in milliseconds
    Target("time", "forward", 0.20, _JOINT_GPU, free=("content",)),
    Target("time", "backward", 0.20, _JOINT_GPU, free=("content",)),
    Target("time", "both", 0.05, _SOFT_GPU, free=("content",)),
    Target("time", "replay", 0.50, _DEEP_GPU, free=("content",)),
    Target("ratio", "both", 100, _JOINT_GPU, "reference", ("content",)),
    Target("ratio", "both", 100, _SOFT_GPU, "reference", ("content",)),
    Target("ratio", "both", 100, _DEEP_GPU, "reference", ("content",)),
    Target("saving", "both", 100, _JOINT_GPU, "reference", ("op", "content")),
)


def target_of(row: Row) -> Target | None:
    """The target that a row is held to; most have none."""
    return next((target for target in TARGETS if target.applies(row)), None)


def find(rows: Iterable[Row], **like: Any) -> Row | None:
    """The first row with these values."""
    return next((row for row in rows if all(row.get(name) == value for name, value in like.items())), None)
