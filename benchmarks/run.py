"""Measures the library against histloss.reference and its peers, and prints the result beside its targets.

    python benchmarks/run.py                        two minutes: is this library worth installing?
    python benchmarks/run.py --suite size bins      more of one question; `all` for everything
    python benchmarks/run.py --quick                a little work to see that everything runs: no measurement

`--suite all`, and a run on a GPU, writes benchmarks/results/<version>/<hardware>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cases import (
    FIGURES,
    QUICK,
    SIZES,
    SUITES,
    Case,
    Comparison,
    Effort,
    Row,
    case_of,
    find,
    quick,
    target_of,
)
from measure import available_memory, largest_batch
from sides import SIDES

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
KEPT_PAGES = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
HEAPS = {KEPT_PAGES: "kept pages", HUGE_PAGES: "huge pages"}  # as rows of times call them
FRAGMENTED = 3.5  # a heap that keeps its pages grows to so many times what the reference needs
GPU_EFFORT = Effort(rounds=5, seconds=0.05)


class Job(NamedTuple):
    metric: str
    case: Case
    sides: tuple[str, ...]


class Process(NamedTuple):
    jobs: list[Job]
    heap: str | None = None  # GLIBC_TUNABLES


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    effort = QUICK if options.quick else GPU_EFFORT if options.device == "cuda" else Effort()
    if options.rounds:
        effort = replace(effort, rounds=options.rounds)
    for name in absent(options.suite):
        package = SIDES[name].package
        print(f"{name} is left out: {package} is missing; pip install 'histloss[bench]'", file=sys.stderr)
    suites = {name: processes(comparisons, options.device) for name, comparisons in planned(options).items()}
    rows: list[Row] = []
    provenance: dict[str, Any] = {}
    with progress(sum(len(each.jobs) for of_suite in suites.values() for each in of_suite)) as bar:
        for suite, of_suite in suites.items():
            found: list[Row] = []
            for process in of_suite:
                output = run_jobs(process, effort)
                bar.set_description(suite)
                made_with = next(output)
                if not provenance:
                    provenance = made_with
                    bar.write(describe(provenance))
                check_native(made_with, quick=options.quick)
                for job, of_job in zip(process.jobs, output, strict=True):
                    bar.set_description(f"{suite}: {job.metric} of {job.case.name}")
                    of_suite_and_heap = {"suite": suite}
                    if process.heap and job.metric == "time":
                        of_suite_and_heap["heap"] = HEAPS[process.heap]
                    found += (of_suite_and_heap | row for row in of_job)
                    bar.update()
            found += growth_rows(found)
            bar.write("\n".join([f"\n== {suite}", *lines_of(found)]))
            rows += found
    print("", *summary_of_targets(rows), sep="\n")
    provenance["command"] = shlex.join(["python", "benchmarks/run.py", *arguments])
    if path := options.output or (RESULTS / file_of(provenance) if complete(options) else None):
        write(path, provenance, rows)
        print(f"\nwritten to {path}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", nargs="+", metavar="NAME", help=f"all, or some of: {', '.join(SUITES)}")
    add("--only", default="", metavar="TEXT", help="cases with this in their name")
    add("--quick", action="store_true", help="small work")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, help="instead of each case's own, mostly 2")
    add("--rounds", type=int, help="rounds A B C of each timing, at least 2")
    add("--output", type=Path, help="where the JSON goes")
    options = parser.parse_args(arguments)
    check_least(parser, options, threads=1, rounds=2)
    names = options.suite or ["gpu" if options.device == "cuda" else "headline"]
    if unknown := set(names) - {"all", *SUITES}:
        parser.error(f"--suite must be all or of {', '.join(SUITES)}, got {', '.join(sorted(unknown))}")
    if "all" in names:
        names = everything(options.device)
    options.suite = names
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda needs a GPU, and torch {torch.__version__} sees none")
    if not any(planned(options).values()):
        parser.error(f"--only must occur in a case's name, such as {SUITES[names[0]][0].case.name!r}")
    return options


def everything(device: str) -> list[str]:
    return [name for name in SUITES if (name == "gpu") == (device == "cuda")]


def complete(options: argparse.Namespace) -> bool:
    """Whether a run is one whose result is kept."""
    changed = options.only or options.quick or options.threads
    return options.suite == everything(options.device) and not changed


def file_of(provenance: dict[str, Any]) -> str:
    return f"{provenance['version']}/{hardware(provenance)}.json"


def check_least(parser: argparse.ArgumentParser, options: argparse.Namespace, **least: int) -> None:
    """Options that were given must not be less."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            parser.error(f"--{name} must be at least {bound}, got {value}")


