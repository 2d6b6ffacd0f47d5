"""The three trainers, at a size that takes seconds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from histloss import DeepHistLoss, EMDHistLoss, MIHistLoss
from histloss.color import rgb_to_yuv
from shared import cli, training
from shared.data import Draw, Draws, open_dataset, read_image, to_bytes
from shared.networks import hard_histogram
from shared.objective import SPACES, Objective, histograms

EXAMPLES = Path(cli.__file__).parents[1]
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
    """Weights, optimizers, data order, noise and losses, whatever the workers and the samples drawn."""
    run("color_transfer", tmp_path / "whole", "--steps", "4", "--log-every", "1")
    run("color_transfer", tmp_path / "parts", "--steps", "2", "--log-every", "1", "--sample-every", "1")
    more = ("--steps", "4", "--log-every", "1", "--sample-every", "1", "--workers", "2")
    run("color_transfer", tmp_path / "parts", "--resume", *more)
    assert_same_bits(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_resumed_to_the_same_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run knows how long it was to be; it cannot become shorter than it is."""
    run("color_transfer", tmp_path, "--steps", "2")
    run("color_transfer", tmp_path, "--resume")
    assert state(tmp_path)["step"] == 2
    assert "--steps 1 is less than" in error(capsys, "color_transfer", tmp_path, "--resume", "--steps", "1")


