"""The three trainers of DeepHist."""

from __future__ import annotations

import atexit
import json
import re
from dataclasses import replace
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
from shared import cli, deephist
from shared.data import Draw, Draws, open_dataset, read_image, to_bytes
from shared.deephist import EMBEDDED_WEIGHTS
from shared.networks import hard_histogram
from shared.objective import SPACES, Objective, histograms
from shared.training import CHECKPOINT, Trainer
from trainers import DEEPHIST, assert_same_bits, error, run, state, system, trainer


@pytest.mark.parametrize(
    ("task", "options"),
    [
        *((task, ()) for task in DEEPHIST),
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
    if fabric.world_size > 1:
        atexit.register(cli.close_processes)
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


def test_counts_are_of_hard_histograms() -> None:
    reference = torch.rand(2, 3, 8, 8) * 2 - 1
    hard = hard_histogram(SPACES["yuv"].from_rgb(reference), bins=16)
    for code in ("counts", "soft"):
        told = system("colorization", bins=16, code=code).told(reference)
        assert torch.equal(told, hard) == (code == "counts")


@pytest.mark.parametrize("task", DEEPHIST)
def test_discriminator_learns_what_is_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Its logits are to rise for the real image, and to fall for the painted one."""
    seen = []

    class Spy(deephist.Discriminator):
        def forward(self, image: Tensor, source: Tensor | None = None) -> Tensor:
            logits = super().forward(image, source)
            logits.register_hook(lambda gradient: seen.append((image.detach(), source, gradient.mean())))
            return logits

    monkeypatch.setattr(deephist, "Discriminator", Spy)
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
    for output in ("a.png", "b.png"):
        options = ("--apply", str(photo), *colors, "--output", str(photo.parent / output))
        trainer("color_transfer", "--out", str(trained), *options)
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
    (tmp_path / CHECKPOINT).write_bytes(b"not a checkpoint")
    damaged = error(capsys, "color_transfer", tmp_path, *one, "--palette", "red")
    assert "checkpoint.pt is not a checkpoint" in damaged
    nowhere = error(capsys, "color_transfer", trained, "--apply", "nowhere.png", "--palette", "red")
    assert "cannot read 'nowhere.png'" in nowhere
    assert "--apply" in error(capsys, "color_transfer", tmp_path, "--palette", "red")
    assert "not allowed with" in error(capsys, "color_transfer", trained, *one, "--resume")


def test_colors_of_a_photo_to_colorize_are_not_seen(tmp_path: Path, photo: Path) -> None:
    run("colorization", tmp_path, "--steps", "1")
    luma = rgb_to_yuv(read_image(photo)[None])[0, 0]
    Image.fromarray(((luma + 1) * 127.5).round().byte().numpy()).save(tmp_path / "grey.png")
    outputs = []
    for path in (photo, tmp_path / "grey.png"):
        output = tmp_path / f"{path.stem}-out.png"
        options = ("--apply", str(path), "--palette", "red", "--output", str(output))
        trainer("colorization", "--out", str(tmp_path), *options)
        with Image.open(output) as painted:
            outputs.append(np.asarray(painted).astype(int))
    assert np.abs(outputs[0] - outputs[1]).max() <= 3  # the grey file has whole levels
    assert np.abs(outputs[0].mean(-1) - to_bytes(luma[None].expand(3, -1, -1))[..., 0]).mean() < 8


def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trains what is missing, once and as long as the full run, and compares."""
    run("edges2photo", tmp_path, "--steps", "2")
    run("edges2photo", tmp_path, "--evaluate")
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert list(report["runs"]) == ["identity", "full", "without MI", "without EMD", "without ADV"]
    assert report["provenance"]["steps"] == dict.fromkeys(list(report["runs"])[1:], 2)
    full = report["provenance"]["options"]["weights"]
    assert full == EMBEDDED_WEIGHTS
    for name, term in (("without-mi", "mi"), ("without-emd", "emd"), ("without-adv", "adv")):
        assert state(tmp_path / name)["options"]["weights"] == {**full, term: 0}
    assert "Table 3" in capsys.readouterr().out
    before = (tmp_path / "without-mi" / CHECKPOINT).read_bytes()
    run("edges2photo", tmp_path, "--evaluate")
    assert (tmp_path / "without-mi" / CHECKPOINT).read_bytes() == before


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


def test_presets_and_epochs(tmp_path: Path) -> None:
    """With photos of one's own the weights and epochs are those of the paper, or of the authors' code."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(5):
        Image.effect_noise((40, 40), 50 + n).convert("RGB").save(folder / f"{n}.png")
    recipe = import_module("colorization").RECIPE
    parser = deephist.deephist_parser(recipe)
    weights = {}
    for preset in ("paper", "official"):
        args = parser.parse_args(["--data", str(folder), "--preset", preset, "--out", str(tmp_path / "new")])
        options = cli.make_options(recipe, args, goes_on=False)
        weights[preset] = options.weights
        assert (options.size, options.bins, options.residual) == (256, 256, False)
    assert weights == {"paper": {"emd": 1, "mi": 1, "adv": 1}, "official": {"emd": 20, "mi": 1, "adv": 1}}
    small = replace(options, size=32, width=4, task="edges2photo")
    trainer = Trainer(Fabric(accelerator="cpu", devices=1), deephist.DeepHist, small, tmp_path / "run")
    schedule = cli.make_schedule(recipe, parser.parse_args([]), [trainer])
    assert schedule.steps == 200 * 3 / 4  # 200 epochs of 3 photos of 5, in batches of 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "emd=1,entropy=2"), "entropy"),
        (("--weights", "mi=-1"), "-1"),
        (("--weights", "mi"), "emd=1,mi=0.5"),
        (("--palette", "reddish"), "reddish"),
        (("--weights", "emd=0,mi=0,adv=0"), "leaves no loss"),
        (("--weights", "emd=1,mi=0,adv=0", "--evaluate"), "has but one"),
    ],
)
def test_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert message in error(capsys, "color_transfer", tmp_path, *options)
    assert not (tmp_path / CHECKPOINT).exists()
