"""How time, memory and error are measured."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from cases import MOST_IMAGES, Case, Effort, Row
from floor import floor_of, measured_rates
from sides import SIDES, SIGMOIDS, Call, Inputs
from work import Work, accumulated, prepare

STAGES = ("forward", "backward", "both")
Sample = tuple[float, float]  # seconds of one call: forward, backward
Rounds = list[list[Sample]]


def timed_call(call: Call, inputs: Inputs, upstream: Tensor | None) -> Sample:
    """Without an upstream gradient, of the forward alone."""
    if upstream is not None and upstream.is_cuda:
        out: list[Tensor] = []
        forward, backward = gpu_seconds(
            lambda: out.append(call()), lambda: gradients(out[0], inputs, upstream)
        )
        return forward, backward
    start = perf_counter()
    out = call()
    middle = perf_counter()
    if upstream is None:
        return middle - start, 0.0
    _gradients = gradients(out, inputs, upstream)  # named, so that freeing them is not timed
    return middle - start, perf_counter() - middle


def gradients(out: Tensor, inputs: Inputs, upstream: Tensor) -> tuple[Tensor, ...]:
    """Those that there are: a peer may have none of its second image."""
    found = torch.autograd.grad(out, inputs, upstream, allow_unused=True)
    return tuple(gradient for gradient in found if gradient is not None)


def gpu_seconds(*parts: Callable[[], Any]) -> list[float]:
    """Seconds of the GPU for each part, between events, with the inputs out of its L2 cache.

    The GPU is kept busy meanwhile, so that the host is ahead and its time is not in the figure.
    """
    _larger_than_l2().zero_()
    torch.cuda._sleep(4_000_000)  # cycles: about two milliseconds
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(parts) + 1)]
    events[0].record()
    _results = []  # freeing them is not timed
    for part, event in zip(parts, events[1:], strict=True):
        _results.append(part())
        event.record()
    events[-1].synchronize()
    return [1e-3 * start.elapsed_time(end) for start, end in pairwise(events)]


@cache
def _larger_than_l2() -> Tensor:
    return torch.empty(2**28, dtype=torch.int8, device="cuda")


def captured(call: Call, inputs: Inputs, upstream: Tensor) -> Callable[[], Sample]:
    """Forward and backward as one CUDA graph; its time counts as the forward's."""

    def step() -> tuple[Tensor, ...]:
        return evaluate(call, inputs, upstream)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay() -> Sample:
        _results = results  # which belong to the graph
        return gpu_seconds(graph.replay)[0], 0.0

    return replay


def interleaved(sides: Mapping[str, Callable[[], Sample]], rounds: int, seconds: float) -> dict[str, Rounds]:
    """Samples of every side, taken A B A B, so that a drifting machine favours none.

    In a round each side is called until `seconds` have passed, at least once. A first round warms up and is
    not kept.
    """
    kept: dict[str, Rounds] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            samples: list[Sample] = []
            spent = 0.0
            while not samples or spent < seconds:
                samples.append(call())
                spent += sum(samples[-1])
            if number > 0:
                kept[name].append(samples)
        gc.collect()
    return kept


def summary(values: Sequence[float]) -> Row:
    """Median, 20th and 80th percentile (interpolated linearly) of two or more values."""
    p20, _, _, p80 = statistics.quantiles(values, n=5, method="inclusive")
    return {"value": statistics.median(values), "p20": p20, "p80": p80, "samples": len(values)}


def stage_times(samples: Sequence[Sample], stage: str) -> list[float]:
    """Milliseconds of one stage."""
    forward, backward = stage != "backward", stage != "forward"
    return [1e3 * (forward * sample[0] + backward * sample[1]) for sample in samples]


def ratios(slow: Rounds, fast: Rounds, stage: str, work: float = 1.0) -> list[float]:
    """How many times faster `fast` was at `work` times the work, round by round."""
    return [
        work * statistics.median(stage_times(a, stage)) / statistics.median(stage_times(b, stage))
        for a, b in zip(slow, fast, strict=True)
    ]


# ---- rows


