"""A whole training step as one graph, and losses as exported programs. What tests/test_world.py begins."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.export import Dim, export
from torch.func import functional_call, grad_and_value
from torch.optim.adam import adam

from asserters import assert_agrees
from devices import on_cpu
from every_case import CASES, HISTOGRAMS, results, same_bits, values
from histloss import DeepHistLoss, EMDHistLoss, MIHistLoss, TotalVariationLoss
from tolerances import TOLERANCES

pytestmark = pytest.mark.usefixtures("device", "fresh")


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


# ---- a training step -------------------------------------------------------------------------------


class Trainer:
    """A small network, its losses and its Adam, whose state is all in the tensors of a step's arguments."""

    def __init__(self, dtype: torch.dtype, low: torch.dtype | None = None) -> None:
        torch.manual_seed(0)
        self.network = self.make_network().to(dtype)
        self.dtype, self.low = dtype, low
        self.emd, self.mi, self.variation = EMDHistLoss(16), MIHistLoss(8), TotalVariationLoss()
        official = {"emd": EMDHistLoss(16, form="norm"), "mi": MIHistLoss(8, mode="conditional_entropy")}
        self.deep = DeepHistLoss(preset="official", **official)
        self.parameters = {name: p.detach() for name, p in self.network.named_parameters()}
        self.averages, self.squares = ([torch.zeros_like(p) for p in self.parameters.values()] for _ in "ab")
        self.steps = [torch.zeros((), dtype=torch.float64) for _ in self.parameters]

    def make_network(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Tanh())

    def loss(self, parameters: dict[str, Tensor], x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.low or torch.bfloat16, enabled=self.low is not None):
            out = functional_call(self.network, parameters, (x,))
            deep = self.deep(out, x, target, out.mean((2, 3)), weight=weight).total
            color, structure = self.emd(out, target, weight=weight), self.mi(out, x)
            return deep + color + 0.1 * structure + self.variation(out)

    def step(self, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        gradients, loss = grad_and_value(self.loss)(self.parameters, x, target, weight)
        adam(
            list(self.parameters.values()),
            [gradients[name] for name in self.parameters],
            self.averages,
            self.squares,
            [],
            self.steps,
            foreach=False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=0.01,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        return loss

    def train(self, step: Callable[..., Tensor]) -> list[Tensor]:
        """The loss of each step, and the parameters after all of them."""
        torch.manual_seed(1)
        losses = []
        for _ in range(3):
            x, weight = (torch.rand(2, n, 8, 10).to(self.dtype) for n in (3, 1))
            losses.append(step(2 * x - 1, torch.rand(2, 3, 16).softmax(-1).to(self.dtype), weight))
        assert losses[0].isfinite()
        assert losses[0] != losses[1]
        return [torch.stack(losses), *self.parameters.values()]


class LittleTrainer(Trainer):
    """Fewer kernels to compile."""

    def make_network(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh())

    def loss(self, parameters: dict[str, Tensor], x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        out = functional_call(self.network, parameters, (x,))
        return self.emd(out, target, weight=weight) + self.mi(out, x)


def trained(make: Callable[[], Trainer], **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """By a compiled step, and in eager mode."""
    compiled, eager = make(), make()
    begin = [p.clone() for p in eager.parameters.values()]
    found = compiled.train(torch.compile(compiled.step, fullgraph=True, **options))
    expected = eager.train(eager.step)
    assert counters["stats"]["unique_graphs"] == 1
    assert not any(torch.equal(p, before) for p, before in zip(expected[1:], begin, strict=True))
    return found, expected


def test_a_training_step_is_one_graph() -> None:
    """Network, losses with weights, backward and optimiser."""
    found, expected = trained(lambda: Trainer(torch.float64), backend="aot_eager")
    for a, b in zip(found, expected, strict=True):
        assert_agrees(a, b, TOLERANCES[torch.float64].gradient)


def test_a_training_step_under_autocast_is_one_graph() -> None:
    """Other sums of the network's gradients may round to other bfloat16, which moves Adam a little."""
    found, expected = trained(lambda: Trainer(torch.float32, torch.bfloat16), backend="aot_eager")
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_training_step_with_inductor() -> None:
    found, expected = trained(lambda: LittleTrainer(torch.float32))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_one_graph_for_images_of_any_size() -> None:
    case = HISTOGRAMS["DeepHistLoss"]
    loss = case.module()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for spatial in ((6, 8), (7, 9), (12, 5)):
        tensors = case.tensors(spatial, torch.float64)
        for a, b in zip(results(compiled, tensors), results(loss, tensors), strict=True):
            assert_agrees(a, b, TOLERANCES[torch.float64].gradient)
    assert counters["stats"]["unique_graphs"] == 1


# ---- exported programs -----------------------------------------------------------------------------

STATIC = ("decode", "RebalancedColorLoss")  # which take the logits part by part, as many as there are


def export_case(name: str) -> tuple[nn.Module, torch.export.ExportedProgram]:
    """For any number of images."""
    loss, tensors = CASES[name].module(), CASES[name].tensors()
    images = Dim("images", min=2)
    batch: list[dict[int, Any]] = [{} if len(t) != 2 or name in STATIC else {0: images} for t in tensors]
    return loss, export(loss, tuple(tensors), dynamic_shapes={"tensors": tuple(batch)})


@pytest.mark.parametrize("name", CASES)
def test_export(name: str) -> None:
    loss, exported = export_case(name)
    tensors = CASES[name].tensors()
    if name not in STATIC:
        tensors = [torch.cat([t, t.flip(-1), t]) if len(t) == 2 else t for t in tensors]
    assert same_bits(values(exported.module(), tensors), values(loss, tensors))
    native = {"soft_histogram", "joint_histogram", "activation_maps"}
    called = {
        str(node.target).split(".")[1] for node in exported.graph.nodes if "histloss." in str(node.target)
    }
    assert bool(called & native) == (name.split()[0] in HISTOGRAMS)


@on_cpu
def test_an_exported_loss_comes_back_from_its_file() -> None:
    loss, exported = export_case("MIHistLoss")
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    tensors = HISTOGRAMS["MIHistLoss"].tensors()
    assert same_bits(values(torch.export.load(file).module(), tensors), values(loss, tensors))
