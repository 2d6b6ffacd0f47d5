"""Draws the README's benchmark, a page of every figure and their charts from a result of run.py.

    python benchmarks/report.py benchmarks/results/<version>/<hardware>.json

The page and the charts go beside the JSON, whatever suites it holds. The README's block, between the markers
<!-- benchmark --> and <!-- /benchmark -->, is filled by a result of a CPU that holds all of IN_README.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from cases import Case, Row, Target, case_of, target_of
from charts import pictures
from reading import OURS, Result, Suite, common, label, name_of, names, times
from run import HEAPS, HUGE_PAGES, RESULTS, significant
from sides import SIDES

ROOT = RESULTS.parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"(?<=<!-- benchmark -->\n).*?(?=<!-- /benchmark -->)", re.DOTALL)
SOURCE = re.compile(r"\]\((benchmarks/results/[^)]+\.json)\)")
IN_README = ("headline", "size", "content")
WITH_PEERS = ("headline", "peers", "volumes", "compiled")  # where the README looks for a peer, in this order
MORE_IS_BETTER = ("ratio", "saving")
WHAT = {
    "time": "time",
    "ratio": "faster",
    "memory": "extra memory",
    "saving": "less memory",
    "peak": "memory of the process",
    "error": "error",
    "growth": "time of a pixel over that at 256²",
}
HUGE = " †"
GIVEN = "reference"  # the side that the README's first table compares with
ABOUT = {
    "headline": "What the library is for, at the paper's size.",
    "size": "From small images to large ones.",
    "volumes": "Registration: mutual information of a pair of volumes.",
    "bins": "From few bins to many.",
    "batch": "More images at once.",
    "bandwidth": "From kernels narrower than a bin to wide ones.",
    "threads": "One thread and two.",
    "dtype": "Half precision sums in float32.",
    "content": "Do time and error depend on what is in the images?",
    "losses": "The losses as a training step calls them.",
    "peers": "Other packages on the same images, for kornia and MONAI as many images as fit into memory.",
    "compiled": "The reference under `torch.compile`, its compilation not counted.",
    "guard": "Small work, which CI watches for its ratios.",
    "gpu": "Time between events on the GPU, its cache without the inputs; ratios are for each image.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("result", type=Path, help="a JSON file under benchmarks/results")
    path = parser.parse_args().result.resolve()
    try:
        result = Result(path)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if "--quick" in result.made["command"].split():
        parser.error(f"{path.name} is of a quick run, which is no measurement")
    publish(result, path)
    print(f"written: {path.with_suffix('.md')}")
    reason = unfit(result) or ("" if path.is_relative_to(RESULTS) else f"{path} is not under {RESULTS}")
    if reason:
        print(f"{README.name} is left as it is: {reason}")
        return
    text = README.read_text()
    if not BLOCK.search(text):
        parser.error(f"{README.name} must have the lines <!-- benchmark --> and <!-- /benchmark -->")
    README.write_text(BLOCK.sub(lambda _: block(result, path.relative_to(ROOT).as_posix()), text))
    print(f"written: {README}")


def publish(result: Result, path: Path) -> None:
    """Write the page of a result and its charts."""
    for file, draw in pictures(result, path.stem).items():
        draw(path.with_name(file))
    path.with_suffix(".md").write_text(page(result, path.name))


def unfit(result: Result) -> str | None:
    """Why a result cannot fill the README's block, or None where it can."""
    if "gpu" in result.made:
        return "its table is for results of a CPU"
    lacking = [suite for suite in IN_README if result.lacks(suite)]
    if lacking:
        return f"cases of {', '.join(lacking)} were not measured; run.py --suite all has them"
    absent = absent_packages(result)
    return f"not installed: {', '.join(absent)}" if absent else None


def absent_packages(result: Result) -> list[str]:
    """Peers that could not be measured."""
    needed = dict.fromkeys(side.package for side in SIDES.values() if side.package)
    return [package for package in needed if package not in result.made["packages"]]


