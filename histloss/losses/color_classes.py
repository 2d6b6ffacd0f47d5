"""Colour as a class: bins of ab, how often each occurs, and the cross-entropy of a soft target over them.

Section numbers are those of Zhang, Isola and Efros, "Colorful Image Colorization", ECCV 2016.

Images of ab are in the units of :func:`histloss.color.rgb_to_lab`, a / 110 and b / 110; `grid` and `sigma`
are in the units of CIE Lab, as in the paper. The arithmetic is float32, or float64 for float64 images, under
autocast too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from .. import checks, native
from ..color import AB_UNIT, rgb_to_lab
from .common import show, widen


@dataclass(frozen=True)
class ColorBins:
    r"""The ab plane in bins: the points of a square grid around the colours that sRGB has.

    A point is a bin where one of the four grid squares at it meets the convex hull of the ab of all sRGB
    colours. So every colour lies between four bins, and grid 10 has **313**: exactly those of the paper's
    published network, of which the paper gives the number and not how they were found.

    Where 322 are counted, a bin is a grid point to which a colour is rounded, or one of its four neighbours.
    That depends on how sRGB is sampled: 322 with levels 0, 5, ..., 255 (of which 260 without the neighbours),
    323 with all 256 levels (261). The 313 are among these, without ten at the rim.

    Bins are ordered by a, then b; ``len(bins)`` is their number Q.

    Args:
        grid: the distance of neighbours, 5 to 110 in the units of CIE Lab.

    Raises:
        TypeError, ValueError: grid is not as described.
    """

    grid: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", checks.check_between("grid", self.grid, *checks.GRIDS))

    def __len__(self) -> int:
        return len(_grid_points(self.grid))

    @property
    def centers(self) -> Tensor:
        """Each bin's ab, shape (Q, 2), float32 on the CPU, in the units of images."""
        return _centers(self.grid, torch.device("cpu")).squeeze(-1).T.clone()

    def encode(self, ab: Tensor, neighbours: int = 5, sigma: float = 5.0) -> tuple[Tensor, Tensor]:
        r"""A colour as a mixture of the bins nearest to it (Section 2.2): the soft target, without its zeros.

        A bin's weight is proportional to :math:`\exp(-d^2 / 2 \sigma^2)`, d its distance to the colour.

        Args:
            ab: a / 110 and b / 110 of sRGB colours, shape (B, 2, \*spatial), float16, bfloat16, float32 or
                float64. On the CPU, not on a GPU, a colour is refused that is farther from the nearest bin
                than 3/4 of the grid: no sRGB colour is. It gets no gradient.
            neighbours: number of bins n, 1 to Q. 1 is the one-hot encoding.
            sigma: of the Gaussian, positive, in the units of CIE Lab.

        Returns:
            Indices (B, n, \*spatial), int64, the nearest first and of equally near ones the lower, and
            weights of the same shape, float32 or float64, which sum to 1 over n.

        Raises:
            TypeError, ValueError: an argument is not as described, or ab is NaN.
        """
        checks.check_ab(ab)
        checks.check_neighbours(neighbours, len(self))
        checks.check_positive("sigma", sigma)
        points = widen(ab.detach()).flatten(2).mul(AB_UNIT)
        cells = _beside(ab, _cells, self.grid, neighbours)
        nearest = _nearest_native if _has_kernels(points) else _nearest
        indices, weights, square = nearest(points, cells, neighbours, sigma)
        checks.check_ab_values(ab, square, (0.75 * self.grid) ** 2)
        shape = (len(ab), neighbours, *ab.shape[2:])
        return indices.reshape(shape), weights.reshape(shape)

    def decode(self, logits: Tensor, temperature: float = 0.38) -> Tensor:
        r"""The annealed mean of a distribution over bins (Section 2.3).

        .. math:: \sum_q c_q\, \mathrm{softmax}(logits / T)_q

        with c the centres. Without a gradient it takes no memory of the size of the logits.

        Args:
            logits: shape (B, Q, \*spatial), float16, bfloat16, float32 or float64.
            temperature: T, positive. 1 gives the mean, towards 0 the mode.

        Returns:
            ab, shape (B, 2, \*spatial), float32 or float64, differentiable.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        checks.check_color_logits(logits, len(self))
        checks.check_positive("temperature", temperature)
        x, dtype = logits.flatten(2), checks.accumulation_dtype(logits.dtype)
        centers = _beside(logits, _centers, self.grid).to(dtype)
        ab = logits.new_empty((len(x), 2, x.shape[-1]), dtype=dtype)
        for images, pixels in _chunks(x):
            part = widen(x[images, :, pixels])
            part = part - part.detach().amax(1, keepdim=True)  # so that no quotient is infinite
            p = (part / temperature).exp()  # a softmax's last bits would depend on the number of threads
            ab[images, :, pixels] = torch.stack([(p * c).sum(1) for c in centers], 1) / p.sum(1, keepdim=True)
        return ab.reshape(len(x), 2, *logits.shape[2:])


class ColorPrior:
    """How often each bin is the nearest to a pixel's colour.

    Example::

        prior = ColorPrior()
        for rgb in images:
            prior.update(rgb_to_lab(rgb)[:, 1:])
        prior.save("prior.json")
        loss = RebalancedColorLoss(ColorPrior.load("prior.json"))

    Args:
        bins: the bins, those of the paper by default.

    Attributes:
        counts: pixels by bin, shape (Q,), int64 on the CPU.

    Raises:
        TypeError: bins is not a :class:`ColorBins`.
    """

    def __init__(self, bins: ColorBins | None = None) -> None:
        self.bins = ColorBins() if bins is None else bins
        checks.check_instance("bins", self.bins, ColorBins)
        self.counts = torch.zeros(len(self.bins), dtype=torch.int64, device="cpu")

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self.counts.sum())

    def update(self, ab: Tensor) -> None:
        r"""Count the pixels of ab, shape (B, 2, \*spatial), as :meth:`ColorBins.encode` takes it.

        Its values are checked on every device: it is brought to the CPU.

        Raises:
            TypeError, ValueError: ab is not as described.
        """
        checks.check_ab(ab)
        nearest, _ = self.bins.encode(ab.cpu(), neighbours=1)
        self.counts += nearest.flatten().bincount(minlength=len(self.bins))

    def probabilities(self, sigma: float = 5.0) -> Tensor:
        r"""The distribution, smoothed (Section 2.2).

        A bin's mass is shared among all bins by a Gaussian of their distance.

        Args:
            sigma: of the Gaussian, in the units of CIE Lab; 0 does not smooth.

        Returns:
            Shape (Q,), float64 on the CPU, sums to 1.

        Raises:
            TypeError, ValueError: sigma is negative or not finite, or no pixel was counted.
        """
        checks.check_prior_counts(self.counts)
        checks.check_not_negative("sigma", sigma)
        p = self.counts.double() / self.pixels
        if sigma == 0:
            return p
        centers = _grid_points(self.bins.grid)
        squares = (centers[:, None] - centers).square().sum(-1)
        return p @ (squares / (-2 * sigma**2)).softmax(1)

    def save(self, path: str | Path) -> None:
        """Write JSON, with what tells the bins.

        Raises:
            ValueError: no pixel was counted.
        """
        checks.check_prior_counts(self.counts)
        content = {
            "grid": self.bins.grid,
            "bins": len(self.bins),
            "pixels": self.pixels,
            "counts": self.counts.tolist(),
        }
        Path(path).write_text(json.dumps({_FORMAT: content}) + "\n")

    @classmethod
    def load(cls, path: str | Path, bins: ColorBins | None = None) -> ColorPrior:
        """Read what :meth:`save` wrote.

        Args:
            path: of the file.
            bins: those that the file must be of, any by default.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged, empty or of other bins.
        """
        grid, counts = checks.check_prior_file(str(path), Path(path).read_bytes(), _FORMAT)
        prior = cls(ColorBins(grid))
        checks.check_prior_bins(str(path), prior.bins, len(counts), bins)
        prior.counts = torch.tensor(counts, dtype=torch.int64, device="cpu")
        return prior


_FORMAT = "histloss color prior 1"


class RebalancedColorLoss(nn.Module):
    r"""Cross-entropy of colour classes with a soft target, in which rare colours weigh more (Eq. 2 to 4).

    .. math:: \mathcal{L} = -\operatorname{mean}_{b, s} w_{q^*(b, s)}
              \sum_q z_q(b, s) \log \mathrm{softmax}(logits)_q(b, s), \qquad
              w \propto \left((1 - \lambda) p + \frac{\lambda}{Q}\right)^{-1}, \quad \sum_q p_q w_q = 1

    with z the soft encoding of the true colour (:meth:`ColorBins.encode`), q* the bin nearest to it, s the
    pixels; in nats. The paper sums over pixels. The mean is over their number: w is 1 on average.

    The target is not built: memory beyond the logits and their gradient is 0.2 KB a pixel. Kernels do the
    work on the CPU; on a GPU, or where there are none, plain PyTorch does it, by parts of the logits. The
    gradient of float32 and float64 logits is made in the forward pass and given out by the first backward.
    Second derivatives and ``torch.func`` are plain PyTorch, with the memory that takes. There is no forward
    mode, and ``torch.compile`` leaves the loss out of its graph.

    Args:
        prior: p, a :class:`ColorPrior` (smoothed as it does by default) or a tensor of shape (Q,) that sums
            to 1. None: w = 1.
        bins: the bins, by default the prior's or the paper's.
        neighbours, sigma: of the target, as in :meth:`ColorBins.encode`. One neighbour: one-hot.
        lam: :math:`\lambda`, 0 to 1, how much of the uniform distribution is mixed into p: 1 gives w = 1. 0
            needs a prior without empty bins.
        reduction: ``"mean"`` or ``"sum"`` over all pixels, or ``"none"`` for shape (B, \*spatial).

    Attributes:
        weights: w, shape (Q,), a float32 buffer; None without a prior.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    weights: Tensor | None

    def __init__(
        self,
        prior: ColorPrior | Tensor | None = None,
        bins: ColorBins | None = None,
        neighbours: int = 5,
        sigma: float = 5.0,
        lam: float = 0.5,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if bins is None:
            bins = prior.bins if isinstance(prior, ColorPrior) else ColorBins()
        checks.check_instance("bins", bins, ColorBins)
        self.bins = bins
        self.neighbours = checks.check_neighbours(neighbours, len(bins))
        self.sigma = checks.check_positive("sigma", sigma)
        self.lam = checks.check_between("lam", lam, 0, 1)
        checks.check_choice("reduction", reduction, checks.REDUCTIONS)
        self.reduction = reduction
        if isinstance(prior, ColorPrior):
            checks.check_prior_bins("prior", prior.bins, len(prior.counts), bins)
            prior = prior.probabilities()
        if prior is not None:
            checks.check_prior(prior, len(bins), self.lam)
            p = prior.detach().double()
            w = 1 / ((1 - self.lam) * p + self.lam / len(bins))
            prior = (w / (p @ w)).float()
        self.register_buffer("weights", prior)

    @torch.compiler.disable
    def forward(self, logits: Tensor, ab: Tensor) -> Tensor:
        r"""The loss of a distribution over bins with respect to the true colour.

        Args:
            logits: shape (B, Q, \*spatial), float16, bfloat16, float32 or float64, in any memory format.
            ab: the true colour, shape (B, 2, \*spatial), on the device of the logits, as in
                :meth:`ColorBins.encode`. It gets no gradient.

        Returns:
            A scalar, or shape (B, \*spatial) with ``reduction="none"``; float32, or float64 for float64
            logits.

        Raises:
            TypeError, ValueError: an argument is not as described; on the CPU also where ab is not in gamut,
                or the loss of a pixel is not finite, as NaN and +infinite logits make it, and -infinite ones
                of its target.
        """
        checks.check_color_logits(logits, len(self.bins))
        checks.check_not_empty("logits", logits)
        checks.check_ab(ab, logits)
        if not torch.is_grad_enabled():
            logits = logits.detach()
        x, target = logits.flatten(2), self._target(ab, checks.accumulation_dtype(logits.dtype))
        cross_entropy = _CrossEntropy.apply if checks.is_eager() else _cross_entropy
        loss: Tensor = cross_entropy(x, target, self.reduction != "none")
        checks.check_color_loss_values(loss)
        return loss.reshape(len(ab), *ab.shape[2:]) if self.reduction == "none" else loss

    def _target(self, ab: Tensor, dtype: torch.dtype) -> _Target:
        indices, z = (t.flatten(2) for t in self.bins.encode(ab, self.neighbours, self.sigma))
        z, nearest = z.to(dtype), indices[:, 0]
        v = torch.ones_like(z[:, 0]) if self.weights is None else self.weights.to(dtype)[nearest]
        return _Target(indices, z, v / v.numel() if self.reduction == "mean" else v)

    def extra_repr(self) -> str:
        """The arguments."""
        return show(
            rebalanced=self.weights is not None,
            bins=self.bins,
            neighbours=self.neighbours,
            sigma=self.sigma,
            lam=self.lam,
            reduction=self.reduction,
        )


# ---- the cross-entropy of images (B, Q, S), S pixels each


class _Target(NamedTuple):
    indices: Tensor  # (B, n, S): bins
    z: Tensor  # (B, n, S): their share of the target
    v: Tensor  # (B, S): the pixel's weight


def _cross_entropy(x: Tensor, target: _Target, reduced: bool) -> Tensor:
    """v (logsumexp(x) - sum_j z_j x_j), shape (B, S), or its sum: the definition, in plain PyTorch."""
    indices, z, v = target
    x = widen(x)
    values = v * (x.logsumexp(1) - (x.gather(1, indices) * z).sum(1))
    return _sum(values) if reduced else values


class _CrossEntropy(Function):
    """The same with the gradient v (softmax(x) - z), each made part by part of the logits.

    A pixel's exponentials serve its value and its gradient. Half precision has its gradient rounded once, so
    that is made when the upstream gradient is known; so is that of a second backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: _Target, reduced: bool) -> Tensor:
        ctx.save_for_backward(x, *target)
        ctx.reduced = reduced
        at_once = ctx.needs_input_grad[0] and x.dtype == target.v.dtype
        values, gradient = _sweep(x, target, at_once)
        ctx.gradient = gradient if at_once else None
        return _sum(values) if reduced else values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        x, *saved = ctx.saved_tensors
        target = _Target(*saved)
        if torch.is_grad_enabled():
            loss = _cross_entropy(x, target, ctx.reduced)
            return *torch.autograd.grad(loss, x, upstream, create_graph=True), None, None
        gradient: Tensor | None = ctx.gradient
        ctx.gradient = None
        if gradient is None:
            _, gradient = _sweep(x, target._replace(v=target.v * upstream), True)
        elif upstream.ndim:
            gradient.mul_(upstream.unsqueeze(1))
        elif not checks.is_eager_cpu(upstream) or upstream != 1:  # mostly it is 1, but to ask may be to wait
            gradient.mul_(upstream)
        return gradient, None, None


def _sweep(x: Tensor, target: _Target, needed: bool) -> tuple[Tensor, Tensor]:
    """The values (B, S) of `_cross_entropy`, and its gradient, without elements where that is not needed.

    The kernel, which makes no copies but of strided logits, takes contiguous ones at once.
    """
    of_part = _part_native if _has_kernels(x) else _part
    if _has_kernels(x) and x.is_contiguous():
        return of_part(x, target, needed)
    values, gradient = torch.empty_like(target.v), torch.empty_like(x) if needed else x.new_empty(0)
    for images, pixels in _chunks(x):
        target_part = _Target(*(t[images, ..., pixels] for t in target))
        values[images, pixels], part = of_part(x[images, :, pixels], target_part, needed)
        if needed:
            gradient[images, :, pixels] = part
    return values, gradient


def _part_native(x: Tensor, target: _Target, needed: bool) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = torch.ops.histloss.color_cross_entropy(x, *target, needed)
    return found


def _part(x: Tensor, target: _Target, needed: bool) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, through a copy of x which becomes the gradient."""
    indices, z, v = target
    x = widen(x)
    largest = x.amax(1)
    scores = (x.gather(1, indices) * z).sum(1)
    x = (x - largest.unsqueeze(1)).exp_()
    total = x.sum(1)
    values = v * (total.log() + largest - scores)
    if not needed:
        return values, x.new_empty(0)
    x.mul_((v / total).unsqueeze(1))
    return values, x.scatter_add_(1, indices, -v.unsqueeze(1) * z)  # a pixel's bins differ: one addend each


def _has_kernels(x: Tensor) -> bool:
    """Only the CPU has them."""
    return x.is_cpu and native.available(x)


def _sum(values: Tensor) -> Tensor:
    """The sum in one order for any number of threads, among which PyTorch divides longer ones."""
    return torch.stack([part.sum() for part in values.flatten().split(2**14)]).sum()


def _chunks(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Images and pixels of x (B, Q, S): of 2 MB, which a core's caches hold, or of 128 MB for a GPU."""
    images, bins, pixels = x.shape
    step = max(1, (2**19 if x.device.type == "cpu" else 2**25) // bins)
    several = max(1, step // max(1, pixels))
    for image in range(0, images, several):
        for pixel in range(0, pixels, step):
            yield slice(image, image + several), slice(pixel, pixel + step)


# ---- where the bins are, in the units of CIE Lab

T = TypeVar("T")


def _kept(make: Callable[..., T]) -> Callable[..., T]:
    """Made once, of ordinary tensors: whoever asks first may be in inference mode, or tracing a graph."""

    def made(*key: Any) -> T:
        with torch.device("cpu"), torch.inference_mode(False), _disable_current_modes():
            return make(*key)

    return cache(made)


def _beside(x: Tensor, make: Callable[..., T], *key: Any) -> T:
    """What is kept on the device of x, or fake tensors of it beside a fake x."""
    if not isinstance(x, FakeTensor) or x.fake_mode.allow_non_fake_inputs:
        return make(*key, x.device)
    kept, mode = make(*key, torch.device("cpu")), x.fake_mode
    fake: T = tree_map_only(Tensor, lambda t: mode.from_tensor(t).to(x.device), kept)
    return fake


@_kept
def _grid_points(grid: float) -> Tensor:
    """The bins' centres, shape (Q, 2), float64 on the CPU, of numbers that float32 has too.

    The hull is that of the edges of the RGB cube, given by its extent in each of many directions.
    """
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    ends = levels[[0, -1]]
    edge = torch.cartesian_prod(ends, ends, levels)
    edges = torch.cat([edge.roll(channel, 1) for channel in range(3)])
    ab = rgb_to_lab(edges.T[None])[0, 1:] * AB_UNIT
    angles = torch.arange(720, dtype=torch.float64) * (math.pi / 360)
    directions = torch.stack((angles.cos(), angles.sin()), 1)
    extent = (directions @ ab).amax(1)
    steps = math.ceil(AB_UNIT / grid) + 1
    line = (torch.arange(-steps, steps + 1, dtype=torch.float64) * grid).float().double()
    points = torch.cartesian_prod(line, line)
    nearest = points @ directions.T - grid * directions.abs().sum(1)  # of the four squares' points
    return points[(nearest <= extent).all(1)]


@_kept
def _centers(grid: float, device: torch.device) -> Tensor:
    """The same in the units of images, (2, Q, 1), float32; brought to a device once, since that may wait."""
    return (_grid_points(grid) / AB_UNIT).float().T.unsqueeze(-1).to(device)


class _Cells(NamedTuple):
    """The plane in small squares, and for each the bins that can be among the n nearest of a point in it.

    So a pixel needs a few distances. Rows are filled up with bins at infinity.
    """

    low: tuple[float, float]
    step: float
    bins: Tensor  # (rows, columns, candidates): ascending
    a: Tensor  # of the bins
    b: Tensor

    def of(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        """The cell of each point; outside all of them, the nearest in a and in b."""
        return tuple(
            ((x - low) / self.step).floor().long().clamp(0, size - 1)
            for x, low, size in zip((a, b), self.low, self.bins.shape, strict=False)
        )


def _nearest(points: Tensor, cells: _Cells, neighbours: int, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """The n nearest bins of points (B, 2, S), their weights, and the first's squared distance (B, S)."""
    a, b = points.unbind(1)
    cell = cells.of(a, b)
    squares = (cells.a.to(a.dtype)[cell] - a.unsqueeze(-1)).square_()
    squares += (cells.b.to(b.dtype)[cell] - b.unsqueeze(-1)).square_()
    squares, order = squares.sort(stable=True)  # the candidates are in the order of their indices
    squares, order = squares[..., :neighbours], order[..., :neighbours]
    indices = cells.bins[cell].gather(-1, order)
    weights = (squares / (-2 * sigma**2)).softmax(-1)
    return indices.mT, weights.mT, squares[..., 0]


def _nearest_native(
    points: Tensor, cells: _Cells, neighbours: int, sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by a kernel."""
    a, b = cells.a.to(points.dtype), cells.b.to(points.dtype)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.histloss.nearest_bins(
        points, cells.bins, a, b, *cells.low, cells.step, neighbours, sigma
    )
    return found


@_kept
def _cells(grid: float, neighbours: int, device: torch.device) -> _Cells:
    """A bin can be among the n nearest if n bins are nowhere nearer: if it is not beyond their farthest."""
    points = _grid_points(grid)
    step, slack = grid / 4, 1e-3 * grid  # rounding may find a point at an edge in the next cell
    low, high = points.amin(0) - grid, points.amax(0) + grid  # further out no colour is taken
    rows, columns = ((high - low) / step).round().long().tolist()
    near, far = [], []
    for axis, size in enumerate((rows, columns)):
        first = (low[axis] + step * torch.arange(size)).unsqueeze(1)
        before, after = first - slack - points[:, axis], points[:, axis] - (first + step + slack)
        near.append(torch.maximum(before, after).clamp(min=0).square())
        far.append(torch.minimum(before, after).square())
    candidates = []
    for some in torch.arange(rows).split(max(1, 2**22 // (columns * len(points)))):  # some MB at a time
        nearest = (near[0][some].unsqueeze(1) + near[1]).flatten(0, 1)
        farthest = (far[0][some].unsqueeze(1) + far[1]).flatten(0, 1)
        possible = nearest <= farthest.topk(neighbours, largest=False).values[:, -1:]
        ordered = torch.where(possible, torch.arange(len(points)), len(points))
        candidates.append(ordered.topk(int(possible.sum(1).max()), largest=False).values)
    widest = max(each.shape[1] for each in candidates)
    bins = torch.cat([F.pad(each, (0, widest - each.shape[1]), value=len(points)) for each in candidates])
    bins = bins.unflatten(0, (rows, columns))
    a, b = F.pad(points.float(), (0, 0, 0, 1), value=math.inf).T  # not all devices have float64
    a, b, low_a, low_b = a[bins], b[bins], *low.tolist()
    return _Cells((low_a, low_b), step, *(t.to(device) for t in (bins, a, b)))
