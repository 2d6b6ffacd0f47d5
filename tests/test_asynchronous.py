"""What must not happen on a GPU, seen without one: meta tensors have no values to read or to wait for.

No op may copy to or from the host, read a value, have a result of which the size depends on values, or be one
that PyTorch lists as not deterministic on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import histloss
from histloss import (
    ColorBins,
    ColorVarianceLoss,
    DCGANLoss,
    DeepHistLoss,
    EBGANLoss,
    EMDHistLoss,
    GANLoss,
    LSGANLoss,
    MIHistLoss,
    PatchNCELoss,
    TotalVariationLoss,
    WGANLoss,
    color,
    native,
)
from histloss.binning import BOUNDARIES
from histloss.reference import EMD_FORMS, MI_MODES

SYNCHRONOUS = {
    "_local_scalar_dense", "_unique2", "argwhere", "bincount", "equal", "is_nonzero", "item",
    "masked_scatter", "masked_select", "multinomial", "nonzero", "repeat_interleave",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
# Of the list at torch.use_deterministic_algorithms, what could find its way into a loss.
NONDETERMINISTIC = {
    "_adaptive_avg_pool2d_backward", "avg_pool3d_backward", "bincount", "cummax", "cummin", "cumprod",
    "cumsum", "embedding_dense_backward", "gather_backward", "grid_sampler_2d_backward", "histc", "index_add",
    "index_copy", "index_put", "_index_put_impl", "index_reduce", "index_select_backward", "kthvalue",
    "logcumsumexp", "median", "nanmedian", "put", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "replication_pad1d_backward", "replication_pad2d_backward", "resize", "scatter", "scatter_add",
    "scatter_reduce", "upsample_bicubic2d_backward", "upsample_bilinear2d_backward",
}  # fmt: skip


class OnDevice(TorchDispatchMode):
    """Refuses the ops above, and tensors anywhere but on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._opname.removesuffix("_")
        assert name not in SYNCHRONOUS, f"{func} makes the host wait"
        sums = name in ("index_put", "_index_put_impl") and args[3:4] == (True,)  # CUDA sorts what it adds
        assert sums or name not in NONDETERMINISTIC, f"{func} is not deterministic"
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        assert all(t.is_meta for t in tensors), f"{func} has a tensor on the host"
        if name == "index":
            assert all(i.dtype != torch.bool for i in tree_leaves(args[1]) if i is not None), (
                "a mask as index"
            )
        return result


@pytest.fixture(params=["native", "reference"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The native ops by their fakes, or plain PyTorch."""
    assert native.backend_info()["cpu"]["loaded"]
    monkeypatch.setattr(native, "available", lambda x: request.param == "native")
    return request.param


def image() -> Tensor:
    return torch.empty(2, 3, 8, 8, device="meta").requires_grad_()


def losses() -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Of two images and a weight."""
    for boundary in BOUNDARIES:
        for form in EMD_FORMS:
            for p in (1, 1.5, 2):
                emd = EMDHistLoss(300, boundary=boundary, p=p, form=form, cyclic=boundary == "cyclic")
                yield (
                    f"EMD {form} p={p} {boundary}",
                    lambda x, y, w, emd=emd: emd(x, histloss.soft_histogram(y, **emd.binning), weight=w),
                )
        for mode in MI_MODES:
            mi = MIHistLoss(16, boundary=boundary, mode=mode)
            yield f"MI {mode} {boundary}", lambda x, y, w, mi=mi: mi(x, y, weight=w)
    for preset in ("paper", "official"):
        both = DeepHistLoss(preset=preset, emd=EMDHistLoss(64), mi=MIHistLoss(16))
        yield (
            f"DeepHist {preset}",
            lambda x, y, w, both=both: both(x, y, histloss.soft_histogram(y, bins=64), y, weight=w).total,
        )
    for adversarial in (DCGANLoss(), LSGANLoss(), EBGANLoss(1), WGANLoss()):
        gan = GANLoss(adversarial, {"l2": 1})
        yield (
            repr(adversarial),
            lambda x, y, w, gan=gan: gan(x, y, x * w).total + gan.adversarial.discriminator(x, y),
        )
    patches = PatchNCELoss([3], 16, dim=4).to("meta")
    yield "PatchNCE", lambda x, y, w: patches([x * w], [y]) + 0 * y.sum()
    for loss in (TotalVariationLoss(1), TotalVariationLoss(), ColorVarianceLoss()):
        yield repr(loss), lambda x, y, w, loss=loss: loss(x * y * w)
    bins, logits = ColorBins(), torch.empty(1, 313, 4, device="meta")
    bins.encode(logits[:, :2])  # brings its tables to the device, once
    bins.decode(logits)
    yield (
        "colour bins",
        lambda x, y, w: bins.decode(logits * (x * y * w).sum()).sum() + bins.encode(logits[:, :2])[1].sum(),
    )
    yield "maps", lambda x, y, w: histloss.activation_maps(x * y * w, bins=16)
    for name in ("yuv", "hsv", "lab"):
        there, back = getattr(color, f"rgb_to_{name}"), getattr(color, f"{name}_to_rgb")
        yield f"RGB to {name}", lambda x, y, w, there=there: there(x * y * w)
        yield f"{name} to RGB", lambda x, y, w, back=back: back(x * y * w)


LOSSES = dict(losses())


@pytest.mark.parametrize("name", LOSSES)
def test_forward_backward_and_double_backward_stay_on_the_device(name: str) -> None:
    inputs = image(), image(), torch.empty(8, 8, device="meta").requires_grad_()
    with OnDevice():
        first = torch.autograd.grad(LOSSES[name](*inputs).square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    for gradient, of in zip((*first, *second), (*inputs, *inputs), strict=True):
        assert gradient.shape == of.shape


@pytest.mark.parametrize("spoil", [
    lambda x: x.sum().item(),
    lambda x: x.cumsum(-1),
    lambda x: x[x > 0],
    lambda x: x * torch.ones(8),
    lambda x: x.median(-1),
    lambda x: torch.where(x > 0),
    lambda x: x.detach().index_put((torch.zeros(8, dtype=torch.int64, device="meta"),), x.detach()[0, 0, 0]),
], ids=["item", "cumsum", "boolean index", "host tensor", "median", "nonzero", "index_put"])  # fmt: skip
def test_the_guard_sees(spoil: Callable[[Tensor], object]) -> None:
    with OnDevice(), pytest.raises((AssertionError, NotImplementedError)):
        spoil(image())


def test_values_are_not_checked_where_that_would_wait() -> None:
    """Neither negative weights nor a target that is no histogram: see the docstrings."""
    x = image()
    with OnDevice():
        histloss.soft_histogram(x, bins=4, weight=-torch.ones(8, 8, device="meta"))
        EMDHistLoss(4)(x, torch.ones(2, 3, 4, device="meta"))