def disagreement(text: str, root: Path = ROOT) -> str | None:
    """What a README's benchmark should say and does not, or None where it agrees with its data."""
    found = BLOCK.search(text)
    if found is None:
        return "there is no <!-- benchmark --> ... <!-- /benchmark -->"
    source = SOURCE.search(found[0])
    if source is None:
        return "no JSON file is named"
    path = root / source[1]
    if not path.exists():
        return f"{source[1]} does not exist"
    result = Result(path)
    reason = unfit(result)
    if reason:
        return f"{source[1]} cannot fill the block: {reason}"
    expected = block(result, source[1])
    return stale(path) if found[0] == expected else f"{source[1]} says\n{expected}"


def stale(path: Path) -> str | None:
    """Which of the files made of a result is missing or not made of it as it is now."""
    result, written = Result(path), path.with_suffix(".md")
    if not written.exists() or written.read_text() != page(result, path.name):
        return f"{written.name} is not what report.py makes of {path.name}"
    for file in pictures(result, path.stem):
        picture = path.with_name(file)
        if not picture.exists() or result.digest.encode() not in picture.read_bytes():
            return f"{file} is not drawn from {path.name} as it is"
    return None


# ---- the README's block


def block(result: Result, source: str) -> str:
    made, stem, suite = result.made, source.removesuffix(".json"), result.suites["headline"]
    cases = [case for case in suite.cases if GIVEN in suite.others(case)]
    header = ["forward + backward", "histloss, ms", f"{label(GIVEN)}, ms", "faster by"]
    header += ["extra memory, MB", "error"]
    cells = [
        [said, *compared(suite, case, GIVEN), memory(suite, case, GIVEN), error(suite, case, OURS)]
        for case, said in names(cases).items()
    ]
    of_peers = list(peers(result))
    in_huge_pages = any(HUGE in cell for line in of_peers for cell in line)
    peers_header = ["others", "kernel", "the same work", "histloss, ms", "theirs, ms", "faster by", "lacks"]
    return "\n".join(
        [
            *table(header, cells),
            "",
            *table(peers_header, of_peers),
            "",
            f"![time, memory, error and the distance to the machine's floor]({stem}.png)",
            "",
            f"Medians on {machine(result)}, torch {made['torch']}: {common(cases)}. The sides take",
            f"turns in one run; `{label(GIVEN)}` is `histloss.reference` on a heap that keeps its pages, the",
            "kindest to it. Extra memory: the peak beyond inputs, outputs and gradients, histloss / eager.",
            "Error: the largest against float64, relative to the largest value, forward / gradients.",
            *(["† memory cannot keep those pages: in huge pages, up to 1.7 times slower."] * in_huge_pages),
            f"Measured {made['date'][:10]} at {commit(result)}: [every figure]({stem}.md), [data]({source}).",
            "",
        ]
    )


def peers(result: Result) -> Iterator[list[str]]:
    """A line for each side but the reference: where it was timed first, with the most bins."""
    suites = [result.suites[name] for name in WITH_PEERS if name in result.suites]
    for side in (name for name in SIDES if name not in (OURS, GIVEN)):
        places = [
            (suite, case)
            for suite in suites
            for case in sorted(suite.cases, key=lambda case: -case.bins)
            if side in suite.others(case)
        ]
        timed = [(suite, case) for suite, case in places if not suite.why(case, side)]
        for suite, case in (timed or places)[:1]:
            yield peer_line(result, suite, case, side)


def peer_line(result: Result, suite: Suite, case: Case, side: str) -> list[str]:
    about, made = SIDES[side], result.made
    package, *variant = label(side).split(", ")
    version = made["packages"][about.package] if about.package else made["torch"]
    work = name_of(case) + forward_alone(suite, case, side)
    return [
        " ".join([package, version, *variant]),
        about.kernel,
        work,
        *compared(suite, case, side),
        about.cannot,
    ]


# ---- the page


