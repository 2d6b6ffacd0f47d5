"""Every equation of the library in plain PyTorch: the oracle of the tests, and the path used where no
native library fits.

Equation numbers are those of Avi-Aharon, Arbelle and Riklin Raviv, "Differentiable Joint and Color
Histogram Layers for Image-to-Image Translation" (DeepHist); the article behind it is TPAMI 2023, doi
10.1109/TPAMI.2023.3278287. Notation: K bins over [lo, hi] of width L, centres mu_k = lo + L (k + 1/2),
kernel scale B = bandwidth * L, and a = L / B = 1 / bandwidth.

The functions take and return what those of `histloss` of the same name do, in any floating dtype on any
device, but for `exact` and `process_group`, which are about bits and not values. They build the K x N
activation map, so they need memory in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from . import checks
from .binning import Binning, binning, binning_pair, sample_ranges
from .checks import accumulation_dtype

EMD_FORMS = ("squared", "norm")
MI_MODES = ("mi", "relative", "conditional_entropy", "nmi")
CORRECTIONS = ("miller_madow",)


def activation_maps(
    x: Tensor,
    *,
    bins: int = 256,
    range: tuple[float, float] | Tensor = (-1.0, 1.0),
    bandwidth: float | None = None,
    boundary: str = "reflect",
    kernel: str = "sigmoid",
) -> Tensor:
    """Pi_k(x), Eq. 6 or another kernel: (B, C, *spatial) -> (B, C, K, *spatial)."""
    checks.check_image("x", x)
    if (ranges := sample_ranges(range, x.shape[0])) is not None:
        options = {"bins": bins, "bandwidth": bandwidth, "boundary": boundary, "kernel": kernel}
        return by_sample(activation_maps, ranges, [x], None, options)
    axis = binning(bins, range, bandwidth, boundary, kernel)
    maps = plane_maps(planes(x), axis)
    return maps.reshape(*x.shape[:2], axis.bins, *x.shape[2:])


def soft_histogram(
    x: Tensor,
    *,
    bins: int = 256,
    range: tuple[float, float] | Tensor = (-1.0, 1.0),
    bandwidth: float | None = None,
    boundary: str = "reflect",
    kernel: str = "sigmoid",
    weight: Tensor | None = None,
    empty: str = "error",
) -> Tensor:
    """P(k) = mean over the pixels of Pi_k, Eq. 5: (B, C, *spatial) -> (B, C, K)."""
    checks.check_image("x", x)
    checks.check_choice("empty", empty, checks.EMPTY)
    if (ranges := sample_ranges(range, x.shape[0])) is not None:
        options = {"bins": bins, "bandwidth": bandwidth, "boundary": boundary, "kernel": kernel}
        return by_sample(soft_histogram, ranges, [x], weight, {**options, "empty": empty})
    axis = binning(bins, range, bandwidth, boundary, kernel)
    h = plane_histogram(planes(x), plane_mass(weight, x, empty), axis)
    return h.reshape(*x.shape[:2], axis.bins)


def joint_histogram(
    x: Tensor,
    y: Tensor,
    *,
    bins: int | tuple[int, int] = 256,
    range: tuple[float, float]
    | Tensor
    | tuple[tuple[float, float] | Tensor, tuple[float, float] | Tensor] = (-1.0, 1.0),
    bandwidth: float | tuple[float | None, float | None] | None = None,
    boundary: str | tuple[str, str] = "reflect",
    kernel: str | tuple[str, str] = "sigmoid",
    weight: Tensor | None = None,
    empty: str = "error",
) -> Tensor:
    """J(k, l) = mean over the pixels of Pi_k(x) Pi_l(y), Eq. 12, 13: (B, C, *spatial) -> (B, C, Kx, Ky)."""
    checks.check_image("x", x)
    checks.check_image_pair(x, y)
    checks.check_choice("empty", empty, checks.EMPTY)
    if (ranges := sample_ranges(range, x.shape[0], pair=True)) is not None:
        options = {"bins": bins, "bandwidth": bandwidth, "boundary": boundary, "kernel": kernel}
        return by_sample(joint_histogram, ranges, [x, y], weight, {**options, "empty": empty})
    axis_x, axis_y = binning_pair(bins, range, bandwidth, boundary, kernel)
    j = plane_joint(planes(x), planes(y), plane_mass(weight, x, empty), axis_x, axis_y)
    return j.reshape(*x.shape[:2], axis_x.bins, axis_y.bins)


def emd(h1: Tensor, h2: Tensor, *, p: float = 2, form: str = "squared", cyclic: bool = False) -> Tensor:
    """The distance between two histograms through their cumulative sums, Eq. 14: (..., K) -> (...)."""
    p = checks.check_order(p)
    checks.check_choice("form", form, EMD_FORMS)
    checks.check_histograms(h1, h2)
    dtype = accumulation_dtype(torch.promote_types(h1.dtype, h2.dtype))
    difference = _running_sum(h1.to(dtype) - h2.to(dtype))
    if cyclic:
        difference = difference - _best_offset(difference, p)
    power = difference.square() if p == 2 else difference.abs() if p == 1 else difference.abs().pow(p)
    if form == "squared":
        return power.sum(-1)
    mean = power.mean(-1)
    if p == 1:
        return mean
    equal = mean == 0  # the root's slope there is infinite, the distance's is 0
    return torch.where(equal, 0.0, torch.where(equal, 1.0, mean).pow(1 / p))


def mutual_information(
    joint: Tensor,
    *,
    mode: str = "relative",
    correction: str | None = None,
    count: float | Tensor | None = None,
) -> Tensor:
    """MI and its relatives from a joint histogram, Eq. 15 to 17: (..., Kx, Ky) -> (...).

    The correction of Miller and Madow adds (m - 1) / 2N to each entropy, m being its bins with half a pixel
    or more.
    """
    checks.check_choice("mode", mode, MI_MODES)
    if correction is not None:
        checks.check_choice("correction", correction, CORRECTIONS)
    checks.check_joint(joint)
    checks.check_pixel_count(count, correction, joint)
    joint = joint.to(accumulation_dtype(joint.dtype))

    def entropy(p: Tensor) -> Tensor:
        h = _entropy(p)
        if count is None:
            return h
        n = count.to(p.dtype) if isinstance(count, Tensor) else count
        share = 0.5 / (n.unsqueeze(-1) if isinstance(n, Tensor) else n)
        occupied = (p.detach() >= share).sum(-1)
        return h + (occupied - 1).clamp(min=0).to(p.dtype) / (2 * n)

    h_xy = _entropy(joint).sum(-1) if count is None else entropy(joint.flatten(-2))
    h_x = entropy(joint.sum(-1))
    if mode == "conditional_entropy":
        return h_xy - h_x
    h_y = entropy(joint.sum(-2))
    if mode == "mi":
        return h_x + h_y - h_xy
    certain = h_xy < torch.finfo(h_xy.dtype).eps  # one cell holds everything: each determines the other
    h_xy = torch.where(certain, 1.0, h_xy)
    if mode == "nmi":
        return torch.where(certain, 2.0, (h_x + h_y) / h_xy)
    return torch.where(certain, 0.0, 1 - (h_x + h_y - h_xy) / h_xy)


# ---- on planes: x (P, N), mass (P, N) or None for 1 / N each --------------------------------------


def planes(x: Tensor) -> Tensor:
    """(B, C, *spatial) as (B C, N)."""
    return x.reshape(math.prod(x.shape[:2]), math.prod(x.shape[2:]))


ROW = 4096


def plane_weight(weight: Tensor | None, x: Tensor) -> Tensor | None:
    """The weight as (B or 1, C or 1, N) in x's accumulation dtype; None stays None."""
    if weight is None:
        return None
    checks.check_weight(weight, x)
    weight = weight.to(accumulation_dtype(x.dtype))
    while weight.ndim < x.ndim:
        weight = weight.unsqueeze(0)
    weight = weight.expand(*weight.shape[:2], *x.shape[2:])
    return weight.reshape(*weight.shape[:2], math.prod(x.shape[2:]))


