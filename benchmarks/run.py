"""Measures the library against histloss.reference and prints the result beside its targets.

Takes a few minutes and writes benchmarks/results/<version>/<hardware>.json. --quick does a little work to see
that everything runs, and is no measurement.
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
from pathlib import Path
from typing import Any

import torch

from cases import (
    CASES,
    CONTENTS,
    DEEP_HIST,
    FULL,
    GPU_CASES,
    GPU_FULL,
    GPU_MEMORY_CASES,
    GPU_QUICK,
    GPU_TIMED_CONTENTS,
    MEMORY_CASES,
    QUICK,
    SIDES,
    TIMED_CONTENTS,
    Case,
    Row,
    Settings,
    find,
    target_of,
)

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
KIND_HEAP = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"

Job = tuple[str, Case, str]  # metric, case, and the content or (memory) the side


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    given = {name: value for name in ("threads", "rounds") if (value := getattr(options, name))}
    full, quick = (GPU_FULL, GPU_QUICK) if options.device == "cuda" else (FULL, QUICK)
    settings = replace(quick if options.quick else full, **given)
    rows: list[Row] = []
    provenance: dict[str, Any] = {}
    tasks = [(jobs, heap) for jobs, heap in plan(options) if jobs]
    with progress(sum(len(jobs) for jobs, _ in tasks)) as bar:
        for jobs, heap in tasks:
            bar.set_description(f"{jobs[0][0]}: {jobs[0][1].name}")
            output = run_jobs(jobs, settings, heap)
            made_with = next(output)
            provenance = provenance or made_with
            if not (made_with["native"] or options.quick):
                sys.exit("there is no native library to measure; histloss.backend_info() tells why")
            for (metric, case, _), found in zip(jobs, output, strict=True):
                bar.set_description(f"{metric}: {case.name}")
                rows += found
                bar.update()
    provenance["command"] = shlex.join(["python", "benchmarks/run.py", *arguments])
    print_rows(rows, provenance)
    path = options.output
    if not (path or options.quick or options.only):
        path = RESULTS / provenance["version"] / f"{hardware(provenance)}.json"
    if path:
        write(path, provenance, rows)
        print(f"\nwritten to {path}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small work; writes nothing without --output")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name; likewise")
    parser.add_argument(
        "--threads", type=int, help=f"{FULL.threads} by default, with --quick {QUICK.threads}"
    )
    parser.add_argument("--rounds", type=int, help="rounds A B of each timing, at least 2")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    options = parser.parse_args(arguments)
    check_least(parser, options, threads=1, rounds=2)
    cases = GPU_CASES if options.device == "cuda" else CASES
    if not any(options.only in case.name for case in cases):
        parser.error(f"--only must occur in one of {[case.name for case in cases]}, got {options.only!r}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda needs a GPU, and torch {torch.__version__} sees none")
    return options


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
    def set_description(self, text: str) -> None:
        pass

    def update(self) -> None:
        pass


def plan(options: argparse.Namespace) -> list[tuple[list[Job], str | None]]:
    """The jobs of each process, and its heap: times and errors on one that keeps its pages."""
    processes = gpu_processes() if options.device == "cuda" else cpu_processes(options.quick)
    return [([job for job in jobs if options.only in job[1].name], heap) for jobs, heap in processes]


def gpu_processes() -> list[tuple[list[Job], str | None]]:
    """A process for each case, whose memory is the GPU's alone."""
    processes: list[tuple[list[Job], str | None]] = []
    for case in GPU_CASES:
        jobs: list[Job] = [("floor", case, "uniform")]
        jobs += [("time", case, content) for content in GPU_TIMED_CONTENTS]
        jobs += [("error", case, content) for content in CONTENTS if case != DEEP_HIST]
        jobs += [("saving", case, "uniform")] * (case in GPU_MEMORY_CASES)
        processes.append((jobs, None))
    return processes


def cpu_processes(quick: bool) -> list[tuple[list[Job], str | None]]:
    timed = [("time", case, content) for case in CASES for content in TIMED_CONTENTS]
    checked = [("error", case, content) for case in CASES for content in CONTENTS]
    held = [("memory", case, side) for case in MEMORY_CASES[: 1 if quick else None] for side in SIDES]
    if not Path("/proc/self/clear_refs").exists():
        print("no memory is measured: the peak of a process can be reset only on Linux", file=sys.stderr)
        held = []
    processes: list[tuple[list[Job], str | None]] = [(timed + checked, KIND_HEAP)]
    processes += [([job], None) for job in held]
    return processes


