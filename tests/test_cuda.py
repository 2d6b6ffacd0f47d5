"""What only a GPU can show: streams, graphs, memory, waiting, equal bits. `pytest -m cuda` runs it.

That values and gradients are right on a GPU is shown by the tests that run on both devices.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils._pytree import tree_leaves

import histloss
from asserters import assert_agrees, assert_value
from devices import on_cuda
from every_case import LOSSES, scalar
from histloss import DeepHistLoss, EMDHistLoss, MIHistLoss, reference
from histloss.reference import EMD_FORMS, MI_MODES
from tolerances import Tolerance

pytestmark = [on_cuda, pytest.mark.usefixtures("device")]

Images = tuple[Tensor, Tensor]


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> Images:
    return torch.rand(shape).mul(2).sub(1).to(dtype), torch.rand(shape).mul(2).sub(1).to(dtype)


def constant(*shape: int) -> Images:
    return torch.full(shape, 0.613), torch.full(shape, -0.377)


def saturated(*shape: int) -> Images:
    return tuple(image.mul(3).clamp(-1, 1) for image in uniform(*shape))  # type: ignore[return-value]


CONTENTS = {"uniform": uniform, "constant": constant, "saturated": saturated}
Loss = Callable[[Tensor, Tensor], Tensor]


def every_loss() -> dict[str, Loss]:
    """Each as a function of two images."""

    def to_histogram(loss: EMDHistLoss) -> Loss:
        return lambda out, src: loss(out, histloss.soft_histogram(src, **loss.binning))

    losses: dict[str, Loss] = {f"emd {form}": to_histogram(EMDHistLoss(form=form)) for form in EMD_FORMS}
    for p in (1, 1.5, 2):
        loss = EMDHistLoss(boundary="cyclic", cyclic=True, p=p)
        losses[f"emd cyclic, p = {p}"] = to_histogram(loss)
    losses |= {f"mi {mode}": MIHistLoss(mode=mode) for mode in MI_MODES}
    losses["emd, gaussian"] = to_histogram(EMDHistLoss(kernel="gaussian"))
    losses["mi, bspline3 and triangular"] = MIHistLoss(32, kernel=("bspline3", "triangular"))
    for preset in ("paper", "official"):
        losses[f"DeepHist {preset}"] = deep_hist(preset)
    return losses


def deep_hist(preset: str = "paper") -> Loss:
    loss = DeepHistLoss(preset=preset)
    return lambda out, src: loss(out, src, histloss.soft_histogram(src), out.mean((2, 3))).total


each_loss = pytest.mark.parametrize("name", every_loss())
each_content = pytest.mark.parametrize("content", CONTENTS)


def results(loss: Loss, out: Tensor, src: Tensor) -> list[Tensor]:
    """Value and gradients."""
    inputs = out.detach().requires_grad_(), src.detach().requires_grad_()
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---- streams and graphs ----------------------------------------------------------------------------


@each_loss
def test_side_streams(name: str) -> None:
    """Everything runs on the current stream: behind work that is still making its inputs."""
    loss = every_loss()[name]
    out, src = uniform(2, 3, 128, 128)
    expected = results(loss, out, src)
    stream = torch.cuda.Stream()
    late = [torch.zeros_like(out), torch.zeros_like(src)]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles: tens of milliseconds
        for place, image in zip(late, (out, src), strict=True):
            place.copy_(image)
        found = results(loss, *late)
    stream.synchronize()
    assert_same_bits(found, expected)


@pytest.mark.parametrize("preset", ["paper", "official"])
@each_content
def test_graph_replay(content: str, preset: str) -> None:
    """Captured on uniform images, replayed on others, bit for bit as in eager mode."""
    loss = deep_hist(preset)
    out, src = (image.requires_grad_() for image in uniform(2, 3, 64, 64))

    def step() -> tuple[Tensor, Tensor, Tensor]:
        value = loss(out, src)
        return value.detach(), *torch.autograd.grad(value, (out, src))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        images = CONTENTS[content](2, 3, 64, 64)
        with torch.no_grad():
            out.copy_(images[0])
            src.copy_(images[1])
        graph.replay()
        assert_same_bits(list(captured), results(loss, *images))


@contextmanager
def warmed_up(step: Callable[[], object]) -> Iterator[torch.cuda.CUDAGraph]:
    """Captures what is done inside, after three steps on a stream beside the current one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        yield graph


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"PatchNCELoss"}))  # every replay draws other patches
def test_graph_replay_of_every_loss(name: str) -> None:
    case = LOSSES[name]
    loss, tensors = case.module(), [tensor.requires_grad_() for tensor in case.tensors((32, 32))]

    def step() -> list[Tensor]:
        values = tree_leaves(loss(*tensors))
        gradients = torch.autograd.grad(scalar(values), tensors, allow_unused=True)
        return [value.detach() for value in values] + [g for g in gradients if g is not None]

    with warmed_up(step) as graph:
        captured = step()
    for _ in range(2):
        with torch.no_grad():
            for place, tensor in zip(tensors, case.tensors((32, 32)), strict=True):
                place.copy_(tensor)
        graph.replay()
        found = [tensor.clone() for tensor in captured]
        assert_same_bits(found, step())


