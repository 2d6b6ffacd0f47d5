"""The CUDA kernels, run on the CPU by the emulator, against the reference in float64.

All of them as compiled for speed; some under AddressSanitizer and UBSan, where a block's shared memory, the
scratch and every array end where they should; and tiny images under ThreadSanitizer, which knows each CUDA
thread as a thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import emulated
import pytest
import torch
from torch import Tensor

from histloss.binning import BOUNDARIES, Binning
from histloss.checks import accumulation_dtype
from histloss.reference import radius
from test_native_kernels import (
    BANDWIDTHS,
    BF16,
    CONTENTS,
    DTYPES,
    F16,
    F32,
    F64,
    MASSES,
    RANGES,
    Case,
    Inputs,
    assert_subset,
    at_random,
    check_joint_histogram,
    check_maps,
    check_soft_histogram,
    codes,
    uniform,
)

CHECKS = {"maps": check_maps, "soft": check_soft_histogram, "joint": check_joint_histogram}
MOST_PRODUCTS = 1_000_000
SHARED_BYTES = (48 << 10, 99 << 10, 227 << 10)  # any GPU; GeForce; H100


@pytest.fixture(autouse=True)
def emulator() -> None:
    emulated.seed(0)
    emulated.order("random")
    emulated.shared_bytes(SHARED_BYTES[-1])


def on(bins_x: int, bins_y: int | None = None, /, **axis: object) -> dict[str, Binning]:
    return {
        "axis_x": Binning(bins_x)._replace(**axis),
        "axis_y": Binning(bins_y or bins_x)._replace(**axis),
    }


def sweep() -> Iterator[Case]:
    base = Case(pixels=257)
    for boundary in BOUNDARIES:
        for content in CONTENTS:
            yield replace(base, **on(64, boundary=boundary), content=content)
        for bandwidth in BANDWIDTHS:
            yield replace(base, **on(64, boundary=boundary, bandwidth=bandwidth), content="far")
        for bandwidth in (0.01, 0.4, 2.0):
            yield replace(base, **on(16, boundary=boundary, bandwidth=bandwidth), dtype=F64, pixels=40)
        yield replace(base, **on(7, 3, boundary=boundary, bandwidth=20.0), content="outside")
    for pixels in (0, 1, 31, 33, 1000, 4097):
        yield replace(base, pixels=pixels, **on(64), planes=1, content="ramp")
        yield replace(base, pixels=pixels, **on(20, bandwidth=1.3), planes=3, content="saturated")
    for bins in ((2, 1), (2, 5), (5, 16), (64, 16), (16, 256), (256, 256), (300, 7), (1024, 3), (5, 1024)):
        yield replace(base, **on(*bins), content="far")
        yield replace(base, **on(*bins, bandwidth=0.8, boundary="cyclic"), dtype=F64, pixels=33)
    yield replace(base, **on(1024), pixels=100, planes=1)
    for wide, narrow in ((300, 16), (1024, 64)):
        axes = Binning(wide, bandwidth=20.0), Binning(narrow)
        yield replace(base, axis_x=axes[0], axis_y=axes[1], pixels=1000)
        yield replace(base, axis_x=axes[1], axis_y=axes[0], pixels=1000)
    yield replace(base, **on(12, 5, bandwidth=20.0), dtype=F64, pixels=5, planes=1)
    for lo, hi in RANGES:
        yield replace(base, **on(100, lo=lo, hi=hi), content="constant")
    for dtype in DTYPES:
        for mass in MASSES:
            yield replace(base, dtype=dtype, mass=mass, layout="misaligned", pixels=99, **on(16, 20))


def tiny() -> Iterator[Case]:
    """At most 31 blocks a launch, see the emulator's limit of threads for ThreadSanitizer."""
    base = Case(pixels=130, planes=1)
    for bandwidth in (0.1, 0.4, 2.0, 20.0):
        yield replace(base, **on(9, 12, bandwidth=bandwidth), content="far")
    yield replace(base, **on(9, 12), mass="random", dtype=F16)
    yield replace(base, **on(9, 12), content="constant", pixels=700)
    yield replace(
        base, **on(9, 12), content="nonfinite", pixels=700
    )  # lanes that wait for others to find pixels
    yield replace(base, **on(9, 12), dtype=F64, mass="random", pixels=40)
    yield replace(base, **on(5, 300, boundary="open"), pixels=20)
    yield replace(base, **on(40, 5, boundary="cyclic"), dtype=BF16, planes=3, pixels=33)


