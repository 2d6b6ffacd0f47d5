"""One process of a benchmark run: takes its jobs as JSON, prints provenance and then each job's rows.

It is a process so that the heap can be set for it, and so that a peak of memory is one measurement's own.
"""

from __future__ import annotations

import json
import sys

import torch

import measure
import provenance
from cases import Case, Settings

MEASURES = {
    "time": measure.time_rows,
    "error": measure.error_rows,
    "memory": measure.memory_rows,
    "saving": measure.saving_rows,
    "floor": measure.floor_rows,
}


def main() -> None:
    task = json.loads(sys.argv[1])
    settings = Settings(**task["settings"] | {"shape": tuple(task["settings"]["shape"])})
    torch.set_num_threads(settings.threads)
    print(json.dumps(provenance.collect(settings.device)), flush=True)
    for metric, case, of in task["jobs"]:
        print(json.dumps(MEASURES[metric](Case(**case), settings, of)), flush=True)
        measure.release()


if __name__ == "__main__":
    main()