def plane_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A `plane_weight` cut into rows, (B or 1, C or 1, rows, ROW), and its sum, (B or 1, C or 1, 1, 1).

    Summed row by row, forward and backward: PyTorch lets threads share a single long sum, which rounds it
    differently for every number of threads.
    """
    pixels = weight.shape[-1]
    rows = torch.nn.functional.pad(weight, (0, -pixels % ROW)).unflatten(-1, ((pixels + ROW - 1) // ROW, ROW))
    return rows, rows.sum(-1, keepdim=True).sum(-2, keepdim=True)


def plane_mass(weight: Tensor | None, x: Tensor, empty: str = "error") -> Tensor | None:
    """weight / its sum over each channel, as (B C, N) in x's accumulation dtype; None stays None.

    With `empty` "zero" a weight whose sum is 0 is a mass of 0, without a gradient.
    """
    weight = plane_weight(weight, x)
    if weight is None:
        return None
    rows, total = plane_rows(weight)
    checks.check_weight_values(weight, total[..., 0, 0], empty)
    if empty == "zero":
        nothing = total == 0
        mass = torch.where(nothing, 0.0, rows / torch.where(nothing, 1.0, total).expand(*rows.shape[:-1], 1))
    else:
        mass = rows / total.expand(*rows.shape[:-1], 1)
    mass = mass.flatten(-2)[..., : weight.shape[-1]]
    return mass.expand(*x.shape[:2], -1).flatten(0, 1)


def by_sample(
    function: Callable[..., Tensor],
    ranges: list[Any],
    images: list[Tensor],
    weight: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """A function of images, called for each sample with its own range."""
    if weight is not None:
        checks.check_weight(weight, images[0])

    def sample(i: int) -> Tensor:
        several = weight is not None and weight.ndim == images[0].ndim and weight.shape[0] > 1
        own = {} if weight is None else {"weight": weight[i : i + 1] if several else weight}
        return function(*(image[i : i + 1] for image in images), range=ranges[i], **own, **options)

    if not ranges:
        return function(*images, **options, **({} if weight is None else {"weight": weight}))
    return torch.cat([sample(i) for i in range_(len(ranges))])


def plane_maps(x: Tensor, axis: Binning, derivative: int = 0) -> Tensor:
    """Pi_k(x), or its first or second derivative with respect to x: (P, N) -> (P, K, N).

    Pixels that are NaN or infinite have no activation and no gradient; half precision is widened to float32.
    """
    x = x.to(accumulation_dtype(x.dtype))
    if axis.kernel == "sigmoid":
        return _sigmoid_maps(x, axis, derivative, torch.sigmoid)
    return _parzen_maps(x, axis, derivative)


def _sigmoid_maps(x: Tensor, axis: Binning, derivative: int, sigmoid: Callable[[Tensor], Tensor]) -> Tensor:
    """Eq. 6, sigmoid(u) - sigmoid(v) with u - v = a.

    It equals sigmoid(u) sigmoid(-v) (1 - exp(-a)), which does not cancel.
    """
    a = 1 / axis.bandwidth
    scale = 1 / (axis.bandwidth * axis.width)
    centre = _centre(torch.arange(axis.bins, device=x.device, dtype=x.dtype), axis)[:, None]
    total: Tensor | None = None
    for image, sign in _images(x, axis):
        y = (image.unsqueeze(-2) - centre) * scale
        s, one_minus_t = sigmoid(a / 2 + y), sigmoid(a / 2 - y)
        term = s * one_minus_t * -math.expm1(-a)
        if derivative:
            slope = one_minus_t - s  # 1 - s - t
            if derivative == 1:
                term = term * slope * (sign * scale).unsqueeze(-2)
            else:
                term = term * (slope.square() - s * (1 - s) - one_minus_t * (1 - one_minus_t)) * scale**2
        total = term if total is None else total + term
    assert total is not None
    return total


def _parzen_maps(x: Tensor, axis: Binning, derivative: int) -> Tensor:
    """kappa(t_k / h) / D, with t_k the distance in bins of x from bin k, and D that of the normalization.

    Both are sums: over the images of bin k on the endless axis, and over the bins of all of that axis. D is
    the same for every image. Of a sum S and D the quotient's derivatives are (S' - Pi D') / D and
    (S'' - 2 Pi' D' - Pi D'') / D.
    """
    seen, sign, nearest, offset = _place(x, axis)
    k = torch.arange(axis.bins, device=x.device, dtype=x.dtype)[:, None]
    reach = radius(axis, x.dtype)

    def kernel(steps: Tensor) -> list[Tensor]:
        return [
            _KERNELS[axis.kernel](steps, offset, axis.bandwidth, order, axis.normalization == "none")
            for order in range_(derivative + 1)
        ]

    maps = _sums(kernel(nearest - image) for image in _images_of_bins(k, axis, reach))
    if axis.normalization != "none":
        if axis.normalization == "inside":
            norms = [add_up(s) for s in maps]
        else:
            taps = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)[:, None]
            norms = _sums([add_up(s) for s in kernel(some)] for some in taps.split(_TAPS))
        nothing = norms[0] == 0  # a pixel that no bin inside the range reaches
        d = torch.where(nothing, 1.0, norms[0])
        maps[0] = maps[0] / d
        if derivative >= 1:
            maps[1] = (maps[1] - maps[0] * norms[1]) / d
        if derivative == 2:
            maps[2] = (maps[2] - 2 * maps[1] * norms[1] - maps[0] * norms[2]) / d
    scale = (1.0, sign * (1 / axis.width), 1 / axis.width**2)
    return torch.where(seen, maps[derivative] * scale[derivative], 0.0)


def _place(x: Tensor, axis: Binning) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the bins' kernels see x: (P, N) to four tensors (P, 1, N).

    Whether one does, the derivative of the position in the range with respect to x, the number of the bin
    nearest to it, and the distance in bins from that.
    """
    x = x.unsqueeze(-2)
    seen = x.isfinite()
    if axis.boundary == "open":
        z, sign = torch.where(seen, x, axis.lo), torch.ones_like(x)
    else:
        z, sign = _fold(x, axis)
    nearest = ((z - axis.lo) * (1 / axis.width)).floor()
    if axis.boundary == "open" and axis.normalization != "inside":
        far = 40 * axis.bandwidth + 1  # in bins; exp(-40^2 / 2) is 0 in float64
        near = (nearest >= -far) & (nearest < axis.bins + far)
        seen = seen & near
        z, nearest = torch.where(near, z, axis.lo), torch.where(near, nearest, 0.0)
    else:
        nearest = nearest.clamp(0, axis.bins - 1)
    offset = (z - _centre(nearest, axis)) * (1 / axis.width)
    return seen, sign, nearest, offset.clamp(-_FAR, _FAR)