def page(result: Result, source: str) -> str:
    stem = source.removesuffix(".json")
    drawn = pictures(result, stem)
    lines = [f"# Benchmarks: {machine(result)}", "", f"Drawn from [{source}]({source}) by `report.py`.", ""]
    lines += [f"- {line}" for line in (*provenance(result), *legend(result))]
    lines += ["", *targets(result)]
    if f"{stem}.png" in drawn:
        lines += ["", f"![overview]({stem}.png)"]
    for name, suite in result.suites.items():
        lines += ["", f"## {name}", "", f"{ABOUT[name]} If nothing else is said: {common(suite.cases)}.", ""]
        if f"{stem}-{name}.png" in drawn:
            lines += [f"![{name}]({stem}-{name}.png)", ""]
        lines += suite_table(suite)
    return "\n".join(lines) + "\n"


def provenance(result: Result) -> list[str]:
    made = result.made
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    lines = [
        f"histloss {made['version']} at {commit(result)}, {made['date'][:16].replace('T', ' ')} UTC, "
        f"`{made['command']}`",
        f"torch {made['torch']}, Python {made['python']}, {packages or 'no other package'}",
        f"{made['system']}, {made['libc']}, {made['cpu']}, {made['cores']} cores, load before {made['load']}",
        f"photo: {made['photo']}",
    ]
    if "gpu" in made:
        lines.append(", ".join(f"{name} {value}" for name, value in made["nvidia_smi"].items()))
    if absent := absent_packages(result):
        lines.append(f"**not installed, so left out: {', '.join(absent)}**")
    if floor := next((row for row in result.rows if row["metric"] == "floor"), None):
        arithmetic = f", {floor['gigaflops']:.0f} GFLOP/s" if floor["gigaflops"] else ""
        lines.append(f"rates of the floor, {floor['dtype']}: {floor['copy_gb_per_s']:.0f} GB/s{arithmetic}")
    return lines


def legend(result: Result) -> list[str]:
    heap = (
        ", on a heap that keeps its pages, which is the kindest to PyTorch; those with a dagger, whose pages "
        f"memory could not keep, in huge pages, where eager PyTorch takes up to 1.7 times as long{HUGE}"
    )
    return [
        "time: median (20th to 80th percentile); the sides of a case take turns in one run"
        + ("" if "gpu" in result.made else heap),
        "extra memory, histloss / that: the peak beyond inputs, outputs and gradients, measured one by one",
        "error: the largest against float64, relative to the largest value, forward / gradients",
        "times the floor, histloss / that: the time over the least in which this machine can move the bytes "
        "and do the multiply-adds of our method, at rates measured in the same run",
    ]


def targets(result: Result) -> list[str]:
    """Each target with the row that is furthest from it, those that are missed first."""
    held: dict[Target, list[Row]] = {}
    for row in result.rows:
        target = row["value"] is not None and target_of(row)
        if target:
            held.setdefault(target, []).append(row)
    if not held:
        return ["No target applies to what was measured."]
    cells = []
    for target, rows in held.items():
        more = target.metric in MORE_IS_BETTER
        worst = (min if more else max)(rows, key=lambda row: row["value"])
        against = f" than {label(target.against)}" if target.against else ""
        what = f"{WHAT[target.metric]}{against}{'' if target.stage == 'both' else f', {target.stage}'}"
        limit = f"at {'least' if more else 'most'} {figure(worst | {'value': target.limit})}"
        verdict = "reached" if target.reached(worst["value"]) else "**MISSED**"
        cells.append([verdict, name_of(case_of(worst)), what, limit, figure(worst) + mark(worst)])
    reached = sum(cell[0] == "reached" for cell in cells)
    header = ["target", "worst case", "what", "limit", "measured"]
    return [f"{reached} of {len(cells)} targets are reached.", "", *table(header, sorted(cells))]


