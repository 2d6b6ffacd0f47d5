"""Every equation of the library in plain PyTorch: the oracle of the tests, and the path used where no
native library fits.

Equation numbers are those of Avi-Aharon, Arbelle and Riklin Raviv, "Differentiable Joint and Color
Histogram Layers for Image-to-Image Translation" (DeepHist); the article behind it is TPAMI 2023, doi
10.1109/TPAMI.2023.3278287. Notation: K bins over [lo, hi] of width L, centres mu_k = lo + L (k + 1/2),
kernel scale B = bandwidth * L, and a = L / B = 1 / bandwidth.

The functions take and return what those of `histloss` of the same name do, in any floating dtype on any
device. They build the K x N activation map, so they need memory in proportion.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from . import checks
from .binning import Binning, binning, binning_pair
from .checks import accumulation_dtype

EMD_FORMS = ("squared", "norm")
MI_MODES = ("mi", "relative", "conditional_entropy", "nmi")


def activation_maps(
    x: Tensor,
    *,
    bins: int = 256,
    range: tuple[float, float] = (-1.0, 1.0),
    bandwidth: float = 0.4,
    boundary: str = "reflect",
) -> Tensor:
    """Pi_k(x), Eq. 6: (B, C, *spatial) -> (B, C, K, *spatial)."""
    axis = binning(bins, range, bandwidth, boundary)
    checks.check_image("x", x)
    maps = plane_maps(planes(x), axis)
    return maps.reshape(*x.shape[:2], axis.bins, *x.shape[2:])


def soft_histogram(
    x: Tensor,
    *,
    bins: int = 256,
    range: tuple[float, float] = (-1.0, 1.0),
    bandwidth: float = 0.4,
    boundary: str = "reflect",
    weight: Tensor | None = None,
) -> Tensor:
    """P(k) = mean over the pixels of Pi_k, Eq. 5: (B, C, *spatial) -> (B, C, K)."""
    axis = binning(bins, range, bandwidth, boundary)
    checks.check_image("x", x)
    h = plane_histogram(planes(x), plane_mass(weight, x), axis)
    return h.reshape(*x.shape[:2], axis.bins)


def joint_histogram(
    x: Tensor,
    y: Tensor,
    *,
    bins: int | tuple[int, int] = 256,
    range: tuple[float, float] | tuple[tuple[float, float], tuple[float, float]] = (-1.0, 1.0),
    bandwidth: float | tuple[float, float] = 0.4,
    boundary: str | tuple[str, str] = "reflect",
    weight: Tensor | None = None,
) -> Tensor:
    """J(k, l) = mean over the pixels of Pi_k(x) Pi_l(y), Eq. 12, 13: (B, C, *spatial) -> (B, C, Kx, Ky)."""
    axis_x, axis_y = binning_pair(bins, range, bandwidth, boundary)
    checks.check_image("x", x)
    checks.check_image_pair(x, y)
    j = plane_joint(planes(x), planes(y), plane_mass(weight, x), axis_x, axis_y)
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


def mutual_information(joint: Tensor, *, mode: str = "relative") -> Tensor:
    """MI and its relatives from a joint histogram, Eq. 15 to 17: (..., Kx, Ky) -> (...)."""
    checks.check_choice("mode", mode, MI_MODES)
    checks.check_joint(joint)
    joint = joint.to(accumulation_dtype(joint.dtype))
    h_xy = _entropy(joint).sum(-1)
    h_x = _entropy(joint.sum(-1))
    if mode == "conditional_entropy":
        return h_xy - h_x
    h_y = _entropy(joint.sum(-2))
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


def plane_mass(weight: Tensor | None, x: Tensor) -> Tensor | None:
    """weight / its sum over each channel, as (B C, N) in x's accumulation dtype; None stays None."""
    if weight is None:
        return None
    checks.check_weight(weight, x)
    dtype = accumulation_dtype(x.dtype)
    weight = weight.to(dtype)
    while weight.ndim < x.ndim:
        weight = weight.unsqueeze(0)
    weight = weight.expand(*weight.shape[:2], *x.shape[2:])
    pixels = math.prod(x.shape[2:])
    weight = weight.reshape(*weight.shape[:2], pixels)
    # Summed row by row, forward and backward: PyTorch lets threads share a single long sum, which rounds it
    # differently for every number of threads.
    rows = torch.nn.functional.pad(weight, (0, -pixels % ROW)).unflatten(-1, ((pixels + ROW - 1) // ROW, ROW))
    total = rows.sum(-1, keepdim=True).sum(-2, keepdim=True)
    checks.check_weight_values(weight, total[..., 0, 0])
    mass: Tensor = (rows / total.expand(*rows.shape[:-1], 1)).flatten(-2)[..., :pixels]
    return mass.expand(*x.shape[:2], -1).flatten(0, 1)


def plane_maps(x: Tensor, axis: Binning, derivative: int = 0) -> Tensor:
    """Pi_k(x), or its first or second derivative with respect to x: (P, N) -> (P, K, N).

    Eq. 6 is sigmoid(u) - sigmoid(v) with u - v = a. It equals sigmoid(u) sigmoid(-v) (1 - exp(-a)), which
    does not cancel. Pixels that are NaN or infinite have no activation and no gradient; half precision is
    widened to float32.
    """
    x = x.to(accumulation_dtype(x.dtype))
    a = 1 / axis.bandwidth
    scale = 1 / (axis.bandwidth * axis.width)
    k = torch.arange(axis.bins, device=x.device, dtype=x.dtype)
    centre = ((axis.lo + axis.hi) / 2 + axis.width * (k - (axis.bins - 1) / 2))[:, None]
    total: Tensor | None = None
    for image, sign in _images(x, axis):
        y = (image.unsqueeze(-2) - centre) * scale
        s, one_minus_t = torch.sigmoid(a / 2 + y), torch.sigmoid(a / 2 - y)
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


def plane_histogram(x: Tensor, mass: Tensor | None, axis: Binning) -> Tensor:
    """sum_x m Pi_k(x): (P, N) -> (P, K)."""
    return _sum_pixels(plane_maps(x, axis), mass)


def plane_joint(x: Tensor, y: Tensor, mass: Tensor | None, axis_x: Binning, axis_y: Binning) -> Tensor:
    """sum_x m Pi_k(x) Pi_l(y) = A diag(m) B^T: two (P, N) -> (P, Kx, Ky)."""
    return _outer(plane_maps(x, axis_x), plane_maps(y, axis_y), mass)


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
    z, one = torch.where(finite, x, axis.lo), torch.ones_like(x)
    if axis.boundary == "open":
        return [(torch.where(finite, z, math.inf), one)]
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
    z = torch.where(lost, axis.lo, z)
    reach = math.ceil(radius(axis.bandwidth, z.dtype) / axis.bins)
    images = []
    for j in range_(-reach, reach + 1):
        mirrored = axis.boundary == "reflect" and j % 2 == 1
        image = axis.lo + axis.hi + j * w - z if mirrored else z + j * w
        images.append((torch.where(finite, image, math.inf), -one if mirrored else one))
    return images


range_ = range  # the name of a keyword above


def radius(bandwidth: float, dtype: torch.dtype) -> int:
    """The distance in bins beyond which a kernel's tail is below the dtype's resolution."""
    bits = 54 if dtype == torch.float64 else 27
    return math.ceil(bits * math.log(2) * bandwidth + 0.5)


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
