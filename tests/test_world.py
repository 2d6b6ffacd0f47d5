"""The rest of PyTorch around every public loss and function: copies, containers, traces, tensors without
values, memory layouts, gradient modes, autocast, threads and processes. tests/test_compile.py goes on.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import histloss
from asserters import assert_value
from devices import on_cpu
from every_case import (
    CASES,
    FUNCTIONS,
    HISTOGRAMS,
    LOSSES,
    SPATIAL,
    Case,
    results,
    same_bits,
    scalar,
    values,
)
from histloss import (
    ColorBins,
    DeepHistLoss,
    EMDHistLoss,
    MIHistLoss,
    RebalancedColorLoss,
    TotalVariationLoss,
    activation_maps,
    emd,
    joint_histogram,
    mutual_information,
    soft_histogram,
)
from histloss.color import hsv_to_rgb, lab_to_rgb, rgb_to_hsv, rgb_to_lab, rgb_to_yuv, yuv_to_rgb

pytestmark = pytest.mark.usefixtures("device")
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_loss = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
PARAMETERS = {"PatchNCELoss", "RebalancedColorLoss"}  # these have some, or buffers


@on_cpu
def test_every_public_name_has_a_case() -> None:
    public = {name: getattr(histloss, name) for name in histloss.__all__}
    losses = {
        name for name, value in public.items() if isinstance(value, type) and issubclass(value, nn.Module)
    }
    assert losses - {"AdversarialLoss"} == {name.split()[0] for name in LOSSES}
    functions = {name for name, value in public.items() if callable(value) and not isinstance(value, type)}
    functions |= {name for name in dir(histloss.color) if "_to_" in name and name[0] != "_"}
    assert functions - {"backend_info"} == {name.split()[0] for name in FUNCTIONS} - {"decode"}


# ---- copies and containers -------------------------------------------------------------------------


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@each_loss
def test_a_copy_is_the_same_loss(case: Case) -> None:
    loss, tensors = case.module(), case.tensors()
    expected, file = results(loss, tensors), io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    restored = case.module()
    restored.load_state_dict(torch.load(file))
    for other in (restored, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), saved(loss)):
        assert same_bits(results(other, tensors), expected)
        assert repr(other) == repr(loss)


@each_loss
def test_what_modules_are_cast_to_does_not_matter(case: Case, device: torch.device) -> None:
    """The dtype of the arithmetic is that of the images."""
    loss, tensors = case.module(), case.tensors()
    expected = results(loss, tensors)
    exact = not list(loss.state_dict())
    for cast in (
        copy.deepcopy(loss).double(),
        copy.deepcopy(loss).half(),
        copy.deepcopy(loss).to(device, torch.bfloat16),
        copy.deepcopy(loss).to(memory_format=torch.channels_last).eval(),
    ):
        found = results(cast, tensors)
        assert found[0].dtype == torch.float32
        if exact:
            assert same_bits(found, expected)
        else:  # parameters or weights are rounded
            torch.testing.assert_close(found[0], expected[0], rtol=2e-2, atol=0)


def test_losses_in_containers() -> None:
    losses = nn.ModuleDict({name.replace(" ", "_"): case.make() for name, case in LOSSES.items()})
    kept = {key.split(".")[0] for key in losses.state_dict()}
    assert kept == PARAMETERS
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh())
    whole = nn.Sequential(network, nn.ModuleList([TotalVariationLoss()])[0])
    (x,) = LOSSES["TotalVariationLoss"].tensors()
    assert torch.equal(whole(x), TotalVariationLoss()(network(x)))
    (gradient,) = torch.autograd.grad(whole.double()(x.double()), network[0].weight)
    assert gradient.dtype == torch.float64
    assert bool(gradient.any())


# ---- graphs of Python ------------------------------------------------------------------------------


class LossesAreLeaves(fx.Tracer):
    """Their checks look at tensors, which a trace has none of."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).__module__.startswith("histloss.") or super().is_leaf_module(m, module_qualified_name)


