"""The training of a generator against a discriminator: steps, checkpoints, progress, samples.

Fabric carries device, precision and processes. What is random in a step is a function of the seed, the step
and the process: on a CPU, a run that was stopped and resumed has the bits of one that was not.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from shared.data import Draws, first_pairs, loader, mix, open_dataset
from shared.evaluation import CHUNK, plot_losses, sample_grid
from shared.networks import Discriminator, Generator, hard_histogram
from shared.objective import SPACES, Objective, histograms

CHECKPOINT = "checkpoint.pt"
TERMS = ("total", "emd", "mi", "adv", "discriminator")
SAMPLES = 8  # held-out pairs in a sample grid


@dataclass(frozen=True)
class Options:
    """What makes a run the run it is. Kept in its checkpoint."""

    task: str
    data: str | None
    direction: str
    size: int
    color: str
    bins: int
    mi_bins: int
    code: str
    residual: bool
    width: int
    preset: str
    weights: Mapping[str, float]
    batch_size: int  # over all processes
    learning_rate: float
    seed: int

    @property
    def conditional(self) -> bool:
        """Whether the discriminator sees the source too: not where the source is its real image."""
        return self.task != "color_transfer"


@dataclass(frozen=True)
class Schedule:
    """How far a run goes and what it leaves on the way. May change when it is resumed."""

    steps: int
    workers: int
    log_every: int
    sample_every: int
    save_every: int


def generator_of(options: Options) -> Generator:
    return Generator(
        options.size, bins=options.bins, width=options.width, code=options.code, residual=options.residual
    )


def code_histogram(reference: Tensor, options: Options) -> Tensor:
    """What a generator is told of a reference (B, 3, H, W): histograms of its channels, (B, 3, K)."""
    if options.code == "counts":
        return hard_histogram(SPACES[options.color].from_rgb(reference), bins=options.bins)
    return histograms(reference, color=options.color, bins=options.bins)


def load_options(folder: Path, task: str) -> tuple[Options, dict[str, Any]]:
    """The options of a task's run, and all of its checkpoint."""
    path = folder / CHECKPOINT
    if not path.exists():
        raise ValueError(f"{folder} holds no run of {task}: there is no {CHECKPOINT}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        options = Options(**state["options"])
    except Exception as error:  # a damaged file raises almost anything
        raise ValueError(f"{path} is not a checkpoint of this version: {error}") from error
    if options.task != task:
        raise ValueError(f"{path} is a checkpoint of {options.task}, not of {task}")
    return options, state


def load_generator(folder: Path, task: str) -> tuple[Generator, Options]:
    """The generator of a task's run, to use, and the options it was trained with."""
    options, state = load_options(folder, task)
    generator = generator_of(options)
    generator.load_state_dict(state["generator"])
    return generator.eval(), options


class Trainer:
    """A run in a folder: checkpoint.pt, losses.png, samples/ and TensorBoard's events.

    Args:
        fabric: launched.
        options: what to train, and on what.
        folder: where the run is kept. With a checkpoint in it, training goes on from there.
    """

    def __init__(self, fabric: Fabric, options: Options, folder: Path) -> None:
        if options.batch_size % fabric.world_size:
            raise ValueError(
                f"batch_size must be a multiple of {fabric.world_size} processes, got {options.batch_size}"
            )
        self.fabric, self.options, self.folder = fabric, options, folder
        torch.manual_seed(options.seed)
        self.generator, self.generator_optimizer = self._setup(generator_of(options))
        self.discriminator, self.discriminator_optimizer = self._setup(
            Discriminator(width=options.width, conditional=options.conditional)
        )
        self.objective = Objective(
            color=options.color,
            preset=options.preset,
            bins=options.bins,
            mi_bins=options.mi_bins,
            weights=options.weights,
        )
        folder_of_data = None if options.data is None else Path(options.data)
        self.datasets = {
            split: open_dataset(
                options.task, folder_of_data, split=split, size=options.size, direction=options.direction
            )
            for split in ("train", "val")
        }
        self.samples = first_pairs(self.datasets["val"], SAMPLES)
        self.step = 0
        self.steps: int | None = None  # of its schedule, once it has one
        self.history: list[list[float]] = []  # rows of step and TERMS, each the mean since the row before
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).exists():
            self._load()

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
            for source, reference in batches:
                recent.append(self._step(source, reference))
                self.step += 1
                progress.update(options.batch_size)
                stopped = self._anywhere(stop)
                last = stopped or self.step == schedule.steps
                save = last or self.step % schedule.save_every == 0
                if save or self.step % schedule.log_every == 0:
                    self._log(recent, progress, events)
                if last or self.step % schedule.sample_every == 0:
                    self._sample(events)
                if save:
                    self._save()
                if stopped:
                    return False
        return True

    def paint(self, source: Tensor, reference: Tensor) -> Tensor:
        """The outputs, on the CPU, for sources and references (N, 3, H, W), always with the same noise."""
        generator = self.generator.module.eval()  # without DDP: one process may paint alone
        torch.manual_seed(self.options.seed)
        outputs = []
        with torch.no_grad(), self.fabric.autocast():
            for pair in zip(source.split(CHUNK), reference.split(CHUNK), strict=True):
                x, y = map(self.fabric.to_device, pair)
                outputs.append(generator(x, code_histogram(y, self.options)).float().cpu())
        generator.train()
        return torch.cat(outputs)

    def _setup(self, module: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
        adam = torch.optim.Adam(module.parameters(), lr=self.options.learning_rate, betas=(0.5, 0.999))
        return self.fabric.setup(module, adam)

    def _step(self, source: Tensor, reference: Tensor) -> Tensor:
        """One step of the discriminator, one of the generator. Its TERMS, still on the device."""
        options = self.options
        torch.manual_seed(mix(options.seed, self.step, self.fabric.global_rank))
        told = code_histogram(reference, options)
        soft = options.code == "soft"
        ref_hist = told if soft else histograms(reference, color=options.color, bins=options.bins)
        output = self.generator(source, told)
        loss = torch.zeros((), device=output.device)
        if options.weights["adv"]:
            loss = self._discriminator_step(source, reference, output.detach())
        terms = self._generator_step(source, ref_hist, output)
        return torch.stack([*(terms[name].detach() for name in TERMS[:-1]), loss])

    def _discriminator_step(self, source: Tensor, reference: Tensor, output: Tensor) -> Tensor:
        """To know real images from painted ones. Without pairs, the source is the real image."""
        condition, real = (source, reference) if self.options.conditional else (None, source)
        self.discriminator_optimizer.zero_grad()
        loss = 0.0
        for image, label in ((real, 1.0), (output, 0.0)):  # each with its own backward, as DDP wants it
            logits = self.discriminator(image, condition)
            term = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label)) / 2
            self.fabric.backward(term)
            loss = loss + term.detach()
        self.discriminator_optimizer.step()
        return loss

    def _generator_step(self, source: Tensor, ref_hist: Tensor, output: Tensor) -> dict[str, Tensor]:
        """Eq. 18. The discriminator stays as it is, and is spared the work for its own gradients."""
        logits = None
        if self.options.weights["adv"]:
            self.discriminator.requires_grad_(False)
            with self.fabric.autocast():  # around the module itself: DDP's would wait for those gradients
                logits = self.discriminator.module(output, source if self.options.conditional else None)
            self.discriminator.requires_grad_(True)
        terms = self.objective(output, source, ref_hist, logits)
        self.generator_optimizer.zero_grad()
        self.fabric.backward(terms["total"])
        self.generator_optimizer.step()
        return terms

    def _log(self, recent: list[Tensor], progress: tqdm[None], events: SummaryWriter | None) -> None:
        """The mean of the steps since the last log. A process on its own waits for its device here alone."""
        means = self.fabric.all_reduce(torch.stack(recent).mean(0)).tolist()
        recent.clear()
        terms = dict(zip(TERMS, means, strict=True))
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
                [dict(zip(("step", *TERMS), row, strict=True)) for row in self.history],
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
        self.step, self.steps, self.history = state["step"], state["steps"], state["history"]

    def _state(self) -> dict[str, Any]:
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
            "options": asdict(self.options),
            "images": {split: len(dataset) for split, dataset in self.datasets.items()},
            "step": self.step,
            "steps": self.steps,
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
