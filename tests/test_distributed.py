"""Histograms over several processes: gloo, on the CPU, one launch for each number of processes.

In every launch each process goes through all of CASES and keeps what they return; the tests compare that with
one process that has all pixels.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import histloss
from asserters import assert_gradient, assert_value
from histloss import EMDHistLoss, HistogramAccumulator, MIHistLoss, distributed, emd, exact
from histloss.binning import KERNELS, binning
from histloss.sums import Sums, soft_sums

SECONDS = 100  # for a launch, most of which starts Python
TIMEOUT = 3  # seconds that a group waits for one that is lost
BATCH, CHANNELS, PIXELS, BINS = 2, 2, 1237, 12
KINDS = list(product(KERNELS, ("soft", "joint"), ("plain", "weighted", "one rank plain")))


class Images(NamedTuple):
    x: Tensor
    y: Tensor
    weight: Tensor

    def part(self, of: slice) -> Images:
        """With a gradient to each."""
        return Images(*(tensor[..., of].clone().requires_grad_() for tensor in self))


def images(dtype: torch.dtype = torch.float32) -> Images:
    """All pixels: values in and a little outside of the range, and weights from 0 on."""
    random = torch.Generator().manual_seed(3)
    shape = (BATCH, CHANNELS, PIXELS)
    x, y, weight = (torch.rand(shape, generator=random) for _ in range(3))
    return Images(
        (2.2 * x - 1.1).to(dtype), (2.2 * y - 1.1).to(dtype), (3 * weight - 1).clamp(min=0).to(dtype)
    )


def cuts(world: int, empty: bool = True) -> list[slice]:
    """Of the pixels, unequal; where there are three or more processes, the second has none."""
    ends = sorted(
        torch.randint(1, PIXELS, (world - 1,), generator=torch.Generator().manual_seed(world)).tolist()
    )
    if empty and world > 2:
        ends[1] = ends[0]
    return [slice(*ends) for ends in pairwise([0, *ends, PIXELS])]


def upstream(joint: bool) -> Tensor:
    shape = (BATCH, CHANNELS, BINS, BINS) if joint else (BATCH, CHANNELS, BINS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def target() -> Tensor:
    return upstream(joint=False).softmax(-1)


# ---- what every process does ---------------------------------------------------------------------

Case = Callable[["Here"], Any]
CASES: dict[str, Case] = {}


class Here(NamedTuple):
    """A process among all."""

    rank: int
    world: int

    @property
    def group(self) -> Any:
        return dist.group.WORLD

    def part(self, empty: bool = True, dtype: torch.dtype = torch.float32) -> Images:
        return images(dtype).part(cuts(self.world, empty)[self.rank])


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def histogram(part: Images, kernel: str, kind: str, weight: Tensor | None, **keywords: Any) -> Tensor:
    keywords |= {"bins": BINS, "kernel": kernel, "weight": weight}
    if kind == "joint":
        return histloss.joint_histogram(part.x, part.y, **keywords)
    return histloss.soft_histogram(part.x, **keywords)


def with_gradients(value: Tensor, of: tuple[Tensor | None, ...], grad: Tensor | None = None) -> list[Tensor]:
    """The value, and the gradients of those it depends on."""
    inputs = [tensor for tensor in of if tensor is not None]
    return [value.detach(), *torch.autograd.grad(value, inputs, grad)]


@case
def histograms(here: Here) -> dict[Any, list[Tensor]]:
    found = {}
    for kernel, kind, weights in KINDS:
        part = here.part()
        plain = weights == "plain" or (weights == "one rank plain" and here.rank == 0)
        weight = None if plain else part.weight
        h = histogram(part, kernel, kind, weight, process_group=here.group)
        of = (part.x, part.y if kind == "joint" else None, weight)
        found[kernel, kind, weights] = with_gradients(h, of, upstream(kind == "joint"))
    return found


@case
def losses(here: Here) -> dict[str, list[Tensor]]:
    part, group = here.part(), here.group
    d = EMDHistLoss(bins=BINS)(part.x, target(), weight=part.weight, process_group=group)
    mi = MIHistLoss(bins=BINS, kernel="gaussian")(part.x, part.y, process_group=group)
    corrected = MIHistLoss(bins=BINS, correction="miller_madow")(part.x, part.y, process_group=group)
    return {
        "emd": with_gradients(d, (part.x, part.weight)),
        "mi": with_gradients(mi, (part.x, part.y)),
        "miller_madow": with_gradients(corrected, (part.x, part.y)),
    }


@case
def float64(here: Here) -> list[Tensor]:
    part = here.part(dtype=torch.float64)
    h = histogram(part, "sigmoid", "joint", None, process_group=here.group)
    return with_gradients(h, (part.x, part.y), upstream(joint=True).double())


@case
def gradient_of_one_alone(here: Here) -> list[Tensor] | None:
    """It would hang if it communicated."""
    part = here.part(empty=False)
    h = histogram(part, "sigmoid", "soft", None, process_group=here.group)
    return with_gradients(h, (part.x,), upstream(joint=False)) if here.rank == 0 else None


@case
def without_comparison(here: Here) -> list[Any]:
    """As a group of NCCL alone: the sums have two levels then, and nothing is compared."""
    part, axis, levels = here.part(), binning(BINS, (-1.0, 1.0), None, "reflect"), []
    compares, exchange = distributed.compares, distributed.exchange
    distributed.compares = lambda group: False
    distributed.exchange = None  # type: ignore[assignment]
    try:
        add_up = distributed.combine(here.group)

        def combine(sums: Sums) -> Sums:
            added = add_up(sums)
            levels.append((len(sums.totals), len(added.totals)))
            return added

        h = exact.soft_histogram(part.x.flatten(0, 1), None, axis, combine)
        total = distributed.all_sum(torch.ones(()), here.group)
        (grad,) = torch.autograd.grad(distributed.share_gradient(h, here.group).sum(), h)
    finally:
        distributed.compares, distributed.exchange = compares, exchange
    return [h.detach(), levels, total, grad]


def refusal(function: Callable[[], Any]) -> str:
    try:
        function()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


@case
def disagreements(here: Here) -> dict[str, str]:
    part, rank = here.part(empty=False), here.rank
    own = soft_sums(part.x.flatten(0, 1), None, binning(BINS, (-1.0, 1.0), None, "reflect"))
    tasks: dict[str, Callable[[], Any]] = {
        "bins": lambda: histloss.soft_histogram(part.x, bins=BINS + (rank == 0), process_group=here.group),
        "batch": lambda: histloss.soft_histogram(part.x[: 1 + (rank == 0)], process_group=here.group),
        "joint": lambda: histogram(
            part, "sigmoid", "joint" if rank else "soft", None, process_group=here.group
        ),
        "range": lambda: distributed.combine(here.group, binning(BINS, (-1.0, 1.0 + rank), None, "reflect"))(
            own
        ),
        "kernel": lambda: distributed.combine(
            here.group, binning(BINS, (-1.0, 1.0), None, "open", KERNELS[rank])
        )(own),
        "dtype": lambda: distributed.combine(here.group, dtype=(torch.float32, torch.float64)[rank > 0])(own),
        "all_sum": lambda: distributed.all_sum(torch.ones(1 + rank), here.group),
        "another function": lambda: (
            distributed.all_sum(torch.ones(1), here.group) if rank else distributed.combine(here.group)(own)
        ),
        "share_gradient": lambda: (
            distributed.share_gradient(part.x[..., : 1 + rank], here.group).sum().backward()
        ),
        "too much": lambda: distributed.combine(here.group)(
            Sums(torch.full((2, 1, 4), 2**62), torch.full((2, 1), 2**62))
        ),
    }
    found = {name: refusal(task) for name, task in tasks.items()}
    together = histloss.soft_histogram(part.x, process_group=here.group)  # all are still in step
    found["after all"] = str(bool(together.isfinite().all()))
    return found


@case
def no_weight_anywhere(here: Here) -> str:
    part = here.part()
    weight = torch.zeros_like(part.x)
    return refusal(lambda: histloss.soft_histogram(part.x, weight=weight, process_group=here.group))


@case
def a_rank_of_weight_zero(here: Here) -> list[Tensor]:
    """Not an error as long as another one has some."""
    part = here.part(empty=False)
    weight = torch.full_like(part.x, float(here.rank == 0))
    return [histloss.soft_histogram(part.x, weight=weight, bins=BINS, process_group=here.group).detach()]


@case
def groups(here: Here) -> dict[str, Any]:
    """A group of all but the last, which is no member, and what is no group."""
    members = list(range(max(here.world - 1, 1)))
    group, part = dist.new_group(members), here.part(empty=False)
    found: dict[str, Any] = {}
    if here.rank in members:
        found["members"] = histloss.soft_histogram(part.x, bins=BINS, process_group=group).detach()
    else:
        found["no member"] = refusal(lambda: distributed.combine(group))
    found["no group"] = refusal(lambda: distributed.combine("gloo"))
    found["none"] = refusal(lambda: distributed.combine(None))
    return found


@case
def two_stages(here: Here) -> list[Tensor] | None:
    """First within pairs of processes, then across them."""
    if here.world % 2:
        return None
    groups = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3], [0, 2], [1, 3]) if max(ranks) < here.world]
    stages = [distributed.combine(group) for group in groups if group != dist.GroupMember.NON_GROUP_MEMBER]
    assert len(stages) == here.world // 2
    part, axis = here.part(), binning(BINS, (-1.0, 1.0), None, "reflect")

    def combine(sums: Sums) -> Sums:
        for stage in stages:
            sums = stage(sums)
        return sums

    return [exact.soft_histogram(part.x.detach().flatten(0, 1), None, axis, combine)]


@case
def sums_of_all(here: Here) -> list[Tensor]:
    return [
        distributed.all_sum(torch.tensor([[here.rank + 0.1], [1e-9]]), here.group),
        distributed.all_sum(torch.tensor(here.rank), here.group),
    ]


@case
def shared_gradients(here: Here) -> list[Tensor]:
    """A loss of its own in each process; the second is not shared."""
    part = here.part()
    h = histogram(part, "sigmoid", "joint", part.weight, process_group=here.group)
    own = (here.rank + 1) * upstream(joint=True)
    shared = distributed.share_gradient(h, here.group)
    assert torch.equal(shared, h)
    assert torch.equal(own, (here.rank + 1) * upstream(joint=True))
    return with_gradients((own * shared.square()).sum(), part)


class Network(nn.Module):
    """Between the images and the histogram; its parameters are the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.mix, self.more = nn.Conv1d(CHANNELS, 5, 1), nn.Conv1d(5, CHANNELS, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.more(torch.tanh(self.mix(x))))