def test_a_training_step_in_a_graph() -> None:
    """Network, losses, backward and optimiser."""

    def train(in_a_graph: bool) -> list[Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Tanh())
        optimiser = torch.optim.Adam(network.parameters(), 1e-3, capturable=True)
        loss, (x, y) = deep_hist(), uniform(2, 3, 32, 32)

        def step() -> Tensor:
            optimiser.zero_grad()
            value = loss(network(x), y)
            value.backward()
            optimiser.step()
            return value.detach()

        with warmed_up(step) as graph:
            captured = step()
        values = []
        for _ in range(5):
            for place, image in zip((x, y), uniform(2, 3, 32, 32), strict=True):
                place.copy_(image)
            if in_a_graph:
                graph.replay()
            values.append(captured.clone() if in_a_graph else step())
        assert len({value.item() for value in values}) == len(values)
        return [torch.stack(values), *(p.detach() for p in network.parameters())]

    torch.testing.assert_close(train(True), train(False), rtol=1e-3, atol=1e-4)


# ---- determinism -----------------------------------------------------------------------------------


@each_content
@each_loss
def test_equal_bits_over_50_runs(name: str, content: str) -> None:
    loss = every_loss()[name]
    images = CONTENTS[content](2, 3, 200, 200)
    first = results(loss, *images)
    held = []
    for _ in range(50):
        held.append(torch.empty(1 + int(torch.randint(1 << 20, (), device="cpu"))))  # for other addresses
        assert_same_bits(results(loss, *images), first)


@each_content
def test_equal_bits_beside_other_work(content: str) -> None:
    """Blocks start in another order where another kernel holds part of the GPU."""
    loss, images = deep_hist(), CONTENTS[content](4, 3, 256, 256)
    first = results(loss, *images)
    other, a = torch.cuda.Stream(), torch.rand(2048, 2048)
    for _ in range(10):
        with torch.cuda.stream(other):
            a = (a @ a).tanh()
        assert_same_bits(results(loss, *images), first)


@each_content
def test_sums_do_not_depend_on_how_pixels_are_cut(content: str) -> None:
    """Into calls, and so into blocks: small tables in shared memory, large ones, wide kernels."""
    x, y = (image.reshape(6, -1) for image in CONTENTS[content](2, 3, 100, 100))
    for bins, bandwidth in ((30, 0.5), (300, 0.5), (30, 4.0)):
        axis = (bins, -1.0, 1.0, bandwidth, 1, 1, 0)  # reflect, gaussian
        whole = torch.ops.histloss.joint_histogram_sums(x, y, None, *axis, *axis)
        parts = [
            torch.ops.histloss.joint_histogram_sums(a, b, None, *axis, *axis)
            for a, b in zip(x.split(1234, 1), y.split(1234, 1), strict=True)
        ]
        for number, expected in enumerate(whole):
            assert torch.equal(torch.stack([part[number] for part in parts]).sum(0), expected)


@pytest.fixture
def only_deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@each_loss
@pytest.mark.usefixtures("only_deterministic")
def test_deterministic_algorithms_are_all_that_is_used(name: str) -> None:
    loss = every_loss()[name]
    images = uniform(2, 3, 32, 32)
    found = results(loss, *images)
    torch.use_deterministic_algorithms(False)
    assert_same_bits(found, results(loss, *images))


# ---- no waiting ------------------------------------------------------------------------------------


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("path")
@each_loss
def test_the_host_never_waits(name: str) -> None:
    loss = every_loss()[name]
    images = uniform(1, 3, 16, 16)
    results(loss, *images)  # loads libraries
    with no_synchronisation():
        results(loss, *images)


@pytest.mark.usefixtures("path")
def test_the_host_never_waits_for_a_weight() -> None:
    x, y = (image.requires_grad_() for image in uniform(1, 3, 16, 16))
    weight = torch.rand(1, 1, 16, 16).requires_grad_()
    target = torch.full((3, 256), 1 / 256)
    for _ in range(2):
        with no_synchronisation():
            value = MIHistLoss(64)(x, y, weight=weight) + EMDHistLoss()(x, target, weight=weight)
            first = torch.autograd.grad(value, (x, y, weight), create_graph=True)
            torch.autograd.grad(sum(g.square().sum() for g in first), (x, y, weight))


