"""Histograms of inputs that come in pieces: larger than memory, or counted in several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import autograd, checks, distributed, reference, sums
from .binning import Binning, binning, binning_pair
from .checks import accumulation_dtype
from .sums import Sums


class ChunkGradients(NamedTuple):
    """Of a chunk's tensors, each of the tensor's shape and dtype; None for one that is not there."""

    x: Tensor
    y: Tensor | None
    weight: Tensor | None


class HistogramAccumulator:
    r"""The histogram, or joint histogram, of images that come chunk by chunk.

    Whatever the cuts and their order, :meth:`compute` has the bits of one call of
    :func:`histloss.soft_histogram` or :func:`histloss.joint_histogram` with ``exact=True`` on the whole. In
    memory are the sums, 8 or 16 bytes for each bin, and of chunks that need a gradient the references to
    them, never their activations::

        histogram = HistogramAccumulator(bins=64, joint=True)
        for x, y in chunks:                          # (B, C, *spatial), any spatial shape
            histogram.update(x, y)
        loss = mutual_information(histogram.compute(), mode="relative").mean()
        loss.backward()                              # chunk by chunk

    **Larger than memory.** Chunks that are to be forgotten are passed without a gradient, and streamed a
    second time for it::

        for x, y in chunks():                        # the first pass, without any graph
            histogram.update(x, y)
        h = histogram.compute().requires_grad_()
        (grad,) = torch.autograd.grad(mutual_information(h).mean(), h)
        for x, y in chunks():                        # the second, one chunk in memory at a time
            store(histogram.gradient(grad, x, y))

    **Gradients** have the bits of the one call's (that of a weight that broadcasts is added up by PyTorch,
    which may round it otherwise), and may be differentiated again. A chunk's part of the graph is made by its
    :meth:`update`: as anywhere in PyTorch the chunk must not be changed in place before the backward, and a
    second backward needs ``retain_graph=True`` in the first. :meth:`compute` may be called any time and
    again. Chunks of several planes that are not contiguous, and weights that broadcast or are of another
    dtype, are kept as copies.

    **Several processes.** Parts may be pickled or sent as :meth:`state_dict`, and are added by :meth:`merge`;
    with torch.distributed :meth:`all_reduce` adds those of a group. Either takes no graph along.

    Not for torch.func transforms, which cannot see what an object keeps.

    Args:
        bins, range, bandwidth, boundary, kernel: as in :func:`histloss.soft_histogram`; of a joint histogram
            as in :func:`histloss.joint_histogram`. A range for each sample there is not.
        joint: whether it is the joint histogram of pairs x, y.

    Attributes:
        binning: the keywords with which :func:`histloss.soft_histogram` or :func:`histloss.joint_histogram`
            makes the same histogram.
        joint: as above.
        pixels: how many pixels each image and channel has had; at most 2^32.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        bins: int | tuple[int, int] = 256,
        range: tuple[float, float] | tuple[tuple[float, float], tuple[float, float]] = (-1.0, 1.0),
        bandwidth: float | tuple[float | None, float | None] | None = None,
        boundary: str | tuple[str, str] = "reflect",
        *,
        kernel: str | tuple[str, str] = "sigmoid",
        joint: bool = False,
    ) -> None:
        checks.check_bool("joint", joint)
        self.joint = joint
        keywords = (bins, range, bandwidth, boundary, kernel)
        self._axes: tuple[Binning, ...] = binning_pair(*keywords) if joint else (binning(*keywords),)
        self.reset()

    @property
    def binning(self) -> dict[str, Any]:
        """Pairs (x, y), if joint."""
        axes = self._axes
        of_each: dict[str, list[Any]] = {
            "bins": [axis.bins for axis in axes],
            "range": [(axis.lo, axis.hi) for axis in axes],
            "bandwidth": [axis.bandwidth for axis in axes],
            "boundary": [axis.boundary for axis in axes],
            "kernel": [axis.kernel for axis in axes],
        }
        return {name: tuple(values) if self.joint else values[0] for name, values in of_each.items()}

    @property
    def weight(self) -> Tensor | None:
        """The total of the weights, or else the number of pixels: (B, C), float64; None before any update."""
        if self._sums is None:
            return None
        return sums.to_real(self._sums.totals).reshape(self._shape)

    def reset(self) -> None:
        """Forget everything but the binning."""
        self.pixels = 0
        self._shape: tuple[int, ...] = ()  # (B, C)
        self._dtype: torch.dtype | None = None  # of the histogram
        self._sums: Sums | None = None
        self._everywhere = False  # whether all_reduce has added those of other processes
        # Of the chunks with a gradient, sums of values and of weights: for their graphs alone.
        self._value: Tensor | None = None
        self._total: Tensor | None = None

    def update(self, x: Tensor, y: Tensor | None = None, *, weight: Tensor | None = None) -> None:
        r"""Count a chunk.

        Args:
            x: shape (B, C, \*spatial), with the B and C of the first chunk, any spatial shape, also without
                pixels; float16, bfloat16 and float32 may follow each other, float64 only itself. On the
                first chunk's device.
            y: what pairs with x, same shape and device, if and only if the histogram is a joint one.
            weight: as in :func:`histloss.soft_histogram`, not negative and at most 2^20; all of them sum to
                less than 2^33. A chunk without one counts 1 for each pixel, rounded as if none had one:
                `torch.ones` gives the bits of one call with a weight.

        Raises:
            TypeError, ValueError: an argument is not as described; nothing is counted then.
            RuntimeError: after :meth:`all_reduce`.
        """
        self._check_own("update()")
        planes, w = self._laid_out(x, y, weight)
        self._check_chunk(x, y)
        checks.check_pixel_total(self.pixels + planes[0].shape[-1])
        found: list[Sums] = []

        def keep(own: Sums) -> Sums:
            found.append(own)
            return own

        soft_or_joint: Callable[..., Any] = autograd.joint_sums if self.joint else autograd.soft_sums
        value, _ = soft_or_joint(*planes, w, *self._axes, combine=keep)
        total = None if w is None else w.sum(-1, dtype=torch.float64)
        self._add(found[0], planes[0].shape[-1], tuple(x.shape[:2]), _dtype_of(x, y))
        self._value = _linked(self._value, value)
        self._total = _linked(self._total, total)

    def merge(self, other: HistogramAccumulator) -> None:
        """Count all that another accumulator has counted, gradients included; it stays as it is.

        Args:
            other: of the same binning, B, C and dtype. Its sums come to this one's device.

        Raises:
            TypeError, ValueError: `other` is not as described; nothing is counted then.
            RuntimeError: after :meth:`all_reduce` of either.
        """
        checks.check_instance("other", other, HistogramAccumulator)
        checks.check_alike("other", other._facts(), self._facts())
        if other is self:
            raise ValueError("other must be another accumulator, got this one itself")
        self._check_own("merge()")
        other._check_own("merge()")
        if other._sums is None or other._dtype is None:
            return
        checks.check_pixel_total(self.pixels + other.pixels)
        device = other._sums.counts.device if self._sums is None else self._sums.counts.device
        brought = Sums(*(part.to(device) for part in other._sums))
        self._add(brought, other.pixels, other._shape, other._dtype)
        self._value = _linked(self._value, None if other._value is None else other._value.to(device))
        self._total = _linked(self._total, None if other._total is None else other._total.to(device))

    def all_reduce(self, process_group: Any) -> None:
        """Add the sums of all processes of a group: then each of them has the histogram of all pixels.

        As in :func:`histloss.distributed.combine`, but all of them compare what they hold even where that
        waits for a GPU. A process may have had no update at all. The backward of :meth:`compute`, and
        :meth:`gradient`, give the gradient of one loss of that histogram for this process's own chunks, see
        :mod:`histloss.distributed`. No more can be counted then before :meth:`reset`.

        Args:
            process_group: a ``torch.distributed.ProcessGroup`` that this process is a member of.

        Raises:
            TypeError, ValueError: an argument is not as described; on every process, they disagree on
                something, which it names.
            RuntimeError: after :meth:`all_reduce`; none of them has had an update; or by torch.distributed,
                where a process is lost.
        """
        group = checks.check_process_group(process_group)
        self._check_own("all_reduce()")
        own = self._sums
        device = None if own is None else own.counts.device.type
        counted = (0, 0) if own is None else (len(own.totals), distributed.largest(own))
        numbers, facts = distributed.exchange(
            group,
            [self.pixels, *counted],
            {"function": "HistogramAccumulator.all_reduce", **self._facts(), "device": device},
            torch.device("cpu" if distributed.compares(group) else "cuda"),
        )
        pixels, levels, largest = (list(column) for column in zip(*numbers, strict=True))
        checks.check_updated(max(levels) > 0, "all_reduce()", "on any process")
        checks.check_pixel_total(sum(pixels))
        checks.check_sums_fit(sum(largest))
        shape = tuple(facts["(B, C)"])
        if own is None:
            planes = shape[0] * shape[1]
            on = torch.device(facts["device"])
            bins = [axis.bins for axis in self._axes]
            own = Sums(
                torch.zeros((1, planes, *bins), dtype=torch.int64, device=on),
                torch.zeros((1, planes), dtype=torch.int64, device=on),
            )
        self._sums = distributed.add_all(own, max(levels), group)
        self._shape, self._dtype = shape, getattr(torch, facts["dtype"])
        self.pixels = sum(pixels)
        self._everywhere = True

    def compute(self) -> Tensor:
        """The histogram of everything counted so far.

        Returns:
            Shape (B, C, K), or (B, C, Kx, Ky) if joint; float32, or float64 of float64 images. With a
            gradient if a chunk counted needs one.

        Raises:
            RuntimeError: there was no update, or none with a pixel.
            ValueError: the weights of an image and channel sum to 0; on a GPU, where that would have to be
                waited for, its histogram is NaN.
        """
        value, total = self._values("compute()")
        if self._value is not None:
            value = value + (self._value - self._value.detach())
        if self._total is not None:
            total = total + (self._total - self._total.detach())
        return self._divided(value, total)

    def gradient(
        self, grad: Tensor, x: Tensor, y: Tensor | None = None, *, weight: Tensor | None = None
    ) -> ChunkGradients:
        """The gradient of a chunk, given that of the histogram: the second pass over many chunks.

        Args:
            grad: of the loss with respect to what :meth:`compute` returns, of its shape.
            x, y, weight: a chunk that was counted, as it was given to :meth:`update`.

        Returns:
            A named tuple (x, y, weight) of gradients, y's only if joint, and weight's only where it is a
            weight of a floating dtype.

        Raises:
            TypeError, ValueError: an argument is not as described.
            RuntimeError: there was no update, or none with a pixel.
        """
        with torch.inference_mode(False), torch.no_grad():
            value, total = self._values("gradient()")
            planes, w = self._laid_out(x, y, weight)
            self._check_chunk(x, y)
            with torch.enable_grad():
                histogram = self._divided(value.requires_grad_(), total.requires_grad_())
            checks.check_histogram_gradient(grad, histogram)
            upstream = grad.to(histogram.dtype, copy=True)
            by_value, by_total = torch.autograd.grad(histogram, (value, total), upstream)
            need_weight = weight is not None and weight.dtype != torch.bool
            needs = (*[True] * len(planes), need_weight)
            soft_or_joint: Callable[..., Any] = sums.joint_gradient if self.joint else sums.soft_gradient
            *by_planes, by_w = soft_or_joint(by_value, *planes, w, *self._axes, *needs)
            images = [x] if y is None else [x, y]
            by_images = [
                by_plane.reshape(image.shape).to(image.dtype)
                for by_plane, image in zip(by_planes, images, strict=True)
            ]
            by_weight = None
            if weight is not None and need_weight:
                by_w = by_w + by_total.to(by_w.dtype).unsqueeze(-1)
                with torch.enable_grad():
                    like = torch.zeros_like(weight).requires_grad_()
                    spread = _spread(reference.plane_weight(like, by_w.reshape(x.shape)), x)
                (by_weight,) = torch.autograd.grad(spread, like, by_w)
            return ChunkGradients(by_images[0], by_images[1] if self.joint else None, by_weight)

    def state_dict(self) -> dict[str, Any]:
        """Everything counted, as tensors and plain values: to be saved, sent, and loaded by another one.

        Raises:
            RuntimeError: a chunk counted needs a gradient, which cannot be taken along.
        """
        checks.check_no_graph(self._value, self._total)
        counts, totals = (None, None) if self._sums is None else self._sums
        return {
            "binning": [list(axis) for axis in self._axes],
            "shape": list(self._shape),
            "dtype": _name(self._dtype),
            "pixels": self.pixels,
            "counts": counts,
            "totals": totals,
            "everywhere": self._everywhere,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace everything counted by what :meth:`state_dict` of an accumulator of the same binning gave.

        Raises:
            TypeError, ValueError: the state is not one, or of another binning.
        """
        checks.check_accumulator_state(state)
        axes = [Binning(*each) for each in state["binning"]]
        checks.check_alike("state", _facts_of_axes(axes), _facts_of_axes(self._axes))
        self.reset()
        if state["counts"] is not None:
            self._sums = Sums(state["counts"], state["totals"])
            self._shape, self._dtype = tuple(state["shape"]), getattr(torch, state["dtype"])
            self.pixels, self._everywhere = state["pixels"], state["everywhere"]

    def __getstate__(self) -> dict[str, Any]:
        """For pickles and copies, which have no graph."""
        return self.state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._axes = tuple(Binning(*each) for each in state["binning"])
        self.joint = len(self._axes) == 2
        self.load_state_dict(state)

    def __repr__(self) -> str:
        """The arguments, and what was counted."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.binning.items())
        counted = "nothing counted"
        if self._sums is not None:
            b, c = self._shape
            counted = f"{self.pixels} pixels of {b} x {c} planes counted"
        return f"<HistogramAccumulator({arguments}, joint={self.joint}): {counted}>"

    # ---- what they share

    def _laid_out(
        self, x: Tensor, y: Tensor | None, weight: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """A chunk as planes (B C, N), images of one dtype, and its weight in the same shape."""
        checks.check_no_transform("HistogramAccumulator")
        checks.check_image("x", x)
        checks.check_second_image(y, self.joint)
        images = [x]
        if y is not None:
            checks.check_image_pair(x, y)
            images = [image.to(_dtype_of(x, y)) if x.dtype != y.dtype else image for image in (x, y)]
        w = reference.plane_weight(weight, images[0])
        if w is not None:
            total = reference.plane_rows(w.detach())[1][..., 0, 0]
            checks.check_exact_weight(w, total, "zero", alone=False)
            w = _spread(w, x)
        return [reference.planes(image) for image in images], w

    def _check_chunk(self, x: Tensor, y: Tensor | None) -> None:
        """One that goes with those before."""
        if self._sums is None:
            return
        checks.check_device("x", x, self._sums.counts.device)
        facts = {"(B, C)": list(x.shape[:2]), "dtype": _name(_dtype_of(x, y))}
        checks.check_alike("x", facts, self._facts())

    def _check_own(self, name: str) -> None:
        checks.check_not_reduced(self._everywhere, name)

    def _add(self, more: Sums, pixels: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if self._sums is not None:
            checks.check_sums_fit(distributed.largest(self._sums) + distributed.largest(more))
            more = sums.add(self._sums, more)
        self._sums, self._shape, self._dtype = more, shape, dtype
        self.pixels += pixels

    def _values(self, name: str) -> tuple[Tensor, Tensor]:
        """The real sums and totals, float64, of what has been counted."""
        checks.check_updated(self._sums is not None, name)
        assert self._sums is not None
        checks.check_updated(self.pixels > 0, name, "with a pixel")
        value, total = (sums.to_real(part) for part in self._sums)
        checks.check_weight_total(total.reshape(self._shape))
        return value, total

    def _divided(self, value: Tensor, total: Tensor) -> Tensor:
        total = torch.where(total > 0, total, torch.nan)
        histogram = value / total.reshape(-1, *[1] * (value.ndim - 1))
        return histogram.to(self._dtype).reshape(*self._shape, *histogram.shape[1:])

    def _facts(self) -> dict[str, Any]:
        """What accumulators must share; None is not known yet."""
        of_images = {"(B, C)": list(self._shape) or None, "dtype": _name(self._dtype)}
        return of_images | _facts_of_axes(self._axes)


def _spread(weight: Tensor | None, x: Tensor) -> Any:
    """A `plane_weight` in the shape of the planes."""
    return None if weight is None else weight.expand(*x.shape[:2], -1).flatten(0, 1)


def _facts_of_axes(axes: Sequence[Binning]) -> dict[str, Any]:
    return {"joint": len(axes) > 1} | distributed.facts_of(axes)


def _name(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _dtype_of(x: Tensor, y: Tensor | None) -> torch.dtype:
    """The accumulation dtype of a chunk."""
    return accumulation_dtype(x.dtype if y is None else torch.promote_types(x.dtype, y.dtype))


def _linked(graph: Tensor | None, more: Tensor | None) -> Tensor | None:
    """The sum of those that have a gradient, or a tangent."""
    if more is None or not (more.requires_grad or forward_ad.unpack_dual(more).tangent is not None):
        return graph
    return more if graph is None else graph + more
