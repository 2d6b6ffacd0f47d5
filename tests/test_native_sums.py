"""The native sums of integers, called as raw ops, against the reference in float64 on the same pixels.

Fails where the native library is absent. Also run under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from asserters import assert_gradient, assert_value
from devices import on_cpu
from histloss import native, reference
from histloss.binning import BOUNDARIES, KERNELS, NORMALIZATIONS, Binning
from histloss.checks import accumulation_dtype
from test_native_kernels import (
    CONTENTS,
    DTYPES,
    F16,
    F32,
    F64,
    LAYOUTS,
    MASSES,
    OTHER_SETS,
    PIXELS,
    RANGES,
    Case,
    Inputs,
    assert_subset,
    laid_out,
)

BANDWIDTHS = {
    "sigmoid": (0.05, 0.1, 0.4, 0.8, 2.0, 20.0),
    "gaussian": (0.05, 0.1, 0.5, 1.0, 1.3, 3.0, 20.0),
    "bspline3": (0.5, 0.7, 1.0, 2.0, 3.7, 20.0),
    "triangular": (1.0, 1.5, 2.0, 7.3, 20.0),
}
PLACES = dict.fromkeys(KERNELS, CONTENTS)
# A triangle's slope is not continuous: at a bin's centre or the range's ends, where the few values of half
# precision often are, rounding decides which it is.
PLACES["triangular"] = {name: CONTENTS[name] for name in ("uniform", "ramp", "constant", "far", "nonfinite")}

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    info = native.backend_info()["cpu"]
    assert info["loaded"], info["reason"]
    assert info["simd"] == os.environ.get("HISTLOSS_SIMD", info["simd"])


def codes(*axes: Binning) -> list[float]:
    return [
        value
        for a in axes
        for value in (*a[:4], a.code, KERNELS.index(a.kernel), NORMALIZATIONS.index(a.normalization))
    ]


def numbers(integers: Tensor) -> Tensor:
    """What they stand for."""
    value = integers[0].double() * 2.0**-30
    return value + integers[1].double() * 2.0**-62 if len(integers) > 1 else value


class Scales:
    """The largest activation of an axis, and the largest sum of a pixel's absolute slopes."""

    def __init__(self, axis: Binning) -> None:
        x = torch.linspace(axis.lo, axis.hi, 4001, dtype=F64)[None] + 0.37 * axis.width
        endless = axis._replace(boundary="open")
        self.value = reference.plane_maps(x, endless).max().item()
        slopes = reference.plane_maps(x, endless, 1).abs().sum(1).max().item()
        self.slope = max(slopes, 2 * self.value / axis.width)  # up one side and down the other


def upstream(case: Case, like: Tensor, scale: float) -> tuple[Tensor, Tensor, float]:
    """In float64 and for the op, sized to keep a half-precision gradient near 1; and its mean square."""
    grad = (torch.randn(like.shape) / scale).to(like.dtype)
    given = laid_out(grad, "contiguous" if case.layout == "expanded" else case.layout)
    return grad.double(), given, grad.double().square().mean().sqrt().item() if grad.numel() else 0.0


def least(case: Case, size: float) -> float:
    """What an error is at least relative to: a share of the terms of a gradient, which may cancel."""
    return max(0.15 * size, torch.finfo(case.dtype).tiny)


def check_soft(case: Case) -> None:
    inputs, axis, scale = Inputs(case), case.axis_x, Scales(case.axis_x)
    weight = torch.ones(inputs.x.shape, dtype=F64) if inputs.mass is None else inputs.mass.double()
    heaviest = (weight.max().item() if case.pixels else 0.0) or 1.0
    maps, slopes = (reference.plane_maps(inputs.x.double(), axis, d) for d in (0, 1))
    counts, totals = torch.ops.histloss.soft_histogram_sums(inputs.x, inputs.mass, *codes(axis))
    levels = 2 if inputs.mass is not None or case.dtype == F64 or axis.bandwidth > 2 else 1
    assert counts.shape == (levels, case.planes, axis.bins)
    assert totals.shape == (levels, case.planes)
    assert counts.dtype == totals.dtype == torch.int64
    value = numbers(counts).to(accumulation_dtype(case.dtype))
    assert_value(value, (maps * weight[:, None]).sum(-1), floor=0.1 * scale.value * heaviest)
    torch.testing.assert_close(numbers(totals), weight.sum(-1), rtol=1e-12, atol=1e-12)

    grad, given, size = upstream(case, value, scale.slope * heaviest)
    needs = (True, inputs.mass is not None)
    found_x, found_weight = torch.ops.histloss.soft_histogram_sums_backward(
        given, inputs.x, inputs.mass, *codes(axis), *needs
    )
    assert found_x.dtype == case.dtype
    along = grad[..., None]
    expected = (along * slopes).sum(1) * weight
    assert_gradient(found_x, expected, floor=least(case, size * scale.slope * heaviest))
    if inputs.mass is not None:
        assert found_weight.dtype == value.dtype
        assert_gradient(found_weight, (along * maps).sum(1), floor=least(case, size * scale.value))