def run_jobs(jobs: Sequence[Job], settings: Settings, heap: str | None) -> Iterator[Any]:
    """Run jobs in a new process: its provenance, then the rows of each job."""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if heap:
        environment["GLIBC_TUNABLES"] = heap
    task = {"settings": asdict(settings), "jobs": [(metric, asdict(case), of) for metric, case, of in jobs]}
    command = [sys.executable, str(HERE / "worker.py"), json.dumps(task)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command[:2])


def print_rows(rows: Sequence[Row], provenance: dict[str, Any]) -> None:
    built_for = provenance["architectures"] if "gpu" in provenance else provenance["simd"]
    library = f"native ({built_for})" if provenance["native"] else "NOT native: plain PyTorch"
    machine = f"{provenance['cpu']}, {provenance['cores']} cores"
    if "gpu" in provenance:
        print(f"\n{provenance['gpu']}, CUDA {provenance['cuda']}, {provenance['nvidia_smi']}")
    print(f"\n{machine}, {provenance['threads']} threads, load before {provenance['load']}")
    print(f"histloss {provenance['version']} {library}, torch {provenance['torch']}")
    print(f"photo: {provenance['photo']}\n\nmedian (p20 to p80)")
    print(f"{'':<62} {'histloss, ms':<25} {'reference, ms':<25} ratio")
    for row in rows:
        if row["metric"] == "ratio":
            ours, theirs = (find(rows, row | {"metric": "time", "side": side}) for side in SIDES)
            reached = " ".join(filter(None, (verdict(ours), verdict(row))))
            fewer = f"reference on {theirs['shape'][0]} of {ours['shape'][0]} images; ratio per image"
            note = "" if theirs["shape"] == ours["shape"] else fewer
            print(_label(row), _spread(ours), _spread(theirs), _spread(row), reached, note)
        elif row["stage"] == "replay":
            print(_label(row), _spread(row), verdict(row))
        elif row["metric"] == "floor":
            print(
                _label(row),
                f"{significant(row['value']):>6} at {row['GB per s']:.0f} GB/s, to copy its bytes",
            )
    print("\nlargest error against float64, relative to the largest value, then the float32 reference's")
    for row in rows:
        if row["metric"] == "error" and row["side"] == "histloss":
            theirs = find(rows, row | {"side": "reference"})
            print(_label(row), f"{row['value']:.1e}  {theirs['value']:.1e} ", verdict(row))
    print("\npeak memory beyond inputs, outputs and gradients")
    for row in rows:
        if row["metric"] in ("memory", "saving"):
            images = f" for {row['shape'][0]} images"
            print(_label(row), f"{row['side']:<10} {row['value']:9.1f} {row['unit']}{images} ", verdict(row))


def verdict(row: Row) -> str:
    target = target_of(row)
    if target is None:
        return ""
    limit = f"{target.limit:g}x" if row["metric"] in ("ratio", "saving") else f"{target.limit:g}"
    return f"{'reached' if target.reached(row['value']) else 'MISSED'} ({limit})"


def hardware(provenance: dict[str, Any]) -> str:
    """A file's name for the machine: the GPU, or processor, cores and threads."""
    name = f"{provenance['cpu']} {provenance['cores']} cores {provenance['threads']} threads"
    name = provenance.get("gpu", name)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write(path: Path, provenance: dict[str, Any], rows: Sequence[Row]) -> None:
    """JSON with one row a line, so that a diff shows what changed."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"provenance": {json.dumps(provenance, indent=1)},\n"rows": [\n{lines}\n]}}\n')


def significant(value: float) -> str:
    """Three figures, without an exponent."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _label(row: Row) -> str:
    return f"{row['case']:<36} {row['content']:<16} {row['stage']:<8}"


def _spread(row: Row) -> str:
    value, p20, p80 = (significant(row[key]) for key in ("value", "p20", "p80"))
    return f"{value:>6} {f'({p20} to {p80})':<18}"


if __name__ == "__main__":
    main(sys.argv[1:])