def shrunk(case: Case) -> Case:
    """As many of its pixels as the emulator has time for, where kernels go through every bin of the joint
    histogram that a pixel touches.
    """
    bins_x, bins_y = (2 * radius(a.bandwidth, case.dtype) + 1 for a in (case.axis_x, case.axis_y))
    most = MOST_PRODUCTS // (case.planes * bins_x * bins_y)
    every_bin = case.dtype == F64 or bins_x * bins_y > 100**2
    return replace(case, pixels=min(case.pixels, max(most, 1))) if every_bin else case


SWEEP, AT_RANDOM = list(sweep()), at_random(30, seed=6, most_pixels=65)
CASES = {
    "plain": SWEEP + AT_RANDOM,
    "asan": SWEEP[::4] + AT_RANDOM[::3],
    "tsan": list(tiny()),
}[emulated.VARIANT]
not_racing = pytest.mark.variants("plain", "asan")  # images too large for ThreadSanitizer
plain_only = pytest.mark.variants("plain")  # nothing more for a sanitizer to see


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("op", CHECKS)
def test_the_reference(op: str, case: Case) -> None:
    CHECKS[op](shrunk(case) if op == "joint" else case, emulated)


@not_racing
@pytest.mark.parametrize("shared_bytes", SHARED_BYTES)
@pytest.mark.parametrize("bandwidth", [0.4, 2.0])
@pytest.mark.parametrize("bins", [64, 256, 300])
def test_shared_memory_of_every_size(bins: int, bandwidth: float, shared_bytes: int) -> None:
    emulated.shared_bytes(shared_bytes)
    case = Case(**on(bins, bandwidth=bandwidth), pixels=600)
    check_soft_histogram(case, emulated)
    check_joint_histogram(case, emulated)


# ---- the same bits --------------------------------------------------------------------------------


def every_result(case: Case) -> list[Tensor]:
    inputs, x, y = Inputs(case), codes(case.axis_x), codes(case.axis_x, case.axis_y)
    dtype = accumulation_dtype(case.dtype)
    soft, maps = (
        torch.randn(case.planes, case.axis_x.bins, dtype=dtype),
        emulated.activation_maps(inputs.x, *x),
    )
    joint = torch.randn(case.planes, case.axis_x.bins, case.axis_y.bins, dtype=dtype)
    has_mass = inputs.mass is not None
    return [
        maps,
        emulated.activation_maps_backward(maps, inputs.x, *x),
        emulated.soft_histogram(inputs.x, inputs.mass, *x),
        *emulated.soft_histogram_backward(soft, inputs.x, inputs.mass, *x, True, has_mass),
        emulated.joint_histogram(inputs.x, inputs.y, inputs.mass, *y),
        *emulated.joint_histogram_backward(joint, inputs.x, inputs.y, inputs.mass, *y, True, True, has_mass),
    ]


