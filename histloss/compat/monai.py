"""Stands in for MONAI's GlobalMutualInformationLoss (of MONAI 1.6.1), without a tensor of voxels by bins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function, forward_ad

from .. import checks, exact, sums
from ..binning import MAX_BANDWIDTH, MIN_BANDWIDTHS, Binning
from ..losses.common import reduce, show
from ..reference import ROW

KERNELS = ("gaussian", "b-spline")
MARGIN = 2  # bins at either end that no voxel of a B-spline histogram is nearest to
PART = 2**17  # voxels at a time: what is made of them stays in the caches, and needs little memory


class GlobalMutualInformationLoss(nn.Module):
    r"""Minus the mutual information of each sample's voxels, all of its channels together.

    .. math:: \mathcal{L} = -\sum_{k,l} J_{kl} \log\Big(
              \frac{J_{kl} + \mathrm{smooth\_nr}}{P_k Q_l + \mathrm{smooth\_dr}} + \mathrm{smooth\_dr}\Big)

    ``"gaussian"`` clamps both images to [0, 1]. ``"b-spline"`` scales each from its least to its greatest
    value, and smooths `pred` alone, by a cubic B-spline; each voxel of `target` belongs to its nearest bin,
    and `target` gets no gradient. That range is taken from the whole batch, so that one bright image changes
    the loss of its neighbours: a mistake, kept for the same numbers. With `per_sample_range` each sample has
    its own. :class:`histloss.MIHistLoss` is told its range, and has a loss for each channel.

    Where MONAI fails it differs. A constant image shares no information, so its loss is 0, but for the
    smoothing, and its gradient is 0; MONAI's ``"b-spline"`` is NaN (#9018). The arithmetic is float32, or
    float64 for float64 images, under autocast too, where MONAI's is -inf (#7622), and the loss of a
    half-precision image is float32.

    Args:
        kernel_type: ``"gaussian"`` or ``"b-spline"``.
        num_bins: number of bins of both images: 2 or more, and 5 or more with ``"b-spline"``.
        sigma_ratio: the Gaussian's sigma, as a share of the distance of the bins' centres, 0.001 to 1000.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"`` for shape (B,).
        smooth_nr, smooth_dr: small constants in the logarithm, not negative.
        per_sample_range: the range of ``"b-spline"`` from each sample's own values. MONAI has no such
            argument.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        kernel_type: str = "gaussian",
        num_bins: int = 23,
        sigma_ratio: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-7,
        smooth_dr: float = 1e-7,
        *,
        per_sample_range: bool = False,
    ) -> None:
        super().__init__()
        checks.check_choice("kernel_type", kernel_type, KERNELS)
        self.kernel_type = kernel_type
        spline = kernel_type == "b-spline"
        self.num_bins = checks.check_count("num_bins", num_bins, 2 * MARGIN + 1 if spline else 2)
        if spline:
            self.sigma_ratio = checks.check_finite("sigma_ratio", sigma_ratio)
        else:
            least = MIN_BANDWIDTHS["gaussian"]
            self.sigma_ratio = checks.check_between("sigma_ratio", sigma_ratio, least, MAX_BANDWIDTH)
        checks.check_choice("reduction", reduction, checks.REDUCTIONS)
        self.reduction = reduction
        self.smooth_nr = checks.check_not_negative("smooth_nr", smooth_nr)
        self.smooth_dr = checks.check_not_negative("smooth_dr", smooth_dr)
        checks.check_bool("per_sample_range", per_sample_range)
        if per_sample_range and not spline:
            raise ValueError(
                "per_sample_range=True needs kernel_type 'b-spline': a Gaussian's range is 0 to 1"
            )
        self.per_sample_range = per_sample_range

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of two batches.

        Args:
            pred: shape (B, ...), float16, bfloat16, float32 or float64; with ``"b-spline"`` finite, which is
                checked on the CPU: on a GPU the loss is NaN where it is not.
            target: the same shape and device.

        Returns:
            A scalar, or shape (B,) with ``reduction="none"``; float32, or float64 if `pred` is.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        checks.check_batch("pred", pred)
        checks.check_batch_pair(pred, target, ("pred", "target"))
        x, y = pred.flatten(1), target.flatten(1)
        method = _Method(self.kernel_type, self.num_bins, self.sigma_ratio, self.per_sample_range)
        if checks.is_eager() and forward_ad._current_level < 0:
            joint = _Joint.apply(x, y.detach() if method.spline else y, method)  # type: ignore[no-untyped-call]
        else:
            joint = _joint_histogram(x, y, method)
        loss = -_information(joint.double(), self.smooth_nr, self.smooth_dr)
        return reduce(loss.to(joint.dtype), self.reduction)

    def extra_repr(self) -> str:
        """The arguments."""
        return show(
            kernel_type=self.kernel_type,
            num_bins=self.num_bins,
            sigma_ratio=self.sigma_ratio,
            reduction=self.reduction,
            smooth_nr=self.smooth_nr,
            smooth_dr=self.smooth_dr,
            per_sample_range=self.per_sample_range,
        )


