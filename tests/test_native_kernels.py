"""The native kernels, called as raw ops, against the reference in float64 on the same (rounded) pixels.

Fails where the native library is absent. Also run under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import histloss
from asserters import assert_gradient, assert_value
from devices import on_cpu
from histloss import native, reference
from histloss.binning import BOUNDARIES, Binning
from histloss.checks import accumulation_dtype

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (F16, BF16, F32, F64)
BANDWIDTHS = (0.01, 0.1, 0.2, 0.4, 0.8, 1.3, 2.0, 5.0, 20.0)
BINS = (1, 2, 3, 5, 16, 64, 255, 256, 300)
PIXELS = (0, 1, 2, 15, 16, 17, 63, 64, 65, 1000, 4097, 70000)
RANGES = ((-1.0, 1.0), (0.0, 1.0), (0.1, 0.7), (-180.0, 180.0), (16.0, 235.0))
LAYOUTS = ("contiguous", "misaligned", "strided", "transposed", "expanded")
MASSES = ("none", "random", "mask")

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    info = native.backend_info()["cpu"]
    assert info["loaded"], info["reason"]
    assert info["simd"] == os.environ.get("HISTLOSS_SIMD", info["simd"])


# ---- what an image may contain: (planes, pixels, axis) -> float64 pixels --------------------------


def uniform(p: int, n: int, axis: Binning) -> Tensor:
    return axis.lo + (axis.hi - axis.lo) * torch.rand(p, n, dtype=F64)


def constant(place: Callable[[Binning], float]) -> Callable[[int, int, Binning], Tensor]:
    return lambda p, n, axis: torch.full((p, n), place(axis), dtype=F64)


def saturated(p: int, n: int, axis: Binning) -> Tensor:
    """Four pixels in ten at each end of the range."""
    side = torch.rand(p, n)
    x = torch.where(side < 0.4, axis.lo, uniform(p, n, axis))
    return torch.where(side > 0.6, axis.hi, x)


def far(p: int, n: int, axis: Binning) -> Tensor:
    """In the range and up to three range widths outside of it."""
    return (axis.lo + axis.hi) / 2 + (axis.hi - axis.lo) * 7 * (torch.rand(p, n, dtype=F64) - 0.5)


def outside(p: int, n: int, axis: Binning) -> Tensor:
    """None in the range: half to three range widths above or below."""
    side = torch.randint(2, (p, n)) * 2 - 1
    return (axis.lo + axis.hi) / 2 + side * (axis.hi - axis.lo) * (1 + 2.5 * torch.rand(p, n, dtype=F64))


def nonfinite(p: int, n: int, axis: Binning) -> Tensor:
    """A third NaN or infinite."""
    kind, x = torch.randint(9, (p, n)), uniform(p, n, axis)
    for code, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        x = torch.where(kind == code, value, x)
    return x


CONTENTS: dict[str, Callable[[int, int, Binning], Tensor]] = {
    "uniform": uniform,
    "ramp": lambda p, n, axis: uniform(p, n, axis).sort(-1).values,
    "bin centre": constant(lambda axis: axis.lo + axis.width * (axis.bins // 3 + 0.5)),
    "bin edge": constant(lambda axis: axis.lo + axis.width * (axis.bins // 2)),
    "constant": constant(lambda axis: axis.lo + axis.width * (axis.bins * 0.7 + 0.137)),
    "low end": constant(lambda axis: axis.lo),
    "high end": constant(lambda axis: axis.hi),
    "just outside": constant(lambda axis: axis.hi + axis.width * 0.8),
    "saturated": saturated,
    "far": far,
    "outside": outside,
    "nonfinite": nonfinite,
}


# ---- one case: the inputs of the ops --------------------------------------------------------------


AXIS = Binning(64)


@dataclass(frozen=True)
class Case:
    axis_x: Binning = AXIS
    axis_y: Binning = AXIS
    dtype: torch.dtype = F32
    pixels: int = 1000
    content: str = "uniform"
    mass: str = "none"
    layout: str = "contiguous"
    planes: int = 2
    floors: bool = (
        True  # whether an error may be relative to more than the largest value, see the floors below
    )

    def __str__(self) -> str:
        axes = [
            f"{a.bins}:{a.lo:g}:{a.hi:g}:{a.bandwidth:g}:{a.boundary}" for a in (self.axis_x, self.axis_y)
        ]
        dtype = str(self.dtype).removeprefix("torch.")
        return " ".join([*axes, dtype, f"N={self.pixels}", self.content, f"mass={self.mass}", self.layout])


class Inputs:
    """Images whose pixels repeat a pool of at most 512 columns: the reference need only see the pool."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(1)
        self.case = case
        columns = min(case.pixels, 512)
        self.index = torch.randint(max(columns, 1), (case.pixels,))  # the column that each pixel repeats
        if case.content == "ramp":
            self.index = self.index.sort().values
        self.pool_x = self._pool(case.axis_x, columns)
        self.pool_y = self._pool(case.axis_y, columns)
        self.x = laid_out(self.pool_x[:, self.index], case.layout)
        self.y = laid_out(self.pool_y[:, self.index], case.layout)
        self.mass = self._mass()
        uniform_mass = torch.full((case.planes, case.pixels), 1 / max(case.pixels, 1), dtype=F64)
        self.pixel_mass = uniform_mass if self.mass is None else self.mass.double()
        self.pool_mass = torch.zeros(case.planes, columns, dtype=F64).index_add_(
            1, self.index, self.pixel_mass
        )

    @property
    def largest_mass(self) -> float:
        return self.pixel_mass.max().item() or 1.0 if self.case.pixels else 1.0

    def gradient(self, of_pool: Tensor) -> Tensor:
        """From the gradient of a pool column of mass 1 to that of every pixel."""
        return of_pool[:, self.index] * self.pixel_mass

    def _pool(self, axis: Binning, columns: int) -> Tensor:
        pool = CONTENTS[self.case.content](self.case.planes, columns, axis).to(self.case.dtype)
        return pool[:1].expand_as(pool) if self.case.layout == "expanded" else pool

    def _mass(self) -> Tensor | None:
        case = self.case
        if case.mass == "none":
            return None
        mass = torch.rand(case.planes, case.pixels)
        mass = (mass < 0.5).float() if case.mass == "mask" else mass
        mass = (mass / mass.sum(-1, keepdim=True).clamp(min=1)).to(accumulation_dtype(case.dtype))
        return laid_out(mass, "contiguous" if case.layout == "expanded" else case.layout)


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same values as another view of memory."""
    if layout == "misaligned":  # starts one element after an aligned address
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)
    if layout == "strided":
        return torch.stack([t, torch.full_like(t, 0.5)], -1)[..., 0]
    if layout == "transposed":
        return t.mT.contiguous().mT
    if layout == "expanded":
        return t[:1].expand_as(t)
    return t.contiguous()


def codes(*axes: Binning) -> list[float]:
    return [value for a in axes for value in (a.bins, a.lo, a.hi, a.bandwidth, a.code)]


# ---- the checks -----------------------------------------------------------------------------------


def check_maps(case: Case, ops: Any = torch.ops.histloss) -> None:
    inputs, axis = Inputs(case), case.axis_x
    maps, slopes = (reference.plane_maps(inputs.x.double(), axis, d) for d in (0, 1))
    actual = ops.activation_maps(inputs.x, *codes(axis))
    assert actual.dtype == accumulation_dtype(case.dtype)
    assert_value(actual, maps, floor=value_floor(case, axis))

    scale = slope_scale(axis)
    grad, upstream = random_upstream(case, actual, scale)
    found = ops.activation_maps_backward(upstream, inputs.x, *codes(axis))
    assert found.dtype == case.dtype
    assert_gradient(found, (grad * slopes).sum(1), floor=gradient_floor(case, grad, scale))


def check_soft_histogram(case: Case, ops: Any = torch.ops.histloss) -> None:
    inputs, axis = Inputs(case), case.axis_x
    maps, slopes = (reference.plane_maps(inputs.pool_x.double(), axis, d) for d in (0, 1))
    actual = ops.soft_histogram(inputs.x, inputs.mass, *codes(axis))
    assert actual.dtype == accumulation_dtype(case.dtype)
    assert_value(actual, (maps * inputs.pool_mass[:, None]).sum(-1), floor=value_floor(case, axis))

    scale = slope_scale(axis) * inputs.largest_mass
    grad, upstream = random_upstream(case, actual, scale)
    along = grad[..., None]
    needs = (True, inputs.mass is not None)
    found_x, found_mass = ops.soft_histogram_backward(upstream, inputs.x, inputs.mass, *codes(axis), *needs)
    assert found_x.dtype == case.dtype
    assert_gradient(
        found_x, inputs.gradient((along * slopes).sum(1)), floor=gradient_floor(case, grad, scale)
    )
    if inputs.mass is not None:
        assert found_mass.dtype == actual.dtype
        expected = (along * maps).sum(1)[:, inputs.index]
        assert_gradient(found_mass, expected, floor=gradient_floor(case, grad, peak(axis)))


def check_joint_histogram(case: Case, ops: Any = torch.ops.histloss) -> None:
    inputs, axes = Inputs(case), (case.axis_x, case.axis_y)
    maps_x, slopes_x = (reference.plane_maps(inputs.pool_x.double(), axes[0], d) for d in (0, 1))
    maps_y, slopes_y = (reference.plane_maps(inputs.pool_y.double(), axes[1], d) for d in (0, 1))
    actual = ops.joint_histogram(inputs.x, inputs.y, inputs.mass, *codes(*axes))
    assert actual.dtype == accumulation_dtype(case.dtype)
    assert_value(actual, (maps_x * inputs.pool_mass[:, None]) @ maps_y.mT, floor=value_floor(case, *axes))

    scales = [slope_scale(axis) * inputs.largest_mass for axis in axes]
    grad, upstream = random_upstream(case, actual, max(scales))
    along_x, along_y = grad @ maps_y, grad.mT @ maps_x
    needs = (True, True, inputs.mass is not None)
    found_x, found_y, found_mass = ops.joint_histogram_backward(
        upstream, inputs.x, inputs.y, inputs.mass, *codes(*axes), *needs
    )
    assert found_x.dtype == found_y.dtype == case.dtype
    assert_gradient(
        found_x, inputs.gradient((along_x * slopes_x).sum(1)), floor=gradient_floor(case, grad, scales[0])
    )
    assert_gradient(
        found_y, inputs.gradient((along_y * slopes_y).sum(1)), floor=gradient_floor(case, grad, scales[1])
    )
    if inputs.mass is not None:
        assert found_mass.dtype == actual.dtype
        expected = (along_x * maps_x).sum(1)[:, inputs.index]
        assert_gradient(found_mass, expected, floor=gradient_floor(case, grad, peak(*axes)))


def peak(*axes: Binning) -> float:
    """The largest that an activation, or a product of them, can be."""
    return math.prod(math.tanh(0.25 / a.bandwidth) for a in axes)


def value_floor(case: Case, *axes: Binning) -> float:
    """With `open`, pixels far outside the range leave next to nothing: not measured against itself."""
    return 0.01 * peak(*axes) * case.floors


def slope_scale(axis: Binning) -> float:
    """The sum over the bins of a pixel's absolute slopes, before the ends fold onto each other."""
    return 2 * peak(axis) / axis.width