def time_rows(case: Case, names: Sequence[str], effort: Effort) -> list[Row]:
    """Times of every side that fits into memory, how many times faster histloss is, and its floor."""
    misfits = {name: why for name in names if (why := misfit(case, name))}
    sizes = {name: fitting(case, name) for name in names if name not in misfits}
    works = {size: prepare(size) for size in set(sizes.values())}
    calls = {name: timed(size, name, works[size]) for name, size in sizes.items()}
    taken = interleaved(calls, effort.rounds, effort.seconds)
    rows = []
    for name, size in sizes.items():
        samples = [sample for samples in taken[name] for sample in samples]
        for stage in stages_of(name):
            times = summary(stage_times(samples, stage))
            rows.append(_row(size, "time", stage, name, "ms") | times)
    for name, why in misfits.items():
        rows.append(_row(case, "time", stages_of(name)[-1], name, "ms") | {"value": None, "why": why})
    if "histloss" not in sizes:
        return rows
    for name, size in sizes.items():
        smaller = images(case) / images(size)
        for stage in stages_of(name) if name != "histloss" else ():
            ratio = summary(ratios(taken[name], taken["histloss"], stage, smaller))
            rows.append(_row(case, "ratio", stage, "histloss", "x") | {"against": name} | ratio)
    rates = measured_rates(case.threads, case.device, accumulated(case))
    rows += [_row(case, "floor", stage, "floor", "ms") | floor_of(case, stage, rates) for stage in STAGES]
    if case.device == "cuda" and case.op == "deep_hist_loss":
        rows.append(_row(case, "time", "replay", "histloss", "ms") | replay_times(case, works[case], effort))
    return rows


def replay_times(case: Case, work: Work, effort: Effort) -> Row:
    replay = captured(SIDES["histloss"].build(case, work.inputs), *work)
    taken = interleaved({"replay": replay}, effort.rounds, effort.seconds)["replay"]
    return summary(stage_times([sample for samples in taken for sample in samples], "both"))


def timed(case: Case, name: str, work: Work) -> Callable[[], Sample]:
    side = SIDES[name]
    upstream = work.upstream if side.has_gradient else None
    return partial(timed_call, side.build(case, work.inputs), work.inputs, upstream)


def stages_of(name: str) -> tuple[str, ...]:
    return STAGES if SIDES[name].has_gradient else STAGES[:1]


def error_rows(case: Case, names: Sequence[str], effort: Effort) -> list[Row]:
    """Largest absolute error against the reference in float64, relative to the largest value.

    Of the sides that have the same kernel. On one plane, because the reference takes gigabytes for each. The
    backward's is the worst gradient's.
    """
    plane = replace(case, shape=(1, 1, *case.shape[2:]))
    exactly = replace(plane, dtype="float64")
    names = [name for name in names if SIDES[name].kernel == SIGMOIDS]
    if why := misfit(exactly, "reference"):
        return [_error_row(case, "forward", name) | {"value": None, "why": why} for name in names]
    inputs, upstream = prepare(plane)
    exact_inputs = tuple(image.detach().double().requires_grad_() for image in inputs)
    exact = evaluate(SIDES["reference"].build(exactly, exact_inputs), exact_inputs, upstream.double())
    rows = []
    for name in names:
        found = evaluate(SIDES[name].build(plane, inputs), inputs, upstream)
        forward, *backward = map(relative_error, found, exact)
        for stage, value in (("forward", forward), ("backward", max(backward))):
            rows.append(_error_row(case, stage, name) | {"value": value})
    return rows


def relative_error(found: Tensor, exact: Tensor) -> float:
    """NaN counts as infinitely wrong."""
    return ((found - exact).abs().max() / exact.abs().max()).nan_to_num(nan=math.inf).item()


