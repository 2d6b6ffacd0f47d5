"""The three trainers, at a size that takes seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from histloss import DeepHistLoss, EMDHistLoss, MIHistLoss
from shared import cli, training
from shared.objective import SPACES, Objective, histograms

TASKS = ("color_transfer", "colorization", "edges2photo")
TINY = "--size 32 --width 4 --bins 16 --mi-bins 8 --batch-size 2 --workers 0"


def run(task: str, out: Path, *options: str) -> None:
    cli.main(import_module(task).TASK, ["--out", str(out), *TINY.split(), *options])


def state(out: Path) -> dict[str, object]:
    return torch.load(out / training.CHECKPOINT, weights_only=True)


def flat(value: object) -> list[object]:
    """The leaves of nested dictionaries and lists."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value, key=str) for leaf in flat(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def assert_same_bits(a: object, b: object) -> None:
    a, b = flat(a), flat(b)
    assert len(a) == len(b) > 20
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y


def error(capsys: pytest.CaptureFixture[str], task: str, out: Path, *options: str) -> str:
    """What a run that must not start says."""
    with pytest.raises(SystemExit) as exit_info:
        run(task, out, *options)
    assert exit_info.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        *((task, ()) for task in TASKS),
        ("color_transfer", ("--color", "hsv", "--preset", "official")),
        ("colorization", ("--code", "counts", "--no-residual", "--precision", "bf16-mixed")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value).replace("--", "") or "default",
)
def test_some_steps(tmp_path: Path, task: str, options: tuple[str, ...]) -> None:
    """Both networks learn; checkpoint, sample grid, plot and events are there."""
    run(task, tmp_path / "none", *options, "--steps", "1", "--log-every", "1")
    run(task, tmp_path / "run", *options, "--steps", "4", "--log-every", "1")
    first, last = state(tmp_path / "none"), state(tmp_path / "run")
    for network in ("generator", "discriminator"):
        for name, weights in last[network].items():
            if name.endswith("weight"):
                assert not torch.equal(weights, first[network][name]), name
    assert last["step"] == 4
    assert [row[0] for row in last["history"]] == [1, 2, 3, 4]
    assert last["history"][0] == first["history"][0]
    weights = last["options"]["weights"]
    for _, total, *terms, discriminator in last["history"]:
        wanted = sum(weights[name] * term for name, term in zip(("emd", "mi", "adv"), terms, strict=True))
        assert total == pytest.approx(wanted, rel=1e-4)
        assert 0.3 < discriminator < 1.5
    with Image.open(tmp_path / "run" / "samples" / "0000004.png") as grid:
        assert grid.width > 3 * 32
    assert (tmp_path / "run" / "losses.png").stat().st_size > 10_000
    assert list((tmp_path / "run").glob("events*"))


def test_resumed_as_if_never_stopped(tmp_path: Path) -> None:
    """Weights, optimizers, data order, noise and history, whatever the number of workers."""
    run("color_transfer", tmp_path / "whole", "--steps", "4")
    run("color_transfer", tmp_path / "parts", "--steps", "2", "--log-every", "4")
    run("color_transfer", tmp_path / "parts", "--steps", "4", "--resume", "--workers", "2")
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert [row[0] for row in parts.pop("history")] == [2, 4]
    assert [row[0] for row in whole.pop("history")] == [4]
    assert_same_bits(whole, parts)


