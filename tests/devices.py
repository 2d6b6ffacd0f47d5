"""On which devices a test runs: marks beside the fixture `device`, and constants brought to the device."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

T = TypeVar("T")

on_cpu = pytest.mark.parametrize("device", ["cpu"], indirect=True)
on_cuda = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)


def here(value: T) -> T:
    """Parameters are made before a test and its device: the same, with tensors of the CPU brought there."""

    def move(leaf: object) -> object:
        on_cpu = isinstance(leaf, Tensor) and leaf.device.type == "cpu"
        return leaf.to(torch.get_default_device()) if on_cpu else leaf

    return tree_map(move, value)
