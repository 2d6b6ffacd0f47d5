"""Every argument check of the package but that of the binning keywords.

Everything behind these (autograd, native code, reference) may assume valid input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS = ("mean", "sum", "none")
EMPTY = ("error", "zero")  # what is done about weights that sum to 0
MAX_EXACT_WEIGHT, MAX_EXACT_TOTAL = 2.0**20, 2.0**33  # with 30 bits after the point they fit in 63
GRIDS = (5.0, 110.0)  # least and largest of ColorBins


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


def check_weight_values(weight: Tensor, total: Tensor, empty: str = "error") -> None:
    """weight >= 0 everywhere and a positive, finite sum for every image and channel.

    With `empty` "zero" the sum may be 0.
    """
    if not is_eager_cpu(weight) or weight.numel() == 0:
        return
    smallest = weight.detach().min().item()
    if not smallest >= 0:
        raise ValueError(f"weight must be non-negative and not NaN, its smallest value is {smallest}")
    if empty == "zero":
        if not bool(total.isfinite().all()):
            raise ValueError(
                f"weight must have a finite sum for every image and channel, got {total.tolist()}"
            )
    elif not bool(((total > 0) & total.isfinite()).all()):
        raise ValueError(
            f"weight must have a positive, finite sum for every image and channel, got {total.tolist()}"
        )


def check_exact_weight(weight: Tensor, total: Tensor, empty: str, alone: bool) -> None:
    """A weight that fits the integers of exact sums; `alone`, not to be summed with other processes'."""
    check_weight_values(weight, total, empty if alone else "zero")
    if not is_eager_cpu(weight) or weight.numel() == 0:
        return
    largest = weight.detach().max().item()
    if largest > MAX_EXACT_WEIGHT:
        raise ValueError(f"weight must be at most 2**20 for exact sums, its largest value is {largest:g}")
    if bool((total >= MAX_EXACT_TOTAL).any()):
        raise ValueError(f"weight must sum to less than 2**33 for exact sums, got {total.max().item():g}")


def check_sums(exact: Any, empty: Any) -> None:
    """How a histogram is summed."""
    check_bool("exact", exact)
    check_choice("empty", empty, EMPTY)


def check_totals(totals: Tensor) -> None:
    """The sums of weights over all processes, integers (L, P) of L levels: positive in each plane."""
    if not is_eager_cpu(totals):
        return
    total = totals[0].double() * 2.0**-30
    if len(totals) > 1:
        total += totals[1].double() * 2.0**-62
    if not bool((total > 0).all()):
        raise ValueError(
            "weight must have a positive sum over all processes for every image and channel, "
            f"got {total.tolist()}"
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
    allowed = ((batch, channels, bins), (channels, bins))
    images, shape = ref_hist.shape[:-2], ref_hist.shape[-2:]  # apart: a trace would rule out that B = C
    if shape != (channels, bins) or images not in ((batch,), (1,), ()):
        raise ValueError(
            f"ref_hist must have shape (B, C, K) = {allowed[0]} or (C, K) = {allowed[1]}, got "
            f"{tuple(ref_hist.shape)}; make it from an image by soft_histogram with the loss's bins"
        )


def check_joint(joint: Any) -> None:
    if not isinstance(joint, Tensor):
        raise TypeError(f"joint must be a torch.Tensor of shape (..., Kx, Ky), got {type(joint).__name__}")
    check_dtype("joint", joint)
    if joint.ndim < 2 or 0 in joint.shape[-2:]:
        raise ValueError(f"joint must have shape (..., Kx, Ky) with Kx, Ky >= 1, got {tuple(joint.shape)}")


def check_order(p: Any, name: str = "p") -> float:
    """The order of a norm."""
    if not is_number(p):
        raise TypeError(f"{name} must be a number, got {p!r}")
    if not 1 <= p < math.inf:
        raise ValueError(f"{name} must be finite and at least 1, got {p!r}")
    return float(p)


def check_finite(name: str, value: Any) -> float:
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def check_positive(name: str, value: Any) -> float:
    if not check_finite(name, value) > 0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return float(value)


def check_count(name: str, value: Any, least: int) -> int:
    if not is_int(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_instance(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}")


def check_not_negative(name: str, value: Any) -> float:
    if not check_finite(name, value) >= 0:
        raise ValueError(f"{name} must not be negative, got {value!r}")
    return float(value)


def check_between(name: str, value: Any, least: float, most: float) -> float:
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least:g} to {most:g}, got {value!r}")
    return float(value)


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
    check_bool("cyclic", cyclic)
    if cyclic and boundary != "cyclic":
        raise ValueError(f"cyclic=True needs boundary 'cyclic', got {boundary!r}")


def check_ref_hist_values(ref_hist: Tensor, boundary: str, empty: str = "error") -> None:
    """Sums of 1, or at most 1 where `open` lets mass out: so not counts, and not an image.

    With `empty` "zero" a histogram may be all 0. As for weights, only in eager calls on the CPU: on a GPU
    that would wait for the device.
    """
    if not is_eager_cpu(ref_hist):
        return
    sums = ref_hist.detach().sum(-1, dtype=accumulation_dtype(ref_hist.dtype))
    slack = 1e-2  # bfloat16 rounds a histogram's sum by up to 0.4 %
    least = -slack if boundary == "open" else 1 - slack
    right = (sums >= least) & (sums <= 1 + slack)
    if empty == "zero":
        right = right | (ref_hist.detach() == 0).all(-1)
    wrong = sums[~right]
    if wrong.numel():
        allowed = "at most 1" if boundary == "open" else "1"
        raise ValueError(f"ref_hist must sum to {allowed} over its bins, got a sum of {wrong[0].item()}")


def check_pixel_count(count: Any, correction: str | None, joint: Tensor) -> None:
    """The number of pixels behind joint histograms, which a correction of their entropies needs."""
    if correction is None:
        if count is not None:
            raise ValueError("count must be None without a correction, which alone needs it")
        return
    if count is None:
        raise TypeError(f"count must be the number of pixels for the correction {correction!r}, got None")
    if not isinstance(count, Tensor):
        check_positive("count", count)
        return
    check_device("count", count, joint.device)
    try:
        fits = torch.broadcast_shapes(count.shape, joint.shape[:-2]) == joint.shape[:-2]
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"count must broadcast to the shape of the result, {tuple(joint.shape[:-2])}, "
            f"got {tuple(count.shape)}"
        )


