"""Loading, backend_info and its environment variables, and the fake kernels beside the real ones."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import histloss
from histloss import native
from histloss.binning import Binning
from histloss.checks import DTYPES, accumulation_dtype

PLANES, PIXELS = 3, 17
AXIS_X, AXIS_Y = Binning(bins=5), Binning(7, 0.0, 1.0, 0.8, "cyclic")


def test_backend_info_describes_the_loaded_library() -> None:
    info = histloss.backend_info()
    assert info["torch"] == torch.__version__
    assert info["threads"] == torch.get_num_threads()
    cpu = info["cpu"]
    assert cpu["loaded"], cpu["reason"]
    assert cpu["reason"] is None
    assert cpu["path"] is not None
    assert Path(cpu["path"]).is_file()
    assert Path(cpu["path"]).parent == Path(histloss.__file__).parent
    assert cpu["simd"] in ("avx512", "avx2", "sse", "generic")
    assert cpu["compiler"]


def test_only_devices_with_kernels_are_available() -> None:
    assert native.available(torch.empty(0))
    assert not native.available(torch.empty(0, device="meta"))


def test_cuda_tensors_take_the_kernels_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_cuda", None)
    monkeypatch.setattr(native, "_cuda_reason", "a reason")
    monkeypatch.setattr(native, "_warned", set())
    with FakeTensorMode():
        x = torch.empty(1, 1, 8, device="cuda")
        with pytest.warns(native.ReferenceWarning, match="a reason"):
            assert not native.available(x)
        monkeypatch.setattr(native, "_cuda", object())
        assert native.available(x)
        h = histloss.soft_histogram(x, bins=4)
    assert (h.device, h.shape) == (x.device, (1, 1, 4))


def test_backend_info_says_why_there_are_no_cuda_kernels() -> None:
    cuda = histloss.backend_info()["cuda"]
    assert cuda["loaded"] == (cuda["reason"] is None)
    if torch.version.cuda is None:
        assert cuda["reason"] == f"this PyTorch, {torch.__version__}, is built without CUDA"
    if not cuda["loaded"]:
        assert {cuda["path"], cuda["compiler"], cuda["runtime"], cuda["architectures"]} == {None}


REPORT = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, histloss
    h = [histloss.soft_histogram(torch.zeros(1, 1, 4), bins=3).tolist() for _ in range(2)]
print(json.dumps({
    "info": histloss.backend_info(), "histograms": h,
    "warnings": [(type(w.message).__name__, str(w.message)) for w in caught],
}))
"""


def report(**environment: str) -> Any:
    """What a new process says: its backend_info, the same histogram twice, and the warnings on the way."""
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_histloss_native_0_takes_the_reference_path_without_a_warning() -> None:
    here, other = report(), report(HISTLOSS_NATIVE="0")
    assert here["info"]["cpu"]["loaded"]
    assert other["info"]["cpu"] == {
        "loaded": False,
        "path": None,
        "simd": None,
        "compiler": None,
        "reason": "HISTLOSS_NATIVE=0 is set",
    }
    assert other["warnings"] == []
    torch.testing.assert_close(torch.tensor(other["histograms"]), torch.tensor(here["histograms"]))


def test_histloss_simd_narrows_the_instruction_set() -> None:
    narrowest = "generic" if native.backend_info()["cpu"]["simd"] == "generic" else "sse"
    narrow = report(HISTLOSS_SIMD=narrowest)
    assert narrow["info"]["cpu"]["simd"] == narrowest
    assert narrow["warnings"] == []


def test_unknown_histloss_simd_is_named_in_a_warning() -> None:
    odd = report(HISTLOSS_SIMD="avx1024")
    assert odd["info"]["cpu"]["loaded"]
    [(kind, message)] = odd["warnings"]
    assert kind == "RuntimeWarning"
    assert "HISTLOSS_SIMD=avx1024" in message


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_cpu", None)
    monkeypatch.setattr(native, "_cpu_reason", "a reason")
    monkeypatch.setattr(native, "_warned", set())