def _information(joint: Tensor, smooth_nr: float, smooth_dr: float) -> Tensor:
    """(B, K, K) -> (B,). A logarithm of 0, if there is no smoothing, counts as 0 in value and gradient."""
    product = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True) + smooth_dr
    ratio = (joint + smooth_nr) / torch.where(product == 0, 1.0, product) + smooth_dr
    return (joint * torch.where(ratio == 0, 1.0, ratio).log()).sum((1, 2))


# ---- where voxels are on their axes: x and y are (B, N) from here on -----------------------------


class _Method(NamedTuple):
    """The joint histogram that the arguments ask for."""

    kernel_type: str
    bins: int
    sigma_ratio: float
    per_sample_range: bool

    @property
    def spline(self) -> bool:
        return self.kernel_type == "b-spline"

    @property
    def axes(self) -> tuple[Binning, Binning]:
        if self.spline:  # a unit is a bin, whose centre is its index
            x = Binning(self.bins, -0.5, self.bins - 0.5, 1.0, "open", "bspline3")
            return x, x._replace(kernel="triangular")
        half = 0.5 / (self.bins - 1)
        x = Binning(self.bins, -half, 1 + half, self.sigma_ratio, "open", "gaussian", "inside")
        return x, x

    def scales(self, x: Tensor, y: Tensor) -> tuple[_Scale, _Scale]:
        return self._scale("pred", x), self._scale("target", y)

    def _scale(self, name: str, x: Tensor) -> _Scale:
        if not self.spline:
            return _Scale(0.0, 1.0)
        over = 1 if self.per_sample_range else (0, 1)
        dtype = checks.accumulation_dtype(x.dtype)
        lo, hi = x.amin(over, keepdim=True).to(dtype), x.amax(over, keepdim=True).to(dtype)
        checks.check_spread(name, lo, hi)
        size = (hi - lo) / (self.bins - 2 * MARGIN)
        size = torch.where(size == 0, torch.inf, size)  # a constant image is all in the first bin
        size = torch.where(hi - lo == torch.inf, torch.nan, size)
        return _Scale(MARGIN, self.bins - 1 - MARGIN, lo, hi, size)


class _Scale(NamedTuple):
    """Of an image's values: where they are clamped on the axis and, if they are scaled to it, from what.

    lo and hi, the least and greatest value, and size, that of a bin, are (B, 1) or (1, 1).
    """

    least: float
    most: float
    lo: Tensor | None = None
    hi: Tensor | None = None
    size: Tensor | None = None

    def free(self, x: Tensor) -> Tensor:
        """Positions before clamping."""
        x = x.to(checks.accumulation_dtype(x.dtype))
        if self.lo is None or self.size is None:
            return x
        return x / self.size - (self.lo / self.size - MARGIN)  # rounded as MONAI rounds it

    def clamped(self, free: Tensor) -> Tensor:
        return free.clamp(self.least, self.most)

    def nothing(self) -> Tensor | float:
        """0, or NaN where the values are not finite, in a shape that broadcasts to (B, K, K)."""
        return 0.0 if self.size is None else torch.where(self.size.isnan(), torch.nan, 0.0).unsqueeze(-1)


def _nearest(position: Tensor) -> Tensor:
    """The nearest bin; halfway between two the triangular kernel gives half to each, as MONAI does."""
    nearest = position.round()
    return torch.where((position - nearest).abs() == 0.5, position, nearest)


def _positions(
    free_x: Tensor, free_y: Tensor, scales: tuple[_Scale, _Scale], spline: bool
) -> tuple[Tensor, Tensor]:
    """What the kernels see, in the dtype of x."""
    x, y = scales[0].clamped(free_x), scales[1].clamped(free_y)
    return x, (_nearest(y) if spline else y).to(x.dtype)


def _joint_histogram(x: Tensor, y: Tensor, method: _Method) -> Tensor:
    """Plainly: (B, K, K), with derivatives of every kind."""
    y = y.detach() if method.spline else y
    scales = method.scales(x, y)
    seen = _positions(scales[0].free(x), scales[1].free(y), scales, method.spline)
    joint = exact.joint_histogram(seen[0], seen[1], None, *method.axes)
    return joint + scales[0].nothing() + scales[1].nothing()


# ---- the same in little memory -------------------------------------------------------------------