def check_joint(case: Case) -> None:
    inputs, axes = Inputs(case), (case.axis_x, case.axis_y)
    of_x, of_y = Scales(axes[0]), Scales(axes[1])
    weight = torch.ones(inputs.x.shape, dtype=F64) if inputs.mass is None else inputs.mass.double()
    heaviest = (weight.max().item() if case.pixels else 0.0) or 1.0
    maps_x, slopes_x = (reference.plane_maps(inputs.x.double(), axes[0], d) for d in (0, 1))
    maps_y, slopes_y = (reference.plane_maps(inputs.y.double(), axes[1], d) for d in (0, 1))
    counts, totals = torch.ops.histloss.joint_histogram_sums(inputs.x, inputs.y, inputs.mass, *codes(*axes))
    wide = any(axis.bandwidth > 2 for axis in axes)
    levels = 2 if inputs.mass is not None or case.dtype == F64 or wide else 1
    assert counts.shape == (levels, case.planes, axes[0].bins, axes[1].bins)
    assert totals.shape == (levels, case.planes)
    value = numbers(counts).to(accumulation_dtype(case.dtype))
    expected = (maps_x * weight[:, None]) @ maps_y.mT
    assert_value(value, expected, floor=0.1 * of_x.value * of_y.value * heaviest)
    torch.testing.assert_close(numbers(totals), weight.sum(-1), rtol=1e-12, atol=1e-12)

    steepest = (of_x.slope, of_y.slope)
    grad, given, size = upstream(case, value, max(steepest) * heaviest)
    along_x, along_y = grad @ maps_y, grad.mT @ maps_x
    needs = (True, True, inputs.mass is not None)
    found = torch.ops.histloss.joint_histogram_sums_backward(
        given, inputs.x, inputs.y, inputs.mass, *codes(*axes), *needs
    )
    assert found[0].dtype == found[1].dtype == case.dtype
    for gradient, along, slopes, steep in (
        (found[0], along_x, slopes_x, steepest[0]),
        (found[1], along_y, slopes_y, steepest[1]),
    ):
        floor = least(case, size * steep * heaviest)
        assert_gradient(gradient, (along * slopes).sum(1) * weight, floor=floor)
    if inputs.mass is not None:
        assert found[2].dtype == value.dtype
        floor = least(case, size * of_x.value * of_y.value)
        assert_gradient(found[2], (along_x * maps_x).sum(1), floor=floor)


# ---- the cases ------------------------------------------------------------------------------------


def sweep() -> list[Case]:
    """Every kernel with every boundary, normalization, bandwidth, content, layout and number of pixels."""
    cases = []
    for kernel in KERNELS:
        own = Binning(40, kernel=kernel, bandwidth=BANDWIDTHS[kernel][2])

        def on(own: Binning = own, **changes: Any) -> Case:
            return Case(own._replace(**changes), own._replace(**changes, bins=33), pixels=300)

        for boundary in BOUNDARIES:
            cases += [on(boundary=boundary, bandwidth=h) for h in BANDWIDTHS[kernel]]
            cases += [replace(on(boundary=boundary), content=content) for content in PLACES[kernel]]
            cases += [
                replace(on(boundary=boundary, normalization="none"), dtype=dtype) for dtype in (F32, F64)
            ]
        for h, dtype in itertools.product(BANDWIDTHS[kernel], (F32, F64)):
            case = on(boundary="open", bandwidth=h, normalization="inside")
            cases.append(replace(case, dtype=dtype, content="ramp", mass="random"))
        for pixels in PIXELS:
            cases.append(replace(on(), pixels=min(pixels, 20000), mass="mask", content="ramp"))
        for dtype, mass, layout in itertools.product(DTYPES, MASSES, LAYOUTS):
            cases.append(replace(on(), dtype=dtype, mass=mass, layout=layout, pixels=85))
    return cases


