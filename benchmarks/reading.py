"""A result of run.py, read back: its rows by what they measured, and how cases and figures are written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import SUITES, Case, Row, case_of, find

LOSSES = {"mi_loss": "MI loss", "emd_loss": "EMD loss", "deep_hist_loss": "DeepHistLoss"}
LABELS = {"reference": "eager PyTorch", "compiled": "torch.compile"}
OURS, FLOOR = "histloss", "floor"
MEASURED = ("time", "memory")


class Suite:
    """Rows by case; a row without a value says why a side was left out."""

    def __init__(self, rows: Sequence[Row]) -> None:
        found: dict[Case, list[Row]] = defaultdict(list)
        whole = {_imageless(case_of(row)): case_of(row) for row in rows if row["side"] == OURS}
        for row in rows:
            case = case_of(row)
            if case.device == "cuda":  # where others may get fewer images, as their rows say
                case = whole.get(_imageless(case), case)
            found[case].append(row)
        self.cases = dict(found)

    def others(self, case: Case) -> list[str]:
        """The sides that a case was measured on besides ours."""
        return list(
            dict.fromkeys(row["side"] for row in self.cases[case] if row["side"] not in (OURS, FLOOR))
        )

    def row(
        self, case: Case, metric: str, stage: str, side: str = OURS, against: str | None = None
    ) -> Row | None:
        """A row that has a value."""
        found = find(self.cases[case], metric=metric, stage=stage, side=side, against=against)
        return found if found and found["value"] is not None else None

    def value(
        self, case: Case, metric: str, stage: str, side: str = OURS, against: str | None = None
    ) -> float | None:
        row = self.row(case, metric, stage, side, against)
        return row and row["value"]

    def stage(self, case: Case, side: str) -> str:
        """What a side is measured by: its forward alone where it has no backward."""
        measured = {
            row["stage"] for row in self.cases[case] if row["side"] == side and row["metric"] in MEASURED
        }
        return "forward" if measured == {"forward"} else "both"

    def distance(self, case: Case, side: str, stage: str = "both") -> float | None:
        """How many times the floor a side takes, for each image."""
        time, floor = self.row(case, "time", stage, side), self.row(case, "floor", stage, FLOOR)
        if not (time and floor):
            return None
        return time["value"] / time["shape"][0] / (floor["value"] / floor["shape"][0])

    def why(self, case: Case, side: str) -> str:
        """Why a side was left out, if it was."""
        rows = (row for row in self.cases[case] if row["side"] == side and row["value"] is None)
        return next((row["why"] for row in rows), "")


class Result:
    def __init__(self, path: Path) -> None:
        text = path.read_text()
        data = json.loads(text)
        self.made: dict[str, Any] = data["provenance"]
        self.rows: list[Row] = data["rows"]
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if not all("suite" in row for row in self.rows):
            raise ValueError(
                f"{path.name} has rows of no suite: it is not a result of run.py, or of an old one"
            )
        names = dict.fromkeys(row["suite"] for row in self.rows)
        self.suites = {name: Suite([row for row in self.rows if row["suite"] == name]) for name in names}

    def lacks(self, name: str) -> bool:
        """Whether a suite is missing or not whole."""
        return name not in self.suites or any(
            each.case not in self.suites[name].cases for each in SUITES[name]
        )


def _imageless(case: Case) -> Case:
    return replace(case, shape=case.shape[1:])


def words(case: Case) -> dict[str, str]:
    """How each field of a case is written."""
    low, high = case.range
    implied = case.op in LOSSES and case.boundary == "reflect"
    return {
        "op": LOSSES.get(case.op, case.op.replace("_", " ")),
        "boundary": "" if implied else case.boundary,
        "bandwidth": f"bandwidth {case.bandwidth:g}",
        "bins": f"K = {case.bins}",
        "shape": " x ".join([*map(str, case.shape[:2]), size(case.shape[2:])]),
        "dtype": case.dtype,
        "content": case.content.replace(",", ""),
        "range": f"range {low:g} to {high:g}",
        "threads": f"{case.threads} thread{'s' * (case.threads > 1)}",
        "device": case.device,
    }


ALWAYS_SAID = ("op", "boundary")  # unless all cases have it in common


def usual(cases: Iterable[Case]) -> dict[str, str]:
    """What most of the cases have in common."""
    said = list(map(words, cases))
    found = {}
    for field in said[0]:
        word, count = Counter(each[field] for each in said).most_common(1)[0]
        if count == len(said) or (2 * count > len(said) and field not in ALWAYS_SAID):
            found[field] = word
    return found


def common(cases: Iterable[Case]) -> str:
    """What is usual, to be said once; the op is in each name, and the device in a page's title."""
    return ", ".join(word for field, word in usual(cases).items() if word and field not in ("op", "device"))


def names(cases: Iterable[Case], axis: str = "") -> dict[Case, str]:
    """The cases by their op and by what is not usual among them, but for what an axis says."""
    cases = list(cases)
    unsaid = usual(cases) | {"op": "", axis: None}
    return {case: _name(case, unsaid) for case in cases}


def name_of(case: Case) -> str:
    """A case by itself: what differs from the defaults."""
    return _name(case, words(Case("")) | {"boundary": ""})


def _name(case: Case, unsaid: Mapping[str, str | None]) -> str:
    said = words(case).items()
    return ", ".join(word for field, word in said if word and unsaid.get(field, "") not in (word, None))


def label(side: str) -> str:
    return LABELS.get(side, side)


def size(shape: Sequence[int]) -> str:
    """The spatial part of a shape: 256² or 128 x 256."""
    if len(set(shape)) == 1 and len(shape) in (2, 3):
        return f"{shape[0]}{'²' if len(shape) == 2 else '³'}"
    return " x ".join(map(str, shape))


def times(value: float) -> str:
    """A factor, with two figures at least."""
    return f"{value:,.{0 if value >= 10 else 1 if value >= 1 else 2}f}x"