def test_same_seed_same_bits(tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run("colorization", tmp_path / name, "--steps", "2", "--seed", seed)
    a, b, c = (state(tmp_path / name) for name in "abc")
    assert_same_bits(a, b)
    assert a["history"] != c["history"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    """A signal to a run and its workers ends it after a step, with a checkpoint as good as any."""
    command = [
        sys.executable,
        str(EXAMPLES / "color_transfer.py"),
        "--out",
        str(tmp_path / "run"),
        *TINY.split(),
    ]
    many = ["--steps", "100000", "--workers", "2", "--save-every", "2"]
    process = subprocess.Popen([*command, *many], start_new_session=True, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "run" / training.CHECKPOINT).exists():
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped by a signal before step 100000" in errors
    assert "Traceback" not in errors
    step = state(tmp_path / "run")["step"]
    run("color_transfer", tmp_path / "run", "--steps", str(step + 1), "--resume")
    run("color_transfer", tmp_path / "whole", "--steps", str(step + 1))
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
        objective = Objective(color=color, preset="paper", bins=32, mi_bins=16, weights={})
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
    """Two processes train on the samples that one would, and write one checkpoint, which one can resume."""
    options = [
        *TINY.split(),
        "--batch-size",
        "4",
        "--weights",
        "adv=0",
        "--log-every",
        "1",
        "--accelerator",
        "cpu",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(EXAMPLES / "color_transfer.py"), "--out", str(tmp_path / "two"), "--steps", "2", *options]
    subprocess.run([*command, *script], check=True, timeout=120)
    run("color_transfer", tmp_path / "one", "--steps", "1", *options)
    two = state(tmp_path / "two")
    assert two["step"] == 2
    # Before its first step a generator returns its source, whatever the noise.
    assert two["history"][0] == pytest.approx(state(tmp_path / "one")["history"][0], rel=1e-5)
    run("color_transfer", tmp_path / "two", *options, "--steps", "3", "--resume")
    assert state(tmp_path / "two")["step"] == 3


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
        with Image.open(photo) as source:  # which two steps hardly change
            change = np.abs(np.asarray(a).astype(int) - np.asarray(source)).mean()
        assert 0 < change < 8
    assert_same_bits(before, state(trained))


def test_apply_errors(trained: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ("--apply", str(photo))
    assert "one of --reference and --palette" in error(capsys, "color_transfer", trained, *one)
    both = (*one, "--reference", str(photo), "--palette", "red")
    assert "one of --reference and --palette" in error(capsys, "color_transfer", trained, *both)
    missing = error(capsys, "color_transfer", tmp_path / "nothing", *one, "--palette", "red")
    assert "nothing holds no run of color_transfer" in missing
    other = error(capsys, "colorization", trained, *one, "--palette", "red")
    assert "color_transfer" in other
    (tmp_path / training.CHECKPOINT).write_bytes(b"not a checkpoint")
    damaged = error(capsys, "color_transfer", tmp_path, *one, "--palette", "red")
    assert "checkpoint.pt is not a checkpoint" in damaged
    nowhere = error(capsys, "color_transfer", trained, "--apply", "nowhere.png", "--palette", "red")
    assert "cannot read 'nowhere.png'" in nowhere
    assert "--apply" in error(capsys, "color_transfer", tmp_path, "--palette", "red")
    assert "not allowed with" in error(capsys, "color_transfer", trained, *one, "--resume")


def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trains what is missing, once and as long as the full run, and compares."""
    run("edges2photo", tmp_path, "--steps", "2")
    run("edges2photo", tmp_path, "--evaluate")
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert list(report["runs"]) == ["identity", "full", "without MI", "without EMD", "without ADV"]
    assert report["provenance"]["steps"] == dict.fromkeys(list(report["runs"])[1:], 2)
    full = report["provenance"]["options"]["weights"]
    assert full == cli.EMBEDDED_WEIGHTS
    for name, term in (("without-mi", "mi"), ("without-emd", "emd"), ("without-adv", "adv")):
        assert state(tmp_path / name)["options"]["weights"] == {**full, term: 0}
    assert "Table 3" in capsys.readouterr().out
    before = (tmp_path / "without-mi" / training.CHECKPOINT).read_bytes()
    run("edges2photo", tmp_path, "--evaluate")
    assert (tmp_path / "without-mi" / training.CHECKPOINT).read_bytes() == before


def test_study_shows_real_images(tmp_path: Path) -> None:
    """In a paired task those are the references, never the edges that were painted."""
    run("edges2photo", tmp_path, "--steps", "1", "--evaluate")
    study = tmp_path / "evaluation" / "study"
    page = (study / "index.html").read_text()
    images = json.loads(re.search(r"\{\"id\": .*\}", page).group())["images"]
    references = open_dataset("edges2photo", None, split="val", size=32)
    real = [np.asarray(Image.open(study / image["image"])) for image in images if image["truth"] == "real"]
    shown = {image.tobytes() for image in real}
    half = len(images) // 2
    assert shown == {to_bytes(references[Draw(n, 0)].reference).tobytes() for n in range(half)}


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
        (("--weights", "emd=0,mi=0,adv=0"), "leaves no loss"),
        (("--weights", "emd=1,mi=0,adv=0", "--evaluate"), "has but one"),
        (("--accelerator", "cuda"), "--accelerator cuda"),
        (("--seed", "99999999999999999999"), "--seed"),
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


def test_presets_and_epochs(tmp_path: Path) -> None:
    """With photos of one's own the weights and epochs are those of the paper, or of the authors' code."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(5):
        Image.effect_noise((40, 40), 50 + n).convert("RGB").save(folder / f"{n}.png")
    parser = cli.make_parser(task := import_module("colorization").TASK)
    weights = {}
    for preset in ("paper", "official"):
        args = parser.parse_args(["--data", str(folder), "--preset", preset, "--out", str(tmp_path / "new")])
        options = cli.make_options(task, args)
        weights[preset] = options.weights
        assert (options.size, options.bins, options.residual) == (256, 256, False)
    assert weights == {"paper": {"emd": 1, "mi": 1, "adv": 1}, "official": {"emd": 20, "mi": 1, "adv": 1}}
    args = parser.parse_args(["--data", str(folder)])
    small = training.Options(**{**vars(options), "size": 32, "width": 4, "task": "edges2photo"})
    trainer = training.Trainer(Fabric(accelerator="cpu", devices=1), small, tmp_path / "run")
    schedule = cli.make_schedule(task, args, {"full": trainer})
    assert schedule.steps == 200 * 3 / 4  # 200 epochs of 3 photos of 5, in batches of 4


def test_counts_are_of_hard_histograms() -> None:
    options = dict.fromkeys(training.Options.__dataclass_fields__)
    reference = torch.rand(2, 3, 8, 8) * 2 - 1
    for code in ("counts", "soft"):
        of = training.Options(**{**options, "code": code, "color": "yuv", "bins": 16})
        hard = hard_histogram(SPACES["yuv"].from_rgb(reference), bins=16)
        assert torch.equal(training.code_histogram(reference, of), hard) == (code == "counts")


@pytest.mark.parametrize("task", TASKS)
def test_discriminator_learns_what_is_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Its logits are to rise for the real image, and to fall for the painted one."""
    seen = []

    class Spy(training.Discriminator):
        def forward(self, image: Tensor, source: Tensor | None = None) -> Tensor:
            logits = super().forward(image, source)
            logits.register_hook(lambda gradient: seen.append((image.detach(), source, gradient.mean())))
            return logits

    monkeypatch.setattr(training, "Discriminator", Spy)
    run(task, tmp_path, "--steps", "1", "--no-residual")
    dataset = open_dataset(task, None, split="train", size=32)
    source, reference = dataset[next(iter(Draws(len(dataset), seed=0, stop=1)))]
    (image, condition, of_real), (painted, _, of_painted), _ = seen
    if task == "color_transfer":
        assert condition is None
        assert torch.equal(image[0], source)
    else:
        assert torch.equal(condition[0], source)
        assert torch.equal(image[0], reference)
    assert not torch.equal(painted, image)
    assert of_real < 0 < of_painted


def test_colors_of_a_photo_to_colorize_are_not_seen(tmp_path: Path, photo: Path) -> None:
    run("colorization", tmp_path, "--steps", "1")
    luma = rgb_to_yuv(read_image(photo)[None])[0, 0]
    Image.fromarray(((luma + 1) * 127.5).round().byte().numpy()).save(tmp_path / "grey.png")
    outputs = []
    for path in (photo, tmp_path / "grey.png"):
        output = tmp_path / f"{path.stem}-out.png"
        options = ("--apply", str(path), "--palette", "red", "--output", str(output))
        cli.main(import_module("colorization").TASK, ["--out", str(tmp_path), *options])
        with Image.open(output) as painted:
            outputs.append(np.asarray(painted).astype(int))
    assert np.abs(outputs[0] - outputs[1]).max() <= 3  # the grey file has whole levels
    assert np.abs(outputs[0].mean(-1) - to_bytes(luma[None].expand(3, -1, -1))[..., 0]).mean() < 8
