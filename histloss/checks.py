"""Every argument check of the package but that of the binning keywords.

Everything behind these (autograd, native code, reference) may assume valid input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS = ("mean", "sum", "none")


def check_image(name: str, x: Any) -> None:
    """An image batch (B, C, *spatial) of a supported floating dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape (B, C, *spatial), got {type(x).__name__}")
    check_dtype(name, x)
    if x.ndim < 3:
        raise ValueError(f"{name} must have shape (B, C, *spatial), got {tuple(x.shape)}")


def check_dtype(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")


def check_image_pair(x: Tensor, y: Any, names: tuple[str, str] = ("x", "y")) -> None:
    """A second image that pairs with x pixel by pixel."""
    first, second = names
    check_image(second, y)
    if y.shape != x.shape:
        raise ValueError(f"{second} must have the shape of {first}, {tuple(x.shape)}, got {tuple(y.shape)}")
    check_device(second, y, x.device)


def check_device(name: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{name} must be on {device}, got {x.device}")


def check_weight(weight: Any, x: Tensor) -> None:
    """A non-negative weight that broadcasts to x.

    The values are checked where that is free of a device synchronisation: eager calls on the CPU.
    Elsewhere (CUDA, a compiled graph, a torch.func transform) a zero sum gives NaN, never silence.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if weight.dtype != torch.bool:
        check_dtype("weight", weight)
    check_device("weight", weight, x.device)
    try:
        fits = torch.broadcast_shapes(weight.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"weight must broadcast to the shape of the image, {tuple(x.shape)}, got {tuple(weight.shape)}"
        )


def check_weight_values(weight: Tensor, total: Tensor) -> None:
    """weight >= 0 everywhere and a positive, finite sum for every image and channel."""
    if not _is_eager_cpu(weight) or weight.numel() == 0:
        return
    smallest = weight.detach().min().item()
    if not smallest >= 0:
        raise ValueError(f"weight must be non-negative and not NaN, its smallest value is {smallest}")
    if not bool(((total > 0) & total.isfinite()).all()):
        raise ValueError(
            f"weight must have a positive, finite sum for every image and channel, got {total.tolist()}"
        )


def check_histograms(h1: Any, h2: Any) -> None:
    """Two histograms with the same number of bins whose leading dimensions broadcast."""
    for name, h in (("h1", h1), ("h2", h2)):
        if not isinstance(h, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor of shape (..., K), got {type(h).__name__}")
        check_dtype(name, h)
        if h.ndim < 1 or h.shape[-1] < 1:
            raise ValueError(f"{name} must have shape (..., K) with K >= 1, got {tuple(h.shape)}")
    check_device("h2", h2, h1.device)
    if h1.shape[-1] != h2.shape[-1]:
        raise ValueError(f"h2 must have as many bins as h1, {h1.shape[-1]}, got {h2.shape[-1]}")
    try:
        torch.broadcast_shapes(h1.shape, h2.shape)
    except RuntimeError:
        raise ValueError(
            f"h2 must broadcast with h1 of shape {tuple(h1.shape)}, got {tuple(h2.shape)}"
        ) from None


def check_ref_hist(ref_hist: Any, channels: int, batch: int, bins: int) -> None:
    """A target histogram (B, C, K), or (C, K) for the whole batch."""
    if not isinstance(ref_hist, Tensor):
        raise TypeError(f"ref_hist must be a torch.Tensor, got {type(ref_hist).__name__}")
    check_dtype("ref_hist", ref_hist)
    allowed = ((batch, channels, bins), (1, channels, bins), (channels, bins))
    if tuple(ref_hist.shape) not in allowed:
        raise ValueError(
            f"ref_hist must have shape (B, C, K) = {allowed[0]} or (C, K) = {allowed[2]}, got "
            f"{tuple(ref_hist.shape)}; make it from an image by soft_histogram with the loss's bins"
        )


def check_joint(joint: Any) -> None:
    if not isinstance(joint, Tensor):
        raise TypeError(f"joint must be a torch.Tensor of shape (..., Kx, Ky), got {type(joint).__name__}")
    check_dtype("joint", joint)
    if joint.ndim < 2 or 0 in joint.shape[-2:]:
        raise ValueError(f"joint must have shape (..., Kx, Ky) with Kx, Ky >= 1, got {tuple(joint.shape)}")


def check_order(p: Any) -> float:
    """The order of an EMD's norm."""
    if not is_number(p):
        raise TypeError(f"p must be a number, got {p!r}")
    if not 1 <= p < math.inf:
        raise ValueError(f"p must be finite and at least 1, got {p!r}")
    return float(p)


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, one of {', '.join(map(repr, allowed))}, got {value!r}")
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype a histogram of such an image has: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_cyclic(cyclic: Any, boundary: str) -> None:
    """A cyclic distance fits only a histogram whose bins wrap round."""
    if not isinstance(cyclic, bool):
        raise TypeError(f"cyclic must be True or False, got {cyclic!r}")
    if cyclic and boundary != "cyclic":
        raise ValueError(f"cyclic=True needs boundary 'cyclic', got {boundary!r}")


def check_ref_hist_values(ref_hist: Tensor, boundary: str) -> None:
    """Sums of 1, or at most 1 where `open` lets mass out: so not counts, and not an image.

    As for weights, only in eager calls on the CPU: on a GPU that would wait for the device.
    """
    if not _is_eager_cpu(ref_hist):
        return
    sums = ref_hist.detach().sum(-1, dtype=accumulation_dtype(ref_hist.dtype))
    slack = 1e-2  # bfloat16 rounds a histogram's sum by up to 0.4 %
    least = -slack if boundary == "open" else 1 - slack
    wrong = sums[~((sums >= least) & (sums <= 1 + slack))]
    if wrong.numel():
        allowed = "at most 1" if boundary == "open" else "1"
        raise ValueError(f"ref_hist must sum to {allowed} over its bins, got a sum of {wrong[0].item()}")


def check_logits(name: str, logits: Any, device: torch.device) -> None:
    """A discriminator's logits, any shape."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(logits).__name__}")
    check_dtype(name, logits)
    if logits.numel() == 0:
        raise ValueError(f"{name} must hold at least one logit, got shape {tuple(logits.shape)}")
    check_device(name, logits, device)


def check_term(name: str, loss: Any, kind: type) -> None:
    """A loss that is one term of a sum, so it must be a mean."""
    if not isinstance(loss, kind):
        raise TypeError(f"{name} must be {kind.__name__} or None, got {type(loss).__name__}")
    reduction = getattr(loss, "reduction", None)
    if reduction != "mean":
        raise ValueError(f"{name} must have reduction 'mean', got {reduction!r}")


def check_term_weights(weights: Any, terms: tuple[str, ...]) -> None:
    """Finite, non-negative weights of a sum's terms, by name."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights must be a dict with keys in {terms}, got {weights!r}")
    for key, value in weights.items():
        if key not in terms:
            raise ValueError(f"weights must have keys in {terms}, got {key!r}")
        if not is_number(value):
            raise TypeError(f"weights[{key!r}] must be a number, got {value!r}")
        if not 0 <= value < math.inf:
            raise ValueError(f"weights[{key!r}] must be finite and not negative, got {value!r}")


def check_color_image(name: str, x: Any) -> None:
    """An image batch of three colour channels."""
    check_image(name, x)
    if x.shape[1] != 3:
        raise ValueError(f"{name} must have shape (B, 3, *spatial), got {tuple(x.shape)}")


def _is_eager_cpu(x: Tensor) -> bool:
    """Whether values can be read at once: no graph being traced, no transform, no device to wait for."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.maybe_current_level()
    )


def is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