@pytest.mark.usefixtures("no_library")
def test_a_missing_library_warns_once_with_the_reason() -> None:
    x = torch.rand(1, 1, 8)
    with pytest.warns(native.ReferenceWarning, match="a reason"):
        h = histloss.soft_histogram(x, bins=4)
    torch.testing.assert_close(h.sum(), torch.tensor(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(histloss.soft_histogram(x, bins=4), h)


@pytest.mark.usefixtures("no_library")
def test_a_compiled_function_warns_too() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def double_if_native(x: Tensor) -> Tensor:
        return 2 * x if native.available(x) else x

    with pytest.warns(native.ReferenceWarning, match="a reason"):
        assert double_if_native(torch.ones(1)).item() == 1


# ---- fake kernels -----------------------------------------------------------------------------------


def codes(axis: Binning) -> tuple[int, float, float, float, int]:
    return axis.bins, axis.lo, axis.hi, axis.bandwidth, axis.code


def activation_maps(x: Tensor, y: Tensor, mass: Tensor | None) -> list[Tensor]:
    maps = torch.ops.histloss.activation_maps(x, *codes(AXIS_X))
    return [maps, torch.ops.histloss.activation_maps_backward(maps, x, *codes(AXIS_X))]


def soft_histogram(x: Tensor, y: Tensor, mass: Tensor | None) -> list[Tensor]:
    h = torch.ops.histloss.soft_histogram(x, mass, *codes(AXIS_X))
    needs = itertools.product((False, True), (False, True) if mass is not None else (False,))
    backward = torch.ops.histloss.soft_histogram_backward
    return [h, *itertools.chain(*(backward(h, x, mass, *codes(AXIS_X), *need) for need in needs))]


def joint_histogram(x: Tensor, y: Tensor, mass: Tensor | None) -> list[Tensor]:
    axes = (*codes(AXIS_X), *codes(AXIS_Y))
    j = torch.ops.histloss.joint_histogram(x, y, mass, *axes)
    needs = itertools.product((False, True), (False, True), (False, True) if mass is not None else (False,))
    backward = torch.ops.histloss.joint_histogram_backward
    return [j, *itertools.chain(*(backward(j, x, y, mass, *axes, *need) for need in needs))]


def sums_codes(axis: Binning) -> tuple[float, ...]:
    return *codes(axis), 1, 2


def soft_histogram_sums(x: Tensor, y: Tensor, mass: Tensor | None) -> list[Tensor]:
    sums = torch.ops.histloss.soft_histogram_sums(x, mass, *sums_codes(AXIS_X))
    grad = sums[0][0].to(accumulation_dtype(x.dtype))
    needs = itertools.product((False, True), (False, True) if mass is not None else (False,))
    backward = torch.ops.histloss.soft_histogram_sums_backward
    return [*sums, *itertools.chain(*(backward(grad, x, mass, *sums_codes(AXIS_X), *need) for need in needs))]


def joint_histogram_sums(x: Tensor, y: Tensor, mass: Tensor | None) -> list[Tensor]:
    axes = (*sums_codes(AXIS_X), *sums_codes(AXIS_Y))
    sums = torch.ops.histloss.joint_histogram_sums(x, y, mass, *axes)
    grad = sums[0][0].to(accumulation_dtype(x.dtype))
    needs = itertools.product((False, True), (False, True), (False, True) if mass is not None else (False,))
    backward = torch.ops.histloss.joint_histogram_sums_backward
    wide = torch.ops.histloss.soft_histogram_sums(x, mass, 7, 0.0, 1.0, 3.0, 0, 0, 0)
    return [*sums, *wide, *itertools.chain(*(backward(grad, x, y, mass, *axes, *need) for need in needs))]


def color_cross_entropy(x: Tensor, y: Tensor, mass: Tensor | None) -> list[Tensor]:
    v = x.to(accumulation_dtype(x.dtype))
    z, indices = v.unsqueeze(1), torch.zeros_like(x, dtype=torch.int64).unsqueeze(1)
    op = torch.ops.histloss.color_cross_entropy
    return [*op(x.unsqueeze(1), indices, z, v, True), *op(x.unsqueeze(1), indices, z, v, False)]


def nearest_bins(x: Tensor, y: Tensor, mass: Tensor | None) -> list[Tensor]:
    a = torch.stack((x, y), 1).to(accumulation_dtype(x.dtype))
    bins = torch.zeros_like(a, dtype=torch.int64)
    return list(torch.ops.histloss.nearest_bins(a, bins, a, a, 0.0, 0.0, 1.0, 2, 1.0))


@pytest.mark.parametrize("with_mass", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "call",
    [
        activation_maps,
        soft_histogram,
        joint_histogram,
        soft_histogram_sums,
        joint_histogram_sums,
        color_cross_entropy,
        nearest_bins,
    ],
)
def test_fake_kernels_return_what_the_real_ones_do(
    call: Callable[[Tensor, Tensor, Tensor | None], list[Tensor]], dtype: torch.dtype, with_mass: bool
) -> None:
    # Transposed, so that a fake that keeps its input's strides is found out.
    x, y, mass = (torch.rand(PIXELS, PLANES, dtype=dtype).T for _ in range(3))
    inputs = (x, y, mass.to(accumulation_dtype(dtype)) if with_mass else None)
    with FakeTensorMode() as mode:
        fake = call(*(t if t is None else mode.from_tensor(t) for t in inputs))
    real = call(*inputs)
    assert any(t.numel() for t in real)
    assert list(map(layout, fake)) == list(map(layout, real))


def layout(t: Tensor) -> tuple[Any, ...]:
    return tuple(t.shape), t.stride(), t.dtype, t.device


def test_every_op_has_a_fake_kernel() -> None:
    ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("histloss::")]
    assert len(ops) == 12
    for name in ops:
        assert torch._library.simple_registry.singleton.find(name).fake_impl.kernel is not None, name