class Network(nn.Module):
    """Some arithmetic before losses of all kinds, and after."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)
        self.deep = DeepHistLoss(emd=EMDHistLoss(12), mi=MIHistLoss(8))
        self.variation = TotalVariationLoss()
        self.colors = RebalancedColorLoss(bins=ColorBins(50))
        self.gan = histloss.GANLoss(histloss.LSGANLoss())
        self.patches = histloss.PatchNCELoss([3], 16, 4)
        self.variance = histloss.ColorVarianceLoss()

    def forward(self, x: Tensor, y: Tensor, target: Tensor, logits: Tensor, ab: Tensor) -> Tensor:
        out = self.layer(x).tanh()
        terms = self.deep(out, y, target, out.mean((2, 3)))
        several = self.variation(out) + self.variance(out) + self.patches([out], [y]) + self.gan(out, y)[0]
        return terms.total + 0.1 * terms.emd + several + self.colors(logits * out.mean(), ab)


@on_cpu
def test_losses_are_leaves_of_a_trace() -> None:
    network = Network()
    traced = fx.GraphModule(network, LossesAreLeaves().trace(network))
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert called == {name for name, _ in network.named_children()}
    x, y, target, _ = LOSSES["DeepHistLoss"].tensors()
    tensors = [x, y, target, *LOSSES["RebalancedColorLoss"].tensors()]
    expected = results(network, tensors)
    assert same_bits(results(traced, tensors), expected)
    assert same_bits(results(copy.deepcopy(traced), tensors), expected)


fx.wrap("soft_histogram")
fx.wrap("joint_histogram")
fx.wrap("activation_maps")
fx.wrap("emd")
fx.wrap("mutual_information")
fx.wrap("rgb_to_yuv")
fx.wrap("yuv_to_rgb")
fx.wrap("rgb_to_hsv")
fx.wrap("hsv_to_rgb")
fx.wrap("rgb_to_lab")
fx.wrap("lab_to_rgb")


class Functions(nn.Module):
    """All of them, one upon the other."""

    def forward(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        x = lab_to_rgb(rgb_to_lab(hsv_to_rgb(rgb_to_hsv(yuv_to_rgb(rgb_to_yuv(0.5 * x))))))
        h = soft_histogram(x, bins=12, weight=weight + 1)
        mean = activation_maps(y, bins=12, boundary="cyclic").mean((-1, -2))
        information = mutual_information(joint_histogram(x, y, bins=(8, 7)), mode="mi")
        return emd(h, mean, p=1) - information


@on_cpu
def test_functions_are_nodes_of_a_trace() -> None:
    traced = fx.symbolic_trace(Functions())
    called = {node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"}
    assert called >= {name.split()[0] for name in FUNCTIONS} - {"decode"}
    tensors = HISTOGRAMS["joint_histogram"].tensors()
    assert same_bits(results(traced, tensors), results(Functions(), tensors))


# ---- tensors without values ------------------------------------------------------------------------


def layout(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


class WithState(nn.Module):
    """A module that runs on a copy of its parameters and buffers."""

    def __init__(self, module: nn.Module, convert: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.state = {
            name: convert(tensor.detach()).requires_grad_(tensor.requires_grad)
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        }
        self.module = [module]  # a list, so that its parameters are not this one's

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        return (tensor for tensor in self.state.values() if tensor.requires_grad)

    def forward(self, *tensors: Tensor) -> Any:
        return functional_call(self.module[0], self.state, tensors)


@on_cpu
@each_case
def test_meta_tensors(case: Case) -> None:
    loss, tensors = case.module(), case.tensors()
    found = results(copy.deepcopy(loss).to("meta"), [tensor.to("meta") for tensor in tensors])
    assert all(tensor.is_meta for tensor in found)
    assert list(map(layout, found)) == list(map(layout, results(loss, tensors)))


@on_cpu
@pytest.mark.parametrize("low", [False, True], ids=("float32", "bfloat16"))
@each_case
def test_fake_tensors(case: Case, low: bool) -> None:
    """Of any dtype; that nothing reads a value shows in that there is none."""
    loss, tensors = case.module(), case.tensors(dtype=torch.bfloat16 if low else torch.float32)
    expected = list(map(layout, results(loss, tensors)))
    mode = FakeTensorMode()
    fake, inputs = WithState(loss, mode.from_tensor), list(map(mode.from_tensor, tensors))
    with mode:
        assert list(map(layout, results(fake, inputs))) == expected
    assert list(map(layout, results(loss, tensors))) == expected  # nothing of it has stayed


@on_cpu
@pytest.mark.parametrize("mode", [torch.inference_mode, FakeTensorMode], ids=("inference", "fake"))
def test_what_is_made_at_a_first_call_serves_every_other(mode: Callable[[], Any]) -> None:
    """Tables of colour bins are kept from the first call on, whatever mode that is in."""
    bins = ColorBins({torch.inference_mode: 51.0, FakeTensorMode: 52.0}[mode])  # that nobody has asked for

    def gradient() -> Tensor:
        x, ab = torch.randn(2, len(bins), *SPATIAL, requires_grad=True), torch.zeros(2, 2, *SPATIAL)
        loss = RebalancedColorLoss(bins=bins)(x, ab) + bins.decode(x).sum()
        return torch.autograd.grad(loss, x)[0] if loss.requires_grad else loss

    with mode():
        gradient()
    found = gradient()
    assert type(found) is Tensor
    assert bool(found.isfinite().all() and found.any())


# ---- memory ----------------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t,
    "transposed": lambda t: t.mT.contiguous().mT,
    "sliced": lambda t: torch.stack([t, t + 5], -1)[..., 0],
    "permuted": lambda t: t.permute(*range(t.ndim)[::-1]).contiguous().permute(*range(t.ndim)[::-1]),
    "with an offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("view", VIEWS)
@each_case
def test_memory_layout(case: Case, view: str) -> None:
    """Histograms are the same bit for bit; other sums are added up in the order of memory."""
    loss, tensors = case.module(), case.tensors()
    expected, views = results(loss, tensors), list(map(VIEWS[view], tensors))
    found = results(loss, views)
    if case in HISTOGRAMS.values():
        assert same_bits(found, expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    leaves = [tensor.detach().requires_grad_() for tensor in views]
    scalar(values(loss, leaves)).backward()
    for leaf in leaves:
        if leaf.grad is not None and view != "sliced":  # of which PyTorch keeps no holes
            sizes = [size > 1 for size in leaf.shape]  # a stride of one value means nothing
            strides = zip(leaf.grad.stride(), leaf.stride(), sizes, strict=True)
            assert all(found == wanted for found, wanted, counts in strides if counts)


@each_case
def test_expanded_tensors(case: Case) -> None:
    """One row of pixels for all rows: read in place or copied, and its gradient is the sum of theirs."""
    loss = case.module()
    rows = [t[..., :1, :] if t.ndim == 4 else t for t in case.tensors()]
    expand = [t.shape if t.ndim == 4 else None for t in case.tensors()]

    class Expanded(nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            pairs = zip(tensors, expand, strict=True)
            return loss(*(t if shape is None else self.bring(t.expand(shape)) for t, shape in pairs))

        def bring(self, t: Tensor) -> Tensor:
            return t

    class Copied(Expanded):
        def bring(self, t: Tensor) -> Tensor:
            return t.contiguous()

    found, expected = results(Expanded(), rows), results(Copied(), rows)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# ---- modes of autograd -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@each_case
def test_without_gradients(case: Case, mode: Callable[[], Any]) -> None:
    loss, tensors = case.module(), [tensor.requires_grad_() for tensor in case.tensors()]
    expected = values(loss, tensors)
    with mode():
        found = values(loss, tensors)
    assert same_bits(found, expected)
    assert not any(tensor.requires_grad for tensor in found)
    assert scalar(expected).requires_grad


class Checkpointed(nn.Module):
    def __init__(self, module: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.module, self.reentrant = module, reentrant

    def forward(self, *tensors: Tensor) -> Any:
        return checkpoint(self.module, *tensors, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@each_case
def test_checkpoints(case: Case, reentrant: bool) -> None:
    def gradients(module: nn.Module) -> list[Tensor]:
        tensors = [tensor.clone().requires_grad_() for tensor in inputs]
        module.zero_grad()
        scalar(values(module, tensors)).backward()
        return [t.grad for t in (*tensors, *module.parameters()) if t.grad is not None]

    loss, inputs = case.module(), case.tensors()
    expected = [gradient.clone() for gradient in gradients(loss)]
    assert same_bits(gradients(Checkpointed(loss, reentrant)), expected)


def of_values(loss: nn.Module) -> Callable[..., Tensor]:
    return lambda *tensors: scalar(values(loss, tensors))


@each_case
def test_gradients_of_each_image_at_once(case: Case) -> None:
    """vmap(grad): the global generator's numbers are the same for all."""
    loss, tensors = of_values(case.module()), case.tensors(dtype=torch.float64)
    arguments = tuple(range(len(tensors)))
    batches = [torch.stack([tensor, tensor.flip(-1)]) for tensor in tensors]
    found = vmap(grad(loss, arguments), randomness="same")(*batches)
    each = [grad(loss, arguments)(*(batch[i] for batch in batches)) for i in range(2)]
    for a, b in zip(found, map(torch.stack, zip(*each, strict=True)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert any(bool(a.any()) for a in found)


@each_case
def test_tangents_are_those_of_the_gradients(case: Case) -> None:
    loss, tensors = of_values(case.module()), tuple(case.tensors(dtype=torch.float64))
    directions = tuple(torch.randn_like(tensor) for tensor in tensors)
    value, tangent = jvp(loss, tensors, directions)
    gradients = grad(loss, tuple(range(len(tensors))))(*tensors)
    expected = torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]).sum()
    assert_value(value, loss(*tensors))
    torch.testing.assert_close(tangent, expected, rtol=1e-9, atol=1e-12)