def check_scores(name: str, scores: Any) -> None:
    """A discriminator's scores, any shape."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(scores).__name__}")
    check_dtype(name, scores)
    check_not_empty(name, scores)


def check_energies(name: str, scores: Tensor) -> None:
    """Scores of at least 0, or NaN. As for weights, only in eager calls on the CPU."""
    if is_eager_cpu(scores) and bool((scores < 0).any()):
        raise ValueError(f"{name} must be energies of at least 0, got {scores.detach().min().item()}")


def check_not_empty(name: str, x: Tensor) -> None:
    if x.numel() == 0:
        raise ValueError(f"{name} must hold at least one value, got shape {tuple(x.shape)}")


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


def check_channels(channels: Any) -> tuple[int, ...]:
    """The numbers of channels of an encoder's layers."""
    if not isinstance(channels, Sequence):
        raise TypeError(f"channels must be a sequence of ints, one per layer, got {channels!r}")
    if not channels:
        raise ValueError(f"channels must name at least one layer, got {channels!r}")
    return tuple(check_count(f"channels[{i}]", c, 1) for i, c in enumerate(channels))


def check_features(queries: Any, keys: Any, channels: tuple[int, ...], device: torch.device | None) -> None:
    """Features of an encoder's layers: of an output and, in the same shapes, of its source."""
    for name, features in (("queries", queries), ("keys", keys)):
        if isinstance(features, Tensor) or not isinstance(features, Sequence):
            raise TypeError(
                f"{name} must be a sequence of tensors, one per layer, got {type(features).__name__}"
            )
        if len(features) != len(channels):
            raise ValueError(
                f"{name} must have one tensor for each of {len(channels)} layers, got {len(features)}"
            )
    for i, (query, key) in enumerate(zip(queries, keys, strict=True)):
        name = f"queries[{i}]"
        check_image(name, query)
        check_not_empty(name, query)
        if query.shape[1] != channels[i]:
            raise ValueError(f"{name} must have {channels[i]} channels, got shape {tuple(query.shape)}")
        if math.prod(query.shape[2:]) < 2:
            raise ValueError(f"{name} must have at least 2 places, got shape {tuple(query.shape)}")
        if device is not None:
            check_device(name, query, device)
        check_image_pair(query, key, names=(name, f"keys[{i}]"))