_FAR = 1e15  # bins: no kernel sees across them, and multiples of it are finite
_TAPS = 64  # at a time: the normaliser of a wide kernel needs no more memory than the maps


def _centre(k: Tensor, axis: Binning) -> Tensor:
    """mu_k."""
    return (axis.lo + axis.hi) / 2 + axis.width * (k - (axis.bins - 1) / 2)


def _images_of_bins(k: Tensor, axis: Binning, reach: int) -> Iterator[Tensor]:
    """The bins of the endless axis that are folded into bin k, out to those a pixel inside can reach."""
    copies = 0 if axis.boundary == "open" else math.ceil(reach / axis.bins)
    for j in range_(-copies, copies + 1):
        mirrored = axis.boundary == "reflect" and j % 2 == 1
        yield (axis.bins - 1 - k if mirrored else k) + j * axis.bins


def _gaussian(steps: Tensor, offset: Tensor, h: float, order: int, plain: bool) -> Tensor:
    """exp(-t^2 / 2 h^2), t = steps + offset, or a derivative with respect to the offset.

    Unless `plain`, relative to that of the nearest bin, of steps = 0: the narrowest does not underflow.
    """
    if plain:
        t = steps + offset
        value, slope = torch.exp(-0.5 / h**2 * t * t), t * (-1 / h**2)
    else:
        value, slope = torch.exp(-0.5 / h**2 * steps * (steps + 2 * offset)), steps * (-1 / h**2)
    if order == 0:
        return value
    return value * slope if order == 1 else value * (slope * slope - (1 / h**2 if plain else 0.0))