def gradient_floor(case: Case, grad: Tensor, scale: float) -> float:
    """A share of the terms that a gradient is a sum of: at a mirror, or for a flat kernel, they cancel.

    And the least normal number: below it a dtype has fewer digits.
    """
    if not case.floors or grad.numel() == 0:
        return 0.0
    return max(0.15 * scale * grad.square().mean().sqrt().item(), torch.finfo(case.dtype).tiny)


def random_upstream(case: Case, like: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same upstream gradient in float64 and for the op, sized to keep a half-precision result near 1."""
    grad = torch.randn(like.shape) * 2.0 ** -round(math.log2(scale))
    return grad.double(), laid_out(
        grad.to(like.dtype), "contiguous" if case.layout == "expanded" else case.layout
    )


# ---- the cases ------------------------------------------------------------------------------------


def sweep() -> Iterator[Case]:
    """Every bandwidth, number of bins, number of pixels, content, layout and range."""
    base = Case()

    def on(bins: int = 64, **axis: object) -> dict[str, Binning]:
        one = Binning(bins)._replace(**axis)
        return {"axis_x": one, "axis_y": one}

    for boundary in BOUNDARIES:
        for bandwidth in BANDWIDTHS:
            for bins in (5, 64):
                yield replace(base, **on(bins, bandwidth=bandwidth, boundary=boundary))
        for bins in BINS:
            yield replace(base, **on(bins, boundary=boundary), content="far")
        for content in CONTENTS:
            for dtype in (F32, F64):
                yield replace(base, **on(boundary=boundary), content=content, dtype=dtype)
        for pixels in PIXELS:
            yield replace(base, **on(boundary=boundary), pixels=pixels, content="ramp")
        for lo, hi in RANGES:
            yield replace(base, **on(100, lo=lo, hi=hi, boundary=boundary), content="constant")
            yield replace(base, **on(256, lo=lo, hi=hi, boundary=boundary, bandwidth=0.8))
    for pixels in PIXELS:
        yield replace(base, pixels=pixels, **on(256), planes=3)
        yield replace(base, pixels=pixels, **on(256, bandwidth=2.0), planes=1, content="saturated")
        yield replace(base, pixels=pixels, dtype=F64, mass="random")
    for dtype in DTYPES:
        for mass in MASSES:
            for layout in LAYOUTS:
                yield replace(base, dtype=dtype, mass=mass, layout=layout, content="saturated", pixels=321)


def at_random(count: int, seed: int, most_pixels: int = 70000) -> list[Case]:
    """Everything at once, x and y apart."""
    pick = random.Random(seed)

    def axis() -> Binning:
        lo, hi = pick.choice(RANGES)
        return Binning(pick.choice(BINS), lo, hi, pick.choice(BANDWIDTHS), pick.choice(BOUNDARIES))

    return [
        Case(
            axis(),
            axis(),
            pick.choice(DTYPES),
            pick.choice([n for n in PIXELS if n <= most_pixels]),
            pick.choice(list(CONTENTS)),
            pick.choice(MASSES),
            pick.choice(LAYOUTS),
            pick.choice((1, 2, 5)),
        )
        for _ in range(count)
    ]


SWEEP = list(sweep())


@pytest.mark.parametrize("case", [c for c in SWEEP if c.pixels <= 1000 and c.mass == "none"], ids=str)
def test_activation_maps(case: Case) -> None:
    check_maps(case)


@pytest.mark.parametrize("case", SWEEP, ids=str)
def test_soft_histogram(case: Case) -> None:
    check_soft_histogram(case)


@pytest.mark.parametrize("case", SWEEP, ids=str)
def test_joint_histogram(case: Case) -> None:
    check_joint_histogram(case)


@pytest.mark.parametrize("case", at_random(40, seed=1, most_pixels=1000), ids=str)
def test_activation_maps_at_random(case: Case) -> None:
    check_maps(case)


@pytest.mark.parametrize("case", at_random(80, seed=2), ids=str)
def test_soft_histogram_at_random(case: Case) -> None:
    check_soft_histogram(case)


@pytest.mark.parametrize("case", at_random(120, seed=3), ids=str)
def test_joint_histogram_at_random(case: Case) -> None:
    check_joint_histogram(case)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("bandwidth", [0.4, 2.0])
@pytest.mark.parametrize("content", ["uniform", "ramp", "saturated", "constant", "bin centre", "bin edge"])
def test_the_promised_accuracy(content: str, bandwidth: float, boundary: str) -> None:
    """256 x 256 pixels, K = 256, float32: relative to the largest value and to nothing else."""
    axis = Binning(256, bandwidth=bandwidth, boundary=boundary)
    case = Case(axis, axis, pixels=65536, content=content, planes=3, floors=False)
    check_soft_histogram(case)
    check_joint_histogram(case)


@pytest.mark.parametrize("mass", ["none", "random"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(
    "content", ["uniform", "ramp", "saturated", "constant", "bin edge", "far", "nonfinite"]
)
def test_too_few_pixels_for_the_bins(content: str, boundary: str, mass: str) -> None:
    """The CPU's method for few pixels, in several parts of them and many rows of patches."""
    x, y = Binning(700, boundary=boundary), Binning(530, 0.1, 0.7, 0.2, boundary)
    check_joint_histogram(Case(x, y, pixels=20000, content=content, mass=mass))


# ---- gradients that are not needed ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
def test_only_the_gradients_asked_for(dtype: torch.dtype) -> None:
    """The others come back empty, and those asked for do not depend on it beyond rounding."""
    case = Case(dtype=dtype, mass="random")
    inputs, grad = Inputs(case), torch.randn(2, 64, 64, dtype=accumulation_dtype(dtype))
    axes = codes(case.axis_x, case.axis_y)
    backward = torch.ops.histloss.joint_histogram_backward
    every = backward(grad, inputs.x, inputs.y, inputs.mass, *axes, True, True, True)
    for needs in itertools.product((True, False), repeat=3):
        found = backward(grad, inputs.x, inputs.y, inputs.mass, *axes, *needs)
        assert_subset(found, every, needs)
    soft = torch.ops.histloss.soft_histogram_backward
    every = soft(grad[:, 0], inputs.x, inputs.mass, *codes(case.axis_x), True, True)
    for needs in itertools.product((True, False), repeat=2):
        found = soft(grad[:, 0], inputs.x, inputs.mass, *codes(case.axis_x), *needs)
        assert_subset(found, every, needs)


def assert_subset(found: tuple[Tensor, ...], every: tuple[Tensor, ...], needs: tuple[bool, ...]) -> None:
    for one, expected, needed in zip(found, every, needs, strict=True):
        if needed:
            assert_gradient(one, expected)
        else:
            assert one.shape == (0,)


# ---- the same bits --------------------------------------------------------------------------------


def every_result(axis: Binning, dtype: torch.dtype, pixels: int, planes: int) -> list[Tensor]:
    """Everything the package computes from two images and a weight, gradients and losses included."""
    torch.manual_seed(2)
    shape = (planes, 1, pixels)
    x, y = (uniform(planes, pixels, axis).to(dtype).view(shape).requires_grad_() for _ in range(2))
    weight = torch.rand(shape, dtype=accumulation_dtype(dtype)).requires_grad_()
    options = {
        "bins": axis.bins,
        "range": (axis.lo, axis.hi),
        "bandwidth": axis.bandwidth,
        "boundary": axis.boundary,
    }
    results: list[Tensor] = []
    for weighting in (None, weight):
        h = histloss.soft_histogram(x, **options, weight=weighting)
        j = histloss.joint_histogram(x, y, **options, weight=weighting)
        losses = [
            histloss.emd(h, h.detach().flip(-1)).sum(),
            histloss.emd(h, h.detach().flip(-1), form="norm", cyclic=True).sum(),
            *(
                histloss.mutual_information(j, mode=m).sum()
                for m in ("relative", "conditional_entropy", "nmi")
            ),
        ]
        wanted = [x, y] if weighting is None else [x, y, weight]
        results += [h, j, *losses, *torch.autograd.grad(sum(losses), wanted)]
    maps = histloss.activation_maps(x[..., :1000], **options)
    results += [maps, *torch.autograd.grad((maps * maps.detach().cos()).sum(), [x])]
    return results


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize(
    ("axis", "dtype", "pixels", "planes"),
    [
        (Binning(256), F32, 70000, 1),
        (Binning(256), F32, 70000, 3),
        (Binning(300, bandwidth=2.0, boundary="cyclic"), F32, 70000, 2),
        (Binning(64, bandwidth=5.0, boundary="open"), F32, 4097, 5),
        (Binning(256), F64, 20000, 1),
        (Binning(16, bandwidth=1.3), F16, 70000, 2),
        (Binning(1), F32, 70000, 1),
        (Binning(700), F32, 20000, 2),
        (Binning(500, bandwidth=0.2, boundary="open"), F16, 20000, 3),
    ],
    ids=str,
)
def test_the_same_bits_for_any_thread_count_and_every_run(
    axis: Binning, dtype: torch.dtype, pixels: int, planes: int
) -> None:
    first: list[Tensor] | None = None
    for threads in (1, 2, 4, 3, 1):
        torch.set_num_threads(threads)
        results = every_result(axis, dtype, pixels, planes)
        first = first or results
        for number, (result, expected) in enumerate(zip(results, first, strict=True)):
            assert torch.equal(result, expected), f"result {number} differs on {threads} threads"


def test_a_plane_does_not_depend_on_its_neighbours() -> None:
    axis = Binning(256)
    x, y = uniform(7, 5000, axis).float(), uniform(7, 5000, axis).float()
    soft = torch.ops.histloss.soft_histogram(x, None, *codes(axis))
    joint = torch.ops.histloss.joint_histogram(x, y, None, *codes(axis, axis))
    for p in range(7):
        assert torch.equal(
            soft[p : p + 1], torch.ops.histloss.soft_histogram(x[p : p + 1], None, *codes(axis))
        )
        alone = torch.ops.histloss.joint_histogram(x[p : p + 1], y[p : p + 1], None, *codes(axis, axis))
        assert torch.equal(joint[p : p + 1], alone)


# ---- layouts and shapes through the public functions ----------------------------------------------


@pytest.mark.parametrize("spatial", [(120,), (8, 15), (4, 5, 6)], ids=str)
def test_memory_layout_does_not_change_a_bit(spatial: tuple[int, ...]) -> None:
    contiguous = torch.rand(2, 3, *spatial) * 2 - 1
    views = [
        contiguous.transpose(1, -1).contiguous().transpose(1, -1),
        torch.stack([contiguous, contiguous + 5], -1)[..., 0],
        torch.cat([torch.zeros(1), contiguous.flatten()])[1:].view(contiguous.shape),
        contiguous.flip(-1).flip(-1),
    ]
    if len(spatial) == 2:
        views.append(contiguous.to(memory_format=torch.channels_last))
    if len(spatial) == 3:
        views.append(contiguous.to(memory_format=torch.channels_last_3d))
    other = contiguous.flip(0)

    def results(x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        h, j = histloss.soft_histogram(x, bins=50), histloss.joint_histogram(x, other, bins=50)
        maps = histloss.activation_maps(x, bins=7)
        total = (h**2).sum() + (j**2).sum() + (maps**3).sum()
        return [h, j, maps, *torch.autograd.grad(total, [x])]

    expected = results(contiguous)
    for view in views:
        assert torch.equal(view, contiguous)
        for found, want in zip(results(view), expected, strict=True):
            assert torch.equal(found, want)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0), (2, 3, 4, 0, 4)], ids=str)