def check_ab(ab: Any, logits: Tensor | None = None) -> None:
    """Colours (B, 2, *spatial), of the pixels of logits if there are any."""
    check_image("ab", ab)
    if logits is None:
        if ab.shape[1] != 2:
            raise ValueError(f"ab must have shape (B, 2, *spatial), got {tuple(ab.shape)}")
        return
    shape = (len(logits), 2, *logits.shape[2:])
    if ab.shape != shape:
        raise ValueError(f"ab must have shape (B, 2, *spatial) = {shape}, got {tuple(ab.shape)}")
    check_device("ab", ab, logits.device)


def check_ab_values(ab: Tensor, squares: Tensor, limit: float) -> None:
    """Colours of which the squared distance to the nearest bin is within a limit.

    As for weights, only in eager calls on the CPU.
    """
    if not is_eager_cpu(ab):
        return
    wrong = ~(squares <= limit)
    if not bool(wrong.any()):
        return
    a, b = ab.detach().flatten(2).movedim(1, 2)[wrong][0].tolist()
    if not (math.isfinite(a) and math.isfinite(b)):
        raise ValueError(f"ab must be finite, got a pixel of ({a:g}, {b:g})")
    raise ValueError(
        "ab must be that of sRGB colours, as color.rgb_to_lab gives it (a / 110, b / 110), "
        f"got a pixel of ({a:g}, {b:g})"
    )


def check_color_logits(logits: Any, bins: int) -> None:
    check_image("logits", logits)
    if logits.shape[1] != bins:
        raise ValueError(
            f"logits must have shape (B, Q, *spatial) with Q = {bins} bins, got {tuple(logits.shape)}"
        )


def check_color_loss_values(loss: Tensor) -> None:
    """Finite, which it is if the logits are. As for weights, only in eager calls on the CPU."""
    if is_eager_cpu(loss) and not bool(loss.isfinite().all()):
        raise ValueError("logits must be finite, got NaN or infinite ones: they make the loss so")


def check_neighbours(neighbours: Any, bins: int) -> int:
    if check_count("neighbours", neighbours, 1) > bins:
        raise ValueError(f"neighbours must be at most the number of bins, {bins}, got {neighbours}")
    return int(neighbours)


def check_prior(prior: Any, bins: int, lam: float) -> None:
    """A distribution over bins, of which each must be there if none of the uniform one is added."""
    if not isinstance(prior, Tensor):
        raise TypeError(f"prior must be a ColorPrior, a torch.Tensor or None, got {type(prior).__name__}")
    check_dtype("prior", prior)
    if prior.shape != (bins,):
        raise ValueError(f"prior must have shape (Q,) = ({bins},), got {tuple(prior.shape)}")
    least, total = prior.min().item(), prior.sum(dtype=torch.float64).item()
    if not (least >= 0 and abs(total - 1) <= 1e-2):
        raise ValueError(
            f"prior must be non-negative and sum to 1, got a smallest value of {least} and a sum of {total}"
        )
    if least == 0 and lam == 0:
        raise ValueError("lam must be positive for a prior with empty bins, whose weight is infinite, got 0")


def check_prior_counts(counts: Tensor) -> None:
    if not counts.any():
        raise ValueError("the prior must have counted a pixel, got an empty one")


def check_prior_bins(name: str, found: Any, count: int, wanted: Any) -> None:
    """A prior that has as many counts as bins, and the bins wanted."""
    if count != len(found):
        raise ValueError(f"{name} must hold {len(found)} bins, of grid {found.grid:g}, got {count}")
    if wanted is not None and found != wanted:
        raise ValueError(f"{name} must be a prior of {wanted}, got one of {found}")


def check_prior_file(name: str, text: bytes, form: str) -> tuple[float, list[int]]:
    """Grid and counts of a saved prior."""
    try:
        content = json.loads(text)[form]
        grid, bins, pixels, counts = (content[key] for key in ("grid", "bins", "pixels", "counts"))
        intact = (
            is_number(grid) and GRIDS[0] <= grid <= GRIDS[1] and len(counts) == bins and sum(counts) == pixels
        )
        intact = intact and all(is_int(count) and count >= 0 for count in counts) and pixels < 2**63
    except (ValueError, LookupError, TypeError):
        intact = False
    if not intact:
        raise ValueError(f"{name} must be a file that ColorPrior.save wrote, got another or a damaged one")
    if pixels == 0:
        raise ValueError(f"{name} must be a prior that has counted a pixel, got an empty one")
    return grid, counts