def suite_table(suite: Suite) -> list[str]:
    header = [
        *("case", "histloss, ms", "its forward + backward", "as a CUDA graph", "against", "that, ms"),
        *("faster by", "extra memory, MB", "less by", "error", "error of that", "times the floor"),
    ]
    cells = []
    for case, said in names(suite.cases).items():
        parts = [suite.value(case, "time", stage) for stage in ("forward", "backward")]
        replay = suite.value(case, "time", "replay")
        for side in suite.others(case) or [""]:
            stage = suite.stage(case, side)
            ours, theirs, ratio = compared(suite, case, side, spread)
            saving = suite.value(case, "saving", "both", against=side)
            cells.append(
                [
                    said + forward_alone(suite, case, side),
                    ours,
                    " + ".join(significant(part) for part in parts if part is not None),
                    significant(replay) if replay else "",
                    label(side),
                    theirs,
                    ratio,
                    memory(suite, case, side),
                    times(saving) if saving else "",
                    error(suite, case, OURS),
                    error(suite, case, side),
                    pair(times, *(suite.distance(case, each, stage) for each in (OURS, side))),
                ]
            )
    return table(header, cells)


# ---- cells


def compared(suite: Suite, case: Case, side: str, written: Callable[[Row], str] | None = None) -> list[str]:
    """Time of both, and how many times faster ours is; or why there is none."""
    written = written or (lambda row: significant(row["value"]))
    stage = suite.stage(case, side)
    ours, theirs = (suite.row(case, "time", stage, each) for each in (OURS, side))
    ratio = suite.value(case, "ratio", stage, against=side)
    return [
        written(ours) if ours else "",
        written(theirs) + mark(theirs) + fewer_images(theirs, case) if theirs else suite.why(case, side),
        f"**{times(ratio)}**" if ratio else "",
    ]


def spread(row: Row) -> str:
    value, p20, p80 = (significant(row[key]) for key in ("value", "p20", "p80"))
    return f"{value} ({p20} to {p80})"


def mark(row: Row) -> str:
    """Of a time that was not taken on kept pages."""
    return HUGE if row.get("heap") == HEAPS[HUGE_PAGES] else ""


def fewer_images(row: Row, case: Case) -> str:
    """What a GPU's memory held of the batch."""
    images = row["shape"][0]
    return "" if images == case.shape[0] else f" for {images} images"


def forward_alone(suite: Suite, case: Case, side: str) -> str:
    return ", forward alone" if suite.stage(case, side) == "forward" else ""


def memory(suite: Suite, case: Case, side: str) -> str:
    """Ours, with its backward, / theirs."""
    theirs = suite.row(case, "memory", suite.stage(case, side), side)
    values = pair(megabytes, suite.value(case, "memory", "both"), theirs and theirs["value"])
    return values + (fewer_images(theirs, case) if theirs else "")


def megabytes(value: float) -> str:
    """A process that grew by nothing may be found a little smaller."""
    return significant(max(value, 0.0))


def error(suite: Suite, case: Case, side: str) -> str:
    """Forward / gradients."""
    return pair(scientific, *(suite.value(case, "error", stage, side) for stage in ("forward", "backward")))


def scientific(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def pair(written: Callable[[float], str], *values: float | None) -> str:
    """Two figures, of which one may be missing."""
    if all(value is None for value in values):
        return ""
    return " / ".join("-" if value is None else written(value) for value in values)


def figure(row: Row) -> str:
    """A value with its unit."""
    if row["unit"] == "x":
        return times(row["value"])
    return f"{row['value']:.1e}" if row["metric"] == "error" else f"{significant(row['value'])} {row['unit']}"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Markdown; a column that no line has anything in is left out."""
    lines = list(lines)
    kept = [number for number in range(len(header)) if any(line[number].strip("-") for line in lines)]
    cells = [header, ["---"] * len(header), *lines]
    return ["| " + " | ".join(line[number] or "-" for number in kept) + " |" for line in cells]


def machine(result: Result) -> str:
    made = result.made
    if "gpu" in made:
        return f"{made['gpu']}, CUDA {made['cuda']}"
    return f"{made['cpu']}, {made['cores']} cores, {made['simd']}"


def commit(result: Result) -> str:
    made = result.made
    return (made["commit"] or "no commit")[:10] + (" with changes" if made["dirty"] else "")


if __name__ == "__main__":
    main()
