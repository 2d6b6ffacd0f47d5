"""The native ops made differentiable: to any order, backward and forward, under torch.func and torch.compile.

Each op sums, over the pixels of a plane, a product with one factor per input: the activation maps of x, those
of y, the mass. (`activation_maps` is the product before the sum.) All its derivatives follow from that:

- the gradient, by the native backward op;
- the tangent, by the product rule in plain PyTorch. It is what forward mode asks for; the gradient is its
  adjoint, so it is also the derivative of the gradient with respect to the incoming gradient;
- the curvature, the Hessian times a direction, by the product rule again. A Hessian is symmetric, so it is
  both the backward and the forward derivative of the gradient. PyTorch itself differentiates on from there.

The native ops have no derivative of their own, which forward mode would silently take to be zero: nothing but
this module calls them.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import reference, sums
from .binning import BOUNDARIES, KERNELS, Binning
from .checks import accumulation_dtype
from .sums import Sums

_native = torch.ops.histloss


def activation_maps(x: Tensor, axis: Binning) -> Tensor:
    """Pi_k(x): (P, N) -> (P, K, N)."""
    maps: Tensor = _value(_Call(_ACTIVATION_MAPS, (axis,)), x)
    return maps


def soft_histogram(x: Tensor, mass: Tensor | None, axis: Binning) -> Tensor:
    """sum_x m Pi_k(x), where m is the mass or else 1 / N: (P, N) -> (P, K)."""
    histogram: Tensor = _value(_Call(_SOFT_HISTOGRAM, (axis,)), x, mass)
    return histogram


def joint_histogram(x: Tensor, y: Tensor, mass: Tensor | None, axis_x: Binning, axis_y: Binning) -> Tensor:
    """sum_x m Pi_k(x) Pi_l(y), where m is the mass or else 1 / N: two (P, N) -> (P, Kx, Ky)."""
    joint: Tensor = _value(_Call(_JOINT_HISTOGRAM, (axis_x, axis_y)), x, y, mass)
    return joint


def soft_sums(
    x: Tensor, weight: Tensor | None, axis: Binning, combine: Callable[[Sums], Sums] | None = None
) -> tuple[Tensor, Tensor]:
    """sum_x w Pi_k(x) and the total of w, both exact and float64: (P, N) -> (P, K), (P,).

    `combine` may add other sums to these; gradients are those of this x and weight. The total has none.
    """
    value, total = _value(_Call(_SOFT_SUMS, (axis,), combine=combine), x, weight)
    return value, total


def joint_sums(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    axis_x: Binning,
    axis_y: Binning,
    combine: Callable[[Sums], Sums] | None = None,
) -> tuple[Tensor, Tensor]:
    """The same of w Pi_k(x) Pi_l(y): two (P, N) -> (P, Kx, Ky), (P,)."""
    value, total = _value(_Call(_JOINT_SUMS, (axis_x, axis_y), combine=combine), x, y, weight)
    return value, total


# ---- what sets the ops apart ---------------------------------------------------------------


class _Op(NamedTuple):
    """An op by its call and inputs and, as a function of its factors, in plain PyTorch.

    The factors are a (P, Kx, N) of x, b (P, Ky, N) of y, and m (P, 1, N) or a number. `inner` is the inner
    product <grad, product(factors)> split into the share of each pixel, (P, N). Sums give a total as
    well, and are not divided by it: without a mass, m is 1 and not 1 / N.
    """

    inputs: int
    forward: Callable[..., Any]
    backward: Callable[..., Sequence[Tensor]]
    product: Callable[..., Tensor]
    inner: Callable[..., Tensor]
    has_total: bool = False


def _forward_sums(call: _Call, sum_up: Callable[..., Sums], inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
    found = sum_up(*inputs, *call.axes)
    if call.combine is not None:
        found = call.combine(found)
    return sums.to_real(found.counts), sums.to_real(found.totals)


_ACTIVATION_MAPS = _Op(
    inputs=1,
    forward=lambda call, x: _native.activation_maps(x, *_numbers(call), KERNELS.index(call.axes[0].kernel)),
    backward=lambda call, grad, x: (  # x always needs it
        _native.activation_maps_backward(grad, x, *_numbers(call), KERNELS.index(call.axes[0].kernel)),
    ),
    product=lambda a: a,
    inner=lambda grad, a: (grad * a).sum(-2),
)
_SOFT_HISTOGRAM = _Op(
    inputs=2,
    forward=lambda call, *inputs: _native.soft_histogram(*inputs, *_numbers(call)),
    backward=lambda call, *inputs: _native.soft_histogram_backward(*inputs, *_numbers(call), *call.needs[:2]),
    product=lambda a, m: (a * m).sum(-1),
    inner=lambda grad, a, m: (grad.unsqueeze(-1) * a * m).sum(-2),
)
_JOINT_HISTOGRAM = _Op(
    inputs=3,
    forward=lambda call, *inputs: _native.joint_histogram(*inputs, *_numbers(call)),
    backward=lambda call, *inputs: _native.joint_histogram_backward(
        *inputs, *_numbers(call), *call.needs[:3]
    ),
    product=lambda a, b, m: reference.matmul(a * m, b.mT),
    inner=lambda grad, a, b, m: (a * reference.matmul(grad, b) * m).sum(-2),
)
_SOFT_SUMS = _SOFT_HISTOGRAM._replace(
    forward=lambda call, *inputs: _forward_sums(call, sums.soft_sums, inputs),
    backward=lambda call, *inputs: sums.soft_gradient(*inputs, *call.axes, *call.needs[:2]),
    has_total=True,
)
_JOINT_SUMS = _JOINT_HISTOGRAM._replace(
    forward=lambda call, *inputs: _forward_sums(call, sums.joint_sums, inputs),
    backward=lambda call, *inputs: sums.joint_gradient(*inputs, *call.axes, *call.needs[:3]),
    has_total=True,
)


class _Call(NamedTuple):
    """An op, the axis of each of its images and, for the gradient, which inputs need one."""

    op: _Op
    axes: tuple[Binning, ...]
    needs: tuple[bool, ...] = ()
    combine: Callable[[Sums], Sums] | None = None


def _numbers(call: _Call) -> list[float]:
    """The axes as the native schemas spell them, up to the kernel."""
    return [number for axis in call.axes for number in (*axis[:4], BOUNDARIES.index(axis.boundary))]


# ---- the product rule in plain PyTorch -----------------------------------------------------------


def _factors(call: _Call, inputs: Sequence[Any], orders: int) -> list[Sequence[Any]]:
    """The factor of each input and its derivatives of every order below `orders`."""
    factors: list[Sequence[Any]] = [
        [reference.plane_maps(image, axis, order) for order in range(orders)]
        for image, axis in zip(inputs, call.axes, strict=False)
    ]
    if len(factors) < call.op.inputs:
        mass, pixels = inputs[len(factors)], inputs[0].shape[-1]
        share = 1.0 if call.op.has_total else 1 / max(pixels, 1)
        factors.append((share if mass is None else mass.unsqueeze(-2), 1.0, 0.0))
    return factors


def _tangent(call: _Call, inputs: Sequence[Any], direction: Sequence[Any]) -> Tensor:
    """The derivative of the op along a direction; None is a step of zero."""
    factors = _factors(call, inputs, orders=2)
    values = [factor[0] for factor in factors]
    terms = [
        call.op.product(*values[:i], factors[i][1] * step.unsqueeze(-2), *values[i + 1 :])
        for i, step in enumerate(direction)
        if step is not None
    ]
    return reduce(operator.add, terms)


def _curvature(
    call: _Call, grad: Tensor, inputs: Sequence[Any], direction: Sequence[Any], needs: Sequence[bool]
) -> list[Any]:
    """The derivative of the op's gradient along a direction, for the inputs that need it."""
    factors = _factors(call, inputs, orders=3)

    def second(i: int, j: int) -> Tensor:
        return call.op.inner(grad, *(factor[(k == i) + (k == j)] for k, factor in enumerate(factors)))

    def row(i: int) -> Any:
        terms = [second(i, j) * step for j, step in enumerate(direction) if step is not None]
        return reduce(operator.add, terms).to(inputs[i].dtype)

    return [row(i) if need else None for i, need in enumerate(needs)]