def is_eager() -> bool:
    """Whether no graph is being traced and no torch.func transform is at work."""
    return not torch.compiler.is_compiling() and not torch._C._functorch.maybe_current_level()


def is_eager_cpu(x: Tensor) -> bool:
    """Whether values can be read at once: no device to wait for either."""
    return x.device.type == "cpu" and is_eager() and not isinstance(x, FakeTensor)


def is_int(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_process_group(process_group: Any) -> Any:
    """A group of processes that this one is a member of."""
    if not torch.distributed.is_available():
        raise ValueError("process_group needs a PyTorch with torch.distributed, which this one is without")
    if isinstance(process_group, int) and process_group == torch.distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "process_group must be a group that this process is a member of, got NON_GROUP_MEMBER"
        )
    if process_group is None or not torch.distributed.is_initialized():
        raise ValueError(
            f"process_group must be a group of an initialised torch.distributed, got {process_group!r}: "
            "call torch.distributed.init_process_group() first; before that its group.WORLD is None"
        )
    if not isinstance(process_group, torch.distributed.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup, such as torch.distributed.group.WORLD, "
            f"got {process_group!r}"
        )
    return process_group


def check_no_disputes(disputes: Sequence[str]) -> None:
    """What the processes of a group must agree on, one line each."""
    if disputes:
        raise ValueError(f"the processes of process_group must agree, got {', and '.join(disputes)}")


def check_sums_fit(largest: int) -> None:
    """The integers of exact sums, of which the largest may not exceed 63 bits."""
    if largest >= 2**63:
        raise ValueError(
            "exact sums must come from fewer than 2**32 pixels per image and channel, of weights that sum to "
            f"less than 2**33, got an integer of {largest:.3g}, which does not fit into 63 bits"
        )


def check_real(name: str, x: Tensor) -> None:
    if x.dtype.is_complex:
        raise TypeError(f"{name} must be real, got {x.dtype}")


# ---- of histloss.compat


def check_samples(name: str, x: Any, ndim: int | tuple[int, ...], shape: str) -> None:
    """Real numbers, integers among them, of so many dimensions."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape {shape}, got {type(x).__name__}")
    if x.dtype not in DTYPES and (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"{name} must be float16, bfloat16, float32, float64 or of integers, got {x.dtype}")
    if x.ndim not in (ndim if isinstance(ndim, tuple) else (ndim,)):
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")


def check_centres(name: str, centres: Any, x: Tensor) -> torch.dtype:
    """Centres of bins for the samples x, without a gradient. Returns what the dtypes of both promote to."""
    check_samples(name, centres, 1, "(K,) of the bins' centres")
    check_constant(name, centres)
    check_host_or_device(name, centres, x.device)
    check_not_empty(name, centres)
    dtype = torch.promote_types(x.dtype, centres.dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"{name} must be of floating dtype for samples of integers, got {centres.dtype}")
    return dtype


def check_bandwidth_tensor(name: str, bandwidth: Any, x: Tensor) -> float:
    """A positive number in a tensor of no dimensions."""
    check_samples(name, bandwidth, 0, "()")
    check_constant(name, bandwidth)
    check_host_or_device(name, bandwidth, x.device)
    return check_positive(name, float(bandwidth))


def check_constant(name: str, x: Tensor) -> None:
    if x.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient: kornia's function gives one, this function does not; "
            "detach it, or call kornia's"
        )


def check_host_or_device(name: str, x: Tensor, device: torch.device) -> None:
    if x.device.type != "cpu":
        check_device(name, x, device)


def even_grid(
    name: str, centres: Tensor, alone: float, widths: tuple[float, float]
) -> tuple[int, float, float]:
    """How many centres there are, the first one, and their distance; `alone`, if there is only one.

    They may be off the even grid from the first to the last by float32's rounding of the largest, but by no
    more than a thousandth of the distance.
    """
    values = [float(value) for value in centres.tolist()]
    count, first = len(values), values[0]
    distance = (values[-1] - first) / (count - 1) if count > 1 else alone
    for k, value in enumerate(values):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {name}[{k}] = {value}")
    if not distance > 0:
        raise ValueError(f"{name} must ascend, got {first:g} for the first and {values[-1]:g} for the last")
    if not widths[0] <= distance <= widths[1]:
        raise ValueError(f"{name} must be {widths[0]} to {widths[1]} apart, got {distance:g}")
    slack = min(4 * torch.finfo(torch.float32).eps * max(map(abs, values)), 1e-3 * distance)
    for k, value in enumerate(values):
        even = first + k * distance
        if abs(value - even) > slack:
            raise ValueError(
                f"{name} must be evenly spaced, got {name}[{k}] = {value:g} where an even grid from the "
                f"first to the last has {even:g}; for other bins call kornia's function"
            )
    return count, first, distance


def check_batch(name: str, x: Any) -> None:
    """Samples (B, ...), at least one of at least one value."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape (B, ...), got {type(x).__name__}")
    check_dtype(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name} must have shape (B, ...) with two dimensions or more, got {tuple(x.shape)}")
    check_not_empty(name, x)