def at_random(count: int, seed: int) -> list[Case]:
    """Everything at once, x and y apart."""
    pick = random.Random(seed)

    def axis() -> Binning:
        lo, hi = pick.choice(RANGES)
        kernel, boundary = pick.choice(KERNELS), pick.choice(BOUNDARIES)
        normalization = pick.choice(NORMALIZATIONS if boundary == "open" else ("all", "none"))
        bandwidth = pick.choice(BANDWIDTHS[kernel][:-1])  # of the widest, next to nothing is left
        return Binning(pick.choice((1, 2, 5, 64, 130)), lo, hi, bandwidth, boundary, kernel, normalization)

    return [
        Case(
            *axes,
            pick.choice(DTYPES if all(a.kernel != "triangular" for a in axes) else (F32, F64)),
            pick.choice([n for n in PIXELS if n <= 1000]),
            pick.choice(
                ("uniform", "ramp", "nonfinite", "far")[
                    : 3 if any(a.normalization == "inside" for a in axes) else 4
                ]
            ),
            pick.choice(MASSES),
            pick.choice(LAYOUTS),
            pick.choice((1, 2, 5)),
        )
        for axes in [(axis(), axis()) for _ in range(count)]
    ]


def name(case: Case) -> str:
    axes = [f"{a.kernel}:{a.normalization}" for a in (case.axis_x, case.axis_y)]
    return " ".join([*axes, str(case)])


SWEEP = sweep()


@pytest.mark.parametrize("case", SWEEP, ids=name)
def test_soft_sums(case: Case) -> None:
    check_soft(case)


@pytest.mark.parametrize("case", SWEEP, ids=name)
def test_joint_sums(case: Case) -> None:
    check_joint(case)


@pytest.mark.parametrize("case", at_random(100, seed=1), ids=name)
def test_soft_sums_at_random(case: Case) -> None:
    check_soft(case)


@pytest.mark.parametrize("case", at_random(150, seed=2), ids=name)
def test_joint_sums_at_random(case: Case) -> None:
    check_joint(case)


@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", ["gaussian", "bspline3", "triangular"])
def test_activation_maps_at_random(kernel: str, boundary: str, dtype: torch.dtype) -> None:
    for bandwidth in BANDWIDTHS[kernel]:
        axis = Binning(23, bandwidth=bandwidth, boundary=boundary, kernel=kernel)
        case = Case(axis, axis, dtype, pixels=150, content="far")
        x, scale = Inputs(case).x, Scales(axis)
        maps, slopes = (reference.plane_maps(x.double(), axis, d) for d in (0, 1))
        options = (*codes(axis)[:5], KERNELS.index(kernel))
        found = torch.ops.histloss.activation_maps(x, *options)
        assert_value(found, maps, floor=0.1 * scale.value)
        grad, given, size = upstream(case, found, scale.slope)
        gradient = torch.ops.histloss.activation_maps_backward(given, x, *options)
        assert_gradient(gradient, (grad * slopes).sum(1), floor=least(case, size * scale.slope))


# ---- the same bits --------------------------------------------------------------------------------


def results(x: Tensor, y: Tensor, weight: Tensor | None, axis: Binning, grad: Tensor) -> list[Tensor]:
    ops, need = torch.ops.histloss, weight is not None
    return [
        *ops.soft_histogram_sums(x, weight, *codes(axis)),
        *ops.joint_histogram_sums(x, y, weight, *codes(axis, axis)),
        *ops.soft_histogram_sums_backward(grad[:, 0], x, weight, *codes(axis), True, need),
        *ops.joint_histogram_sums_backward(grad, x, y, weight, *codes(axis, axis), True, True, need),
    ]


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_however_pixels_are_cut(kernel: str, dtype: torch.dtype, weighted: bool) -> None:
    """Into any order, calls and threads: sums add up, and gradients are those of the whole."""
    axis = Binning(20, kernel=kernel, bandwidth=BANDWIDTHS[kernel][2])
    x, y = ((torch.randn(2, 40000) * 0.7).to(dtype) for _ in range(2))
    weight = torch.rand(2, 40000, dtype=accumulation_dtype(dtype)) * 3 if weighted else None
    grad = torch.randn(2, 20, 20, dtype=accumulation_dtype(dtype))
    whole = results(x, y, weight, axis, grad)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, results(x, y, weight, axis, grad), whole))
    parts = torch.randperm(40000).split([1, 7, 30000, 0, 9000, 992])
    found = [results(x[:, i], y[:, i], None if weight is None else weight[:, i], axis, grad) for i in parts]
    for number, expected in enumerate(whole[:4]):
        assert torch.equal(sum(part[number] for part in found), expected)
    for number, expected in enumerate(whole[4:], 4):
        for i, part in zip(parts, found, strict=True):
            assert torch.equal(part[number], expected[:, i] if expected.numel() else expected)


# ---- gradients that are not needed, and bad arguments ---------------------------------------------