def loss_of_network(network: nn.Module, part: Images, group: Any = None) -> Tensor:
    out = network(part.x.detach())
    distance = EMDHistLoss(bins=BINS)(out, target().double(), process_group=group)
    return distance + MIHistLoss(bins=BINS)(out, part.y.detach(), process_group=group)


@case
def data_parallel(here: Here) -> list[Tensor]:
    network = DistributedDataParallel(Network())
    loss = loss_of_network(network, here.part(empty=False, dtype=torch.float64), here.group)
    (loss * here.world).backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@case
def accumulators(here: Here) -> dict[str, Any]:
    """Chunk by chunk in each; one process has no chunk at all, where there are two or more."""
    part = here.part(empty=False)
    idle = here.world > 1 and here.rank == 1
    accumulator = HistogramAccumulator(BINS, joint=True)
    plain = Images(*(tensor.detach() for tensor in part))
    second = HistogramAccumulator(BINS, joint=True)
    for at in () if idle else (slice(0, 5), slice(5, None)):
        accumulator.update(part.x[..., at], part.y[..., at], weight=part.weight[..., at])
        second.update(plain.x[..., at], plain.y[..., at], weight=plain.weight[..., at])
    accumulator.all_reduce(here.group)
    second.all_reduce(here.group)
    h = accumulator.compute()
    found: dict[str, Any] = {"value": h.detach(), "pixels": accumulator.pixels, "text": repr(accumulator)}
    if idle:
        assert not h.requires_grad
    else:
        found["gradients"] = with_gradients(h, part, upstream(joint=True))[1:]
        gradient = second.gradient(upstream(joint=True), plain.x, plain.y, weight=plain.weight)
        assert all(torch.equal(a, b) for a, b in zip(gradient, found["gradients"], strict=True))
    found["again"] = refusal(lambda: accumulator.all_reduce(here.group))
    found["update"] = refusal(lambda: accumulator.update(part.x, part.y))
    found["merge"] = refusal(lambda: accumulator.merge(HistogramAccumulator(BINS, joint=True)))
    found["merged"] = refusal(lambda: HistogramAccumulator(BINS, joint=True).merge(accumulator))
    accumulator.reset()
    found["nothing anywhere"] = refusal(lambda: accumulator.all_reduce(here.group))
    other = HistogramAccumulator(BINS, (-1.0, 1.0 + (here.rank == 0)))
    other.update(part.x)
    found["range"] = refusal(lambda: other.all_reduce(here.group))
    channels = HistogramAccumulator(BINS)
    channels.update(part.x[:, : 1 + (here.rank == 0)])
    found["channels"] = refusal(lambda: channels.all_reduce(here.group))
    full = HistogramAccumulator(BINS)
    full.update(part.x[..., :1])
    full.pixels = 2**32 - here.world // 2
    found["too many"] = refusal(lambda: full.all_reduce(here.group))
    return found


