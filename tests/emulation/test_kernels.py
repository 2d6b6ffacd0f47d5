"""The CUDA kernels, run on the CPU by the emulator, against the reference in float64.

All of them as compiled for speed; some under AddressSanitizer and UBSan, where a block's shared memory, the
scratch and every array end where they should; and tiny images under ThreadSanitizer, which knows each CUDA
thread as a thread.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import emulated
import pytest
import torch
from torch import Tensor

from asserters import assert_agrees, assert_gradient
from histloss.binning import BOUNDARIES, KERNELS, NORMALIZATIONS, Binning
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
    random_upstream,
    uniform,
)
from tolerances import TOLERANCES

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
    bins_x, bins_y = (2 * radius(a, case.dtype) + 1 for a in (case.axis_x, case.axis_y))
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


# ---- any kernel, sums as integers -----------------------------------------------------------------

LEVELS = (2.0**-30, 2.0**-62)
PARZEN_BANDWIDTHS = {
    "sigmoid": (0.05, 0.4, 2.0),
    "gaussian": (0.05, 0.5, 1.3, 6.0),
    "bspline3": (0.5, 1.0, 1.7, 4.0),
    "triangular": (1.0, 1.3, 12.0),
}


def full_codes(*axes: Binning) -> list[float]:
    return [
        code
        for a in axes
        for code in (*codes(a), KERNELS.index(a.kernel), NORMALIZATIONS.index(a.normalization))
    ]


def full_name(case: Case) -> str:
    return " ".join([str(case), *(f"{a.kernel}/{a.normalization}" for a in (case.axis_x, case.axis_y))])


def activations(x: Tensor, axis: Binning) -> Tensor:
    """Pi_k(x) by the definition, in float64 and differentiable: (P, N) -> (P, K, N)."""
    k, h = axis.bins, axis.bandwidth
    finite = x.isfinite()
    u = (torch.where(finite, x, axis.lo) - axis.lo) / axis.width
    if axis.boundary == "reflect":
        u = k - (k - u.remainder(2 * k)).abs()
    if axis.boundary == "cyclic":
        u = u.remainder(k)
    reach = math.ceil(40 * h) + 1
    e = torch.arange(0, k) if axis.normalization == "inside" else torch.arange(-2 * reach, k + 2 * reach)
    t = u.unsqueeze(-2) - (e.unsqueeze(-1) + 0.5)
    s = t.abs() / h
    if axis.kernel == "sigmoid":
        values = torch.sigmoid((t + 0.5) / h) - torch.sigmoid((t - 0.5) / h)
    elif axis.kernel == "gaussian":
        values = torch.exp(-(s**2) / 2) if axis.normalization == "none" else torch.softmax(-(s**2) / 2, -2)
    else:
        if axis.kernel == "bspline3":
            values = torch.relu(2 - s) ** 3 / 6 - torch.relu(1 - s) ** 3 * 4 / 6
        else:
            values = torch.relu(1 - s)
        if axis.normalization != "none":
            total = values.sum(-2, keepdim=True)
            values = values / torch.where(total == 0, 1.0, total)
    if axis.boundary == "reflect":
        folded = e.remainder(2 * k)
        e = torch.where(folded < k, folded, 2 * k - 1 - folded)
    if axis.boundary == "cyclic":
        e = e.remainder(k)
    inside = (e >= 0) & (e < k)
    maps = torch.zeros(x.shape[0], k, x.shape[1], dtype=F64)
    return maps.index_add(1, e[inside], torch.where(finite.unsqueeze(-2), values, 0.0)[:, inside])


def parzen_maps(case: Case) -> None:
    inputs, axis = Inputs(case), case.axis_x
    x = leaf(inputs.x)
    maps = activations(x, axis)
    arguments = (inputs.x, *full_codes(axis)[:-1])
    actual = emulated.activation_maps(*arguments)
    assert_agrees(actual, maps, TOLERANCES[actual.dtype].value, floor=0.01)
    scale = 1 / (axis.bandwidth * axis.width)
    grad, upstream = random_upstream(case, actual, scale)
    [expected] = torch.autograd.grad(maps, x, grad)
    found = emulated.activation_maps_backward(upstream, *arguments)
    assert_gradient(found, expected, floor=0.15)


def soft_sums(case: Case) -> None:
    check_sums(case, (case.axis_x,), emulated.soft_histogram_sums, emulated.soft_histogram_sums_backward)


def joint_sums(case: Case) -> None:
    axes = (case.axis_x, case.axis_y)
    check_sums(case, axes, emulated.joint_histogram_sums, emulated.joint_histogram_sums_backward)


def check_sums(case: Case, axes: tuple[Binning, ...], forward: Any, backward: Any) -> None:
    inputs = Inputs(case)
    images = (inputs.x, inputs.y)[: len(axes)]
    exact = [leaf(image) for image in images]
    weight = leaf(torch.ones(case.planes, case.pixels) if inputs.mass is None else inputs.mass)
    maps = [activations(image, axis) for image, axis in zip(exact, axes, strict=True)]
    weighted = maps[0] * weight.unsqueeze(1)
    expected = weighted @ maps[1].mT if maps[1:] else weighted.sum(-1)

    counts, totals = forward(*images, inputs.mass, *full_codes(*axes))
    wide = any(axis.bandwidth > 2 for axis in axes)
    levels = 2 if inputs.mass is not None or case.dtype == F64 or wide else 1
    assert counts.dtype == totals.dtype == torch.int64
    assert counts.shape == (levels, *expected.shape)
    assert torch.equal(totals, totals_of(weight.detach(), levels))
    tolerances, largest = (
        TOLERANCES[accumulation_dtype(case.dtype)],
        float(weight.detach().max()) if case.pixels else 1.0,
    )
    assert_agrees(to_real(counts), expected, tolerances.value, floor=0.01 * largest)

    scale = max(1 / (a.bandwidth * a.width) for a in axes) * (largest or 1.0)
    grad, upstream = random_upstream(case, counts[0].to(accumulation_dtype(case.dtype)), scale)
    needs = [True] * len(axes) + [inputs.mass is not None]
    results = backward(upstream, *images, inputs.mass, *full_codes(*axes), *needs)
    along = torch.autograd.grad(expected, [*exact, weight], grad)
    for found, image, wanted in zip(results, images, along, strict=False):
        assert found.dtype == image.dtype
        assert_gradient(found, wanted, floor=0.15)
    if inputs.mass is not None:
        assert results[-1].dtype == accumulation_dtype(case.dtype)
        assert_gradient(results[-1], along[-1], floor=0.15 / scale)


def leaf(t: Tensor) -> Tensor:
    """A copy in float64."""
    return t.double().clone().requires_grad_()


def to_real(counts: Tensor) -> Tensor:
    return sum(level.double() * unit for level, unit in zip(counts, LEVELS, strict=False))


def totals_of(weight: Tensor, levels: int) -> Tensor:
    """(P, N) -> (levels, P): multiples of 2^-30, and of 2^-62 for what they leave of each weight."""
    coarse = (weight / LEVELS[0]).round()
    fine = ((weight - coarse * LEVELS[0]) / LEVELS[1]).round()
    return torch.stack([coarse.long().sum(-1), fine.long().sum(-1)])[:levels]


def parzen_axes() -> Iterator[Binning]:
    """Every kernel, bandwidth, boundary and normalization; "inside" goes with the boundary "open"."""
    for kernel, bandwidths in PARZEN_BANDWIDTHS.items():
        for bandwidth, boundary in itertools.product(bandwidths, BOUNDARIES):
            for normalization in NORMALIZATIONS if kernel != "sigmoid" else ("all",):
                if boundary == "open" or normalization != "inside":
                    yield Binning(16, -1.0, 1.0, bandwidth, boundary, kernel, normalization)


def parzen_sweep() -> Iterator[Case]:
    """The other axis has another kernel, and another number of bins."""
    axes = list(parzen_axes())
    contents = itertools.cycle(("uniform", "far", "nonfinite", "saturated"))
    for number, axis in enumerate(axes):
        other = axes[(number * 7 + 11) % len(axes)]._replace(bins=5, lo=0.0, hi=0.7)
        content, weights = next(contents), ("none", "random")[number // 2 % 2]
        # Where a pixel is far outside, what is left of it inside is divided by next to nothing.
        if "inside" in (axis.normalization, other.normalization) and content == "far":
            content = "ramp"
        pixels = 40 if max(radius(axis, F32), radius(other, F32)) <= 8 else 6  # a thread's; a warp's
        yield Case(axis, other, F32, pixels, content, weights)
        if number % 3 == 0:
            yield Case(axis._replace(bins=40), other._replace(bins=33), F64, 6, content, weights)
    gaussian = Binning(20, kernel="gaussian", bandwidth=0.5)
    spline = Binning(9, kernel="bspline3", bandwidth=1.0)
    narrow, wide = gaussian._replace(bandwidth=0.001), gaussian._replace(bandwidth=2.0)
    base = Case(gaussian, spline, pixels=33)
    for content in CONTENTS:
        yield replace(base, content=content, axis_y=narrow)
        yield replace(
            base, content=content, axis_x=gaussian._replace(boundary="open"), dtype=F64, mass="mask", planes=1
        )
    for pixels in (0, 1, 255, 600):  # 600 are more than a part
        yield replace(base, pixels=pixels)
        yield replace(base, pixels=min(pixels, 30), axis_x=wide, mass="random", planes=1)
    for mass in ("none", "random"):
        yield replace(base, pixels=600, planes=12, mass=mass)  # more parts than blocks
    for bins in (1, 2, 1000):
        yield replace(base, axis_x=gaussian._replace(bins=bins))
        yield replace(base, axis_x=spline._replace(bins=bins, bandwidth=20.0), axis_y=gaussian, pixels=2)
    for dtype in DTYPES:
        for layout in ("contiguous", "misaligned"):
            yield replace(base, dtype=dtype, mass="random", layout=layout)


def tiny_parzen() -> Iterator[Case]:
    gaussian = Binning(9, kernel="gaussian", bandwidth=0.5)
    spline = Binning(5, kernel="bspline3", bandwidth=1.0, boundary="open")
    yield Case(gaussian, spline, pixels=130, planes=1, mass="random")
    yield Case(gaussian, spline, pixels=600, planes=1, content="constant")
    yield Case(
        gaussian._replace(bins=300), spline._replace(bins=200), pixels=50, planes=2, content="nonfinite"
    )
    yield Case(gaussian._replace(bandwidth=3.0), spline, F64, pixels=20, planes=1, mass="random")
    yield Case(spline, gaussian, F64, pixels=40, planes=2, content="far")


PARZEN_SWEEP = list(parzen_sweep())
PARZEN_CASES = {"plain": PARZEN_SWEEP, "asan": PARZEN_SWEEP[::4], "tsan": list(tiny_parzen())}[
    emulated.VARIANT
]


@pytest.mark.parametrize("case", PARZEN_CASES, ids=full_name)
@pytest.mark.parametrize("check", [parzen_maps, soft_sums, joint_sums])
def test_any_kernel(check: Any, case: Case) -> None:
    if check is parzen_maps and case.axis_x.normalization != "all":
        case = replace(case, axis_x=case.axis_x._replace(normalization="all"))
    check(case)


def every_sum(case: Case) -> list[Tensor]:
    inputs, x, y = Inputs(case), full_codes(case.axis_x), full_codes(case.axis_x, case.axis_y)
    torch.manual_seed(0)
    grad = torch.randn(case.planes, case.axis_x.bins, case.axis_y.bins, dtype=accumulation_dtype(case.dtype))
    one, both = (inputs.x, inputs.mass), (inputs.x, inputs.y, inputs.mass)
    needs = (True, True, inputs.mass is not None)
    return [
        *emulated.soft_histogram_sums(*one, *x),
        *emulated.joint_histogram_sums(*both, *y),
        *emulated.soft_histogram_sums_backward(grad[..., 0], *one, *x, *needs[1:]),
        *emulated.joint_histogram_sums_backward(grad, *both, *y, *needs),
    ]


GAUSSIAN, SPLINE = (
    Binning(20, kernel="gaussian", bandwidth=0.5),
    Binning(13, kernel="bspline3", bandwidth=1.0),
)
each_way = pytest.mark.parametrize(
    "case",
    [
        Case(GAUSSIAN, SPLINE, pixels=600),
        Case(SPLINE, GAUSSIAN, F64, pixels=300, mass="random"),
        Case(GAUSSIAN._replace(bins=130), GAUSSIAN._replace(bins=260), pixels=300, mass="random"),
        Case(GAUSSIAN._replace(bandwidth=2.0), SPLINE._replace(bandwidth=5.0), pixels=25),
        Case(SPLINE, SPLINE._replace(boundary="cyclic"), F16, pixels=600, content="constant", mass="mask"),
    ],
    ids=full_name,
)


@plain_only
@each_way
def test_sums_have_the_same_bits_in_any_order(case: Case) -> None:
    """Of blocks and threads, and with shared memory of any size."""
    first = every_sum(case)
    for order, seed, shared_bytes in (
        ("random", 1, SHARED_BYTES[-1]),
        ("random", 2, SHARED_BYTES[0]),
        ("forward", 0, SHARED_BYTES[1]),
        ("backward", 0, SHARED_BYTES[-1]),
    ):
        emulated.order(order)
        emulated.seed(seed)
        emulated.shared_bytes(shared_bytes)
        for number, (result, expected) in enumerate(zip(every_sum(case), first, strict=True)):
            assert torch.equal(result, expected), f"result {number}, order {order}, seed {seed}"


@plain_only
@each_way
def test_sums_do_not_depend_on_how_pixels_are_cut(case: Case) -> None:
    """Nor do the gradients of the pixels."""
    inputs, axes = Inputs(case), (case.axis_x, case.axis_y)
    grad = torch.randn(case.planes, *(a.bins for a in axes), dtype=accumulation_dtype(case.dtype))
    needs = (True, True, inputs.mass is not None)

    def of(part: slice) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        images = [None if t is None else t[:, part] for t in (inputs.x, inputs.y, inputs.mass)]
        return (
            emulated.joint_histogram_sums(*images, *full_codes(*axes)),
            emulated.joint_histogram_sums_backward(grad, *images, *full_codes(*axes), *needs),
        )

    sums, gradients = of(slice(None))
    cuts = sorted([0, 1, 20, case.pixels // 2, case.pixels])
    parts = [of(slice(a, b)) for a, b in itertools.pairwise(cuts)]
    for number, whole in enumerate(sums):
        assert torch.equal(sum(part[0][number] for part in parts), whole)
    for number, whole in enumerate(gradients):
        assert torch.equal(torch.cat([part[1][number] for part in parts], -1), whole)


@plain_only
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -0.01, 2.0**20 + 1])
def test_a_weight_that_is_none_marks_its_plane(value: float) -> None:
    case = Case(
        GAUSSIAN._replace(boundary="open"), SPLINE, mass="random", planes=3, pixels=300, content="outside"
    )
    inputs = Inputs(case)
    spoilt = inputs.mass.clone()
    spoilt[1, 77] = spoilt[1, 270] = value
    spoilt[2, 5] = 2.0**20  # the largest
    for op, images, axes in (
        (emulated.soft_histogram_sums, (inputs.x,), full_codes(case.axis_x)),
        (emulated.joint_histogram_sums, (inputs.x, inputs.y), full_codes(case.axis_x, case.axis_y)),
    ):
        counts, totals = op(*images, spoilt, *axes)
        assert totals[0, 1] == -(2**62)
        good = totals_of(spoilt.double()[::2], 2)
        assert torch.equal(totals[:, ::2], good)
        assert torch.equal(counts[:, 0], op(*images, inputs.mass, *axes)[0][:, 0])


@plain_only
def test_only_the_gradients_of_sums_asked_for() -> None:
    for wide in (1.0, 6.0):
        axes = GAUSSIAN._replace(bins=12), SPLINE._replace(bins=9, bandwidth=wide)
        inputs = Inputs(Case(*axes, mass="random", pixels=50, planes=2))
        one, both = (inputs.x, inputs.mass), (inputs.x, inputs.y, inputs.mass)
        grad = torch.randn(2, 12, 9)
        for backward, upstream, images, count in (
            (emulated.soft_histogram_sums_backward, grad[:, :, 0], one, 1),
            (emulated.joint_histogram_sums_backward, grad, both, 2),
        ):
            arguments = (upstream, *images, *full_codes(*axes[:count]))
            every = backward(*arguments, *[True] * (count + 1))
            for needs in itertools.product((True, False), repeat=count + 1):
                assert_subset(backward(*arguments, *needs), every, needs)
