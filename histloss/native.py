"""The compiled libraries: loads them, says which are in use and why others are not, and tells PyTorch's
tracing what their ops return (fake kernels).

The ops, `torch.ops.histloss.*` as declared in csrc/ops.cpp, are private: `functional` checks their arguments
and `autograd` differentiates them.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any, TypedDict

import torch
from torch import Tensor

from . import reference
from .binning import Binning
from .checks import accumulation_dtype


class LibraryInfo(TypedDict):
    """The compiled library for the CPU."""

    loaded: bool
    path: str | None
    simd: str | None
    compiler: str | None
    reason: str | None


class CudaLibraryInfo(TypedDict):
    """The compiled library for CUDA."""

    loaded: bool
    path: str | None
    architectures: list[str] | None
    compiler: str | None
    runtime: str | None
    reason: str | None


class BackendInfo(TypedDict):
    """What :func:`backend_info` returns."""

    torch: str
    threads: int
    cpu: LibraryInfo
    cuda: CudaLibraryInfo


class ReferenceWarning(RuntimeWarning):
    """No native kernels fit a call: plain PyTorch does the work, hundreds of times slower."""


def backend_info() -> BackendInfo:
    """Which compiled libraries are loaded, from where and built by what; why not, where they are not.

    Two environment variables, read when the package is imported, change the answer:

    - ``HISTLOSS_NATIVE=0`` loads no library. Everything runs in plain PyTorch, without a warning.
    - ``HISTLOSS_SIMD=sse``, ``avx2`` or ``avx512`` chooses an instruction set; by default it is the widest
      that the processor runs.

    Returns:
        A dict with ``torch``, its version; ``threads``, the number PyTorch and the kernels use; and ``cpu``
        and ``cuda``, dicts that describe the two libraries:

        - ``loaded``: whether its kernels are in use.
        - ``path``: the file.
        - ``simd``, of ``cpu``: the instruction set in use, ``"generic"`` on processors other than x86-64.
        - ``architectures``, of ``cuda``: the GPUs it was built for, as in ``torch.cuda.get_arch_list()``.
        - ``compiler``: the version of the compiler that built it.
        - ``runtime``, of ``cuda``: the CUDA version of the runtime in it.
        - ``reason``: None, or why it is not loaded; then all above are None.
    """
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": {
            "loaded": _cpu is not None,
            "path": _cpu and _cpu.__file__,
            "simd": _cpu and _cpu.simd,
            "compiler": _cpu and _cpu.compiler,
            "reason": _cpu_reason,
        },
        "cuda": {
            "loaded": _cuda is not None,
            "path": _cuda and _cuda.__file__,
            "architectures": _cuda and _cuda.architectures.split(),
            "compiler": _cuda and _cuda.compiler,
            "runtime": _cuda and _cuda.runtime,
            "reason": _cuda_reason,
        },
    }


def available(x: Tensor) -> bool:
    """Whether there are kernels for the device of x. If not, it warns: once for each kind of device."""
    device = x.device.type
    if (device == "cpu" and _cpu is not None) or (device == "cuda" and _cuda is not None):
        return True
    _warn_reference(device)
    return False


def _warn_reference(device: str) -> None:
    if _DISABLED or device in _warned:
        return
    _warned.add(device)
    reason = {"cpu": _cpu_reason, "cuda": _cuda_reason}.get(
        device, f"there are no kernels for {device} tensors"
    )
    warnings.warn(f"histloss runs in plain PyTorch, which is slow: {reason}", ReferenceWarning, stacklevel=4)


# What torch.compiler.assume_constant_result does, which would import the whole compiler: a compiled function
# warns too, while it is traced.
_warn_reference._dynamo_marked_constant = True  # type: ignore[attr-defined]

_warned = {"meta"}
_DISABLED = os.environ.get("HISTLOSS_NATIVE") == "0"


def _load_cpu() -> tuple[Any, str | None]:
    """The CPU library as a module, or None and why there is none."""
    if _DISABLED:
        return None, "HISTLOSS_NATIVE=0 is set"
    try:
        library = importlib.import_module("histloss._C")
    except ModuleNotFoundError:
        return None, "histloss was installed without a working C++ compiler, or with HISTLOSS_BUILD=0"
    except ImportError as error:
        return None, f"{type(error).__name__}: {error}"
    wanted = os.environ.get("HISTLOSS_SIMD", library.simd)
    if wanted != library.simd:
        warnings.warn(
            f"HISTLOSS_SIMD={wanted} is unknown or not for this processor: {library.simd} is used",
            RuntimeWarning,
            stacklevel=2,
        )
    return library, None


def _load_cuda() -> tuple[Any, str | None]:
    """The CUDA library as a module, or None and why there is none."""
    if _DISABLED:
        return None, "HISTLOSS_NATIVE=0 is set"
    if torch.version.cuda is None:
        return None, f"this PyTorch, {torch.__version__}, is built without CUDA"
    if _cpu is None:
        return None, f"the CPU library, which declares the ops, is not loaded: {_cpu_reason}"
    try:
        return importlib.import_module("histloss._cuda"), None
    except ModuleNotFoundError:
        return None, (
            "histloss was installed without its CUDA kernels; where the CUDA toolkit's nvcc is, "
            "`HISTLOSS_CUDA=1 pip install --no-binary histloss --force-reinstall --no-deps histloss` "
            "builds them or says why not"
        )
    except ImportError as error:
        return None, f"{type(error).__name__}: {error}"


def _register_fakes() -> None:
    """What each op returns: shapes and dtypes only."""

    def gradient(needed: bool, like: Tensor, dtype: torch.dtype) -> Tensor:
        return like.new_empty(like.shape if needed else (0,), dtype=dtype)

    @torch.library.register_fake("histloss::activation_maps")
    def _(x: Tensor, bins: int, *axis: float) -> Tensor:
        planes, pixels = x.shape
        return x.new_empty((planes, bins, pixels), dtype=accumulation_dtype(x.dtype))

    @torch.library.register_fake("histloss::activation_maps_backward")
    def _(grad: Tensor, x: Tensor, *axis: float) -> Tensor:
        return gradient(True, x, x.dtype)

    @torch.library.register_fake("histloss::soft_histogram")
    def _(x: Tensor, mass: Tensor | None, bins: int, *axis: float) -> Tensor:
        return x.new_empty((x.shape[0], bins), dtype=accumulation_dtype(x.dtype))

    @torch.library.register_fake("histloss::soft_histogram_backward")
    def _(
        grad: Tensor,
        x: Tensor,
        mass: Tensor | None,
        bins: int,
        lo: float,
        hi: float,
        bandwidth: float,
        boundary: int,
        need_x: bool,
        need_mass: bool,
    ) -> tuple[Tensor, Tensor]:
        return gradient(need_x, x, x.dtype), gradient(need_mass, x, accumulation_dtype(x.dtype))

    @torch.library.register_fake("histloss::joint_histogram")
    def _(
        x: Tensor,
        y: Tensor,
        mass: Tensor | None,
        bins_x: int,
        lo_x: float,
        hi_x: float,
        bandwidth_x: float,
        boundary_x: int,
        bins_y: int,
        *rest_of_axis_y: float,
    ) -> Tensor:
        return x.new_empty((x.shape[0], bins_x, bins_y), dtype=accumulation_dtype(x.dtype))

    @torch.library.register_fake("histloss::joint_histogram_backward")
    def _(
        grad: Tensor, x: Tensor, y: Tensor, mass: Tensor | None, *axes_and_needs: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        need_x, need_y, need_mass = map(bool, axes_and_needs[-3:])
        return (
            gradient(need_x, x, x.dtype),
            gradient(need_y, y, y.dtype),
            gradient(need_mass, x, accumulation_dtype(x.dtype)),
        )

    def integers(like: Tensor, weight: Tensor | None, *axes: Any) -> tuple[Tensor, Tensor]:
        depth = reference.levels(like, weight, *(Binning(*axis[:4]) for axis in axes))
        shapes = ((depth, like.shape[0], *(axis[0] for axis in axes)), (depth, like.shape[0]))
        counts, totals = (like.new_empty(shape, dtype=torch.int64) for shape in shapes)
        return counts, totals

    @torch.library.register_fake("histloss::soft_histogram_sums")
    def _(x: Tensor, weight: Tensor | None, *axis: float) -> tuple[Tensor, Tensor]:
        return integers(x, weight, axis)

    @torch.library.register_fake("histloss::soft_histogram_sums_backward")
    def _(grad: Tensor, x: Tensor, weight: Tensor | None, *axis_and_needs: float) -> tuple[Tensor, Tensor]:
        need_x, need_weight = map(bool, axis_and_needs[-2:])
        return gradient(need_x, x, x.dtype), gradient(need_weight, x, accumulation_dtype(x.dtype))

    @torch.library.register_fake("histloss::joint_histogram_sums")
    def _(x: Tensor, y: Tensor, weight: Tensor | None, *axes: float) -> tuple[Tensor, Tensor]:
        return integers(x, weight, axes[: len(axes) // 2], axes[len(axes) // 2 :])

    @torch.library.register_fake("histloss::joint_histogram_sums_backward")
    def _(
        grad: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, *axes_and_needs: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        need_x, need_y, need_weight = map(bool, axes_and_needs[-3:])
        return (
            gradient(need_x, x, x.dtype),
            gradient(need_y, y, y.dtype),
            gradient(need_weight, x, accumulation_dtype(x.dtype)),
        )

    @torch.library.register_fake("histloss::nearest_bins")
    def _(points: Tensor, bins: Tensor, a: Tensor, b: Tensor, *rest: float) -> tuple[Tensor, Tensor, Tensor]:
        (images, _, pixels), neighbours = points.shape, int(rest[-2])
        weights = points.new_empty((images, neighbours, pixels))
        return (
            weights.new_empty(weights.shape, dtype=torch.int64),
            weights,
            points.new_empty((images, pixels)),
        )

    @torch.library.register_fake("histloss::color_cross_entropy")
    def _(x: Tensor, indices: Tensor, z: Tensor, v: Tensor, need_x: bool) -> tuple[Tensor, Tensor]:
        return v.new_empty(v.shape), gradient(need_x, x, x.dtype)


_cpu, _cpu_reason = _load_cpu()
_cuda, _cuda_reason = _load_cuda()
if _cpu is not None:
    _register_fakes()
