"""Parzen kernels: the formula as printed, in float64, against maps, histograms and their derivatives."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import histloss
from asserters import assert_gradient, assert_value
from devices import on_cpu
from histloss import reference
from histloss.binning import BANDWIDTHS, BOUNDARIES, KERNELS, MIN_BANDWIDTHS, Binning, binning
from histloss.checks import DTYPES, accumulation_dtype

F64 = torch.float64
NORMALISED = KERNELS[1:]
OWN_AND_OTHERS = [
    *(("gaussian", h) for h in (0.3, 0.5, 1.3, 6.0)),
    *(("bspline3", h) for h in (0.5, 0.7, 1.0, 2.0, 4.3)),
    *(("triangular", h) for h in (1.0, 1.5, 3.7)),
]
pytestmark = pytest.mark.usefixtures("device")


# ---- the formula again, literally -----------------------------------------------------------------


def kappa(s: Tensor, kernel: str) -> Tensor:
    s = s.abs()
    if kernel == "gaussian":
        return torch.exp(-s * s / 2)
    if kernel == "triangular":
        return torch.relu(1 - s)  # whose slope at the kink is 0
    return torch.where(s < 1, 2 / 3 - s**2 + s**3 / 2, (2 - s).clamp(min=0) ** 3 / 6)


def printed(z: Tensor, axis: Binning) -> Tensor:
    """kappa(t_k / h) / sum_j kappa(t_j / h) on an endless axis, then folded into K bins: (N,) -> (K, N)."""
    far = math.ceil(12 * axis.bandwidth) + 3 * axis.bins + 5
    e = torch.arange(-far, axis.bins + far)
    centres = axis.lo + axis.width * (e.to(F64)[:, None] + 0.5)
    membership = kappa((z - centres) / axis.width / axis.bandwidth, axis.kernel)
    if axis.normalization == "all":
        membership = membership / membership.sum(0)
    elif axis.normalization == "inside":
        membership = membership / membership[far : far + axis.bins].sum(0)
    if axis.boundary == "open":
        return membership[far : far + axis.bins]
    bins = e % axis.bins
    if axis.boundary == "reflect":
        bins = torch.where(e % (2 * axis.bins) < axis.bins, bins, axis.bins - 1 - bins)
    return torch.zeros(axis.bins, z.numel(), dtype=F64).index_add(0, bins, membership)


def around(axis: Binning, margin: float = 0.2, pixels: int = 60) -> Tensor:
    """In the range and, by a part of it, outside."""
    span = axis.hi - axis.lo
    return (torch.rand(pixels, dtype=F64) * (1 + 2 * margin) - margin) * span + axis.lo


def keywords(axis: Binning) -> dict[str, Any]:
    return {
        "bins": axis.bins,
        "range": (axis.lo, axis.hi),
        "bandwidth": axis.bandwidth,
        "boundary": axis.boundary,
        "kernel": axis.kernel,
    }


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("kernel", "h"), OWN_AND_OTHERS)
@pytest.mark.parametrize(("bins", "lo", "hi"), [(1, -1.0, 1.0), (7, -3.0, 4.0), (33, 16.0, 235.0)])
def test_maps_and_derivatives_are_the_formulas(
    bins: int, lo: float, hi: float, kernel: str, h: float, boundary: str
) -> None:
    """Both derivatives are written out; those of the formula come from autograd, as do those of the maps."""
    normalizations = ("all", "none", "inside") if boundary == "open" else ("all", "none")
    for normalization in normalizations:
        axis = Binning(bins, lo, hi, h, boundary, kernel, normalization)
        z = around(axis, 0.0 if normalization == "inside" else 0.2).requires_grad_()
        weight, steepness = torch.randn(bins, 1, dtype=F64), 1 / (h * axis.width)
        expected = printed(z, axis)
        (slope,) = torch.autograd.grad((weight * expected).sum(), z, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), z)
        maps = reference.plane_maps(z[None], axis)[0]
        assert_value(maps, expected)
        (of_maps,) = torch.autograd.grad((weight * maps).sum(), z)
        first, second = (
            (weight * reference.plane_maps(z.detach()[None], axis, order)[0]).sum(0) for order in (1, 2)
        )
        assert_gradient(of_maps, slope, floor=steepness)
        assert_gradient(first, slope, floor=steepness)
        assert_gradient(second, curvature, floor=steepness**2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", NORMALISED)
def test_public_functions(path: str, kernel: str, boundary: str, dtype: torch.dtype) -> None:
    """Against the formula in float64 on the same pixels, with an upstream gradient that is not 1."""
    axis = binning(32, (-1, 1), None, boundary, kernel)
    x, y = ((torch.rand(1, 2, 90) * 2.4 - 1.2).clamp(-1, 1).to(dtype) for _ in range(2))
    weight = torch.rand(1, 1, 90, dtype=accumulation_dtype(dtype))
    options = keywords(axis)

    def found(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (
            histloss.activation_maps(x, **options),
            histloss.soft_histogram(x, **options),
            histloss.soft_histogram(x, **options, weight=weight),
            histloss.joint_histogram(x, y, **options),
            histloss.joint_histogram(x, y, **options, weight=weight),
        )

    def expected(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        a, b = (torch.stack([printed(z, axis) for z in image[0]])[None] for image in (x, y))
        mass = weight.unsqueeze(-2) / weight.sum()
        return a, a.mean(-1), (a * mass).sum(-1), a @ b.mT / 90, a * mass @ b.mT

    inputs = [t.requires_grad_() for t in (x, y, weight)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    for result, wanted in zip(found(*inputs), expected(*exact), strict=True):
        assert result.dtype == accumulation_dtype(dtype)
        assert_value(result, wanted)
        upstream = torch.randn(result.shape, dtype=result.dtype) * 3
        gradients = torch.autograd.grad(result, inputs, upstream, allow_unused=True)
        others = torch.autograd.grad(wanted, exact, upstream.double(), allow_unused=True, retain_graph=True)
        for gradient, other in zip(gradients, others, strict=True):
            assert (gradient is None) == (other is None)
            if gradient is not None and other is not None:
                assert_gradient(gradient, other)


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(KERNELS, 2)))
def test_a_kernel_for_each_image(path: str, first: str, second: str) -> None:
    x, y = torch.rand(2, 1, 1, 70, dtype=F64) * 2 - 1
    joint = histloss.joint_histogram(x, y, bins=(9, 6), kernel=(first, second))
    maps = [
        histloss.activation_maps(z, bins=bins, kernel=kernel)[0, 0]
        for z, bins, kernel in ((x, 9, first), (y, 6, second))
    ]
    assert_value(joint[0, 0], maps[0] @ maps[1].T / 70)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_bandwidth_of_none_is_the_kernels_own(path: str, kernel: str) -> None:
    x = torch.rand(1, 1, 50)
    own = histloss.soft_histogram(x, bins=8, kernel=kernel, bandwidth=BANDWIDTHS[kernel])
    assert torch.equal(histloss.soft_histogram(x, bins=8, kernel=kernel), own)
    other = histloss.soft_histogram(x, bins=8, kernel=kernel, bandwidth=BANDWIDTHS[kernel] + 0.5)
    assert not torch.allclose(other, own)


# ---- mass -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["reflect", "cyclic"])
@pytest.mark.parametrize(("kernel", "h"), [*OWN_AND_OTHERS, ("gaussian", 1e-3), ("gaussian", 40.0)])
def test_mass_is_one_wherever_a_pixel_is(path: str, kernel: str, h: float, boundary: str) -> None:
    for bins in (1, 2, 7, 32):
        axis = Binning(bins, -1.0, 1.0, h, boundary, kernel)
        x = torch.cat([around(axis, 1.5), torch.tensor([-1.0, 1.0, -3.0, 0.0, 1e30, -1e30], dtype=F64)])
        maps = histloss.activation_maps(x[None, None], **keywords(axis))
        assert_value(maps.sum(2), torch.ones(1, 1, 66, dtype=F64))


@pytest.mark.parametrize("kernel", NORMALISED)
def test_mass_at_an_open_end(path: str, kernel: str) -> None:
    """At the end itself half is lost, and half a bin and the support beyond it all."""
    h = BANDWIDTHS[kernel]
    axis = Binning(16, 0.0, 16.0, h, "open", kernel)
    reach = {"gaussian": 12 * h, "bspline3": 2 * h, "triangular": h}[kernel]
    z = [0.0, 16.0, 8.3, -0.5 - reach, 16.5 + reach, 1e30, -1e30]
    x = torch.tensor(z, dtype=F64)[None, None].requires_grad_()
    mass = histloss.activation_maps(x, **keywords(axis)).sum(2)
    assert_value(mass[0, 0], torch.tensor([0.5, 0.5, 1, 0, 0, 0, 0], dtype=F64))
    (gradient,) = torch.autograd.grad(mass.sum(), x)
    assert bool(gradient.isfinite().all())
    assert not gradient[0, 0, -4:].abs().max() > 1e-30


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_narrowest_gaussian_is_a_hard_bin(path: str, boundary: str, dtype: torch.dtype) -> None:
    """exp(-250^2) would be 0 / 0 in float64, already at a quarter of a bin from the centre."""
    k = torch.randint(0, 64, (500,))
    x = ((k + 0.05 + 0.9 * torch.rand(500)) / 32 - 1).to(dtype)[None, None].requires_grad_()
    h = histloss.soft_histogram(x, bins=64, kernel="gaussian", bandwidth=0.001, boundary=boundary)
    assert_value(h[0, 0], torch.bincount(k, minlength=64).to(dtype) / 500)
    (gradient,) = torch.autograd.grad(h.square().sum(), x)
    assert gradient.abs().max() < 1e-12
    half = torch.full((1, 1, 3), -0.5, dtype=dtype)  # at an edge, exactly: half for either
    edge = histloss.soft_histogram(half, bins=4, kernel="gaussian", bandwidth=0.001, boundary=boundary)
    assert edge[0, 0].tolist() == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize(("kernel", "h"), [("gaussian", 40.0), ("bspline3", 30.5), ("triangular", 50.3)])
def test_a_wide_kernel_spreads_evenly(path: str, kernel: str, h: float) -> None:
    x = torch.tensor([[[0.3, -0.9]]], dtype=F64)
    for boundary in ("reflect", "cyclic"):
        flat = histloss.soft_histogram(x, bins=4, kernel=kernel, bandwidth=h, boundary=boundary)
        torch.testing.assert_close(flat, torch.full((1, 1, 4), 0.25, dtype=F64), rtol=0, atol=2e-3)


@on_cpu
@pytest.mark.parametrize("kernel", ["gaussian", "bspline3", "triangular"])
def test_the_widest_of_all(path: str, kernel: str) -> None:
    x = torch.tensor([[[0.3, -0.9]]])
    h = histloss.soft_histogram(x, bins=256, kernel=kernel, bandwidth=1000)
    torch.testing.assert_close(h, torch.full((1, 1, 256), 1 / 256), rtol=5e-3, atol=0)


@pytest.mark.parametrize("h", [1, 2, 3, 7])
@pytest.mark.parametrize("kernel", ["bspline3", "triangular"])
def test_splines_of_whole_bandwidths_need_no_normaliser(kernel: str, h: int) -> None:
    """They are a partition of unity: their sum over all bins is h."""
    axis = Binning(16, bandwidth=h, boundary="cyclic", kernel=kernel)
    z = around(axis)[None]
    for order in range(3):
        plain = reference.plane_maps(z, axis._replace(normalization="none"), order)
        found = reference.plane_maps(z, axis, order)
        assert_value(found, plain / h, floor=(1 / (h * axis.width)) ** order)


@pytest.mark.parametrize("kernel", NORMALISED)
def test_inside_the_range_alone(kernel: str) -> None:
    """With the mass of what is lost to `open` given back; also to a pixel outside, that reaches a bin."""
    axis = Binning(8, 0.0, 8.0, 1.0, "open", kernel, "inside")
    z = torch.tensor([[0.0, 0.1, 4.0, 7.99, 8.0, 8.4, -0.3]], dtype=F64)
    maps = reference.plane_maps(z, axis)
    assert_value(maps.sum(1), torch.ones(1, 7, dtype=F64))
    everything = reference.plane_maps(z, axis._replace(normalization="all"))
    assert_value(maps, everything / everything.sum(1, keepdim=True))
    (far,) = reference.plane_maps(torch.tensor([[-1e6, 1e30, math.nan]], dtype=F64), axis).unbind()
    expected = torch.zeros(8, 3, dtype=F64)
    if kernel == "gaussian":
        expected[0, 0] = expected[7, 1] = 1  # to the nearest
    assert torch.equal(far, expected)


# ---- gradients ------------------------------------------------------------------------------------


@on_cpu
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", ["gaussian", "bspline3"])
def test_smooth_kernels_have_every_derivative(path: str, kernel: str, boundary: str) -> None:
    """To the second order, by which a B-spline is smooth, forward and backward."""
    options: dict[str, Any] = {"kernel": kernel, "boundary": boundary, "bandwidth": 0.8}
    x, y = ((torch.rand(1, 1, 2, dtype=F64) * 1.8 - 0.9).requires_grad_() for _ in range(2))
    weight = (torch.rand(1, 1, 2, dtype=F64) + 0.2).requires_grad_()

    def maps(x: Tensor) -> Tensor:
        return histloss.activation_maps(x, bins=4, **options)

    def soft(x: Tensor, weight: Tensor) -> Tensor:
        return histloss.soft_histogram(x, bins=4, **options, weight=weight)

    def joint(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return histloss.joint_histogram(x, y, bins=(3, 2), **options, weight=weight)

    for function, inputs in ((maps, (x,)), (soft, (x, weight)), (joint, (x, y, weight))):
        assert gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_slope_at_a_kink_is_none(path: str, boundary: str) -> None:
    """A triangle of one bin: at a centre the pixel's own and both its neighbours are at a kink."""
    axis = Binning(8, 0.0, 8.0, 1.0, boundary, "triangular")
    x = torch.tensor([[[2.5, 2.75, 2.25]]], dtype=F64).requires_grad_()
    maps = histloss.activation_maps(x, **keywords(axis))
    weight = torch.arange(8.0, dtype=F64)[None, None, :, None] ** 2
    (gradient,) = torch.autograd.grad((weight * maps).sum(), x)
    assert gradient.flatten().tolist() == [0, 9 - 4, 4 - 1]
    h = histloss.soft_histogram(x, **keywords(axis))
    (gradient,) = torch.autograd.grad((weight[..., 0] * h).sum(), x)
    assert_gradient(gradient.flatten(), torch.tensor([0, 5, 3], dtype=F64) / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", NORMALISED)
def test_a_pixel_that_is_not_finite_counts_for_nothing(
    path: str, kernel: str, boundary: str, bad: float
) -> None:
    options: dict[str, Any] = {"bins": 6, "kernel": kernel, "boundary": boundary}
    x = torch.tensor([[[0.2, bad, -0.3, 0.9]]], dtype=F64).requires_grad_()
    y = torch.tensor([[[0.1, 0.5, -0.6, 0.9]]], dtype=F64).requires_grad_()
    kept = torch.tensor([0, 2, 3])
    h, j = histloss.soft_histogram(x, **options), histloss.joint_histogram(x, y, **options)
    assert_value(h, histloss.soft_histogram(x[..., kept], **options) * 3 / 4)
    assert_value(j, histloss.joint_histogram(x[..., kept], y[..., kept], **options) * 3 / 4)
    for result in (h, j, histloss.activation_maps(x, **options)):
        gradients = torch.autograd.grad(result.square().sum(), [x, y], allow_unused=True)
        for gradient in gradients:
            if gradient is not None:
                assert bool(gradient.isfinite().all())
                assert gradient[0, 0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_radius_holds_what_the_dtype_resolves(kernel: str, dtype: torch.dtype) -> None:
    for h in (MIN_BANDWIDTHS[kernel], BANDWIDTHS[kernel], 3.3):
        axis = Binning(1024, 0.0, 1024.0, h, "open", kernel)
        reach = reference.radius(axis, dtype)
        z = 512 + torch.linspace(0, 1, 33, dtype=F64)[None]  # over one bin, that of centre 512.5
        maps = reference.plane_maps(z, axis)
        beyond = maps.sum(1) - maps[:, 512 - reach : 512 + reach + 1].sum(1)
        bits = 54 if dtype == F64 else 27
        assert beyond.max() <= 8 * (1 + h) * 2.0**-bits
        assert kernel == "sigmoid" or h == MIN_BANDWIDTHS[kernel] or maps[:, 512 + reach - 1].max() > 0