def test_only_the_gradients_asked_for() -> None:
    axis = Binning(30, kernel="gaussian", bandwidth=0.5)
    x, y, weight = (torch.rand(2, 500) for _ in range(3))
    grad = torch.randn(2, 30, 30)
    joint, soft = (
        torch.ops.histloss.joint_histogram_sums_backward,
        torch.ops.histloss.soft_histogram_sums_backward,
    )
    every = joint(grad, x, y, weight, *codes(axis, axis), True, True, True)
    for needs in itertools.product((True, False), repeat=3):
        assert_subset(joint(grad, x, y, weight, *codes(axis, axis), *needs), every, needs)
    every = soft(grad[:, 0], x, weight, *codes(axis), True, True)
    for needs in itertools.product((True, False), repeat=2):
        assert_subset(soft(grad[:, 0], x, weight, *codes(axis), *needs), every, needs)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({3: 0.4, 5: 2}, "bandwidth too narrow"),
        ({5: 4}, "no such kernel"),
        ({5: -1}, "no such kernel"),
        ({6: 3}, "no such normalization"),
        ({4: 3}, "no such boundary"),
        ({0: 0}, "bins out of range"),
        ({1: 2.0}, "range out of order"),
    ],
    ids=str,
)
def test_axes_that_make_no_sense_are_refused(changed: dict[int, float], message: str) -> None:
    axis = codes(Binning(20, kernel="gaussian", bandwidth=0.5))
    for place, value in changed.items():
        axis[place] = value
    x = torch.rand(1, 10)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.histloss.soft_histogram_sums(x, None, *axis)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.histloss.joint_histogram_sums(x, x, None, *codes(Binning(4)), *axis)


def test_tensors_that_do_not_fit_are_refused() -> None:
    axis, x, grad = codes(Binning(20)), torch.rand(2, 10), torch.rand(2, 20)
    ops = torch.ops.histloss
    wrong: list[Callable[[], object]] = [
        lambda: ops.soft_histogram_sums(x[0], None, *axis),
        lambda: ops.soft_histogram_sums(x.long(), None, *axis),
        lambda: ops.soft_histogram_sums(x, x[:1], *axis),
        lambda: ops.soft_histogram_sums(x, x.double(), *axis),
        lambda: ops.joint_histogram_sums(x, x[:, :9], None, *axis, *axis),
        lambda: ops.joint_histogram_sums(x, x.half(), None, *axis, *axis),
        lambda: ops.soft_histogram_sums_backward(grad[:, 1:], x, None, *axis, True, False),
        lambda: ops.soft_histogram_sums_backward(grad.double(), x, None, *axis, True, False),
        lambda: ops.joint_histogram_sums_backward(grad, x, x, None, *axis, *axis, True, True, False),
    ]
    for call in wrong:
        with pytest.raises(RuntimeError, match="histloss: "):
            call()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_extreme_pixels(kernel: str, boundary: str, dtype: torch.dtype) -> None:
    """Nothing is read or written out of bounds, whatever the pixels and weights hold."""
    limits = torch.finfo(dtype)
    values = [0.1, 0.7, 0.0, -0.0, limits.tiny, limits.max, limits.min, limits.max / 3, 3e4, -3e4]
    x = torch.tensor([*values, torch.nan, torch.inf, -torch.inf] * 5, dtype=dtype)[None]
    for bandwidth, normalization in itertools.product(BANDWIDTHS[kernel], NORMALIZATIONS):
        if normalization == "inside" and boundary != "open":
            continue
        axis = Binning(30, 0.1, 0.7, bandwidth, boundary, kernel, normalization)
        grad = torch.randn(1, 30, 30, dtype=accumulation_dtype(dtype))
        for weight in (None, x.to(grad.dtype)):
            found = results(x, x.flip(-1), weight, axis, grad)
            if weight is None:
                assert all(bool(t.isfinite().all()) for t in found)
                assert bool((numbers(found[0]) >= 0).all() & (numbers(found[2]) >= 0).all())


@pytest.mark.parametrize("bad", [-0.1, 2.0**20 + 1, torch.nan, torch.inf])
def test_a_bad_weight_makes_its_plane_negative_in_total(bad: float) -> None:
    axis, x, weight = codes(Binning(8)), torch.rand(3, 50), torch.rand(3, 50)
    weight[1, 7] = bad
    for counts, totals in (
        torch.ops.histloss.soft_histogram_sums(x, weight, *axis),
        torch.ops.histloss.joint_histogram_sums(x, x, weight, *axis, *axis),
    ):
        assert totals[0, 1] == -(2**62)
        assert bool((totals[0, ::2] > 0).all())
        assert bool((numbers(counts) >= 0).all())


# ---- every instruction set ------------------------------------------------------------------------


@on_cpu
@pytest.mark.parametrize("simd", OTHER_SETS)
def test_every_other_instruction_set(simd: str) -> None:
    """The random cases again, in a process whose library uses that set (see the fixture `library`)."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "at_random"]
    done = subprocess.run(command, env={**os.environ, "HISTLOSS_SIMD": simd}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
