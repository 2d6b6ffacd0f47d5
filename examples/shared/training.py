"""The training of networks: steps, checkpoints, progress, samples. What is trained is a System.

Fabric carries device, precision and processes. What is random in a step is a function of the seed, the step
and the process: on a CPU, a run that was stopped and resumed has the bits of one that was not.
"""

from __future__ import annotations

import math
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from time import perf_counter
from types import FrameType
from typing import Any, ClassVar

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from shared.data import Draws, Kind, Samples, first_pairs, loader, mix, open_dataset
from shared.evaluation import CHUNK, plot_losses, sample_grid
from shared.options import Options

CHECKPOINT = "checkpoint.pt"
SAMPLES = 8  # held-out pairs in a sample grid


@dataclass(frozen=True)
class Schedule:
    """How far a run goes and what it leaves on the way. May change when it is resumed."""

    steps: int
    workers: int
    log_every: int
    sample_every: int
    save_every: int


class System(ABC):
    """Networks that learn together: how they learn from a batch, and how they paint.

    A subclass makes its networks in its constructor, by :meth:`learns`.

    Attributes:
        options_type: what can be chosen.
        terms: names of the losses of a step, as they are logged.
        modules: what a checkpoint holds by name: networks, and losses that have a state.
        optimizers: those of the networks that learn, by the same names.
    """

    options_type: ClassVar[type[Options]]
    terms: ClassVar[tuple[str, ...]]

    def __init__(self, fabric: Fabric, options: Any) -> None:
        self.fabric, self.options = fabric, options
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """Of the pairs it learns from."""

    @abstractmethod
    def step(self, source: Tensor, reference: Tensor) -> Mapping[str, Tensor]:
        """Learn from a batch, (B, 3, H, W) each. The losses by the names of `terms`, on the device."""

    @abstractmethod
    def paint(self, source: Tensor, reference: Tensor) -> Tensor:
        """The output for a batch, RGB in [-1, 1]. One process may do this alone: networks without DDP."""

    def prepare(self, train: Samples, folder: Path) -> None:  # noqa: B027 - most have nothing to do
        """What a new run, kept in the folder, does before its first step."""

    def pace(self, progress: float) -> float:
        """What the learning rates are multiplied by when this part of the steps, 0 to 1, is done."""
        return 1.0

    def learns(
        self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> nn.Module:
        """The module, set up for the device and the processes, with pix2pix's Adam or another optimizer."""
        if optimizer is None:
            optimizer = torch.optim.Adam(
                module.parameters(), lr=self.options.learning_rate, betas=(0.5, 0.999)
            )
        self.modules[name], self.optimizers[name] = self.fabric.setup(module, optimizer)
        return self.modules[name]

    def descend(self, loss: Tensor, *names: str) -> None:
        """A step of the optimizers of these networks down the gradient of a loss."""
        for name in names:
            self.optimizers[name].zero_grad()
        self.fabric.backward(loss)
        for name in names:
            self.optimizers[name].step()

    @contextmanager
    def frozen(self, name: str) -> Iterator[nn.Module]:
        """A network that is to be used and not to learn, without DDP, which would wait for its gradients."""
        module = self.modules[name].module
        module.requires_grad_(False)
        try:
            with self.fabric.autocast():
                yield module
        finally:
            module.requires_grad_(True)


def load_checkpoint(folder: Path, task: str, kind: type[Options]) -> tuple[Any, dict[str, Any]]:
    """The options of a task's run, and all of its checkpoint."""
    path = folder / CHECKPOINT
    if not path.exists():
        raise ValueError(f"{folder} holds no run of {task}: there is no {CHECKPOINT}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = state["options"]["task"]
        options = kind(**state["options"]) if found == task else None
    except Exception as error:  # a damaged file raises almost anything
        raise ValueError(f"{path} is not a checkpoint of this version: {error}") from error
    if options is None:
        raise ValueError(f"{path} is a checkpoint of {found}, not of {task}")
    return options, state


def load_system(folder: Path, task: str, kind: type[System]) -> System:
    """The system of a task's run on the CPU, to paint with."""
    options, state = load_checkpoint(folder, task, kind.options_type)
    system = kind(Fabric(accelerator="cpu", devices=1), options)
    for name, module in system.modules.items():
        module.load_state_dict(state[name])
        module.eval()
    return system


class Trainer:
    """A run in a folder: checkpoint.pt, losses.png, samples/ and TensorBoard's events.

    Args:
        fabric: launched.
        kind: what to train.
        options: how, and on what.
        folder: where the run is kept. With a checkpoint in it, training goes on from there.
    """

    def __init__(self, fabric: Fabric, kind: type[System], options: Options, folder: Path) -> None:
        if options.batch_size % fabric.world_size:
            raise ValueError(
                f"batch_size must be a multiple of {fabric.world_size} processes, got {options.batch_size}"
            )
        self.fabric, self.options, self.folder = fabric, options, folder
        torch.manual_seed(options.seed)
        self.system = kind(fabric, options)
        folder_of_data = None if options.data is None else Path(options.data)
        self.datasets = {
            split: open_dataset(
                self.system.kind, folder_of_data, split=split, size=options.size, direction=options.direction
            )
            for split in ("train", "val")
        }
        self.samples = first_pairs(self.datasets["val"], SAMPLES)
        self.step = 0
        self.steps: int | None = None  # of its schedule, once it has one
        self.seconds = 0.0  # of training, without samples and checkpoints
        self.history: list[list[float]] = []  # rows of step and terms, each the mean since the row before
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).exists():
            self._load()
        else:
            self.system.prepare(self.datasets["train"], folder)

    def train(self, schedule: Schedule) -> bool:
        """Train until the schedule's last step; False if a signal told it to stop before.

        Ctrl-C and SIGTERM end it after the present step. Either way it saves.

        Raises:
            RuntimeError: a loss is not finite.
        """
        options, fabric, self.steps = self.options, self.fabric, schedule.steps
        draws = Draws(
            len(self.datasets["train"]),
            seed=options.seed,
            start=self.step * options.batch_size,
            stop=schedule.steps * options.batch_size,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        batches = fabric.setup_dataloaders(
            loader(
                self.datasets["train"],
                draws,
                batch_size=options.batch_size // fabric.world_size,
                workers=schedule.workers,
                device=fabric.device,
            ),
            use_distributed_sampler=False,
        )
        recent: list[Tensor] = []
        with _stop_signals() as stop, self._progress(schedule) as progress, self._events() as events:
            since = perf_counter()
            for source, reference in batches:
                recent.append(self._step(source, reference))
                self.step += 1
                progress.update(options.batch_size)
                stopped = self._anywhere(stop)
                last = stopped or self.step == schedule.steps
                save = last or self.step % schedule.save_every == 0
                if save or self.step % schedule.log_every == 0:
                    self._log(recent, progress, events)
                self.seconds += perf_counter() - since
                if last or self.step % schedule.sample_every == 0:
                    self._sample(events)
                if save:
                    self._save()
                if stopped:
                    return False
                since = perf_counter()
        return True

    def paint(self, source: Tensor, reference: Tensor) -> Tensor:
        """The outputs, on the CPU, for sources and references (N, 3, H, W), always with the same noise."""
        for module in self.system.modules.values():
            module.eval()
        torch.manual_seed(self.options.seed)
        outputs = []
        with torch.no_grad(), self.fabric.autocast():
            for pair in zip(source.split(CHUNK), reference.split(CHUNK), strict=True):
                outputs.append(self.system.paint(*map(self.fabric.to_device, pair)).float().cpu())
        for module in self.system.modules.values():
            module.train()
        return torch.cat(outputs)

    def _step(self, source: Tensor, reference: Tensor) -> Tensor:
        """A step of the system, with randomness and learning rates of its own. Its terms."""
        torch.manual_seed(mix(self.options.seed, self.step, self.fabric.global_rank))
        pace = self.system.pace(self.step / self.steps)
        for optimizer in self.system.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = pace * group.setdefault("initial_lr", group["lr"])
        terms = self.system.step(source, reference)
        return torch.stack([terms[name].detach() for name in self.system.terms])

    def _log(self, recent: list[Tensor], progress: tqdm[None], events: SummaryWriter | None) -> None:
        """The mean of the steps since the last log. A process on its own waits for its device here alone."""
        means = self.fabric.all_reduce(torch.stack(recent).mean(0)).tolist()
        recent.clear()
        terms = dict(zip(self.system.terms, means, strict=True))
        if not all(map(math.isfinite, means)):
            raise RuntimeError(f"step {self.step}: a loss is not finite, {terms}; {CHECKPOINT} is as it was")
        self.history.append([self.step, *means])
        progress.set_postfix({name: f"{value:.3g}" for name, value in terms.items()}, refresh=False)
        if events:
            for name, value in terms.items():
                events.add_scalar(f"loss/{name}", value, self.step)

    def _sample(self, events: SummaryWriter | None) -> None:
        if not self.fabric.is_global_zero:
            return
        grid = sample_grid({**self.samples._asdict(), "output": self.paint(*self.samples)})
        path = self.folder / "samples" / f"{self.step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(grid).save(path)
        if events:
            events.add_image("samples", grid, self.step, dataformats="HWC")

    def _save(self) -> None:
        """Write checkpoint.pt and losses.png. A crash while writing leaves the old checkpoint."""
        path = self.folder / CHECKPOINT
        unfinished = path.with_suffix(".unfinished")
        self.fabric.save(unfinished, self._state())
        if self.fabric.is_global_zero:
            os.replace(unfinished, path)
            plot_losses(
                [dict(zip(("step", *self.system.terms), row, strict=True)) for row in self.history],
                self.folder / "losses.png",
            )
        self.fabric.barrier()

    def _load(self) -> None:
        path, state = self.folder / CHECKPOINT, self._state()
        wanted = {name: state[name] for name in ("options", "images")}
        self.fabric.load(path, state, weights_only=True)
        for name, value in wanted.items():
            if state[name] != value:
                raise ValueError(f"{path} was trained with other {name}: {state[name]}, not {value}")
        self.step, self.steps, self.seconds = state["step"], state["steps"], state["seconds"]
        self.history = state["history"]

    def _state(self) -> dict[str, Any]:
        return {
            **self.system.modules,
            **{f"{name}_optimizer": optimizer for name, optimizer in self.system.optimizers.items()},
            "options": asdict(self.options),
            "images": {split: len(dataset) for split, dataset in self.datasets.items()},
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
            "history": self.history,
        }

    def _anywhere(self, stop: Event) -> bool:
        """Whether any process was told to stop: then all stop after the same step."""
        if self.fabric.world_size == 1:
            return stop.is_set()
        return self.fabric.all_reduce(float(stop.is_set()), reduce_op="sum").item() > 0

    def _progress(self, schedule: Schedule) -> tqdm[None]:
        batch = self.options.batch_size
        return tqdm(
            desc=str(self.folder),
            initial=self.step * batch,
            total=schedule.steps * batch,
            unit="image",
            disable=not self.fabric.is_global_zero,
        )

    def _events(self) -> AbstractContextManager[SummaryWriter | None]:
        if not self.fabric.is_global_zero:
            return nullcontext()
        return SummaryWriter(str(self.folder), purge_step=self.step + 1)


@contextmanager
def _stop_signals() -> Iterator[Event]:
    """An event that the first Ctrl-C or SIGTERM sets. The second has its usual effect."""
    stop = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, previous[number])

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