def test_empty_images(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape).requires_grad_()
    for result in (
        histloss.soft_histogram(x, bins=5),
        histloss.joint_histogram(x, x.detach(), bins=(5, 6)),
        histloss.activation_maps(x, bins=5),
    ):
        assert result.shape[:2] == shape[:2]
        assert not result.detach().any()
        (grad,) = torch.autograd.grad(result.sum(), [x])
        assert grad.shape == shape


# ---- never out of bounds --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("bandwidth", [0.01, 0.4, 20.0])
@pytest.mark.parametrize("bins", [1, 256])
def test_extreme_pixels(bins: int, bandwidth: float, boundary: str, dtype: torch.dtype) -> None:
    axis, limits = Binning(bins, 0.1, 0.7, bandwidth, boundary), torch.finfo(dtype)
    ordinary = [0.1, 0.2, 0.5, 0.7, 0.0, -0.0, limits.tiny, -limits.tiny, limits.smallest_normal / 4]
    huge = [
        limits.max,
        limits.min,
        limits.max / 3,
        -limits.max / 3,
        limits.max**0.5,
        -(limits.max**0.5),
        3e4,
        -3e4,
    ]
    hostile = [torch.nan, torch.inf, -torch.inf]
    x = torch.tensor([*ordinary, *huge, *hostile] * 5, dtype=dtype)[None]
    y, grad = x.flip(-1), torch.randn(1, bins, dtype=accumulation_dtype(dtype))
    soft = torch.ops.histloss.soft_histogram(x, None, *codes(axis))
    joint = torch.ops.histloss.joint_histogram(x, y, None, *codes(axis, axis))
    share = len(ordinary if boundary == "open" else [*ordinary, *huge]) / (x.shape[1] / 5)
    assert bool((soft >= 0).all() & (soft.sum(-1) <= share + 1e-5).all() & joint.isfinite().all())
    if boundary == "open":
        expected = reference.plane_histogram(x.double(), None, axis)
        assert_value(soft, expected, floor=0.01 * peak(axis))
    else:
        torch.testing.assert_close(soft.sum(-1), torch.full_like(soft[:, 0], share), rtol=1e-5, atol=0)
    grad_x, _ = torch.ops.histloss.soft_histogram_backward(grad, x, None, *codes(axis), True, False)
    square = grad[:, :, None].expand(1, bins, bins)
    grads = torch.ops.histloss.joint_histogram_backward(
        square, x, y, None, *codes(axis, axis), True, True, False
    )
    maps = torch.ops.histloss.activation_maps(x, *codes(axis))
    assert all(bool(t.isfinite().all()) for t in (grad_x, *grads[:2], maps))
    assert not grad_x[~x.isfinite()].any()
    assert not grads[0][~(x.isfinite() & y.isfinite())].any()
    assert not maps.transpose(1, 2)[~x.isfinite()].any()