def lost_process(here: Here) -> str:
    """The last of all cases: the last process dies within a call, the others must not wait for ever."""
    part, group = here.part(empty=False), dist.new_group(timeout=timedelta(seconds=TIMEOUT))
    if here.rank == here.world - 1:
        os._exit(7)
    return refusal(lambda: histloss.soft_histogram(part.x, process_group=group))


def process(rank: int, world: int, folder: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    here = Here(rank, world)
    found = {name: run(here) for name, run in CASES.items()}
    torch.save(found, folder / f"{rank}.pt")
    if world > 1:
        start = time.monotonic()
        found["lost_process"] = lost_process(here)
        found["seconds"] = time.monotonic() - start
        torch.save(found, folder / f"{rank}.pt")
    os._exit(0)  # the group cannot say goodbye to who is gone


# ---- what the tests see of it --------------------------------------------------------------------


class Launch(NamedTuple):
    world: int
    found: list[dict[str, Any]]  # of each rank

    def of(self, name: str) -> list[Any]:
        return [found[name] for found in self.found]


@contextmanager
def launched(world: int, folder: Path) -> Iterator[list[Any]]:
    """Processes, of which none outlives the block."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=process, args=(rank, world, folder)) for rank in range(world)]
    try:
        for each in processes:
            each.start()
        yield processes
    finally:
        for each in processes:
            each.kill()
            each.join()


@pytest.fixture(scope="module", params=[1, 2, 3, 4], ids=lambda world: f"{world} processes")
def launch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    world, folder = request.param, tmp_path_factory.mktemp("processes")
    deadline = time.monotonic() + SECONDS
    with launched(world, folder) as processes:
        for each in processes:
            each.join(max(deadline - time.monotonic(), 0))
        codes = [each.exitcode for each in processes]
    assert codes == [0] * (world - 1) + [7 if world > 1 else 0]
    return Launch(world, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)])


def assert_same_as_one(found: list[list[Tensor]], one: list[Tensor], world: int, empty: bool = True) -> None:
    """The value on every rank, and the gradients of all ranks' pixels side by side: equal bits."""
    value, *gradients = one
    for rank in found:
        assert torch.equal(rank[0], value)
    for of_ranks, gradient in zip(zip(*(rank[1:] for rank in found), strict=True), gradients, strict=True):
        assert gradient.count_nonzero() > gradient.numel() // 2
        assert torch.equal(torch.cat(of_ranks, -1), gradient)


@pytest.mark.parametrize(("kernel", "kind", "weights"), KINDS)
def test_histograms_and_gradients_have_the_bits_of_one_process(
    launch: Launch, kernel: str, kind: str, weights: str
) -> None:
    found = [of_rank[kernel, kind, weights] for of_rank in launch.of("histograms")]
    joint = kind == "joint"
    if weights != "one rank plain":
        whole = images().part(slice(None))
        weight = whole.weight if weights == "weighted" else None
        h = histogram(whole, kernel, kind, weight, exact=True)
        one = with_gradients(h, (whole.x, whole.y if joint else None, weight), upstream(joint))
        assert_same_as_one(found, one, launch.world)
        return
    accumulator = HistogramAccumulator(BINS, kernel=kernel, joint=joint)
    for rank, of in enumerate(cuts(launch.world)):
        x, y, weight = images().part(of)
        accumulator.update(x, y if joint else None, weight=weight if rank else None)
    h = accumulator.compute().detach()
    assert all(torch.equal(of_rank[0], h) for of_rank in found)
    whole = images().part(slice(None))
    first = cuts(launch.world)[0]
    ones = whole.weight.detach().clone()
    ones[..., first] = 1
    like = histogram(whole, kernel, kind, ones, exact=True)
    (gradient,) = torch.autograd.grad(like, whole.x, upstream(joint))
    assert_value(h, like.detach())
    assert_gradient(torch.cat([of_rank[1] for of_rank in found], -1), gradient)


@pytest.mark.parametrize("name", ["emd", "mi", "miller_madow"])
def test_losses_and_their_gradients_have_the_bits_of_one_process(launch: Launch, name: str) -> None:
    x, y, weight = images().part(slice(None))
    if name == "emd":
        h = histloss.soft_histogram(x, bins=BINS, weight=weight, exact=True)
        one = with_gradients(emd(h, target()).mean(), (x, weight))
    else:
        keywords: dict[str, Any] = {"bins": BINS, "kernel": "gaussian" if name == "mi" else "sigmoid"}
        j = histloss.joint_histogram(x, y, **keywords, exact=True)
        more = {"correction": name, "count": PIXELS} if name == "miller_madow" else {}
        one = with_gradients(histloss.mutual_information(j, **more).mean(), (x, y))
    assert_same_as_one([of_rank[name] for of_rank in launch.of("losses")], one, launch.world)


def test_float64_has_the_bits_of_one_process(launch: Launch) -> None:
    whole = images(torch.float64).part(slice(None))
    h = histogram(whole, "sigmoid", "joint", None, exact=True)
    one = with_gradients(h, (whole.x, whole.y), upstream(joint=True).double())
    assert_same_as_one(launch.of("float64"), one, launch.world)


def test_backward_needs_no_other_process(launch: Launch) -> None:
    whole = images().part(slice(None))
    h = histogram(whole, "sigmoid", "soft", None, exact=True)
    value, gradient = with_gradients(h, (whole.x,), upstream(joint=False))
    first, *others = launch.of("gradient_of_one_alone")
    assert torch.equal(first[0], value)
    assert torch.equal(first[1], gradient[..., cuts(launch.world, empty=False)[0]])
    assert others == [None] * (launch.world - 1)


def test_a_group_without_a_backend_for_the_cpu_compares_nothing(launch: Launch) -> None:
    expected = histloss.soft_histogram(images().x, bins=BINS, exact=True).flatten(0, 1)
    for value, levels, total, grad in launch.of("without_comparison"):
        assert torch.equal(value, expected)
        assert levels == [(1, 2)]
        assert total.item() == launch.world
        assert torch.equal(grad, torch.full_like(grad, launch.world))


def others(world: int) -> str:
    ranks = ", ".join(map(str, range(1, world)))
    return f"rank{'s' * (world > 2)} {ranks}"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("bins", f"bins of x: {BINS + 1} on rank 0; {BINS} on {{others}}"),
        ("batch", "B x C: 4 on rank 0; 2 on {others}"),
        ("joint", "function: soft histogram on rank 0; joint histogram on {others}"),
        ("range", "range of x: (-1.0, 1.0) on rank 0; (-1.0, 2.0) on rank 1"),
        ("kernel", "kernel of x: sigmoid on rank 0; gaussian on rank 1"),
        ("dtype", "dtype: float32 on rank 0; float64 on {others}"),
        ("all_sum", "shape: (1,) on rank 0; (2,) on rank 1"),
        ("another function", "function: soft histogram on rank 0; all_sum on {others}"),
        ("share_gradient", f"shape: ({BATCH}, {CHANNELS}, 1) on rank 0; ({BATCH}, {CHANNELS}, 2) on rank 1"),
    ],
)
def test_processes_that_disagree_all_say_so(launch: Launch, name: str, what: str) -> None:
    found = [of_rank[name] for of_rank in launch.of("disagreements")]
    if launch.world == 1:
        assert found == ["none"]
        return
    assert len(set(found)) == 1
    assert found[0].startswith("ValueError: the processes of process_group must agree, got ")
    assert what.format(others=others(launch.world)) in found[0]