# ---- the autograd functions ----------------------------------------------------------------------


class _PlaneFunction(Function):
    """What the functions share: their arguments are a call, then tensors of planes (P, ...) or None."""

    def __init_subclass__(cls) -> None:
        """Keep the signature of forward, which PyTorch would work out anew, for 9 us, at every call."""
        super().__init_subclass__()
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], call: _Call, *tensors: Tensor | None) -> Any:
        """Make the mapped dimension part of the planes."""

        def fold(tensor: Tensor | None, dim: int | None) -> Tensor | None:
            if tensor is None:
                return None
            mapped = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return mapped.flatten(0, 1)

        def unfold(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            return tensor.reshape(info.batch_size, tensor.shape[0] // info.batch_size, *tensor.shape[1:])

        result = cls.apply(call, *map(fold, tensors, in_dims[1:]))  # type: ignore[no-untyped-call]
        return (unfold(result) if isinstance(result, Tensor) else tuple(map(unfold, result))), 0


class _Value(_PlaneFunction):
    """The op, as torch.compile can trace it: without forward mode."""

    @staticmethod
    def forward(call: _Call, first: Tensor, second: Tensor | None, third: Tensor | None) -> Any:
        inputs = (first, second, third)[: call.op.inputs]
        return call.op.forward(call, *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _PlaneFunction.setup_context(ctx, inputs, output)
        if ctx.call.op.has_total:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        call = ctx.call._replace(needs=ctx.needs_input_grad[1:])
        inputs = ctx.saved_tensors
        return None, *_gradient(call, grad.to(accumulation_dtype(inputs[0].dtype)), *inputs)


class _EagerValue(_Value):
    @staticmethod
    def jvp(ctx: Any, _: None, *direction: Tensor | None) -> Any:
        with _outer_forward_mode(ctx) as inputs:
            tangent = _tangent(ctx.call, inputs, direction)
            return (tangent.double(), None) if ctx.call.op.has_total else tangent


class _Gradient(_PlaneFunction):
    """The gradient of the op, None for an input that needs none; without forward mode."""

    @staticmethod
    def forward(
        call: _Call, grad: Tensor, first: Tensor, second: Tensor | None, third: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        inputs = (first, second, third)[: call.op.inputs]
        gradients = call.op.backward(call, grad, *inputs)
        return tuple(gradient if need else None for gradient, need in zip_longest(gradients, call.needs))

    @staticmethod
    def backward(ctx: Any, *direction: Tensor | None) -> Any:
        grad, *inputs = ctx.saved_tensors
        _, grad_needs, *needs = ctx.needs_input_grad
        tangent = _tangent(ctx.call, inputs, direction) if grad_needs else None
        return None, tangent, *_curvature(ctx.call, grad, inputs, direction, needs)


class _EagerGradient(_Gradient):
    @staticmethod
    def jvp(ctx: Any, _: None, grad_step: Tensor, *direction: Tensor | None) -> Any:
        with _outer_forward_mode(ctx) as (grad, *inputs):
            by_grad = _gradient(ctx.call, grad_step, *inputs)
            by_inputs = _curvature(ctx.call, grad, inputs, direction, ctx.call.needs)
            return tuple(None if a is None else a + b for a, b in zip(by_grad, by_inputs, strict=True))


@contextmanager
def _outer_forward_mode(ctx: Any) -> Iterator[Any]:
    """The saved tensors without their own tangents, in a jvp that an outer forward mode can see through.

    PyTorch turns all forward modes off during a jvp: to an outer one its result would be a constant.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        yield [None if saved is None else forward_ad.unpack_dual(saved).primal for saved in ctx.saved_tensors]


def _value(call: _Call, x: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Any:
    return _apply(_Value, _EagerValue, call, x, second, third)


def _gradient(call: _Call, grad: Tensor, *inputs: Tensor | None) -> tuple[Any, ...]:
    gradients: tuple[Any, ...] = _apply(_Gradient, _EagerGradient, call, grad, *inputs)
    return gradients


def _apply(function: type[_PlaneFunction], eager: type[_PlaneFunction], *arguments: Any) -> Any:
    if torch.compiler.is_compiling():
        return function.apply(*arguments)  # type: ignore[no-untyped-call]
    if (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0  # inside a dual_level
    ):
        return eager.apply(*arguments)  # type: ignore[no-untyped-call]
    return function.forward(*arguments)  # nothing to record, as in a first-order backward: in half the time