def test_no_values_are_checked() -> None:
    """That would be to wait. A weight without mass gives NaN, not an error, and never a plausible number."""
    x, _ = uniform(1, 3, 8, 8)
    with no_synchronisation():
        h = histloss.soft_histogram(x, bins=4, weight=torch.zeros(8, 8))
        EMDHistLoss(4)(x, torch.ones(3, 4))
    assert bool(h.isnan().all())


# ---- memory and size -------------------------------------------------------------------------------


def peak_memory(function: Callable[..., Tensor], shape: tuple[int, ...]) -> int:
    """Bytes at most allocated in forward and backward, beyond inputs, output and gradients."""
    inputs = [image.requires_grad_() for image in uniform(*shape)]
    upstream = torch.randn(*shape[:2], 256, 256)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = function(*inputs, bins=256)
    gradients = torch.autograd.grad(out, inputs, upstream)
    results = sum(t.nbytes for t in (out, *gradients))
    return torch.cuda.max_memory_allocated() - before - results


def test_peak_memory_is_a_hundredth_of_the_references() -> None:
    """16 x 3 x 256 x 256, K = 256. The reference's is in proportion to the batch: one image shows it."""
    peak_memory(histloss.joint_histogram, (1, 1, 8, 8))
    peak_memory(reference.joint_histogram, (1, 1, 8, 8))  # cuBLAS takes its workspace
    ours = peak_memory(histloss.joint_histogram, (16, 3, 256, 256))
    theirs = 16 * peak_memory(reference.joint_histogram, (1, 3, 256, 256))
    assert ours <= theirs / 100, f"{ours / 1e6:.1f} MB against {theirs / 1e6:.1f} MB"


PIXELS = 2**31 + 2**16  # of one plane


@pytest.mark.parametrize("weighted", [False, True])
def test_more_than_two_to_the_31_pixels_of_one_plane(weighted: bool) -> None:
    """Constant, but for the pixels that 32-bit offsets do not reach, so that the answer is known."""
    needed = PIXELS * (2 + (4 * 4 if weighted else 2)) + 2**30  # pixels, and weights or else a gradient
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")
    x = torch.full((1, 1, PIXELS), -0.5, dtype=torch.float16)
    x[..., 2**31 :] = 0.5
    weight = None
    if weighted:
        weight = torch.zeros(1, 1, PIXELS)
        weight[..., 2**31 :] = 1
    bins = {"bins": 16, "bandwidth": 0.4}
    share = 1.0 if weighted else 2**16 / PIXELS
    ends = torch.tensor([[[-0.5]], [[0.5]]], dtype=torch.float64)
    low, high = reference.soft_histogram(ends, **bins)[:, 0]
    for exact in (False, True):
        h = histloss.soft_histogram(x, **bins, weight=weight, exact=exact)
        assert_value(h[0, 0], (1 - share) * low + share * high)
    if not weighted:
        j = histloss.joint_histogram(x, x, **bins)
        assert_value(j[0, 0], (1 - share) * torch.outer(low, low) + share * torch.outer(high, high))
        (gradient,) = torch.autograd.grad(histloss.soft_histogram(x.requires_grad_(), **bins)[..., 11], [x])
        assert bool((gradient[..., : 2**31 : 2**20] == gradient[..., :1]).all())
        assert bool((gradient[..., 2**31 :] == gradient[..., -1:]).all())


def test_many_planes() -> None:
    """More than the 65,535 blocks that the second dimension of a grid has."""
    x, y = uniform(70_000, 1, 5)
    h, j = histloss.soft_histogram(x, bins=3), histloss.joint_histogram(x, y, bins=3)
    assert_value(h, reference.soft_histogram(x.double(), bins=3))
    assert_value(j, reference.joint_histogram(x.double(), y.double(), bins=3))


# ---- devices ---------------------------------------------------------------------------------------