def progress(total: int) -> Any:
    """A bar, or nothing where there is no tqdm."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return nullcontext(NoBar())
    return tqdm(total=total, unit="measurement", smoothing=0, disable=None)


class NoBar:
    write = staticmethod(print)

    def set_description(self, text: str) -> None:
        pass

    def update(self) -> None:
        pass


def planned(options: argparse.Namespace) -> dict[str, list[Comparison]]:
    """The comparisons of each suite that this machine and the options leave."""
    suites = {}
    for suite in options.suite:
        comparisons = []
        for each in SUITES[suite]:
            if options.only not in each.case.name:
                continue
            each = replace(each, case=replace(each.case, device=options.device))
            if options.threads:
                each = replace(each, case=replace(each.case, threads=options.threads))
            each = quick(each) if options.quick else each
            sides = tuple(
                name for name in each.sides if SIDES[name].runs(each.case) and SIDES[name].installed
            )
            comparisons.append(replace(each, sides=sides))
        suites[suite] = list(dict.fromkeys(comparisons))
    return suites


def absent(suites: Sequence[str]) -> list[str]:
    """The sides whose package is not installed."""
    sides = dict.fromkeys(name for suite in suites for each in SUITES[suite] for name in each.sides)
    return [name for name in sides if not SIDES[name].installed]


def processes(comparisons: Sequence[Comparison], device: str) -> list[Process]:
    """Times and errors on a kind heap, every measurement of memory in a process of its own.

    On a GPU a process for each comparison, whose memory is the GPU's alone.
    """
    jobs = [jobs_of(with_batch(each)) for each in comparisons]
    if device == "cuda":
        return [Process(of_one) for of_one in jobs]
    every = [job for of_one in jobs for job in of_one]
    timed: dict[str, list[Job]] = {heap: [] for heap in HEAPS}
    for job in every:
        if job.metric != "memory":
            timed[heap_of(job)].append(job)
    held = [Process([job]) for job in every if job.metric == "memory"]
    if held and not Path("/proc/self/clear_refs").exists():
        print("no memory is measured: the peak of a process can be reset only on Linux", file=sys.stderr)
        held = []
    return [Process(jobs, heap) for heap, jobs in timed.items() if jobs] + held


def heap_of(job: Job) -> str:
    """One that keeps its pages, where memory suffices for that; else large blocks come and go in huge pages.

    By default every page of a large block is faulted in anew, in small pages: the reference then takes three
    times as long as on kept pages, and in huge ones up to 1.7 times.
    """
    kept = FRAGMENTED * sum(SIDES[side].bytes_needed(job.case) for side in job.sides)
    available = available_memory()
    return KEPT_PAGES if available is None or kept <= available else HUGE_PAGES


def jobs_of(comparison: Comparison) -> list[Job]:
    """Memory is measured of one side at a time."""
    case, sides = comparison.case, comparison.sides
    return [
        Job(metric, case, measured)
        for metric in comparison.metrics
        for measured in ([(side,) for side in sides] if metric == "memory" else [sides])
    ]


def with_batch(comparison: Comparison) -> Comparison:
    if comparison.batch_of not in comparison.sides:
        return comparison
    return replace(comparison, case=largest_batch(comparison.case, comparison.batch_of))


def run_jobs(process: Process, effort: Effort) -> Iterator[Any]:
    """Run jobs in a new process: its provenance, then the rows of each job."""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if process.heap:
        environment["GLIBC_TUNABLES"] = process.heap
    jobs = [(metric, asdict(case), sides) for metric, case, sides in process.jobs]
    command = [sys.executable, str(HERE / "worker.py"), json.dumps({"effort": asdict(effort), "jobs": jobs})]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                yield json.loads(line)
        except BaseException:
            worker.kill()
            raise
    if worker.returncode:
        raise subprocess.CalledProcessError(worker.returncode, command[:2])


def growth_rows(rows: Sequence[Row]) -> list[Row]:
    """How many times longer a pixel takes in the largest of SIZES than in the second."""
    smaller, largest = SIZES[1], SIZES[-1]
    found = []
    for row in rows:
        if (row["metric"], row["side"], row["stage"]) != ("time", "histloss", "both"):
            continue
        unmeasured = {name: value for name, value in row.items() if name not in FIGURES}
        like = unmeasured | {"shape": list(smaller)}
        if tuple(row["shape"]) == largest and (other := find(rows, **like)):
            per_pixel = row["value"] / other["value"] * prod(smaller) / prod(largest)
            found.append(unmeasured | {"metric": "growth", "unit": "x", "from": smaller, "value": per_pixel})
    return found


# ---- what is printed


def describe(provenance: dict[str, Any]) -> str:
    built_for = provenance["architectures"] if "gpu" in provenance else provenance["simd"]
    library = f"native ({built_for})" if provenance["native"] else "NOT native: plain PyTorch"
    packages = ", ".join(f"{name} {version}" for name, version in provenance["packages"].items())
    load = provenance["load"] or 0.0
    busy = ": BUSY, which slows the faster side more" if load > provenance["cores"] / 2 else ""
    lines = [
        f"{provenance['cpu']}, {provenance['cores']} cores, load before {load:g}{busy}",
        f"histloss {provenance['version']} {library}, torch {provenance['torch']}, {packages}",
        f"photo: {provenance['photo']}",
    ]
    if "gpu" in provenance:
        lines.insert(0, f"{provenance['gpu']}, CUDA {provenance['cuda']}, {provenance['nvidia_smi']}")
    return "\n".join(lines)


def lines_of(rows: Sequence[Row]) -> Iterator[str]:
    """A paragraph for each case: a line for each side, for each comparison, and for each target."""
    for case in dict.fromkeys(map(case_of, rows)):
        of_case = [row for row in rows if case_of(row) == case]
        yield f"\n{case.name}"
        for side in dict.fromkeys(row["side"] for row in of_case if row["side"] != "floor"):
            yield f"  {side:<17} {figures(of_case, side)}"
        for row in of_case:
            if "against" in row and (row["stage"] == "both" or not SIDES[row["against"]].has_gradient):
                yield f"  {comparison_with(row)}"
            elif target_of(row):
                yield f"  {row['stage']} {row['metric']} {concise(row['value'])}: {verdict(row)}"


def figures(rows: Sequence[Row], side: str) -> str:
    """What is known of one side of a case."""
    mine = [row for row in rows if row["side"] == side]
    if why := next((row["why"] for row in mine if row["value"] is None), None):
        return f"left out: {why}"
    words = []
    times = {row["stage"]: row for row in mine if row["metric"] == "time"}
    if stage := next((stage for stage in ("both", "forward") if stage in times), None):
        words.append(f"{_spread(times[stage])} ms")
        words.append(
            ", ".join(f"{name} {significant(row['value'])}" for name, row in times.items() if name != "both")
        )
        floor = find(rows, side="floor", stage=stage)
        if floor and side == "histloss":
            distance = times[stage]["value"] / floor["value"]
            words.append(f"{distance:.1f}x the floor, {significant(floor['value'])}")
    words += [f"{significant(row['value'])} MB more" for row in mine if row["metric"] == "memory"]
    errors = [f"{row['value']:.0e}" for row in mine if row["metric"] == "error"]
    if errors:
        words.append(f"error {' / '.join(errors)}")
    return "; ".join(words)


def comparison_with(row: Row) -> str:
    what = (
        "less memory"
        if row["metric"] == "saving"
        else "faster"
        if row["stage"] == "both"
        else "faster forward"
    )
    spread = f" ({significant(row['p20'])} to {significant(row['p80'])})" if "p20" in row else ""
    reached = f": {verdict(row)}" if target_of(row) else ""
    return f"{significant(row['value'])}x {what} than {row['against']}{spread}{reached}"


def summary_of_targets(rows: Sequence[Row]) -> list[str]:
    held = [row for row in rows if row["value"] is not None and target_of(row)]
    missed = [row for row in held if verdict(row).startswith("MISSED")]
    lines = [f"{len(held) - len(missed)} of {len(held)} targets are reached"]
    return lines + [
        f"{verdict(row)}: {row['stage']} {row['metric']} {concise(row['value'])}, {case_of(row).name}"
        for row in missed
    ]


def verdict(row: Row) -> str:
    target = target_of(row)
    if target is None:
        return ""
    limit = f"{target.limit:g}{'x' * (row['metric'] in ('ratio', 'saving'))}"
    return f"{'reached' if target.reached(row['value']) else 'MISSED'} ({limit})"


def hardware(provenance: dict[str, Any]) -> str:
    """A file's name for the machine: the GPU, or processor and cores."""
    name = f"{provenance['cpu']} {provenance['cores']} cores"
    name = provenance.get("gpu", name)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def restart_with_kept_pages() -> None:
    """This process again, on that heap, unless it has it: the C library asks when a process starts."""
    if os.environ.get("GLIBC_TUNABLES") != KEPT_PAGES:
        os.environ["GLIBC_TUNABLES"] = KEPT_PAGES
        os.execv(sys.executable, [sys.executable, *sys.argv])


def check_native(made_with: dict[str, Any], *, quick: bool) -> None:
    if not (made_with["native"] or quick):
        sys.exit("there is no native library to measure; histloss.backend_info() tells why")


def publish(stem: str, made_with: dict[str, Any], rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Write to --output, or to this version's results; of --quick to --output alone."""
    output = options.output
    if not (output or options.quick):
        output = RESULTS / made_with["version"] / f"{stem}-{hardware(made_with)}.json"
    if output:
        write(output, made_with, rows)
        print(f"\nwritten to {output}")


def write(path: Path, provenance: dict[str, Any], rows: Sequence[Row]) -> None:
    """JSON with one row a line, so that a diff shows what changed."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"provenance": {json.dumps(provenance, indent=1)},\n"rows": [\n{lines}\n]}}\n')


def significant(value: float) -> str:
    """Three figures, without an exponent."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def concise(value: float) -> str:
    return f"{value:.0e}" if abs(value) < 1e-3 else significant(value)


def _spread(row: Row) -> str:
    value, p20, p80 = (significant(row[key]) for key in ("value", "p20", "p80"))
    return f"{value:>6} {f'({p20} to {p80})':<18}"


if __name__ == "__main__":
    main(sys.argv[1:])
