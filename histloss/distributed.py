"""Histograms of pixels that are spread over the processes of a torch.distributed group.

Each process sums its own pixels as integers (see sums.py), and one all-reduce adds those of all processes.
Every process then has the same bits, those of one process with all pixels, wherever the pixels were cut.

The gradient needs no communication: every process has the same histogram and so the same loss, and its
backward gives the gradient of that one loss with respect to the process's own pixels, the same bits again.
Two cases need more:

- `DistributedDataParallel` averages the gradients of parameters over the processes, where they are to be
  added: multiply the loss by the number of processes.
- Where what follows the histogram differs from process to process, so do the losses. For the gradient of
  their sum pass the histogram through `share_gradient`.

What it costs on the wire: docs/distributed.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import checks
from .binning import Binning
from .sums import Sums, with_levels

__all__ = ["all_sum", "combine", "share_gradient"]

_CPU = torch.device("cpu")


def combine(process_group: Any, *axes: Binning, dtype: torch.dtype | None = None) -> Callable[[Sums], Sums]:
    """What adds the sums of all processes of a group: counts and totals in one all-reduce of int64.

    Every process of the group must call it, also one without pixels, with sums of as many planes and bins.
    Before the all-reduce the processes compare what they are about to add, by 32 bytes of each: if they
    disagree, each of them raises. Sums of one level and of two may meet: then all have two.

    The comparison goes through the group's backend for the CPU, such as gloo. A group that has none, such as
    one of NCCL alone, would have to wait for the GPU: there nothing is compared, what disagrees hangs or
    gives nonsense, and two levels are always sent.

    Args:
        process_group: a ``torch.distributed.ProcessGroup`` that this process is a member of, such as
            ``torch.distributed.group.WORLD``.
        axes: the bins of each axis, to be compared as well.
        dtype: of the histogram that is to come, to be compared as well.

    Returns:
        A function of the sums of this process's pixels, counts (L, P, K) or (L, P, Kx, Ky) and totals (L, P),
        whose result is the sums over all processes, the same bits on each of them.

    Raises:
        TypeError, ValueError: the group is none, torch.distributed is not initialised, this process is not a
            member. From the function, on every process: they disagree, with the ranks and the values that do,
            or the sums exceed 63 bits.
        RuntimeError: from the function, by torch.distributed: a process has died or has not come within the
            group's timeout.
    """
    group = checks.check_process_group(process_group)

    def all_reduce(sums: Sums) -> Sums:
        _, planes, *bins = sums.counts.shape
        levels = 2
        if compares(group):
            facts = {
                "function": "joint histogram" if len(bins) > 1 else "soft histogram",
                "B x C": planes,
                "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
                **{f"bins of {image}": count for image, count in zip("xy", bins, strict=False)},
                **facts_of(axes),
            }
            numbers, _ = exchange(group, [len(sums.totals), largest(sums)], facts)
            levels = max(number[0] for number in numbers)
            checks.check_sums_fit(sum(number[1] for number in numbers))
        return add_all(sums, levels, group)

    return all_reduce


def share_gradient(histogram: Tensor, process_group: Any) -> Tensor:
    """The histogram itself, whose gradient is the sum of those of all processes.

    It goes between a histogram over all processes and a loss that differs from one to the next, such as one
    with a target of its own: backward then gives each process the gradient of the sum of all losses with
    respect to its own pixels. Without it each would get that of its own loss. A loss that is the same
    everywhere must not pass through it: it would count as often as there are processes.

    The backward communicates: every process of the group must run it, and as often. Gradients are added in
    float64.

    Args:
        histogram: any tensor, of the same shape and dtype on all processes.
        process_group: as in :func:`combine`.

    Returns:
        The same values. Its gradient can be differentiated no further.

    Raises:
        TypeError, ValueError: an argument is not as described; from the backward, on every process, the
            gradients' shapes disagree (compared as in :func:`combine`).
    """
    group = checks.check_process_group(process_group)
    checks.check_instance("histogram", histogram, Tensor)
    checks.check_dtype("histogram", histogram)
    shared: Tensor = _ShareGradient.apply(histogram, group)  # type: ignore[no-untyped-call]
    return shared


def all_sum(tensor: Tensor, process_group: Any) -> Tensor:
    """The sum over all processes of a small tensor, such as a count of pixels: float64, without a gradient.

    The values of all ranks are gathered, and added in the same way on each of them to the same bits.

    Args:
        tensor: any shape, the same on all processes, any dtype but complex.
        process_group: as in :func:`combine`.

    Returns:
        The sum, float64, of the tensor's shape and on its device.

    Raises:
        TypeError, ValueError: an argument is not as described; on every process, the shapes disagree
            (compared as in :func:`combine`).
    """
    group = checks.check_process_group(process_group)
    checks.check_instance("tensor", tensor, Tensor)
    checks.check_real("tensor", tensor)
    if compares(group):
        exchange(group, [], {"function": "all_sum", "shape": [*tensor.shape]})
    value = tensor.detach().double().contiguous()
    return _gathered(value.flatten(), group).sum(0).reshape(value.shape)


class _ShareGradient(Function):
    @staticmethod
    def forward(ctx: Any, histogram: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return histogram.view_as(histogram)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if compares(ctx.group):
            exchange(ctx.group, [], {"function": "share_gradient", "shape": [*grad.shape]})
        total = grad.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.to(grad.dtype), None


# ---- what the accumulator shares -----------------------------------------------------------------


def add_all(sums: Sums, levels: int, group: Any) -> Sums:
    """The sums of all processes, which agree on their shapes and levels."""
    parts = [with_levels(part, levels) for part in sums]
    # A GPU tells by a negative total of weights that are none; added up, that might vanish.
    bad = (parts[1][0] < 0).to(torch.int64)
    parts = [parts[0], torch.where(bad > 0, 0, parts[1]), bad]
    packed = torch.cat([part.flatten() for part in parts])
    dist.all_reduce(packed, group=group)
    counts, totals, bad = (
        whole.reshape(part.shape)
        for whole, part in zip(packed.split([part.numel() for part in parts]), parts, strict=True)
    )
    return Sums(counts, torch.where(bad > 0, -1, totals))


def exchange(
    group: Any, numbers: Sequence[int], facts: Mapping[str, Any], device: torch.device = _CPU
) -> tuple[list[list[int]], dict[str, Any]]:
    """Tell all processes a few numbers, and facts on which they must agree: all ranks' numbers, the facts.

    A fact of None is one that this process does not know, and learns. A first gather takes a hash of the
    facts, and only where hashes differ, which all processes see, a second one the facts. Both are of as many
    bytes whatever the call: processes about to do different things meet here.
    """
    text = json.dumps(facts).encode()
    digest = int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)
    row = torch.tensor([digest, *numbers, *[0] * (_NUMBERS - len(numbers))], dtype=torch.int64, device=device)
    digests, *columns = _gathered(row, group).cpu().unbind(-1)
    found = torch.stack(columns[: len(numbers)], -1).tolist() if numbers else []
    if bool((digests == digests[0]).all()):
        return found, dict(facts)
    letters = torch.tensor([*text.ljust(_LETTERS)], dtype=torch.uint8, device=device)
    return found, _agreed([json.loads(bytes(row)) for row in _gathered(letters, group).tolist()])


_NUMBERS, _LETTERS = 3, 1024  # most of them, which all calls send


def _agreed(known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of all ranks, or an error that names those that differ."""
    agreed, disputes = {}, []
    for name in dict.fromkeys(name for facts in known for name in facts):
        ranks: dict[str, list[int]] = {}
        for rank, facts in enumerate(known):
            if facts.get(name) is not None:
                agreed[name] = facts[name]
                ranks.setdefault(str(_plain(facts[name])), []).append(rank)
        if len(ranks) > 1:
            values = "; ".join(f"{value} on {_ranks(on)}" for value, on in ranks.items())
            disputes.append(f"{name}: {values}")
    checks.check_no_disputes(disputes)
    return agreed


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _ranks(ranks: Sequence[int], most: int = 8) -> str:
    words = ", ".join(map(str, ranks[:most])) + (
        f" and {len(ranks) - most} more" if len(ranks) > most else ""
    )
    return f"rank{'s' * (len(ranks) > 1)} {words}"


def facts_of(axes: Sequence[Binning]) -> dict[str, Any]:
    """Each field of each axis."""
    facts: dict[str, Any] = {}
    for axis, image in zip(axes, "xy", strict=False):
        facts |= {
            f"bins of {image}": axis.bins,
            f"range of {image}": [axis.lo, axis.hi],
            f"bandwidth of {image}": axis.bandwidth,
            f"boundary of {image}": axis.boundary,
            f"kernel of {image}": axis.kernel,
            f"normalization of {image}": axis.normalization,
        }
    return facts


def largest(sums: Sums) -> int:
    """The largest integer of the sums by magnitude; 0, unknown, on a GPU, which would have to be awaited."""
    if not checks.is_eager_cpu(sums.counts) or sums.counts.numel() == 0:
        return 0
    return min(max(abs(int(bound)) for part in sums for bound in part.aminmax()), 2**63 - 1)


def compares(group: Any) -> bool:
    """Whether tensors of the CPU can be sent: to read what came does not wait for a device."""
    return "cpu:" in dist.get_backend_config(group)


def _gathered(row: Tensor, group: Any) -> Tensor:
    """Those of all ranks: (n,) -> (ranks, n)."""
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, row, group=group)
    return torch.stack(rows)