def test_two_devices() -> None:
    """The kernels run where the tensors are, whatever the current device."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    images = uniform(2, 3, 64, 64)
    for preset in ("paper", "official"):
        expected = results(deep_hist(preset), *images)
        for current in (0, 1):
            with torch.cuda.device(current):
                found = results(deep_hist(preset), *(image.to("cuda:1") for image in images))
            assert all(t.device == torch.device("cuda:1") for t in found)
            assert_value(found[0], expected[0].double())


def test_mixed_devices_are_refused() -> None:
    x, y = uniform(1, 3, 4, 4)
    host = x.cpu()
    for call, name in (
        (lambda: histloss.joint_histogram(x, host), "y"),
        (lambda: histloss.soft_histogram(x, weight=host), "weight"),
        (lambda: histloss.emd(torch.ones(4), torch.ones(4, device="cpu")), "h2"),
        (lambda: EMDHistLoss(4)(x, torch.ones(3, 4, device="cpu")), "ref_hist"),
        (lambda: MIHistLoss()(x, host), "src"),
        (lambda: DeepHistLoss({"emd": 0, "mi": 0})(x, y, None, host), "fake_logits"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be on {x.device}, got cpu"):
            call()
    with pytest.raises(ValueError, match=f"y must be on cpu, got {x.device}"):
        histloss.joint_histogram(host, x)


def test_raw_ops_refuse_mixed_devices() -> None:
    """Whoever calls an op past the checks of Python gets an error, never garbage."""
    x = torch.rand(2, 50)
    axis = (8, -1.0, 1.0, 0.4, 1)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ops.histloss.joint_histogram(x, x.cpu(), None, *axis, *axis)


# ---- the rest of PyTorch ---------------------------------------------------------------------------


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@each_loss
def test_autocast_changes_nothing(name: str, low: torch.dtype) -> None:
    loss = every_loss()[name]
    images = uniform(2, 3, 32, 32)
    expected = results(loss, *images)
    with torch.autocast("cuda", dtype=low):
        found = results(loss, *images)
    assert_same_bits(found, expected)


@each_loss
def test_compile(name: str) -> None:
    loss = every_loss()[name]
    images = uniform(2, 3, 32, 32)
    found, expected = results(torch.compile(loss, fullgraph=True), *images), results(loss, *images)
    torch.testing.assert_close(found[0], expected[0])
    for gradient, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_compile_with_graphs(preset: str) -> None:
    """What mode="reduce-overhead" captures at the second call it replays from the third on."""
    loss = deep_hist(preset)
    compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        images = uniform(2, 3, 32, 32)
        torch.compiler.cudagraph_mark_step_begin()
        found = [tensor.clone() for tensor in results(compiled, *images)]
        expected = results(loss, *images)
        torch.testing.assert_close(found[0], expected[0])
        for gradient, other in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@each_loss
def test_gradcheck(name: str) -> None:
    images = tuple(image.mul(0.4).requires_grad_() for image in uniform(1, 1, 2, 3, dtype=torch.float64))
    assert gradcheck(every_loss()[name], images, atol=1e-6, fast_mode=True)


# A loss's gradient with respect to the histogram is large and smooth, and mostly cancels over a pixel's bins.
CHAIN = Tolerance(1e-4, 1e-4, 1e-4)


@each_loss
@each_content
def test_the_gpu_agrees_with_the_cpu(name: str, content: str) -> None:
    loss = every_loss()[name]
    images = CONTENTS[content](2, 3, 64, 64)
    found, expected = results(loss, *images), results(loss, *(image.double().cpu() for image in images))
    assert_value(found[0], expected[0], floor=10.0 if name.startswith("mi") else 1.0)
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        assert_agrees(gradient, wanted, CHAIN, floor=1e-5)


# ---- compute-sanitizer -----------------------------------------------------------------------------

TINY = """
import torch
import histloss
for bins, bandwidth in ((16, 0.4), (33, 2.0), (600, 0.4)):
    for boundary in ("reflect", "open", "cyclic"):
        for dtype in (torch.float32, torch.float16, torch.float64):
            x, y = (torch.rand(1, 2, 7, 19, device="cuda").to(dtype).requires_grad_() for _ in range(2))
            weight = torch.rand(7, 19, device="cuda").requires_grad_()
            options = {"bins": bins, "bandwidth": bandwidth, "boundary": boundary}
            for w in (None, weight):
                h = histloss.soft_histogram(x, **options, weight=w)
                j = histloss.joint_histogram(x, y, **options, weight=w)
                inputs = [x, y] if w is None else [x, y, w]
                torch.autograd.grad(h.square().sum() + j.square().sum(), inputs)
            torch.autograd.grad(histloss.activation_maps(x, **options).square().sum(), x)
for kernel, bins, bandwidth in (("gaussian", 16, 0.5), ("bspline3", 200, 1.0), ("triangular", 9, 12.0)):
    for boundary in ("reflect", "open", "cyclic"):
        for dtype in (torch.float32, torch.float64):
            x, y = (torch.rand(1, 2, 7, 19, device="cuda").to(dtype).requires_grad_() for _ in range(2))
            weight = torch.rand(7, 19, device="cuda").requires_grad_()
            options = {"bins": bins, "bandwidth": bandwidth, "boundary": boundary, "kernel": kernel}
            for w in (None, weight):
                h = histloss.soft_histogram(x, **options, weight=w)
                j = histloss.joint_histogram(x, y, **options, weight=w)
                inputs = [x, y] if w is None else [x, y, w]
                torch.autograd.grad(h.square().sum() + j.square().sum(), inputs)
            torch.autograd.grad(histloss.activation_maps(x, **options).square().sum(), x)
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer, which comes with the CUDA toolkit, is not on PATH")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor has bounds of its own
    done = subprocess.run(
        [*command, sys.executable, "-c", TINY], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
