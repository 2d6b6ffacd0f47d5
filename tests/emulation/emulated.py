"""The CUDA kernels on the CPU, for tensors: the ops of histloss's schemas by the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import emulated_kernels
import torch
from torch import Tensor

VARIANT = Path(emulated_kernels.__file__).parent.name  # plain, asan or tsan: see build.py

activation_maps: Any
activation_maps_backward: Any
soft_histogram: Any
soft_histogram_backward: Any
joint_histogram: Any
joint_histogram_backward: Any
soft_histogram_sums: Any
soft_histogram_sums_backward: Any
joint_histogram_sums: Any
joint_histogram_sums_backward: Any

seed, order, shared_bytes, scratch_bytes = (
    emulated_kernels.seed,
    emulated_kernels.order,
    emulated_kernels.shared_bytes,
    emulated_kernels.scratch_bytes,
)


def __getattr__(op: str) -> Any:
    function = getattr(emulated_kernels, op)

    def call(*arguments: Any) -> Any:
        results = function(*(to_array(a) if isinstance(a, Tensor) else a for a in arguments))
        return tuple(map(to_tensor, results)) if isinstance(results, tuple) else to_tensor(results)

    return call


def to_array(t: Tensor) -> Any:
    t = t.contiguous()
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


def to_tensor(array: Any) -> Tensor:
    t = torch.from_numpy(array)
    return t.view(torch.bfloat16) if t.dtype == torch.uint16 else t