def test_processes_that_disagreed_go_on(launch: Launch) -> None:
    assert [of_rank["after all"] for of_rank in launch.of("disagreements")] == ["True"] * launch.world


def test_sums_that_do_not_fit_are_refused_everywhere(launch: Launch) -> None:
    for of_rank in launch.of("disagreements"):
        assert ("fit into 63 bits" in of_rank["too much"]) == (launch.world > 1)


def test_weights_that_sum_to_0_over_all_are_refused_everywhere(launch: Launch) -> None:
    for error in launch.of("no_weight_anywhere"):
        assert error.startswith("ValueError: weight must have a positive sum")


def test_weights_may_sum_to_0_in_a_process(launch: Launch) -> None:
    part = images().x[..., cuts(launch.world, empty=False)[0]]
    expected = histloss.soft_histogram(part, weight=torch.ones_like(part), bins=BINS, exact=True)
    for (value,) in launch.of("a_rank_of_weight_zero"):
        assert torch.equal(value, expected)


def test_groups_of_some_processes(launch: Launch) -> None:
    members = max(launch.world - 1, 1)
    end = cuts(launch.world, empty=False)[members - 1].stop
    expected = histloss.soft_histogram(images().x[..., :end], bins=BINS, exact=True)
    for rank, found in enumerate(launch.of("groups")):
        if rank < members:
            assert torch.equal(found["members"], expected)
        else:
            assert (
                "ValueError: process_group must be a group that this process is a member"
                in found["no member"]
            )
        assert "TypeError: process_group must be a torch.distributed.ProcessGroup" in found["no group"]
        assert "ValueError: process_group must be a group of an initialised" in found["none"]


