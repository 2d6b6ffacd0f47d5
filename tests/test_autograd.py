"""Derivatives of the public functions: finite differences, the reference, and every transform of PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.autograd import Function, forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import histloss
from asserters import assert_gradient, assert_value
from histloss import autograd, native, reference
from histloss.binning import BOUNDARIES, Binning

HALVES = (torch.float16, torch.bfloat16)
ops = torch.ops.histloss
pytestmark = [
    pytest.mark.usefixtures("device"),
    # PyTorch's own forward mode scripts its decompositions.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]

Inputs = tuple[Tensor, ...]
Map = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    info = native.backend_info()["cpu"]
    assert info["loaded"], info["reason"]


@dataclass(frozen=True)
class Case:
    """A public function, the tensors it is a function of, and the boundary of x; y has the next one."""

    function: str
    arguments: tuple[str, ...]
    boundary: str = "reflect"

    def __str__(self) -> str:
        return f"{self.function}({', '.join(self.arguments)}) {self.boundary}"

    def of(self, library: Any) -> Map:
        """The function of the tensors alone, from histloss or from histloss.reference."""
        keywords: dict[str, Any] = {"bins": 6, "bandwidth": 0.7, "boundary": self.boundary}
        if "y" in self.arguments:
            second = BOUNDARIES[(BOUNDARIES.index(self.boundary) + 1) % len(BOUNDARIES)]
            keywords = {
                "bins": (6, 9),
                "range": ((-1.0, 1.0), (0.0, 1.0)),
                "bandwidth": (0.7, 0.4),
                "boundary": (self.boundary, second),
            }
        function = getattr(library, self.function)
        return lambda *tensors: function(**dict(zip(self.arguments, tensors, strict=True)), **keywords)

    def inputs(self, *shape: int, dtype: torch.dtype = torch.float64) -> Inputs:
        """Pixels in and a little outside of the range; positive weights."""
        spans = {"x": (-1.2, 1.2), "y": (-0.1, 1.1), "weight": (0.2, 1.0)}
        shape = shape or (1, 2, 4, 5)
        return tuple(torch.empty(shape, dtype=dtype).uniform_(*spans[name]) for name in self.arguments)


SIGNATURES = (
    ("activation_maps", ("x",)),
    ("soft_histogram", ("x",)),
    ("soft_histogram", ("x", "weight")),
    ("joint_histogram", ("x", "y")),
    ("joint_histogram", ("x", "y", "weight")),
)
CASES = [Case(*signature, boundary) for signature in SIGNATURES for boundary in BOUNDARIES]
REFLECTED = [Case(*signature) for signature in SIGNATURES]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_signature = pytest.mark.parametrize("case", REFLECTED, ids=str)


def leaves(inputs: Inputs) -> Inputs:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)


def loss_of(function: Map) -> Map:
    """A scalar with an upstream gradient that is not constant."""
    return lambda *tensors: function(*tensors).square().sum()


def assert_same_derivatives(actual: Any, expected: Any) -> None:
    """The same tensors, none of which is zero: a transform that silently drops a term must not pass."""
    __tracebackhide__ = True
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert e.count_nonzero() > 0
        assert_gradient(a, e)


# ---- finite differences --------------------------------------------------------------------------


@each_case
def test_gradient_and_tangent_are_the_finite_differences(case: Case) -> None:
    assert gradcheck(case.of(histloss), leaves(case.inputs()), check_forward_ad=True, check_batched_grad=True)


@each_case
def test_second_derivatives_are_the_finite_differences(case: Case) -> None:
    assert gradgradcheck(
        case.of(histloss),
        leaves(case.inputs()),
        check_fwd_over_rev=True,
        check_batched_grad=True,
        fast_mode=True,
    )


# ---- torch.func ----------------------------------------------------------------------------------


def along(function: Map, inputs: Inputs) -> Map:
    """The derivative of a function along a fixed direction."""
    direction = tuple(tensor.flip(-1) for tensor in inputs)
    return lambda *tensors: jvp(function, tensors, direction)[1]


def batch(inputs: Inputs) -> Inputs:
    return tuple(torch.stack([tensor, 0.9 * tensor, tensor.flip(-1)]) for tensor in inputs)


TRANSFORMS: dict[str, Callable[[Map, tuple[int, ...], Inputs], Any]] = {
    "grad": lambda f, n, z: grad(loss_of(f), n)(*z),
    "jacrev": lambda f, n, z: jacrev(f, n)(*z),
    "jacfwd": lambda f, n, z: jacfwd(f, n)(*z),
    "jvp": lambda f, n, z: along(f, z)(*z),
    "hessian": lambda f, n, z: hessian(loss_of(f), n)(*z),
    "jacrev(jacrev)": lambda f, n, z: jacrev(jacrev(loss_of(f), n), n)(*z),
    "vmap": lambda f, n, z: vmap(f)(*batch(z)),
    "vmap of the last dimension of x": lambda f, n, z: vmap(
        f, in_dims=(-1, *[None] * (len(z) - 1)), out_dims=1
    )(torch.stack([z[0], 0.9 * z[0]], -1), *z[1:]),
    "vmap(vmap)": lambda f, n, z: vmap(vmap(f))(*batch(batch(z))),
    "vmap(grad)": lambda f, n, z: vmap(grad(loss_of(f), n))(*batch(z)),
    "vmap(hessian)": lambda f, n, z: vmap(hessian(loss_of(f)))(*batch(z)),
    "grad(vmap)": lambda f, n, z: grad(loss_of(vmap(f)), n)(*batch(z)),
    "jvp(jvp)": lambda f, n, z: along(along(f, z), z)(*z),
    "grad(jvp)": lambda f, n, z: grad(loss_of(along(f, z)), n)(*z),
    "jvp(jvp(grad))": lambda f, n, z: along(along(grad(loss_of(f), n), z), z)(*z),
    "jvp(grad(jvp))": lambda f, n, z: along(grad(loss_of(along(f, z)), n), z)(*z),
    "grad(jvp(grad of x))": lambda f, n, z: grad(loss_of(along(grad(loss_of(f)), z)), n)(*z),
    "grad(grad(grad of x))": lambda f, n, z: grad(loss_of(grad(loss_of(grad(loss_of(f))), n[-1])), n)(*z),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@each_case
def test_transforms_see_the_derivatives_of_the_reference(case: Case, transform: str) -> None:
    inputs = case.inputs(1, 2, 7)
    arguments = tuple(range(len(inputs)))
    actual, expected = (
        TRANSFORMS[transform](case.of(library), arguments, inputs) for library in (histloss, reference)
    )
    assert_same_derivatives(actual, expected)


class NativeCalls(TorchDispatchMode):
    """Records the native ops that run and their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "histloss":
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))