def _bspline3(steps: Tensor, offset: Tensor, h: float, order: int, plain: bool) -> Tensor:
    """The cubic B-spline of (steps + offset) / h, or a derivative with respect to the offset."""
    s = (steps + offset) * (1 / h)
    outer, inner = torch.relu(2 - s.abs()), torch.relu(1 - s.abs())
    if order == 0:
        return (outer * outer * outer - 4 * inner * inner * inner) * (1 / 6)
    if order == 1:
        return (4 * inner * inner - outer * outer) * s.sign() * (0.5 / h)
    return (outer - 4 * inner) * (1 / h**2)


def _triangular(steps: Tensor, offset: Tensor, h: float, order: int, plain: bool) -> Tensor:
    """1 - |steps + offset| / h where positive, or a derivative with respect to the offset: 0 at each kink."""
    s = (steps + offset) * (1 / h)
    if order == 0:
        return torch.relu(1 - s.abs())
    return torch.where(s.abs() < 1, s.sign() * (-1 / h), 0.0) if order == 1 else torch.zeros_like(s)


_KERNELS = {"gaussian": _gaussian, "bspline3": _bspline3, "triangular": _triangular}


def _sums(terms: Iterable[list[Tensor]]) -> list[Tensor]:
    """Of several lists the sum, entry by entry, in their order."""
    return reduce(lambda total, term: [a + b for a, b in zip(total, term, strict=True)], terms)