def test_two_stages_have_the_bits_of_one(launch: Launch) -> None:
    expected = histloss.soft_histogram(images().x, bins=BINS, exact=True).flatten(0, 1)
    for found in launch.of("two_stages"):
        if launch.world % 2:
            assert found is None
        else:
            assert torch.equal(found[0], expected)


def test_all_sum_is_the_sum_and_the_same_everywhere(launch: Launch) -> None:
    ranks = range(launch.world)
    first = launch.found[0]["sums_of_all"]
    for two_by_one, number in launch.of("sums_of_all"):
        assert two_by_one.dtype == number.dtype == torch.float64
        assert torch.equal(two_by_one, first[0])
        expected = [[sum(rank + 0.1 for rank in ranks)], [launch.world * 1e-9]]
        torch.testing.assert_close(two_by_one, torch.tensor(expected).double(), rtol=1e-6, atol=0)
        assert number.item() == sum(ranks)


def test_shared_gradients_are_those_of_the_sum_of_all_losses(launch: Launch) -> None:
    whole = images().part(slice(None))
    h = histogram(whole, "sigmoid", "joint", whole.weight, exact=True)
    factor = sum(range(launch.world + 1))
    expected = with_gradients((factor * upstream(joint=True) * h.square()).sum(), whole)[1:]
    for i, gradient in enumerate(expected, start=1):
        assert_gradient(torch.cat([of_rank[i] for of_rank in launch.of("shared_gradients")], -1), gradient)