@each_signature
def test_vmap_is_one_native_call(case: Case) -> None:
    function, inputs = case.of(histloss), batch(case.inputs())
    with NativeCalls() as native_calls:
        vmap(grad(loss_of(function)))(*inputs)
    assert [name for name, _ in native_calls.calls] == [case.function, f"{case.function}_backward"]
    with NativeCalls() as native_calls, torch.no_grad():
        vmap(function)(*inputs)
    assert [name for name, _ in native_calls.calls] == [case.function]


@pytest.mark.parametrize("in_dims", list(itertools.product((0, 1, 2), repeat=3)))
def test_vmap_of_any_dimension_of_planes(in_dims: tuple[int, int, int]) -> None:
    axes = Binning(6), Binning(9)
    planes = [torch.rand(4, 3, 11).movedim(0, dim) for dim in in_dims]
    actual, expected = (
        vmap(lambda x, y, mass, joint=joint: joint(x, y, mass, *axes), in_dims)(*planes)
        for joint in (autograd.joint_histogram, reference.plane_joint)
    )
    assert_value(actual, expected)


# ---- torch.autograd ------------------------------------------------------------------------------


class NoGradient(Function):
    """The identity, whose backward says None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


UPSTREAM: dict[str, Map] = {
    "random": torch.randn_like,
    "of a sum": lambda result: torch.tensor(-1.7, dtype=result.dtype).expand_as(result),
    "transposed": lambda result: torch.randn_like(result.mT.contiguous()).mT,
    "strided": lambda result: torch.randn_like(result.repeat_interleave(2, -1))[..., ::2],
}


@pytest.mark.parametrize("upstream", UPSTREAM)
@each_signature
def test_any_upstream_gradient(case: Case, upstream: str) -> None:
    inputs = leaves(case.inputs())
    actual, expected = case.of(histloss)(*inputs), case.of(reference)(*inputs)
    above = UPSTREAM[upstream](actual)
    for a, e in zip(
        torch.autograd.grad(actual, inputs, above), torch.autograd.grad(expected, inputs, above), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-14)  # a sum's gradient may be zero


@each_signature
def test_no_upstream_gradient_is_a_gradient_of_zero(case: Case) -> None:
    inputs = leaves(case.inputs())
    gradients = torch.autograd.grad(NoGradient.apply(case.of(histloss)(*inputs)).sum(), inputs)
    assert all(gradient.count_nonzero() == 0 for gradient in gradients)


@each_signature
def test_only_the_gradients_that_are_needed_are_computed(case: Case) -> None:
    inputs, loss = case.inputs(), loss_of(case.of(histloss))
    every = values_and_gradients(loss, inputs)[1:]
    for needs in itertools.product((True, False), repeat=len(inputs)):
        if not any(needs):
            continue
        tensors = [t.clone().requires_grad_(need) for t, need in zip(inputs, needs, strict=True)]
        with NativeCalls() as native_calls:
            loss(*tensors).backward()
        for tensor, need, gradient in zip(tensors, needs, every, strict=True):
            assert torch.equal(tensor.grad, gradient) if need else tensor.grad is None
        needed = dict(zip(case.arguments, needs, strict=True))
        flags = {
            "activation_maps": (),
            "soft_histogram": (needed["x"], needed.get("weight", False)),
            "joint_histogram": (needed["x"], needed.get("y"), needed.get("weight", False)),
        }[case.function]
        arguments = dict(native_calls.calls)[f"{case.function}_backward"]
        assert arguments[len(arguments) - len(flags) :] == flags


@pytest.mark.parametrize("case", [case for case in REFLECTED if "weight" not in case.arguments], ids=str)
def test_only_inputs_are_saved(case: Case) -> None:
    inputs = leaves(case.inputs())
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()), lambda _: None):
        case.of(histloss)(*inputs)
    assert saved == [tensor.data_ptr() for tensor in inputs]


@each_signature
def test_backward_without_a_graph_is_seen_by_transforms(case: Case) -> None:
    """A first-order backward takes a short cut, which must not hide it from whoever maps or follows it."""
    inputs, functions = leaves(case.inputs()), [case.of(library) for library in (histloss, reference)]

    def batched(f: Map) -> Any:
        result = f(*inputs)
        above = torch.arange(2.0 * result.numel(), dtype=result.dtype).reshape(2, *result.shape)
        return torch.autograd.grad(result, inputs, above, is_grads_batched=True)

    def forward_over_reverse(f: Map) -> Any:
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(tensor, tensor.detach().flip(-1)) for tensor in inputs]
            gradients = torch.autograd.grad(loss_of(f)(*duals), inputs)
            return [forward_ad.unpack_dual(gradient).tangent for gradient in gradients]

    def after_vjp(f: Map) -> Any:
        result, pull_back = vjp(f, *(tensor.detach() for tensor in inputs))
        with torch.no_grad():
            return pull_back(2 * result)

    for derivative in (batched, forward_over_reverse, after_vjp):
        assert_same_derivatives(*map(derivative, functions))


@each_signature
def test_without_pixels(case: Case) -> None:
    inputs = leaves(case.inputs(2, 3, 0))
    if "weight" in case.arguments:
        inputs = inputs[:-1]
        case = Case(case.function, case.arguments[:-1])
    result = case.of(histloss)(*inputs)
    first = torch.autograd.grad(result.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), inputs)
    assert result.count_nonzero() == 0
    assert all(g.shape == (2, 3, 0) for g in (*first, *second))


# ---- half precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@each_case
def test_half_precision(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype=torch.float32)
    inputs = leaves(
        tuple(t.to(dtype) if n != "weight" else t for t, n in zip(inputs, case.arguments, strict=True))
    )
    exact = leaves(tuple(tensor.double() for tensor in inputs))
    actual, expected = case.of(histloss)(*inputs), case.of(reference)(*exact)
    assert actual.dtype == torch.float32
    assert_value(actual, expected)
    first, first_expected = (
        torch.autograd.grad(loss_of(lambda *_, r=r: r)(), z, create_graph=True)
        for r, z in ((actual, inputs), (expected, exact))
    )
    assert [g.dtype for g in first] == [tensor.dtype for tensor in inputs]
    assert_same_derivatives(first, first_expected)
    second, forward_over_reverse = (
        torch.autograd.grad(sum(g.float().square().sum() for g in first), inputs),
        along(grad(loss_of(case.of(histloss)), tuple(range(len(inputs)))), inputs)(*inputs),
    )
    for gradients in (second, forward_over_reverse):
        assert [g.dtype for g in gradients] == [tensor.dtype for tensor in inputs]
        assert all(g.isfinite().all() and g.count_nonzero() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_autocast_changes_nothing(device: torch.device, dtype: torch.dtype) -> None:
    case = Case("joint_histogram", ("x", "y"))
    inputs = leaves(case.inputs(1, 2, 1000, dtype=dtype))

    def values() -> list[Tensor]:
        joint = case.of(histloss)(*inputs)
        mi = histloss.mutual_information(joint, mode="mi")
        first = torch.autograd.grad(mi.sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.float().square().sum() for g in first), inputs)
        directional = along(case.of(histloss), tuple(z.detach() for z in inputs))(
            *(z.detach() for z in inputs)
        )
        return [joint, mi, *first, *second, directional]

    plain = values()
    with torch.autocast(device.type, torch.bfloat16):
        cast = values()
    assert cast[0].dtype == torch.float32
    for a, b in zip(cast, plain, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


# ---- graphs --------------------------------------------------------------------------------------


def values_and_gradients(loss: Map, inputs: Inputs) -> list[Tensor]:
    inputs = leaves(inputs)
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize("dynamic", [False, True], ids=("static", "dynamic"))
@each_signature
def test_compile(case: Case, dynamic: bool) -> None:
    torch._dynamo.reset()
    counters.clear()
    eager = loss_of(case.of(histloss))
    compiled = torch.compile(eager, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for pixels in (20, 31, 44) if dynamic else (20,):
        inputs = case.inputs(2, 3, pixels)
        assert_same_derivatives(values_and_gradients(compiled, inputs), values_and_gradients(eager, inputs))
    assert counters["stats"]["unique_graphs"] == 1


def test_compile_without_gradient() -> None:
    torch._dynamo.reset()
    case = Case("joint_histogram", ("x", "y"))
    function = case.of(histloss)
    inputs = case.inputs()
    assert torch.equal(
        torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs), function(*inputs)
    )


def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    (x,) = Case("soft_histogram", ("x",)).inputs()

    def loss(x: Tensor) -> Tensor:
        return histloss.soft_histogram(x.tanh(), bins=8).square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    assert_same_derivatives(values_and_gradients(compiled, (x,)), values_and_gradients(loss, (x,)))


@pytest.mark.parametrize("strict", [False, True], ids=("traced", "strict"))
@each_signature
def test_export(case: Case, strict: bool) -> None:
    class Module(torch.nn.Module):
        def forward(self, tensors: list[Tensor]) -> Tensor:
            return case.of(histloss)(*tensors)

    dynamic = {0: torch.export.Dim("images")}
    if "weight" not in case.arguments:  # a graph fixes the number of rows in which plane_mass sums a weight
        dynamic[2] = torch.export.Dim("pixels")
    inputs = list(case.inputs(2, 3, 20))
    exported = torch.export.export(
        Module(), (inputs,), dynamic_shapes=([dynamic] * len(inputs),), strict=strict
    )
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert getattr(ops, case.function).default in targets
    others = list(case.inputs(5, 3, 33 if 2 in dynamic else 20))
    assert torch.equal(exported.module()(others), case.of(histloss)(*others))


# ---- the raw ops ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:histloss.*an autograd kernel was not registered")  # nor should it be
@each_signature
def test_opcheck(case: Case) -> None:
    with NativeCalls() as native_calls:
        values_and_gradients(loss_of(case.of(histloss)), case.inputs())
    assert len(native_calls.calls) == 2
    for name, arguments in native_calls.calls:
        positions = [i for i, argument in enumerate(arguments) if isinstance(argument, Tensor)]
        for needs in itertools.product((False, True), repeat=len(positions)):
            arguments = list(arguments)
            for i, need in zip(positions, needs, strict=True):
                arguments[i] = arguments[i].detach().clone().requires_grad_(need)
            torch.library.opcheck(getattr(ops, name).default, arguments)