class _Joint(Function):
    """`_joint_histogram` part by part: exact sums of the parts add to the bits of the whole.

    It saves nothing but the images, which are there anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, method: _Method) -> Tensor:
        scales = method.scales(x, y)
        ctx.save_for_backward(x, y)
        ctx.method, ctx.scales = method, scales
        found: sums.Sums | None = None
        for cut in _parts(x):
            seen = _positions(scales[0].free(x[cut]), scales[1].free(y[cut]), scales, method.spline)
            part = sums.joint_sums(seen[0], seen[1], None, *method.axes)
            found = part if found is None else sums.add(found, part)
        assert found is not None
        joint = sums.to_histogram(found, checks.accumulation_dtype(x.dtype))
        return joint + scales[0].nothing() + scales[1].nothing()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        images, scales = ctx.saved_tensors, ctx.scales
        method: _Method = ctx.method
        needs: tuple[bool, bool] = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # to be differentiated again
            return *_differentiable_gradients(grad, images, method, needs), None
        pulls = [
            _Pull(image, scale, grad.dtype, method.bins - 2 * MARGIN) if need else None
            for image, scale, need in zip(images, scales, needs, strict=True)
        ]
        for cut in _parts(images[0]):
            free = [scale.free(image[cut]) for scale, image in zip(scales, images, strict=True)]
            seen = _positions(free[0], free[1], scales, method.spline)
            of_sums = grad / images[0].shape[1]
            gradients = sums.joint_gradient(of_sums, seen[0], seen[1], None, *method.axes, *needs, False)
            for pull, gradient, position in zip(pulls, gradients, free, strict=False):
                if pull:
                    pull.add(cut, gradient, position)
        return *(pull.gradient() if pull else None for pull in pulls), None


def _differentiable_gradients(
    grad: Tensor, images: tuple[Tensor, Tensor], method: _Method, needs: tuple[bool, bool]
) -> list[Tensor | None]:
    joint = _joint_histogram(*images, method)
    wanted = [image for image, need in zip(images, needs, strict=True) if need]
    found = iter(torch.autograd.grad(joint, wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needs]


class _Pull:
    """The gradient of an image from that of its positions, part by part and in place.

    A position that is not clamped is (x - lo) / size + 2, size = (hi - lo) / count. Beside their own, the
    voxels at hi share at_hi = -by_size / (count size) and those at lo -by_lo / size - at_hi, where by_lo sums
    the gradients of the positions, and by_size those times the position less 2.
    """

    def __init__(self, image: Tensor, scale: _Scale, dtype: torch.dtype, count: int) -> None:
        self.image, self.scale, self.count = image, scale, count
        self.found = torch.empty(image.shape, dtype=dtype, device=image.device)
        self.by_lo = self.by_size = torch.zeros((), dtype=torch.float64, device=image.device)

    def add(self, cut: _Cut, gradient: Tensor, free: Tensor) -> None:
        """Those of a part's positions, and the positions before clamping: both are used up."""
        scale = self.scale
        gradient.masked_fill_(scale.clamped(free) != free, 0)
        if scale.size is not None:
            self.by_lo = self.by_lo + _row_sums(gradient)
            self.by_size = self.by_size + _row_sums(free.sub_(MARGIN).mul_(gradient))
            gradient.div_(scale.size)
        self.found[cut] = gradient

    def gradient(self) -> Tensor:
        """Of the whole image."""
        lo, hi, size = self.scale[2:]
        if lo is not None and hi is not None and size is not None:
            at_hi = -_over_range(self.by_size, lo) / (self.count * size)
            self._share(hi, at_hi)
            self._share(lo, -_over_range(self.by_lo, lo) / size - at_hi)
        return self.found.to(self.image.dtype)

    def _share(self, value: Tensor, total: Tensor) -> None:
        """Split a total evenly among the voxels that have a value."""
        ties = torch.zeros((), dtype=torch.int64, device=value.device)
        for cut in _parts(self.image):
            ties = ties + (self.image[cut] == value).sum(1, keepdim=True)
        share = (total / _over_range(ties, value)).to(self.found.dtype)
        for cut in _parts(self.image):
            self.found[cut].addcmul_((self.image[cut] == value).to(share.dtype), share)


_Cut = tuple[slice, slice]


def _parts(x: Tensor) -> Iterator[_Cut]:
    """The voxels of (B, N) cut into pieces of all samples and whole rows."""
    step = max(PART // len(x) // ROW, 1) * ROW
    return ((slice(None), slice(first, first + step)) for first in range(0, x.shape[1], step))


def _row_sums(values: Tensor) -> Tensor:
    """(B, n) -> (B, 1), float64, in an order that the number of threads does not change."""
    rows: Tensor = F.pad(values, (0, -values.shape[1] % ROW)).unflatten(1, (-1, ROW))
    return rows.sum(-1, dtype=torch.float64).sum(-1, keepdim=True)


def _over_range(values: Tensor, lo: Tensor) -> Tensor:
    """Sums (B, 1) of the samples that share a range, in the shape of that."""
    return values.sum(0, keepdim=True) if len(lo) == 1 else values