def test_parameters_from_outside() -> None:
    case = LOSSES["PatchNCELoss"]
    loss, other, tensors = case.module(), case.module(), case.tensors()
    found = results(WithState(loss, lambda tensor: tensor), tensors)
    assert same_bits(found, results(loss, tensors))
    found = results(WithState(loss, lambda tensor: tensor + 0.1), tensors)
    with torch.no_grad():
        for to, parameter in zip(other.parameters(), loss.parameters(), strict=True):
            to.copy_(parameter + 0.1)
    assert same_bits(found, results(other, tensors))


# ---- autocast --------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_a_network_under_autocast(device: torch.device, low: torch.dtype) -> None:
    """The network's images are half precision; their histograms and losses are what they are without."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1))
    x, _, target, _ = LOSSES["DeepHistLoss"].tensors((12, 10))
    names = [name for name, case in LOSSES.items() if next(iter(case.arguments)) in ("out", "x", "rgb")]
    assert len(names) > 6

    def losses(out: Tensor) -> list[Tensor]:
        arguments = {"out": out, "x": out, "rgb": out, "src": out.flip(0), "target": out.flip(0)}
        arguments |= {"ref_hist": target, "weight": torch.ones_like(out[:, :1])}
        arguments |= {"fake_scores": out.mean((2, 3)), "fake_logits": out.mean((2, 3))}
        found = [soft_histogram(out, bins=12), joint_histogram(out, out.flip(0), bins=8)]
        for name in names:
            tensors = [arguments[argument] for argument in LOSSES[name].arguments]
            tensors = [target[0] if "cyclic" in name and t is target else t for t in tensors]
            found += values(LOSSES[name].module(), tensors)
        return found

    with torch.autocast(device.type, low):
        out = network(x).tanh()
        found = losses(out)
    assert out.dtype == low
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in found)
    assert same_bits(found, losses(out))
    (gradient,) = torch.autograd.grad(scalar(found), out, retain_graph=True)
    assert gradient.dtype == low
    assert same_bits([gradient], torch.autograd.grad(scalar(losses(out)), out, retain_graph=True))
    of_parameters = torch.autograd.grad(out, list(network.parameters()), gradient)
    assert all(bool(each.isfinite().all() and each.any()) for each in of_parameters)


# ---- threads and processes -------------------------------------------------------------------------


@on_cpu
def test_python_threads_at_once(restore_threads: None) -> None:
    """Each in a thread of its own, forward and backward again and again, with changing numbers of threads."""
    work = {name: (case.module(), case.tensors()) for name, case in CASES.items()}
    del work["PatchNCELoss"]  # the generator is everybody's
    work |= {f"large {name}": (case.module(), case.tensors((150, 200))) for name, case in HISTOGRAMS.items()}
    expected = {name: results(*each) for name, each in work.items()}
    wrong: list[str] = []
    start = threading.Barrier(len(work))

    def repeat(name: str) -> None:
        start.wait()
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                if not same_bits(results(*work[name]), expected[name]):
                    wrong.append(name)
        except Exception as error:
            wrong.append(f"{name}: {error!r}")

    threads = [threading.Thread(target=repeat, args=(name,), daemon=True) for name in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@on_cpu
@pytest.mark.parametrize("name", HISTOGRAMS)
def test_another_number_of_threads_for_the_backward(name: str, restore_threads: None) -> None:
    case = HISTOGRAMS[name]
    loss, tensors = case.module(), [tensor.requires_grad_() for tensor in case.tensors((150, 200))]
    found = []
    for forward, backward in ((1, 1), (2, 1), (1, 3), (3, 2)):
        torch.set_num_threads(forward)
        value = values(loss, tensors)
        torch.set_num_threads(backward)
        found.append([*value, *torch.autograd.grad(scalar(value), tensors)])
    assert all(same_bits(other, found[0]) for other in found[1:])


class Histograms(Dataset[tuple[Tensor, Tensor]]):
    """Each item is a histogram, and its gradient, both made where it is asked for."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = torch.linspace(-1, 1, 3 * 150 * 200).mul(i + 1).sin().reshape(1, 3, 150, 200).requires_grad_()
        h = soft_histogram(x, bins=12)
        return h.detach()[0], torch.autograd.grad(h.square().sum(), x)[0][0]


