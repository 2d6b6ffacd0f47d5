"""One process of a benchmark run: takes its jobs as JSON, prints provenance and then each job's rows.

It is a process so that the heap can be set for it, and so that a peak of memory is one measurement's own.
"""

from __future__ import annotations

import json
import sys

import torch

import provenance
from cases import Effort, case_of
from measure import MEASURES, release


def main() -> None:
    task = json.loads(sys.argv[1])
    effort = Effort(**task["effort"])
    for number, (metric, case, sides) in enumerate(task["jobs"]):
        case = case_of(case)
        if number == 0:
            print(json.dumps(provenance.collect(case.device)), flush=True)
        torch.set_num_threads(case.threads)
        print(json.dumps(MEASURES[metric](case, sides, effort)), flush=True)
        release()


if __name__ == "__main__":
    main()