@plain_only
@pytest.mark.parametrize(
    "case",
    [
        Case(**on(64), pixels=1500),
        Case(**on(300, 20, bandwidth=2.0, boundary="cyclic"), pixels=100, mass="random"),
        Case(**on(16), pixels=700, content="constant"),
        Case(**on(20, 7), pixels=200, dtype=F64, mass="random"),
        Case(**on(33, bandwidth=5.0, boundary="open"), pixels=20, dtype=F16, content="nonfinite"),
    ],
    ids=str,
)
def test_the_same_bits_in_any_order(case: Case) -> None:
    """Of a launch's blocks, and of the threads of a block."""
    first = every_result(case)
    for order, seed in (("random", 1), ("random", 2), ("random", 3), ("forward", 0), ("backward", 0)):
        torch.manual_seed(0)
        emulated.order(order)
        emulated.seed(seed)
        for number, (result, expected) in enumerate(zip(every_result(case), first, strict=True)):
            same = torch.equal(result.nan_to_num(7), expected.nan_to_num(7))
            assert same, f"result {number} differs for order {order}, seed {seed}"


@plain_only
@pytest.mark.parametrize("bandwidth", [0.4, 2.0])
def test_the_same_bits_however_a_table_is_cut(bandwidth: float) -> None:
    """Into the strips that fit in shared memory."""
    case = Case(**on(128, bandwidth=bandwidth), pixels=2000, mass="random")
    first = every_result(case)
    for shared_bytes in SHARED_BYTES[:-1]:
        torch.manual_seed(0)
        emulated.shared_bytes(shared_bytes)
        for result, expected in zip(every_result(case), first, strict=True):
            assert torch.equal(result, expected)


@plain_only
def test_a_plane_does_not_depend_on_its_neighbours() -> None:
    axis = Binning(40)
    x, y = (uniform(5, 300, axis).float() for _ in range(2))
    soft = emulated.soft_histogram(x, None, *codes(axis))
    joint = emulated.joint_histogram(x, y, None, *codes(axis, axis))
    for p in range(5):
        one = slice(p, p + 1)
        assert torch.equal(soft[one], emulated.soft_histogram(x[one], None, *codes(axis)))
        assert torch.equal(joint[one], emulated.joint_histogram(x[one], y[one], None, *codes(axis, axis)))


# ---- masses that are none -------------------------------------------------------------------------


@plain_only
@pytest.mark.parametrize("content", ["uniform", "outside", "nonfinite"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -0.01])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)  # by cells, directly
def test_a_mass_that_is_none_makes_its_plane_nan(dtype: torch.dtype, value: float, content: str) -> None:
    """Wherever its pixel is, and no other plane."""
    case = Case(**on(16, boundary="open"), dtype=dtype, mass="random", planes=3, pixels=600, content=content)
    inputs = Inputs(case)
    spoilt = inputs.mass.clone()
    spoilt[1, 77] = value
    soft, joint = (inputs.x,), (inputs.x, inputs.y)
    for op, images, axes in (
        (emulated.soft_histogram, soft, codes(case.axis_x)),
        (emulated.joint_histogram, joint, codes(case.axis_x, case.axis_y)),
    ):
        good, bad = op(*images, inputs.mass, *axes), op(*images, spoilt, *axes)
        assert good.isfinite().all()
        assert bad[1].isnan().all()
        assert torch.equal(bad[::2], good[::2])


# ---- gradients that are not needed ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
def test_only_the_gradients_asked_for(dtype: torch.dtype) -> None:
    case = Case(**on(12, 9), dtype=dtype, mass="random", pixels=50, planes=2)
    inputs, grad = Inputs(case), torch.randn(2, 12, 9, dtype=accumulation_dtype(dtype))
    axes, of_x = codes(case.axis_x, case.axis_y), codes(case.axis_x)
    backward = emulated.joint_histogram_backward
    every = backward(grad, inputs.x, inputs.y, inputs.mass, *axes, True, True, True)
    for needs in itertools.product((True, False), repeat=3):
        assert_subset(backward(grad, inputs.x, inputs.y, inputs.mass, *axes, *needs), every, needs)
    soft = emulated.soft_histogram_backward
    every = soft(grad[:, :, 0], inputs.x, inputs.mass, *of_x, True, True)
    for needs in itertools.product((True, False), repeat=2):
        assert_subset(soft(grad[:, :, 0], inputs.x, inputs.mass, *of_x, *needs), every, needs)
