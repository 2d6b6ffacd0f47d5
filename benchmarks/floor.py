"""The time below which a case cannot be done by the library's method on this machine.

The larger of two times: to move the bytes that must move, at the rate of a copy of memory, and to do the
multiply-adds, at the rate of a matrix product that stays in cache. Both rates are measured in the same run,
on the case's threads and in its precision. Small images lie in the cache, which moves them faster than that.

The multiply-adds are those of a pixel with what stands for the bins that it touches, in csrc/cpu/kernels.
What comes once for a pixel (its exponentials and its place) or once for a plane (the mix of the nodes to the
bins, entropies, running sums) is left out, and so is what a kernel does more where it falls back to a slower
method. On a GPU there are the bytes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import NamedTuple

import torch

from cases import Case, Row
from work import INPUTS, accumulated, output_shape

NODES = 16  # of an axis: what all bins that a pixel touches are a mix of, see csrc/cell_basis.h
MOMENTS = 4  # of a pixel in its subcell, see csrc/cpu/subcell_polynomials.h
NARROW = 0.5  # up to this bandwidth eight nodes do for the rows of a gradient
STAGES = ("forward", "backward")


class Rates(NamedTuple):
    bytes: float  # a second, read and written
    multiply_adds: float  # a second


def floor_of(case: Case, stage: str, rates: Rates) -> Row:
    """The figures of a floor's row; its value is in milliseconds."""
    stages = STAGES if stage == "both" else (stage,)
    moved, done = (sum(count(case, each) for each in stages) for count in (bytes_moved, multiply_adds))
    return {
        "value": 1e3 * max(moved / rates.bytes, done / rates.multiply_adds),
        "bytes": moved,
        "multiply_adds": done,
        "copy_gb_per_s": 1e-9 * rates.bytes,
        "gigaflops": 2e-9 * rates.multiply_adds if math.isfinite(rates.multiply_adds) else None,
    }


def bytes_moved(case: Case, stage: str) -> int:
    """Forward reads the images and writes the output; backward reads both and writes the gradients."""
    image = math.prod(case.shape) * getattr(torch, case.dtype).itemsize
    output = math.prod(output_shape(case)) * accumulated(case).itemsize
    return INPUTS[case.op] * image * (1 if stage == "forward" else 2) + output


def multiply_adds(case: Case, stage: str) -> int:
    one, two = _of_histogram(stage), _of_joint_histogram(case, stage)
    of_a_pixel = {
        "activation_maps": _taps(case),
        "soft_histogram": one,
        "emd_loss": one,
        "joint_histogram": two,
        "mi_loss": two,
        "deep_hist_loss": one + two,
    }
    return math.prod(case.shape) * of_a_pixel[case.op]


def _of_histogram(stage: str) -> int:
    """Forward: a pixel's moments are added to its subcell's. Backward: a cubic is evaluated."""
    return MOMENTS if stage == "forward" else MOMENTS - 1


def _of_joint_histogram(case: Case, stage: str) -> int:
    """Forward: the outer product of a pixel's nodes. Backward: value and slope, along rows of nodes."""
    if stage == "forward":
        return NODES * NODES
    rows = NODES // 2 if case.bandwidth <= NARROW else NODES
    return 2 * rows * NODES


def _taps(case: Case) -> int:
    """One for each bin that a pixel touches: the kernel's tail ends where it is below the resolution."""
    bits = 54 if case.dtype == "float64" else 27
    return min(case.bins, 2 * math.ceil(bits * math.log(2) * case.bandwidth + 0.5))


@cache
def measured_rates(threads: int, device: str, dtype: torch.dtype) -> Rates:
    """The best of a second's copies, and products of matrices that stay in cache, in turns."""
    torch.set_num_threads(threads)
    source = torch.zeros(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = torch.rand(2, 512, 512, dtype=dtype)
    c = torch.empty_like(a)
    copies, products = [], []
    end = perf_counter() + 1
    while perf_counter() < end:
        copies.append(_seconds(lambda: target.copy_(source), device))
        if device == "cpu":
            products += [_seconds(lambda: torch.mm(a, b, out=c), device) for _ in range(10)]
    return Rates(2 * source.nbytes / min(copies), len(a) ** 3 / min(products) if products else math.inf)


def _seconds(call: Callable[[], object], device: str) -> float:
    start = perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start
