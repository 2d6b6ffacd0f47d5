"""How time, memory and error are measured."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from cases import SIDES, Case, Row, Settings
from work import function, prepare

STAGES = ("forward", "backward", "both")
Sample = tuple[float, float]  # seconds of one call: forward, backward
Rounds = list[list[Sample]]


def timed_call(call: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> Sample:
    start = perf_counter()
    out = call(*inputs)
    middle = perf_counter()
    _gradients = torch.autograd.grad(out, inputs, upstream)  # named, so that freeing them is not timed
    return middle - start, perf_counter() - middle


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


def ratios(slow: Rounds, fast: Rounds, stage: str) -> list[float]:
    """How many times faster `fast` was, round by round."""
    return [
        statistics.median(stage_times(a, stage)) / statistics.median(stage_times(b, stage))
        for a, b in zip(slow, fast, strict=True)
    ]


def time_rows(case: Case, settings: Settings, content: str) -> list[Row]:
    work = prepare(case, settings, content)
    sides = {side: partial(timed_call, function(case, settings, side), *work) for side in SIDES}
    taken = interleaved(sides, settings.rounds, settings.seconds)
    rows = []
    for stage in STAGES:
        for side in SIDES:
            samples = [sample for samples in taken[side] for sample in samples]
            times = summary(stage_times(samples, stage))
            rows.append(_row(case, settings, content, "time", "ms", stage, side) | times)
        ratio = summary(ratios(taken["reference"], taken["histloss"], stage))
        rows.append(_row(case, settings, content, "ratio", "x", stage, "histloss") | ratio)
    return rows


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

    The peak resident size, reset before the call, less the size then and the bytes of the results. A tiny
    call goes first: it loads code and starts threads, and leaves no buffer of the size measured.
    """
    tiny = Settings(bins=2, shape=(1, 1, 4, 4))
    _evaluate(function(case, tiny, side), *prepare(case, tiny, "uniform"))
    work = prepare(case, settings, "uniform")
    call = function(case, settings, side)
    release()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    results = _evaluate(call, *work)
    growth = _status_bytes("VmHWM") - before - sum(result.nbytes for result in results)
    return [_row(case, settings, "uniform", "memory", "MB", "both", side) | {"value": growth / 1e6}]


def release() -> None:
    """Give what is free back to the system, where the C library can (glibc)."""
    gc.collect()
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
        "device": "cpu",
        "threads": settings.threads,
        "content": content,
        "metric": metric,
        "stage": stage,
        "side": side,
        "unit": unit,
    }
