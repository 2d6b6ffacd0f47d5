"""The implementations that are compared: what each is, what it cannot do, and how it is called.

Every side does the same work: one histogram for each plane (an image's channel), of the same images. A peer
has its own kernel, so its result differs; it is as wide as `bandwidth` says where that can be given, and as
the peer's default elsewhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import histloss
from cases import HISTC, KORNIA, MATTES, MONAI, MONAI_SPLINE, NUMPY, Case

Inputs = tuple[Tensor, ...]
Call = Callable[[], Any]

SIGMOIDS = "difference of sigmoids"
HISTOGRAMS = ("soft_histogram", "joint_histogram")
ALL_OPS = ("activation_maps", *HISTOGRAMS, "emd_loss", "mi_loss", "deep_hist_loss")


@dataclass(frozen=True)
class Side:
    name: str
    kernel: str
    cannot: str
    ops: tuple[str, ...]
    build: Callable[[Case, Inputs], Call]  # the call that is measured; what it prepares is not
    maps: Callable[[Case], float]  # how many activation maps of the images it holds at its peak
    package: str | None = None  # that it needs besides torch
    has_gradient: bool = True
    devices: tuple[str, ...] = ("cpu", "cuda")
    compiles: bool = False  # at its first call with images of a shape

    @property
    def installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None

    def runs(self, case: Case) -> bool:
        return case.op in self.ops and case.device in self.devices

    def bytes_needed(self, case: Case) -> float:
        """About how much memory a call takes at its peak."""
        pixels = torch.Size(case.shape).numel()
        itemsize = 8 if case.dtype == "float64" else 4
        return pixels * itemsize * (case.bins * self.maps(case) + IMAGES)


IMAGES = 8  # tensors of the images' size beside the maps


# ---- the library and its reference


def sigmoids(functions: ModuleType) -> Callable[[Case, Inputs], Call]:
    """Both have the same functions: `histloss` itself, or `histloss.reference`."""

    def build(case: Case, inputs: Inputs) -> Call:
        binning = keywords(case)
        target = torch.full((case.shape[1], case.bins), 1 / case.bins, device=case.device)

        def emd(x: Tensor) -> Tensor:
            return functions.emd(functions.soft_histogram(x, **binning), target).mean()

        def mi(x: Tensor, y: Tensor) -> Tensor:
            return functions.mutual_information(functions.joint_histogram(x, y, **binning)).mean()

        losses = {"emd_loss": emd, "mi_loss": mi, "deep_hist_loss": lambda x, y: emd(x) + mi(x, y)}
        if case.op in losses:
            return lambda: losses[case.op](*inputs)
        function = getattr(functions, case.op)
        return lambda: function(*inputs, **binning)

    return build


def library(case: Case, inputs: Inputs) -> Call:
    """The public functions and loss modules."""
    binning = keywords(case)
    target = torch.full((case.shape[1], case.bins), 1 / case.bins, device=case.device)
    if case.op == "emd_loss":
        emd = histloss.EMDHistLoss(**binning)
        return lambda: emd(*inputs, target)
    if case.op == "mi_loss":
        mi = histloss.MIHistLoss(**binning)
        return lambda: mi(*inputs)
    if case.op == "deep_hist_loss":
        both = histloss.DeepHistLoss(emd=histloss.EMDHistLoss(**binning), mi=histloss.MIHistLoss(**binning))
        return lambda: both(*inputs, target).total
    return sigmoids(histloss)(case, inputs)


def compiled(case: Case, inputs: Inputs) -> Call:
    torch.compiler.reset()  # it compiles one function for a few cases only, then leaves it eager
    return torch.compile(sigmoids(histloss.reference)(case, inputs), dynamic=False)


def keywords(case: Case) -> dict[str, Any]:
    return {
        "bins": case.bins,
        "range": case.range,
        "bandwidth": case.bandwidth,
        "boundary": case.boundary,
    }


def reference_maps(case: Case) -> float:
    """Measured, as those of the other sides are; a mirrored image is seen at three positions."""
    of_histogram, of_joint = (5, 8) if case.boundary == "open" else (11, 18)
    by_op = {
        "activation_maps": of_histogram + 2,
        "soft_histogram": of_histogram,
        "emd_loss": of_histogram,
        "deep_hist_loss": of_histogram + of_joint,
    }
    return by_op.get(case.op, of_joint)


# ---- peers


def planes(x: Tensor) -> Tensor:
    """(B, C, *spatial) as (B C, N)."""
    return x.flatten(2).flatten(0, 1)


def kornia(case: Case, inputs: Inputs) -> Call:
    from kornia.enhance import histogram, histogram2d

    lo, hi = case.range
    width = (hi - lo) / case.bins
    centres = lo + width * (torch.arange(case.bins, dtype=inputs[0].dtype, device=case.device) + 0.5)
    sigma = torch.tensor(case.bandwidth * width, dtype=inputs[0].dtype, device=case.device)
    function = histogram if case.op == "soft_histogram" else histogram2d
    return lambda: function(*map(planes, inputs), centres, sigma).unflatten(0, case.shape[:2])


def monai(kernel: str) -> Callable[[Case, Inputs], Call]:
    def build(case: Case, inputs: Inputs) -> Call:
        from monai.losses import GlobalMutualInformationLoss

        loss = GlobalMutualInformationLoss(kernel, num_bins=case.bins).to(case.device)
        return lambda: loss(*(planes(x).unsqueeze(1) for x in inputs))

    return build


def histc(case: Case, inputs: Inputs) -> Call:
    lo, hi = case.range
    (x,) = inputs

    def count() -> Tensor:
        counts = [torch.histc(plane, case.bins, lo, hi) for plane in planes(x.detach())]
        return torch.stack(counts).unflatten(0, case.shape[:2])

    return count


def numpy(case: Case, inputs: Inputs) -> Call:
    import numpy as np

    arrays = [planes(x.detach()).numpy() for x in inputs]
    if case.op == "soft_histogram":
        return lambda: np.stack([np.histogram(x, case.bins, case.range)[0] for x in arrays[0]])
    both = (case.range, case.range)
    return lambda: np.stack([np.histogram2d(*xy, case.bins, both)[0] for xy in zip(*arrays, strict=True)])


def mattes(case: Case, inputs: Inputs) -> Call:
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(case.threads)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(case.bins)
    method.SetMetricUseFixedImageGradientFilter(False)  # images of gradients, which the value does not need
    method.SetMetricUseMovingImageGradientFilter(False)
    method.SetInitialTransform(sitk.Transform(len(case.shape) - 2, sitk.sitkIdentity))
    method.SetInterpolator(sitk.sitkNearestNeighbor)  # nothing moves: the cheapest gives the same value
    pairs = [
        [sitk.GetImageFromArray(plane.view(case.shape[2:]).numpy()) for plane in pair]
        for pair in zip(*(planes(x.detach()) for x in inputs), strict=True)
    ]
    return lambda: sum(method.MetricEvaluate(*pair) for pair in pairs) / len(pairs)


SIDES: Mapping[str, Side] = {
    side.name: side
    for side in (
        Side("histloss", SIGMOIDS, "", ALL_OPS, library, lambda case: 2 * (case.op == "activation_maps")),
        Side("reference", SIGMOIDS, "", ALL_OPS, sigmoids(histloss.reference), reference_maps),
        Side("compiled", SIGMOIDS, "", ALL_OPS, compiled, reference_maps, compiles=True),
        Side(
            KORNIA,
            "Gaussian",
            "reflect or wrap at the ends of the range, weights",
            HISTOGRAMS,
            kornia,
            lambda case: 5 if case.op == "soft_histogram" else 8,
            "kornia",
        ),
        Side(
            MONAI,
            "Gaussian",
            "any range but 0 to 1, a boundary, weights, a histogram for each channel",
            ("mi_loss",),
            monai("gaussian"),
            lambda case: 10,
            "monai",
        ),
        Side(
            MONAI_SPLINE,
            "cubic B-spline by box",
            "any range but the batch's own, a gradient of the target, weights, a histogram for each channel",
            ("mi_loss",),
            monai("b-spline"),
            lambda case: 12,
            "monai",
        ),
        Side(
            HISTC,
            "box",
            "gradients, batches",
            ("soft_histogram",),
            histc,
            lambda case: 0,
            has_gradient=False,
        ),
        Side(
            NUMPY,
            "box",
            "gradients, batches, threads",
            HISTOGRAMS,
            numpy,
            lambda case: 0,
            "numpy",
            has_gradient=False,
            devices=("cpu",),
        ),
        Side(
            MATTES,
            "cubic B-spline by box",
            "gradients of the images (it has those of a transform), batches, any range but the images' own",
            ("mi_loss",),
            mattes,
            lambda case: 0,
            "SimpleITK",
            has_gradient=False,
            devices=("cpu",),
        ),
    )
}