# ---- colour classes, on the CPU alone -------------------------------------------------------------


COLOR_SHAPES = (  # images, bins, pixels, neighbours
    (1, 1, 1, 1),
    (2, 3, 1, 2),
    (3, 26, 15, 5),
    (2, 16, 64, 16),
    (1, 313, 257, 5),
    (2, 40, 1000, 3),
    (2, 7, 40, 0),
    (2, 5, 0, 2),
    (0, 5, 3, 2),
)


def color_inputs(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Logits, and a target of different bins each."""
    images, bins, pixels, neighbours = shape
    x = (3 * torch.randn(images, bins, pixels)).to(dtype)
    indices = torch.rand(images, bins, pixels).argsort(1)[:, :neighbours]
    z = torch.rand(images, neighbours, pixels, dtype=accumulation_dtype(dtype)).softmax(1)
    return [x, indices, z, torch.rand(images, pixels, dtype=z.dtype) + 0.5]


def color_definition(x: Tensor, indices: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    x, z, v = x.double(), z.double(), v.double()
    values = v * (x.logsumexp(1) - (x.gather(1, indices) * z).sum(1))
    return values, v.unsqueeze(1) * x.softmax(1).scatter_add(1, indices, -z)


def check_color(inputs: list[Tensor]) -> None:
    x, v = inputs[0], inputs[-1]
    values, gradient = torch.ops.histloss.color_cross_entropy(*inputs, True)
    expected = color_definition(*inputs)
    assert (values.dtype, gradient.dtype) == (v.dtype, x.dtype)
    assert_value(values, expected[0])
    assert_gradient(gradient, expected[1])
    only, none = torch.ops.histloss.color_cross_entropy(*inputs, False)
    assert torch.equal(only, values)
    assert none.shape == (0,)


@on_cpu
@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "strided", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", COLOR_SHAPES, ids=str)
def test_color_cross_entropy_at_random(
    shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str
) -> None:
    check_color([laid_out(t, layout) for t in color_inputs(shape, dtype)])


@on_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_logits_at_random(dtype: torch.dtype) -> None:
    """Far apart, large, and of probability 0, which those of the target are not."""
    limits = torch.finfo(dtype)
    x, indices, z, v = color_inputs((2, 9, 300, 2), dtype)
    x[0] *= 200
    x[1, :, :100] = (limits.max**0.4 * torch.rand(9, 100, dtype=F64)).to(dtype)
    check_color([x, indices, z, v])
    x = x.scatter(1, torch.rand(2, 9, 300).argsort(1)[:, :7], -torch.inf)
    indices = x.argsort(1, descending=True)[:, :2]
    check_color([x, indices, z, v])
    _, gradient = torch.ops.histloss.color_cross_entropy(x, indices, z, v, True)
    assert not gradient[x == -torch.inf].any()


@on_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bad_logits_spoil_their_pixel_at_random(dtype: torch.dtype) -> None:
    """NaN of any bits and infinity, whatever their bin, and no other pixel."""
    x, indices, z, v = color_inputs((1, 20, 80, 3), dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    odd = (torch.tensor(torch.inf, dtype=dtype).view(bits) + 1).view(dtype)
    spoilt = torch.zeros(80, dtype=torch.bool)
    for number, bad in enumerate((torch.tensor(torch.nan), torch.tensor(torch.inf), odd)):
        for bin in range(20):
            pixel = 4 * bin + number
            x[0, bin, pixel], spoilt[pixel] = bad.to(dtype), True
    values, gradient = torch.ops.histloss.color_cross_entropy(x, indices, z, v, True)
    assert torch.equal(values[0].isnan(), spoilt)
    assert torch.equal(gradient[0].isnan(), spoilt.expand(20, 80))


@on_cpu
@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
def test_the_same_bits_of_a_pixel_whatever_is_beside_it(dtype: torch.dtype) -> None:
    """And for any number of threads."""
    inputs = color_inputs((3, 30, 1500, 4), dtype)
    expected = torch.ops.histloss.color_cross_entropy(*inputs, True)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for found, want in zip(torch.ops.histloss.color_cross_entropy(*inputs, True), expected, strict=True):
            assert torch.equal(found, want)
    part = [t[1:, ..., 7:600] for t in inputs]
    for found, want in zip(torch.ops.histloss.color_cross_entropy(*part, True), expected, strict=True):
        assert torch.equal(found, want[1:, ..., 7:600])


@on_cpu
@pytest.mark.parametrize("dtype", [F16, F32], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "misaligned"])
def test_a_large_gradient_is_that_of_its_parts(layout: str, dtype: torch.dtype) -> None:
    """It is written past the caches."""
    inputs = color_inputs((1, 64, 2**17 + 40, 1), dtype)
    whole = torch.ops.histloss.color_cross_entropy(laid_out(inputs[0], layout), *inputs[1:], True)
    for some in torch.arange(2**17 + 40).split(2**16):
        part = torch.ops.histloss.color_cross_entropy(*(t[..., some] for t in inputs), True)
        assert all(torch.equal(found[..., some], want) for found, want in zip(whole, part, strict=True))


@on_cpu
@pytest.mark.parametrize("bad", [-1, 20, 2**31, 2**62, -(2**63)])
def test_indices_that_are_no_bins_are_refused(bad: int) -> None:
    x, indices, z, v = color_inputs((2, 20, 300, 3), F32)
    indices[1, 2, 299] = bad
    for need in (True, False):
        with pytest.raises(RuntimeError, match="indices must be from 0 to 19"):
            torch.ops.histloss.color_cross_entropy(x, indices, z, v, need)


@on_cpu
@pytest.mark.parametrize("wrong", range(4))
def test_color_tensors_that_do_not_fit_are_refused(wrong: int) -> None:
    inputs = color_inputs((2, 20, 30, 3), F32)
    for change in (lambda t: t[..., :-1], lambda t: t[:1], lambda t: t[0], lambda t: t.to(torch.int16)):
        changed = [change(t) if i == wrong else t for i, t in enumerate(inputs)]
        with pytest.raises(RuntimeError, match="histloss: "):
            torch.ops.histloss.color_cross_entropy(*changed, True)


def bins_inputs(pixels: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Points of a lattice, often equally near to several bins; 2 x 3 cells, all with the same candidates."""
    points = torch.randint(-8, 9, (2, 2, pixels)).to(dtype) / 2
    at = torch.randint(-4, 5, (2, 21)).to(dtype)
    bins = torch.arange(100, 121)
    return points, [t.expand(2, 3, 21) for t in (bins, *at)]


@on_cpu
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("neighbours", [1, 5, 21])
@pytest.mark.parametrize("pixels", [0, 1, 15, 16, 17, 1000])
def test_nearest_bins_at_random(pixels: int, neighbours: int, dtype: torch.dtype) -> None:
    points, table = bins_inputs(pixels, dtype)
    bins, a, b = (t[0, 0] for t in table)
    found = torch.ops.histloss.nearest_bins(points, *table, -1.0, -2.0, 0.5, neighbours, 1.5)
    squares = (points[:, :1] - a[:, None]).square() + (points[:, 1:] - b[:, None]).square()
    squares, order = squares.sort(dim=1, stable=True)
    squares, order = squares[:, :neighbours], order[:, :neighbours]
    assert torch.equal(found[0], bins[order])
    assert torch.equal(found[2], squares[:, 0])
    assert found[1].dtype == dtype
    assert_value(found[1], (squares.double() / -4.5).softmax(1))


@on_cpu
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_points_anywhere_are_in_a_cell(dtype: torch.dtype) -> None:
    points, table = bins_inputs(30, dtype)
    points[0, 0, :6] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.0], dtype=dtype)
    points[0, 1, 3:9] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.0], dtype=dtype)
    table[0] = torch.arange(6 * 21).view(2, 3, 21)
    for low in (0.0, -1e300, torch.nan):
        for step in (1.0, 1e-300, 0.0, torch.nan):
            indices, *_ = torch.ops.histloss.nearest_bins(points, *table, low, low, step, 5, 1e-200)
            assert bool((indices >= 0).all() & (indices < 6 * 21).all())


