"""Tells what changed between two benchmark results, beyond noise.

    python benchmarks/compare.py OLD.json NEW.json
    python benchmarks/compare.py OLD.json NEW.json --metric ratio --noise 1      a factor of two, as CI does

A time or a ratio has changed where both intervals, from the 20th to the 80th percentile, lie apart and the
medians differ by more than --noise. Errors and memory have no spread: they have changed where they differ by
more than --noise. Times of different machines say nothing of the library: between those only the rest is
compared. The exit status is 1 where something became worse.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cases import FIGURES, Row, case_of

LARGER_IS_BETTER = ("ratio", "saving")
MACHINE = ("cpu", "gpu", "cores")  # of a run's provenance
SMALLEST = {
    "memory": 0.5,
    "peak": 0.5,
    "error": 1e-7,
}  # MB, of the largest value: changes below are not looked at


class Change(NamedTuple):
    old: Row
    new: Row

    @property
    def factor(self) -> float:
        """How many times worse: above 1 is worse, below is better."""
        old, new = (max(row["value"], SMALLEST.get(row["metric"], 0.0)) for row in self)
        return old / new if self.new["metric"] in LARGER_IS_BETTER else new / old

    def beyond(self, noise: float) -> bool:
        old, new = self.old, self.new
        if old["value"] == new["value"] or abs(new["value"] - old["value"]) <= SMALLEST.get(new["metric"], 0):
            return False
        apart = "p20" not in new or new["p20"] > old["p80"] or new["p80"] < old["p20"]
        return apart and not 1 / (1 + noise) <= self.factor <= 1 + noise


def compare(
    old: dict[str, Any], new: dict[str, Any], metrics: Sequence[str] = ()
) -> tuple[list[Change], list[Row], list[Row]]:
    """Rows of histloss that measured the same in both results; then those of one result alone.

    Of some metrics, if any are given; what was left out for want of memory is no measurement.
    """
    same_machine = all(old["provenance"].get(name) == new["provenance"].get(name) for name in MACHINE)

    def wanted(row: Row) -> bool:
        measured = row["side"] == "histloss" and row["value"] is not None
        return measured and compared(row, same_machine) and (not metrics or row["metric"] in metrics)

    rows = [{key_of(row): row for row in result["rows"] if wanted(row)} for result in (old, new)]
    before, after = rows
    changes = [Change(before[key], row) for key, row in after.items() if key in before]
    gone = [row for key, row in before.items() if key not in after]
    return changes, gone, [row for key, row in after.items() if key not in before]


def compared(row: Row, same_machine: bool) -> bool:
    return same_machine or row["metric"] != "time"


def key_of(row: Row) -> str:
    return json.dumps({name: value for name, value in row.items() if name not in FIGURES}, sort_keys=True)


def describe(row: Row) -> str:
    against = f" against {row['against']}" if "against" in row else ""
    return f"{row['stage']} {row['metric']}{against}, {row['suite']}: {case_of(row).name}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("old", type=read)
    parser.add_argument("new", type=read)
    parser.add_argument("--noise", type=float, default=0.1, help="a change that is none (0.1: 10 %%)")
    parser.add_argument("--metric", nargs="+", default=(), help="compare only these, for example ratio")
    options = parser.parse_args(arguments)
    if not options.noise >= 0:
        parser.error(f"--noise must be at least 0, got {options.noise}")
    changes, gone, added = compare(options.old, options.new, options.metric)
    if not changes:
        parser.error("the two results have no measurement in common")
    found = [change for change in changes if change.beyond(options.noise)]
    for change in sorted(found, key=lambda change: -change.factor):
        word = "WORSE" if change.factor > 1 else "better"
        factor = max(change.factor, 1 / change.factor if change.factor else math.inf)
        values = f"{change.old['value']:.3g} to {change.new['value']:.3g} {change.new['unit']}"
        print(f"{word:<6} {factor:5.2f}x  {values:<40} {describe(change.new)}")
    for word, rows in (("gone", gone), ("new", added)):
        for row in rows:
            print(f"{word:<14} {describe(row)}")
    print(f"{len(changes)} compared, {len(found)} changed by more than {100 * options.noise:g} % and noise")
    return int(any(change.factor > 1 for change in found))


def read(path: str) -> dict[str, Any]:
    try:
        result = json.loads(Path(path).read_text())
        return {"provenance": dict(result["provenance"]), "rows": list(result["rows"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{path!r} is not a result of run.py: {error!r}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