def with_joint(items: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """A batch, and a histogram of it."""
    h, gradient = (torch.stack(each) for each in zip(*items, strict=True))
    x = gradient / gradient.abs().amax()
    return [h, gradient, joint_histogram(x, x.flip(0), bins=8)]


@on_cpu
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader(start: str, restore_threads: None) -> None:
    """Also those forked from a process whose threads have run the kernels."""
    torch.set_num_threads(2)
    data = Histograms()
    expected = [with_joint([data[i], data[i + 1]]) for i in (0, 2)]
    loader = DataLoader(
        data,
        batch_size=2,
        num_workers=2 if start == "fork" else 1,
        collate_fn=with_joint,
        multiprocessing_context=start,
        timeout=120,
    )
    for found, wanted in zip(loader, expected, strict=True):
        assert same_bits(found, wanted)


def leave(expected: list[Tensor]) -> None:
    """What a forked process does: it says by its exit code whether it finds the same."""
    torch.set_num_threads(1)  # PyTorch's own threads are not there after a fork
    case = HISTOGRAMS["DeepHistLoss"]
    torch.manual_seed(0)
    raise SystemExit(0 if same_bits(results(case.module(), case.tensors((150, 200))), expected) else 3)


@on_cpu
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_after_threads(restore_threads: None) -> None:
    torch.set_num_threads(2)
    case = HISTOGRAMS["DeepHistLoss"]
    torch.manual_seed(0)
    expected = results(case.module(), case.tensors((150, 200)))
    process = multiprocessing.get_context("fork").Process(target=leave, args=(expected,))
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
        pytest.fail("it hangs")
    assert process.exitcode == 0