def test_same_seed_same_bits(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run("colorization", tmp_path / name, "--steps", "2", "--seed", seed)
    a, b, c = (state(tmp_path / name) for name in "abc")
    assert_same_bits(a, b)
    assert a["history"] != c["history"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """A signal ends the run after the step it falls into, with a checkpoint that is as good as any."""
    step = training.Trainer._step

    def interrupted(self: training.Trainer, source: Tensor, reference: Tensor) -> Tensor:
        if self.step == 1:
            os.kill(os.getpid(), number)
        return step(self, source, reference)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "_step", interrupted)
        run("color_transfer", tmp_path / "run", "--steps", "4")
    assert state(tmp_path / "run")["step"] == 2
    assert signal.getsignal(number) is handler
    run("color_transfer", tmp_path / "run", "--steps", "4", "--resume")
    run("color_transfer", tmp_path / "whole", "--steps", "4")
    for part in ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer"):
        assert_same_bits(state(tmp_path / "run")[part], state(tmp_path / "whole")[part])


def test_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing broken is saved over what was good."""
    run("color_transfer", tmp_path, "--steps", "1")
    before = state(tmp_path)
    forward = Objective.forward
    monkeypatch.setattr(
        Objective, "forward", lambda *args: {name: x * float("nan") for name, x in forward(*args).items()}
    )
    with pytest.raises(RuntimeError, match=r"step 2: .* not finite"):
        run("color_transfer", tmp_path, "--steps", "2", "--resume")
    assert_same_bits(before, state(tmp_path))


class Tint(nn.Module):
    """A generator without batch norm, whose gradients are those of its images one by one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, source: Tensor) -> Tensor:
        return torch.tanh(self.conv(source))


def gradients(fabric: Fabric) -> list[list[float]]:
    """Of the histogram losses of four images, shared by the processes. In float64: no rounding in between."""
    generator = torch.Generator().manual_seed(1)
    source, reference = torch.rand(2, 4, 3, 24, 24, generator=generator, dtype=torch.float64) * 2 - 1
    part = slice(fabric.global_rank, None, fabric.world_size)
    network = fabric.setup(Tint().double())
    rows = []
    for color in SPACES:
        objective = Objective(color=color, preset="paper", bins=32, mi_bins=16)
        ref_hist = histograms(reference[part], color=color, bins=32)
        network.zero_grad()
        fabric.backward(objective(network(source[part]), source[part], ref_hist)["total"])
        rows += [parameter.grad.flatten().tolist() for parameter in network.parameters()]
    return rows


def test_gradients_of_two_processes() -> None:
    """Two gloo processes with half of the batch each have the gradients of one with all of it."""
    alone = gradients(Fabric(accelerator="cpu", devices=1, precision="64-true"))
    two = Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn", precision="64-true")
    for a, b in zip(alone, two.launch(gradients), strict=True):
        a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        assert (a - b).norm() <= 1e-9 * a.norm()
        assert a.norm() > 1e-3