def test_data_parallel_training_has_the_gradients_of_one_process(launch: Launch) -> None:
    """DistributedDataParallel averages them: the loss was multiplied by the number of processes."""
    network = Network()
    loss_of_network(network, images(torch.float64)).backward()
    for found in launch.of("data_parallel"):
        for gradient, parameter in zip(found, network.parameters(), strict=True):
            assert parameter.grad is not None
            assert_gradient(gradient, parameter.grad)


def test_accumulators_add_up_over_processes(launch: Launch) -> None:
    world, busy = launch.world, [rank for rank in range(launch.world) if rank != 1]
    parts = cuts(world, empty=False)
    whole = Images(*(torch.cat([tensor[..., parts[rank]] for rank in busy], -1) for tensor in images()))
    whole = whole.part(slice(None))
    h = histogram(whole, "sigmoid", "joint", whole.weight, exact=True)
    value, *gradients = with_gradients(h, whole, upstream(joint=True))
    found = launch.of("accumulators")
    for of_rank in found:
        assert torch.equal(of_rank["value"], value)
        assert of_rank["pixels"] == whole.x.shape[-1]
        assert f"{whole.x.shape[-1]} pixels" in of_rank["text"]
    for i, gradient in enumerate(gradients):
        assert torch.equal(torch.cat([found[rank]["gradients"][i] for rank in busy], -1), gradient)