def memory_rows(case: Case, names: Sequence[str], effort: Effort) -> list[Row]:
    """Peak memory of one side beyond inputs, outputs and gradients (`memory`), and of the process (`peak`).

    For a process of its own. On a GPU memory is that of PyTorch's allocator. On the CPU it is the resident
    size, whose peak is reset before the call, less the size then and the bytes of the results. A tiny call
    goes first: it loads code and starts threads, and leaves no buffer of the size measured. A side that
    compiles compiles for the shape first.
    """
    (name,) = names
    side = SIDES[name]
    stage = stages_of(name)[-1]
    row = _row(case, "memory", stage, name, "MB")
    if why := misfit(case, name):
        return [row | {"value": None, "why": why}]
    tiny = replace(case, bins=8, shape=(1, 1, *[8] * len(case.shape[2:])))
    _call(tiny, name)()
    measured = _call(case, name)
    if side.compiles:
        measured()
    release()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = measured()
        return [row | {"value": _megabytes(torch.cuda.max_memory_allocated() - before, results)}]
    beyond, peak = resident(measured)
    return [row | {"value": beyond}, _row(case, "peak", stage, name, "MB") | {"value": peak}]


def resident(call: Callable[[], tuple[Any, ...]]) -> tuple[float, float]:
    """Megabytes at the peak of a call: beyond those before it and its results, and of the whole process."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    results = call()
    peak = _status_bytes("VmHWM")
    return _megabytes(peak - before, results), peak / 1e6


def saving_rows(case: Case, names: Sequence[str], effort: Effort) -> list[Row]:
    """Peak memory of both sides on a GPU, and how many times less it is for each image."""
    rows = [row for name in names for row in memory_rows(fitting(case, name), [name], effort)]
    ours, theirs = (row["value"] / row["shape"][0] for row in rows)
    saving = {"against": names[1], "value": theirs / max(ours, 1e-6)}
    return [*rows, _row(case, "saving", "both", "histloss", "x") | saving]


MEASURES = {"time": time_rows, "error": error_rows, "memory": memory_rows, "saving": saving_rows}


def evaluate(call: Call, inputs: Inputs, upstream: Tensor | None) -> tuple[Any, ...]:
    """The output, then the gradient of each input, if there is an upstream gradient."""
    out = call()
    return (out,) if upstream is None else (out.detach(), *gradients(out, inputs, upstream))


def release() -> None:
    """Give what is free back to the system, where the C library can (glibc), and to the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _call(case: Case, name: str) -> Callable[[], tuple[Any, ...]]:
    work, side = prepare(case), SIDES[name]
    upstream = work.upstream if side.has_gradient else None
    return partial(evaluate, side.build(case, work.inputs), work.inputs, upstream)


def _megabytes(growth: int, results: tuple[Any, ...]) -> float:
    """Less the bytes of the results."""
    return (growth - sum(getattr(result, "nbytes", 0) for result in results)) / 1e6


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _row(case: Case, metric: str, stage: str, side: str, unit: str) -> Row:
    return asdict(case) | {"metric": metric, "stage": stage, "side": side, "unit": unit}


def _error_row(case: Case, stage: str, side: str) -> Row:
    return _row(case, "error", stage, side, "of the largest value")


# ---- what fits

USABLE = 0.6  # of the memory that is free


def misfit(case: Case, name: str) -> str | None:
    """Why a side does not fit into the memory of this machine, or None where it does.

    On a GPU the reference gets fewer images instead.
    """
    available = available_memory()
    needed = SIDES[name].bytes_needed(case)
    if case.device == "cuda" or available is None or needed <= USABLE * available:
        return None
    return f"needs about {needed / 1e9:.0f} GB, may have {USABLE * available / 1e9:.0f} GB"


def largest_batch(case: Case, name: str) -> Case:
    """With the largest power of two of images that fits this side, one of them at least."""
    case = replace(case, shape=(MOST_IMAGES, *case.shape[1:]))
    while images(case) > 1 and misfit(case, name):
        case = _half(case)
    return case


@cache
def fitting(case: Case, name: str) -> Case:
    """With half the images, and half again, until a side other than histloss fits into the GPU's memory."""
    while case.device == "cuda" and name != "histloss":
        try:
            _call(case, name)()
            break
        except torch.OutOfMemoryError:
            if images(case) == 1:
                raise
            case = _half(case)
        finally:
            release()
    return case


def images(case: Case) -> int:
    return case.shape[0]


def _half(case: Case) -> Case:
    return replace(case, shape=(images(case) // 2, *case.shape[1:]))


def available_memory() -> int | None:
    """Bytes that a process can have without swapping, where the system tells (Linux)."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    line = next(line for line in path.read_text().splitlines() if line.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])