def test_torchrun(tmp_path: Path) -> None:
    """Two processes train on the samples that one would, write one checkpoint, and one process resumes it."""
    examples = Path(cli.__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = [
        "--out",
        str(tmp_path),
        *TINY.split(),
        "--batch-size",
        "4",
        "--steps",
        "2",
        "--accelerator",
        "cpu",
    ]
    subprocess.run([*command, str(examples / "color_transfer.py"), *options], check=True, timeout=120)
    assert state(tmp_path)["step"] == 2
    run("color_transfer", tmp_path, "--batch-size", "4", "--steps", "3", "--resume")
    assert state(tmp_path)["step"] == 3


def test_objective_is_deephists() -> None:
    """In YUV, that of the three channels together; in HSV, the mean of the hue's, cyclic, and the others'."""
    out, src, ref = torch.rand(3, 2, 3, 16, 16) * 2 - 1
    for color, preset in (("yuv", "paper"), ("hsv", "official")):
        space = SPACES[color]
        weights = {"emd": 2.0, "mi": 3.0, "adv": 5.0}
        objective = Objective(color=color, preset=preset, bins=32, mi_bins=16, weights=weights)
        logits = torch.randn(2, 1, 2, 2)
        value = objective(out, src, histograms(ref, color=color, bins=32), logits)
        form = "squared" if preset == "paper" else "norm"
        mode = "relative" if preset == "paper" else "conditional_entropy"
        x, y = map(space.from_rgb, (out, src))
        wanted = []
        for c, boundary in enumerate(space.boundaries):
            emd = EMDHistLoss(32, boundary=boundary, form=form, cyclic=boundary == "cyclic")
            mi = MIHistLoss(16, boundary=boundary, mode=mode)
            one = slice(c, c + 1)
            target = histograms(ref, color=color, bins=32)[:, one]
            wanted.append(DeepHistLoss(weights, preset, emd=emd, mi=mi)(x[:, one], y[:, one], target, logits))
        for name in ("total", "emd", "mi", "adv"):
            mean = sum(getattr(terms, name) for terms in wanted) / 3
            torch.testing.assert_close(value[name], mean, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    run("color_transfer", out, "--steps", "2")
    return out


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    levels = (torch.rand(37, 50, 3) * 255).byte().numpy()
    Image.fromarray(levels).save(path)
    return path


@pytest.mark.parametrize("palette", [False, True], ids=["reference", "palette"])
def test_apply(trained: Path, photo: Path, palette: bool) -> None:
    """A photo of any size; nothing but the checkpoint is needed, and nothing in the run changes."""
    before = state(trained)
    colors = ("--palette", "#b03020:0.6,#203050:0.4") if palette else ("--reference", str(photo))
    task = import_module("color_transfer").TASK
    for output in ("a.png", "b.png"):
        options = ("--apply", str(photo), *colors, "--output", str(photo.parent / output))
        cli.main(task, ["--out", str(trained), *options])
    with Image.open(photo.parent / "a.png") as a, Image.open(photo.parent / "b.png") as b:
        assert a.size == (50, 37)
        assert a.tobytes() == b.tobytes()
    assert_same_bits(before, state(trained))


def test_apply_errors(trained: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ("--apply", str(photo))
    assert "one of --reference and --palette" in error(capsys, "color_transfer", trained, *one)
    both = (*one, "--reference", str(photo), "--palette", "red")
    assert "one of --reference and --palette" in error(capsys, "color_transfer", trained, *both)
    missing = error(capsys, "color_transfer", tmp_path / "nothing", *one, "--palette", "red")
    assert "nothing/checkpoint.pt" in missing
    other = error(capsys, "colorization", trained, *one, "--palette", "red")
    assert "color_transfer" in other


def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trains what is missing, once, and compares."""
    run("edges2photo", tmp_path, "--steps", "1")
    run("edges2photo", tmp_path, "--steps", "2", "--evaluate")
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert list(report["runs"]) == ["identity", "full", "without MI", "without EMD", "without ADV"]
    assert report["provenance"]["steps"] == dict.fromkeys(list(report["runs"])[1:], 2)
    assert report["provenance"]["options"]["weights"] == {"emd": 1.0, "mi": 10.0, "adv": 1.0}
    assert state(tmp_path / "without-mi")["options"]["weights"]["mi"] == 0
    assert "Table 3" in capsys.readouterr().out
    assert (tmp_path / "evaluation" / "study" / "index.html").exists()
    before = (tmp_path / "without-mi" / training.CHECKPOINT).read_bytes()
    run("edges2photo", tmp_path, "--steps", "2", "--evaluate")
    assert (tmp_path / "without-mi" / training.CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "48"), "power of two"),
        (("--weights", "emd=1,entropy=2"), "entropy"),
        (("--weights", "mi=-1"), "-1"),
        (("--weights", "mi"), "emd=1,mi=10,adv=1"),
        (("--data", "/nowhere"), "'/nowhere' is not a folder"),
        (("--direction", "BtoA"), "BtoA"),
        (("--steps", "0"), "at least 1"),
        (("--learning-rate", "nan"), "above 0"),
        (("--palette", "reddish"), "reddish"),
    ],
)
def test_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert message in error(capsys, "color_transfer", tmp_path, *options)
    assert not (tmp_path / training.CHECKPOINT).exists()


def test_errors_of_a_run_that_exists(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--resume" in error(capsys, "color_transfer", trained)
    assert "seed is 0" in error(capsys, "color_transfer", trained, "--resume", "--seed", "1")
    assert "color_transfer" in error(capsys, "colorization", trained, "--resume")
    weights = error(capsys, "color_transfer", trained, "--resume", "--weights", "mi=3")
    assert "weights" in weights