def test_accumulators_refuse_what_does_not_add_up(launch: Launch) -> None:
    for of_rank in launch.of("accumulators"):
        for name in ("again", "update", "merge", "merged"):
            assert of_rank[name].startswith("RuntimeError: ")
            assert "must come before all_reduce(), after which the sums are all processes'" in of_rank[name]
        assert of_rank["nothing anywhere"] == (
            "RuntimeError: all_reduce() needs an update() on any process before it"
        )
        if launch.world == 1:
            assert of_rank["range"] == of_rank["channels"] == "none"
            continue
        rest = others(launch.world)
        assert f"range of x: (-1.0, 2.0) on rank 0; (-1.0, 1.0) on {rest}" in of_rank["range"]
        assert f"(B, C): ({BATCH}, 2) on rank 0; ({BATCH}, 1) on {rest}" in of_rank["channels"]
        assert "at most 2**32 pixels per image and channel, got " in of_rank["too many"]


def test_a_lost_process_is_an_error_in_all_others(launch: Launch) -> None:
    """At once, and in any case within the group's timeout."""
    if launch.world == 1:
        assert "lost_process" not in launch.found[0]
        return
    for found in launch.found[:-1]:
        assert found["lost_process"].startswith("RuntimeError: ")
        assert found["seconds"] < 30


# ---- without any process -------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "gloo", object()])
@pytest.mark.parametrize(
    "call",
    [
        distributed.combine,
        lambda group: distributed.share_gradient(torch.ones(2), group),
        lambda group: distributed.all_sum(torch.ones(2), group),
        lambda group: HistogramAccumulator().all_reduce(group),
    ],
    ids=["combine", "share_gradient", "all_sum", "all_reduce"],
)
def test_torch_distributed_must_be_initialised(call: Callable[[Any], Any], group: Any) -> None:
    with pytest.raises(
        ValueError, match=r"process_group must be a group of an initialised torch\.distributed"
    ):
        call(group)


def test_torch_distributed_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"needs a PyTorch with torch\.distributed"):
        distributed.combine(None)


def test_a_message_names_at_most_some_ranks() -> None:
    assert distributed._ranks([3]) == "rank 3"
    assert distributed._ranks([*range(20)]) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"