@on_cpu
def test_bins_that_do_not_fit_are_refused() -> None:
    points, table = bins_inputs(30, F32)

    def call(points: Tensor, table: list[Tensor], neighbours: int = 5) -> None:
        torch.ops.histloss.nearest_bins(points, *table, -1.0, -2.0, 0.5, neighbours, 1.5)

    for neighbours in (0, 22, -1):
        with pytest.raises(RuntimeError, match="neighbours out of range"):
            call(points, table, neighbours)
    for wrong in (points[:, :1], points[0], points.half(), points.long()):
        with pytest.raises(RuntimeError, match="histloss: "):
            call(wrong, table)
    for i in range(3):
        for change in (lambda t: t[:1], lambda t: t[..., :20], lambda t: t[0], lambda t: t.half()):
            with pytest.raises(RuntimeError, match="histloss: "):
                call(points, [change(t) if j == i else t for j, t in enumerate(table)])
    with pytest.raises(RuntimeError, match="bins has the wrong shape"):
        call(points, [t[:0] for t in table])


# ---- every instruction set ------------------------------------------------------------------------


def instruction_sets() -> list[str]:
    """Those of this machine."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ["generic"]
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX512"):
        return ["sse", "avx2", "avx512"]
    return ["sse", "avx2"] if capability == "AVX2" else ["sse"]


OTHER_SETS = [simd for simd in instruction_sets() if simd != native.backend_info()["cpu"]["simd"]]


@on_cpu
@pytest.mark.parametrize("simd", OTHER_SETS)
def test_every_other_instruction_set(simd: str) -> None:
    """The random cases again, in a process whose library uses that set (see the fixture `library`)."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "at_random"]
    done = subprocess.run(command, env={**os.environ, "HISTLOSS_SIMD": simd}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