def add_up(values: Tensor) -> Tensor:
    """The sum over the last dimension but one, which stays as one of size 1: (..., K, N) -> (..., 1, N).

    By halves, so that its order is a pixel's own: `sum` adds in one that depends on the pixel's place.
    """
    while values.shape[-2] > 1:
        half = values.shape[-2] // 2
        first, second, odd = values.split([half, half, values.shape[-2] % 2], -2)
        values = torch.cat([first + second, odd], -2)
    return values


def plane_histogram(x: Tensor, mass: Tensor | None, axis: Binning) -> Tensor:
    """sum_x m Pi_k(x): (P, N) -> (P, K)."""
    return _sum_pixels(plane_maps(x, axis), mass)


def plane_joint(x: Tensor, y: Tensor, mass: Tensor | None, axis_x: Binning, axis_y: Binning) -> Tensor:
    """sum_x m Pi_k(x) Pi_l(y) = A diag(m) B^T: two (P, N) -> (P, Kx, Ky)."""
    return _outer(plane_maps(x, axis_x), plane_maps(y, axis_y), mass)


# ---- exact sums: integers, which add to the same bits in any order --------------------------------


LEVELS = (2.0**-30, 2.0**-62)  # what a count of each level stands for


def plane_sums(x: Tensor, weight: Tensor | None, axis: Binning) -> tuple[Tensor, Tensor]:
    """sum_x w Pi_k(x), each term rounded to a grid: (P, N) -> counts (L, P, K), totals of w (L, P), int64.

    The first level counts multiples of 2^-30; float64, weights and bandwidths above 2 have a second, for what
    is left of each term, of multiples of 2^-62. The weight, up to 2^20 and summing to less than 2^33, is not
    divided by its sum.
    """
    depth = levels(x, weight, axis)
    counts = x.new_zeros((depth, x.shape[0], axis.bins), dtype=torch.int64)
    pixels = max(_PART // (max(axis.bins, _TAPS) * max(x.shape[0], 1)), 1)
    for part, w in _parts(x, weight, pixels):
        terms = exact_maps(part, axis).double()
        counts += _rounded(terms if w is None else terms * w.double().unsqueeze(-2), depth)
    return counts, _totals(x, weight, depth)


def plane_joint_sums(
    x: Tensor, y: Tensor, weight: Tensor | None, axis_x: Binning, axis_y: Binning
) -> tuple[Tensor, Tensor]:
    """The same of w Pi_k(x) Pi_l(y), rounded pixel by pixel: two (P, N) -> counts (L, P, Kx, Ky), totals."""
    depth = levels(x, weight, axis_x, axis_y)
    counts = x.new_zeros((depth, x.shape[0], axis_x.bins, axis_y.bins), dtype=torch.int64)
    pixels = max(_PART // max(axis_x.bins, axis_y.bins, _TAPS), 1)
    pairs = torch.stack([x, y], -2)  # (P, 2, N)
    for p in range_(x.shape[0]):
        for part, w in _parts(pairs[p], None if weight is None else weight[p], pixels):
            a = exact_maps(part[:1], axis_x)[0].double()
            b = exact_maps(part[1:], axis_y)[0].double()
            a = a if w is None else a * w.double()
            counted = a * b.amax(0) >= LEVELS[depth - 1] / 4  # or all products are rounded to 0
            b = b.mT.contiguous()
            for k in range_(axis_x.bins):
                for i in _where(counted[k]).split(max(_PART // axis_y.bins, 1)):
                    counts[:, p, k] += _rounded(a[k, i].unsqueeze(-1) * b[i], depth, dim=0)
    return counts, _totals(x, weight, depth)


def plane_sums_gradient(
    grad: Tensor, x: Tensor, weight: Tensor | None, axis: Binning, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """Of <grad, sums>, grad being (P, K): with respect to x and the weight, or nothing if not needed.

    Each pixel's has bits that are its own, as `exact_maps`.
    """
    g = grad.unsqueeze(-1)
    pixels = max(_PART // (max(axis.bins, _TAPS) * max(x.shape[0], 1)), 1)
    by_x, by_weight = [], []
    for part, w in _parts(x, weight, pixels):
        if need_x:
            slope = add_up(g * exact_maps(part, axis, 1)).squeeze(-2)
            by_x.append((slope if w is None else slope * w).to(x.dtype))
        if need_weight:
            by_weight.append(add_up(g * exact_maps(part, axis)).squeeze(-2))
    return _joined(by_x, x), _joined(by_weight, grad)


def plane_joint_sums_gradient(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    axis_x: Binning,
    axis_y: Binning,
    need_x: bool,
    need_y: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of two images, grad being (P, Kx, Ky)."""
    need_value = need_x or need_weight
    by_x, by_y, by_weight = [], [], []
    pixels = max(_PART // max(axis_x.bins, axis_y.bins, _TAPS), 1)
    pairs = torch.stack([x, y], -2)
    for p in range_(x.shape[0]):
        for part, w in _parts(pairs[p], None if weight is None else weight[p], pixels):
            a, slope_a = (exact_maps(part[:1], axis_x, order)[0] for order in (0, 1))
            b, slope_b = (exact_maps(part[1:], axis_y, order)[0] for order in (0, 1))
            value, slope_x, slope_y = torch.zeros_like(a[:1]).expand(3, -1).clone()
            counted = (a != 0) | (slope_a != 0)
            for k in range_(axis_x.bins):
                i, g = _where(counted[k]), grad[p, k].unsqueeze(-1)
                if need_value:
                    inner = add_up(g * b[:, i])[0]
                    value[i] += a[k, i] * inner
                    slope_x[i] += slope_a[k, i] * inner
                if need_y:
                    slope_y[i] += a[k, i] * add_up(g * slope_b[:, i])[0]
            by_x.append(slope_x if w is None else slope_x * w)
            by_y.append(slope_y if w is None else slope_y * w)
            by_weight.append(value)

    def gradient(parts: list[Tensor], need: bool, dtype: torch.dtype) -> Tensor:
        return _joined(parts if need else [], x).reshape(x.shape if need else 0).to(dtype)

    return (
        gradient(by_x, need_x, x.dtype),
        gradient(by_y, need_y, y.dtype),
        gradient(by_weight, need_weight, grad.dtype),
    )


_PART = 2**19  # elements in memory at a time


def exact_maps(x: Tensor, axis: Binning, derivative: int = 0) -> Tensor:
    """`plane_maps` of which each pixel's have the same bits wherever it is; autograd stays out of them.

    PyTorch's own sigmoid rounds the last values of a tensor otherwise than the first.
    """
    if axis.kernel != "sigmoid":
        return plane_maps(x, axis, derivative)

    def sigmoid(u: Tensor) -> Tensor:
        e = torch.exp(-u.abs())
        return torch.where(u >= 0, 1.0, e) / (1 + e)

    return _sigmoid_maps(x.to(accumulation_dtype(x.dtype)), axis, derivative, sigmoid)


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts, -1) if parts else like.new_empty(0)


def levels(x: Tensor, weight: Tensor | None, *axes: Binning) -> int:
    """How many levels a sum has: the second is for what the first is too coarse for."""
    wide = any(axis.bandwidth > 2 for axis in axes)  # so small activations
    return 2 if wide or weight is not None or x.dtype == torch.float64 else 1


def _parts(x: Tensor, weight: Tensor | None, pixels: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """x and its weight cut along the pixels."""
    parts = x.split(pixels, -1)
    return zip(parts, [None] * len(parts) if weight is None else weight.split(pixels, -1), strict=True)


def _rounded(terms: Tensor, levels: int, dim: int = -1) -> Tensor:
    """The sum over a dimension of terms rounded to the grid: (..., N) -> (levels, ...) int64."""
    terms = terms * (1 / LEVELS[0])
    first = terms.round()
    counts = [first.to(torch.int64).sum(dim)]
    if levels == 2:
        counts.append(((terms - first) * (LEVELS[0] / LEVELS[1])).round().to(torch.int64).sum(dim))
    return torch.stack(counts)


def _totals(x: Tensor, weight: Tensor | None, levels: int) -> Tensor:
    """The sum of the weights, or the number of pixels: (levels, P) int64."""
    if weight is not None:
        return _rounded(weight.double(), levels)
    totals = x.new_zeros((levels, x.shape[0]), dtype=torch.int64)
    totals[0] = x.shape[-1] * round(1 / LEVELS[0])
    return totals


def _where(chosen: Tensor) -> Tensor:
    """The indices of those that are true; in a graph, whose shapes are fixed, of all."""
    if torch.compiler.is_compiling() or chosen.is_meta:
        return torch.arange(len(chosen), device=chosen.device)
    return torch.nonzero(chosen).squeeze(-1)


def _sum_pixels(maps: Tensor, mass: Tensor | None) -> Tensor:
    if mass is None:
        return maps.sum(-1) / max(maps.shape[-1], 1)
    return (maps * mass.unsqueeze(-2)).sum(-1)


def _outer(a: Tensor, b: Tensor, mass: Tensor | None) -> Tensor:
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)
    if mass is None:
        return matmul(a, b.mT) / max(a.shape[-1], 1)
    return matmul(a * mass.unsqueeze(-2), b.mT)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A product that autocast leaves alone: a float16 one loses the far cells of a histogram to 0."""
    with nullcontext() if a.is_meta else torch.autocast(a.device.type, enabled=False):  # meta knows none
        return a @ b


def _images(x: Tensor, axis: Binning) -> list[tuple[Tensor, Tensor]]:
    """The positions at which the kernel sees z, each with its derivative with respect to z.

    A pixel that is NaN or infinite is seen at infinity, where every activation is 0. `open`: z itself.
    `cyclic`: z + j W, W = hi - lo. `reflect`: z mirrored at lo and hi, and the mirror images of those: the
    official code's three terms are the nearest, and with all of them the mass is 1 for any bandwidth. z is
    brought into the range first, so that a few j suffice.
    """
    finite = x.isfinite()
    if axis.boundary == "open":
        return [(torch.where(finite, x, math.inf), torch.ones_like(x))]
    z, one = _fold(x, axis)
    w = axis.hi - axis.lo
    reach = math.ceil(radius(axis, z.dtype) / axis.bins)
    images = []
    for j in range_(-reach, reach + 1):
        mirrored = axis.boundary == "reflect" and j % 2 == 1
        image = axis.lo + axis.hi + j * w - z if mirrored else z + j * w
        images.append((torch.where(finite, image, math.inf), -one if mirrored else one))
    return images


range_ = range  # the name of a keyword above


def _fold(x: Tensor, axis: Binning) -> tuple[Tensor, Tensor]:
    """x brought into the range of `reflect` or `cyclic`, and the derivative of that with respect to x.

    A pixel that is NaN or infinite is put at lo.
    """
    z, one = torch.where(x.isfinite(), x, axis.lo), torch.ones_like(x)
    w = axis.hi - axis.lo
    if axis.boundary == "cyclic":
        z = z - w * torch.floor((z - axis.lo) / w)
    else:
        period = ((z - axis.lo) / w).floor()
        odd = torch.remainder(period, 2) == 1
        inside = z - w * period
        z = torch.where(odd, axis.lo + axis.hi - inside, inside)
        one = torch.where(odd, -one, one)
    lost = (z - (axis.lo + axis.hi) / 2).abs() > w  # so large a value that the fold leaves no digit of it
    return torch.where(lost, axis.lo, z), one


def radius(axis: Binning, dtype: torch.dtype) -> int:
    """The distance in bins beyond which a kernel is 0, or its tail below the dtype's resolution."""
    bits, h = 54 if dtype == torch.float64 else 27, axis.bandwidth
    return {
        "sigmoid": math.ceil(bits * math.log(2) * h + 0.5),
        "gaussian": math.ceil(h * math.sqrt(2 * bits * math.log(2))),
        "bspline3": math.ceil(2 * h),
        "triangular": math.ceil(h),
    }[axis.kernel]


def _running_sum(values: Tensor) -> Tensor:
    """The sum of all values up to each one, over the last dimension.

    `cumsum` of CUDA adds in an order that changes from run to run, so elsewhere than on the CPU, where it is
    fastest, `_sum_before` takes its place.
    """
    return values.cumsum(-1) if values.device.type == "cpu" else _sum_before(values, 0)


_BLOCK = 16


def _sum_before(values: Tensor, last: int) -> Tensor:
    """For each value the sum of all up to itself (`last` = 0) or its predecessor (-1): (..., K) -> (..., K).

    In blocks, and over the sums of the blocks by the same rule: 16 K values of scratch and, for K = 256, six
    kernels. The sums are short and their order is fixed. A product with a triangle of ones would be shorter,
    but TF32 or autocast may round it.
    """
    bins = values.shape[-1]
    if bins <= _BLOCK:
        return values.unsqueeze(-2).expand(*values.shape, bins).tril(last).sum(-1)
    if bins % _BLOCK:
        values = torch.nn.functional.pad(values, (0, -bins % _BLOCK))
    blocks = values.unflatten(-1, (values.shape[-1] // _BLOCK, _BLOCK))
    earlier = _sum_before(blocks.sum(-1), -1)
    return (_sum_before(blocks, last) + earlier.unsqueeze(-1)).flatten(-2)[..., :bins]


def _entropy(p: Tensor) -> Tensor:
    """-sum p log p over the last dimension, in nats; an empty cell has value 0 and gradient 0."""
    p = torch.where(p == 0, 1.0, p)
    return -(p * p.log()).sum(-1)


def _best_offset(difference: Tensor, p: float) -> Tensor:
    """argmin over c of sum |difference - c|^p, the free rotation of a cyclic EMD.

    By the envelope theorem the gradient of the minimum needs no gradient of c.
    """
    if p == 2:
        return difference.mean(-1, keepdim=True)
    d = difference.detach()
    if p == 1:  # amid the two middle values: at either of them the slope would miss a half
        d, last = d.sort(-1).values, d.shape[-1] - 1
        return (d[..., last // 2, None] + d[..., (last + 1) // 2, None]) / 2
    low, high = d.amin(-1, keepdim=True), d.amax(-1, keepdim=True)
    for _ in range_(64):  # bisection on the monotone derivative
        c = (low + high) / 2
        r = d - c
        left = (r.sign() * r.abs().pow(p - 1)).sum(-1, keepdim=True) < 0
        low, high = torch.where(left, low, c), torch.where(left, c, high)
    return (low + high) / 2
