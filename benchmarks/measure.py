"""How time, memory and error are measured."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from cases import DEEP_HIST, SIDES, Case, Row, Settings
from work import Work, function, prepare

STAGES = ("forward", "backward", "both")
Sample = tuple[float, float]  # seconds of one call: forward, backward
Rounds = list[list[Sample]]


def timed_call(call: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> Sample:
    if upstream.is_cuda:
        out: list[Tensor] = []
        forward, backward = gpu_seconds(
            lambda: out.append(call(*inputs)), lambda: torch.autograd.grad(out[0], inputs, upstream)
        )
        return forward, backward
    start = perf_counter()
    out = call(*inputs)
    middle = perf_counter()
    _gradients = torch.autograd.grad(out, inputs, upstream)  # named, so that freeing them is not timed
    return middle - start, perf_counter() - middle


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


def captured(call: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> Callable[[], Sample]:
    """Forward and backward as one CUDA graph; its time counts as the forward's."""

    def step() -> tuple[Tensor, ...]:
        return _evaluate(call, inputs, upstream)

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


def time_rows(case: Case, settings: Settings, content: str) -> list[Row]:
    sizes = {side: fitting(case, settings, side) for side in SIDES}
    works = shared_work(case, sizes, content)
    sides = {
        side: partial(timed_call, function(case, sizes[side], side), *works[sizes[side]]) for side in SIDES
    }
    taken = interleaved(sides, settings.rounds, settings.seconds)
    smaller = images(sizes["histloss"]) / images(sizes["reference"])
    rows = []
    for stage in STAGES:
        for side in SIDES:
            samples = [sample for samples in taken[side] for sample in samples]
            times = summary(stage_times(samples, stage))
            rows.append(_row(case, sizes[side], content, "time", "ms", stage, side) | times)
        ratio = summary(ratios(taken["reference"], taken["histloss"], stage, smaller))
        rows.append(_row(case, settings, content, "ratio", "x", stage, "histloss") | ratio)
    if settings.device == "cuda" and case == DEEP_HIST:
        replay = captured(function(case, settings, "histloss"), *works[settings])
        taken = interleaved({"replay": replay}, settings.rounds, settings.seconds)
        times = summary(stage_times([sample for samples in taken["replay"] for sample in samples], "both"))
        rows.append(_row(case, settings, content, "time", "ms", "replay", "histloss") | times)
    return rows


@cache
def fitting(case: Case, settings: Settings, side: str) -> Settings:
    """With half the images, and half again, until the reference fits into the memory of the GPU."""
    while settings.device == "cuda" and side == "reference":
        try:
            _evaluate(function(case, settings, side), *prepare(case, settings, "uniform"))
            break
        except torch.OutOfMemoryError:
            if images(settings) == 1:
                raise
            settings = replace(settings, shape=(images(settings) // 2, *settings.shape[1:]))
        finally:
            release()
    return settings


def images(settings: Settings) -> int:
    return settings.shape[0]


def shared_work(case: Case, sizes: Mapping[str, Settings], content: str) -> dict[Settings, Work]:
    """The work of each size: one and the same for both sides where they have one size."""
    return {size: prepare(case, size, content) for size in set(sizes.values())}


def floor_rows(case: Case, settings: Settings, content: str) -> list[Row]:
    """The time in which the GPU copies as many bytes as the op must read and write."""
    inputs, upstream = prepare(case, settings, content)
    x = sum(image.nbytes for image in inputs)
    bytes_of = {"forward": x + upstream.nbytes, "backward": 2 * x + upstream.nbytes}
    bytes_of["both"] = sum(bytes_of.values())
    source = torch.zeros(2**30, dtype=torch.int8, device=settings.device)
    target = torch.empty_like(source)
    rate = (
        2
        * source.nbytes
        / statistics.median(gpu_seconds(partial(target.copy_, source))[0] for _ in range(20))
    )
    return [
        _row(case, settings, content, "floor", "ms", stage, "copy")
        | {"value": 1e3 * bytes_of[stage] / rate, "GB per s": 1e-9 * rate}
        for stage in STAGES
    ]


def error_rows(case: Case, settings: Settings, content: str) -> list[Row]:
    """Largest absolute error against the reference in float64, relative to the largest value.

    On one channel, because the reference takes gigabytes for each. The backward's is the worst gradient's.
    """
    settings = replace(settings, shape=(1, 1, *settings.shape[2:]))
    inputs, upstream = prepare(case, settings, content)
    exact_inputs = [image.detach().double().requires_grad_() for image in inputs]
    exact = _evaluate(function(case, settings, "reference"), exact_inputs, upstream.double())
    rows = []
    for side in SIDES:
        found = _evaluate(function(case, settings, side), inputs, upstream)
        forward, *backward = map(relative_error, found, exact)
        for stage, value in (("forward", forward), ("backward", max(backward))):
            row = _row(case, settings, content, "error", "of the largest value", stage, side)
            rows.append(row | {"value": value})
    return rows


def relative_error(found: Tensor, exact: Tensor) -> float:
    """NaN counts as infinitely wrong."""
    return ((found - exact).abs().max() / exact.abs().max()).nan_to_num(nan=math.inf).item()


def memory_rows(case: Case, settings: Settings, side: str) -> list[Row]:
    """Peak memory of forward and backward beyond inputs, outputs and gradients, in a process of its own.

    On a GPU it is that of PyTorch's allocator. On the CPU it is the peak resident size, reset before the
    call, less the size then and the bytes of the results. A tiny call goes first: it loads code and starts
    threads, and leaves no buffer of the size measured.
    """
    tiny = Settings(bins=2, shape=(1, 1, 4, 4), device=settings.device)
    _evaluate(function(case, tiny, side), *prepare(case, tiny, "uniform"))
    work = prepare(case, settings, "uniform")
    call = function(case, settings, side)
    release()
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = _evaluate(call, *work)
        growth = torch.cuda.max_memory_allocated() - before - sum(result.nbytes for result in results)
        return [_row(case, settings, "uniform", "memory", "MB", "both", side) | {"value": growth / 1e6}]
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    results = _evaluate(call, *work)
    growth = _status_bytes("VmHWM") - before - sum(result.nbytes for result in results)
    return [_row(case, settings, "uniform", "memory", "MB", "both", side) | {"value": growth / 1e6}]


def saving_rows(case: Case, settings: Settings, content: str) -> list[Row]:
    """Peak memory of both sides on a GPU, and how many times less it is for each image."""
    sizes = {side: fitting(case, settings, side) for side in SIDES}
    rows = [row for side in SIDES for row in memory_rows(case, sizes[side], side)]
    ours, theirs = (row["value"] / row["shape"][0] for row in rows)
    saving = {"value": theirs / max(ours, 1e-6)}
    return [*rows, _row(case, settings, content, "saving", "x", "both", "histloss") | saving]


def release() -> None:
    """Give what is free back to the system, where the C library can (glibc), and to the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _evaluate(call: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    """The output, then the gradient of each input."""
    out = call(*inputs)
    return (out.detach(), *torch.autograd.grad(out, inputs, upstream))


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _row(case: Case, settings: Settings, content: str, metric: str, unit: str, stage: str, side: str) -> Row:
    return {
        "case": case.name,
        "op": case.op,
        "boundary": case.boundary,
        "bandwidth": case.bandwidth,
        "bins": settings.bins,
        "shape": list(settings.shape),
        "dtype": "float32",
        "device": settings.device,
        "threads": settings.threads,
        "content": content,
        "metric": metric,
        "stage": stage,
        "side": side,
        "unit": unit,
    }