def check_batch_pair(x: Tensor, y: Any, names: tuple[str, str]) -> None:
    """Samples that pair with x value by value."""
    first, second = names
    check_batch(second, y)
    if y.shape != x.shape:
        raise ValueError(f"{second} must have the shape of {first}, {tuple(x.shape)}, got {tuple(y.shape)}")
    check_device(second, y, x.device)


def check_spread(name: str, lo: Tensor, hi: Tensor) -> None:
    """The least and greatest of finite values. As for weights, only in eager calls on the CPU."""
    if is_eager_cpu(lo) and not bool((hi - lo).isfinite().all()):
        raise ValueError(
            f"{name} must be finite, and so must the difference of its values, "
            f"got values from {lo.min().item():g} to {hi.max().item():g}"
        )


def check_options(name: str, options: Any, attributes: Sequence[str]) -> None:
    """An object that has these attributes, such as argparse.Namespace."""
    for attribute in attributes:
        if not hasattr(options, attribute):
            raise TypeError(f"{name} must have the attribute {attribute!r}, got {options!r}")


def check_pixel_total(pixels: int) -> None:
    """Of an accumulator: what its integers hold for certain, also where they are not looked at."""
    if pixels > 2**32:
        raise ValueError(f"an accumulator holds at most 2**32 pixels per image and channel, got {pixels}")


def check_updated(updated: bool, name: str, how: str = "") -> None:
    if not updated:
        raise RuntimeError(f"{name} needs an update() {how}".rstrip() + " before it")


def check_not_reduced(reduced: bool, name: str) -> None:
    if reduced:
        raise RuntimeError(
            f"{name} must come before all_reduce(), after which the sums are all processes': reset() first"
        )


def check_alike(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """What accumulators share: B and C, the dtype and the binning. None is not known yet."""
    for what, value in wanted.items():
        if value is not None and found.get(what) not in (None, value):
            raise ValueError(f"{name} must have {what} {value} as the accumulator has, got {found[what]}")


def check_histogram_gradient(grad: Any, histogram: Tensor) -> None:
    if not isinstance(grad, Tensor):
        raise TypeError(f"grad must be a torch.Tensor, got {type(grad).__name__}")
    check_dtype("grad", grad)
    check_device("grad", grad, histogram.device)
    if grad.shape != histogram.shape:
        raise ValueError(
            f"grad must have the shape of the histogram, {tuple(histogram.shape)}, got {tuple(grad.shape)}"
        )


def check_second_image(y: Any, joint: bool) -> None:
    if joint and y is None:
        raise TypeError("y must be an image that pairs with x for a joint histogram, got None")
    if not joint and y is not None:
        raise TypeError("y must be None unless joint=True")


def check_weight_total(total: Tensor) -> None:
    """(B, C), of what was accumulated."""
    if is_eager_cpu(total) and not bool((total > 0).all()):
        raise ValueError(f"weight must have a positive sum for every image and channel, got {total.tolist()}")


def check_no_transform(name: str) -> None:
    if torch._C._functorch.maybe_current_level() is not None:
        raise RuntimeError(f"{name} keeps what it is given, and so cannot be used in a torch.func transform")


def check_no_graph(*tensors: Tensor | None) -> None:
    if any(tensor is not None for tensor in tensors):
        raise RuntimeError(
            "an accumulator must hold no chunk that needs a gradient to be copied, pickled or saved, "
            "which keep none: update() it under torch.no_grad()"
        )


def check_accumulator_state(state: Any) -> None:
    keys = {"binning", "shape", "dtype", "pixels", "counts", "totals", "everywhere"}
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be what state_dict() gave, got {type(state).__name__}")
    if set(state) != keys:
        raise ValueError(f"state must have the keys {sorted(keys)}, got {sorted(map(str, state))}")
