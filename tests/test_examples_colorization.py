"""The trainers of colourisation by a GAN, without pairs and by classes of colour."""

from __future__ import annotations

import atexit
import json
import math
import signal
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import colorization_gan
import unpaired_colorization
from histloss import ColorBins, ColorPrior
from histloss.color import rgb_to_lab
from shared import colorization
from shared.adversary import Adversary
from shared.cli import close_processes
from shared.colorization import COUNTED, count_colors
from shared.data import Draw, Draws, Pair, open_dataset, read_image
from shared.lab import lightness, split_lab
from shared.networks import resize
from shared.training import CHECKPOINT, Schedule, System, Trainer, load_system
from trainers import COLORIZERS, assert_same_bits, error, flat, run, state, system, trainer

WEIGHTS = {"adv": 1, "nce": 1, "style": 1, "tv": 1, "l1": 5, "variance": 1}


def batch(size: int = 32) -> tuple[Tensor, Tensor]:
    """Greys and the photos they are of."""
    photos = torch.rand(2, 3, size, size) * 2 - 1
    return lightness(photos), photos


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("colorization_gan", "--adversarial none"),
        ("colorization_gan", ""),
        ("colorization_gan", "--adversarial lsgan --pixel l2 --pixel-weight 7 --precision bf16-mixed"),
        ("colorization_gan", "--adversarial ebgan --no-conditional"),
        ("colorization_gan", "--adversarial wgan --critic-steps 2"),
        ("unpaired_colorization", ""),
        ("unpaired_colorization", "--weights nce=0.5,tv=2,l1=0 --precision bf16-mixed"),
        ("colorization_classes", "--loss l2"),
        ("colorization_classes", "--loss classes --neighbours 1"),
        ("colorization_classes", "--precision bf16-mixed"),
    ],
)
def test_some_steps(tmp_path: Path, name: str, options: str) -> None:
    """All networks learn, the terms add up, and checkpoint, sample grid, plot and events are there."""
    run(name, tmp_path, *options.split(), "--steps", "3", "--log-every", "1")
    last = state(tmp_path)
    kind = import_module(name).RECIPE.system
    torch.manual_seed(0)
    first = kind(Fabric(accelerator="cpu", devices=1), kind.options_type(**last["options"]))
    networks = [name for name in first.modules if name != "loss"]
    assert f"{networks[0]}_optimizer" in last
    for network in networks:
        for weight, value in first.modules[network].state_dict().items():
            if weight.endswith("weight"):
                assert not torch.equal(last[network][weight], value), (network, weight)

    assert [row[0] for row in last["history"]] == [1, 2, 3]
    weights = {
        "colorization_gan": lambda o: {
            "adv": float(o["adversarial"] != "none"),
            o["pixel"]: o["pixel_weight"],
        },
        "unpaired_colorization": lambda o: o["weights"],
        "colorization_classes": lambda o: {"total": 1},
    }[name](last["options"])
    for row in last["history"]:
        terms = dict(zip(kind.terms, row[1:], strict=True))
        wanted = sum(weight * terms[term] for term, weight in weights.items())
        assert terms["total"] == pytest.approx(wanted, rel=1e-4)
        for term, value in terms.items():
            if term not in ("total", "discriminator"):
                assert (value != 0) == (weights.get(term, 0) > 0), term
        assert (terms.get("discriminator", 0) != 0) == (weights.get("adv", 0) > 0)

    with Image.open(tmp_path / "samples" / "0000003.png") as grid:
        assert grid.size == (3 * 164 + 4, 8 * 164 + 32)  # eight photos of 32 pixels, five times as large
    assert (tmp_path / "losses.png").stat().st_size > 10_000
    assert list(tmp_path.glob("events*"))


def interrupt(monkeypatch: pytest.MonkeyPatch, kind: type[System], number: int) -> None:
    """Let a signal arrive in this step of the next run."""
    steps = iter(range(1, number + 1))
    original = kind.step

    def step(self: System, *pair: Tensor) -> Any:
        if next(steps) == number:
            monkeypatch.setattr(kind, "step", original)
            signal.raise_signal(signal.SIGTERM)
        return original(self, *pair)

    monkeypatch.setattr(kind, "step", step)


@pytest.mark.parametrize(
    ("name", "options"),
    [("colorization_gan", "--adversarial wgan"), ("unpaired_colorization", ""), ("colorization_classes", "")],
)
def test_resumed_as_if_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: str
) -> None:
    """Networks, heads, weights of classes, optimizers, noise, places of patches and the learning rate."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(name, whole, *options.split(), "--steps", "4", "--log-every", "1")
    interrupt(monkeypatch, import_module(name).RECIPE.system, 2)
    with pytest.raises(SystemExit, match="stopped by a signal before step 4"):
        run(name, parts, *options.split(), "--steps", "4", "--log-every", "1")
    assert state(parts)["step"] == 2
    run(name, parts, "--resume", "--log-every", "1")
    assert_same_bits(state(whole), state(parts))


def some_steps(fabric: Fabric, folder: Path) -> list[float]:
    """Of each trainer. How far the networks of the processes are apart."""
    given = {
        "colorization_gan": {"adversarial": "wgan"},
        # All places, so that it does not matter in which order they are drawn.
        "unpaired_colorization": {"blocks": 1, "patches": 10_000, "weights": {"adv": 0.0}},
        "colorization_classes": {},
    }
    if fabric.world_size > 1:
        atexit.register(close_processes)
    apart = []
    for name, more in given.items():
        kind = import_module(name).RECIPE.system
        options = kind.options_type.complete(name, {"size": 32, "width": 4, "batch_size": 4, **more})
        run = Trainer(fabric, kind, options, folder / name)
        run.train(Schedule(3, workers=0, log_every=1, sample_every=10, save_every=10))
        parameters = [p.detach() for module in run.system.modules.values() for p in module.parameters()]
        own = torch.cat([p.flatten() for p in parameters])
        apart.append(fabric.all_reduce((own - fabric.broadcast(own)).abs().max(), reduce_op="sum").item())
    return apart


def test_two_processes(tmp_path: Path) -> None:
    """Two gloo processes have the same networks, and where nothing is random, those of one."""
    one, two = tmp_path / "one", tmp_path / "two"
    some_steps(Fabric(accelerator="cpu", devices=1), one)
    apart = Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(some_steps, two)
    assert apart == [0, 0, 0]
    for name in COLORIZERS:
        assert np.isfinite(state(two / name)["history"]).all()
    a, b = (state(folder / "unpaired_colorization") for folder in (one, two))
    for network in ("generator", "heads"):
        for x, y in zip(flat(a[network]), flat(b[network]), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
    np.testing.assert_allclose(a["history"], b["history"], rtol=1e-4)


@pytest.mark.parametrize("name", COLORIZERS)
def test_apply(tmp_path: Path, name: str) -> None:
    """A photo of any size gets chroma and keeps its lightness; its own colours do not matter."""
    path, out = tmp_path / "photo.png", tmp_path / "run"
    smooth = F.interpolate(torch.rand(1, 3, 5, 7) * 0.6 - 0.3, (37, 50), mode="bicubic")
    Image.fromarray(((smooth[0].movedim(0, -1) + 1) * 127.5).byte().numpy()).save(path)
    run(name, out, "--steps", "1")
    for output in ("a.png", "b.png"):
        trainer(name, "--out", str(out), "--apply", str(path), "--output", str(tmp_path / output))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    photo = read_image(path)[None]
    colorizer = load_system(out, name, import_module(name).RECIPE.system)
    torch.manual_seed(0)
    output = colorizer.colorize(photo)
    torch.testing.assert_close(read_image(tmp_path / "a.png")[None], output, rtol=0, atol=1 / 255)
    inside = (output.abs() < 1).all(1, keepdim=True)
    assert inside.float().mean() > 0.3
    torch.testing.assert_close(split_lab(output)[0][inside], split_lab(photo)[0][inside], rtol=0, atol=2e-4)
    assert split_lab(output)[1].abs().max() > 1e-3

    torch.manual_seed(0)
    torch.testing.assert_close(colorizer.colorize(lightness(photo)), output, rtol=0, atol=0.01)


def test_errors_of_apply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("colorization_gan", tmp_path, "--steps", "1")
    photo = ("--apply", "nowhere.png")
    assert "cannot read 'nowhere.png'" in error(capsys, "colorization_gan", tmp_path, *photo)
    assert "of colorization_gan, not of colorization_classes" in error(
        capsys, "colorization_classes", tmp_path, *photo
    )
    assert "holds no run of unpaired" in error(capsys, "unpaired_colorization", tmp_path / "no", *photo)
    assert "--output goes with --apply" in error(capsys, "colorization_gan", tmp_path, "--output", "a.png")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, "--size 48", "power of two") for name in COLORIZERS),
        *((name, "--size 16", "at least 32") for name in COLORIZERS),
        ("colorization_gan", "--adversarial gan", "'gan'"),
        ("colorization_gan", "--pixel-weight 0", "above 0"),
        ("colorization_gan", "--clamp nan", "above 0"),
        ("colorization_gan", "--margin -1", "above 0"),
        ("colorization_gan", "--critic-steps 0", "at least 1"),
        ("unpaired_colorization", "--weights emd=1", "adv, nce, style, tv, l1, variance"),
        ("unpaired_colorization", "--weights adv=0,nce=0,style=0,tv=0,l1=0,variance=0", "leaves no loss"),
        ("unpaired_colorization", "--patches 1", "patches"),
        ("unpaired_colorization", "--blocks 0", "at least 1"),
        ("unpaired_colorization", "--temperature 0", "above 0"),
        ("colorization_classes", "--loss l1", "'l1'"),
        ("colorization_classes", "--neighbours 314", "neighbours"),
        ("colorization_classes", "--loss l2 --neighbours 1", "goes with --loss classes or rebalanced"),
    ],
)
def test_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, options: str, message: str
) -> None:
    assert message in error(capsys, name, tmp_path, *options.split())
    assert not (tmp_path / CHECKPOINT).exists()


# The GAN.


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("Discriminator", "--adversarial dcgan"),
        ("Discriminator", "--adversarial wgan --critic-steps 1 --no-conditional"),
        ("AutoencoderDiscriminator", "--adversarial ebgan --margin 1000"),
    ],
)
def test_what_a_discriminator_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, options: str
) -> None:
    """True chroma, then painted, both beside the lightness if it is conditional; energies are to fall."""
    seen = []

    class Spy(getattr(colorization_gan, network)):
        def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
            scores = super().forward(image, condition)
            scores.register_hook(lambda gradient: seen.append((image.detach(), condition, gradient.mean())))
            return scores

    monkeypatch.setattr(colorization_gan, network, Spy)
    run("colorization_gan", tmp_path, *options.split(), "--steps", "1")
    dataset = open_dataset("colorization_lab", None, split="train", size=32)
    lab = rgb_to_lab(dataset[next(iter(Draws(len(dataset), seed=0, stop=1)))].reference[None])[0]
    (real, _, of_real), (painted, _, of_painted), (again, _, of_generator) = seen
    assert torch.equal(real[0], lab[1:])
    assert torch.equal(painted, again)
    assert not torch.equal(painted, real)
    for _, condition, _ in seen:
        if "--no-conditional" in options:
            assert condition is None
        else:
            assert torch.equal(condition[0], lab[:1])
    sign = 1 if network == "AutoencoderDiscriminator" else -1
    assert sign * of_painted < 0 < sign * of_real
    assert sign * of_generator > 0


def test_critic(tmp_path: Path) -> None:
    """Several steps of RMSprop for one of the generator, and weights that stay in the clamp."""
    options = "--adversarial wgan --critic-steps 3 --clamp 0.005 --steps 2"
    run("colorization_gan", tmp_path, *options.split())
    kept = state(tmp_path)
    critic = system("colorization_gan", adversarial="wgan").modules["discriminator"].module
    weights = torch.cat([kept["discriminator"][name].flatten() for name, _ in critic.named_parameters()])
    assert weights.abs().max() == torch.tensor(0.005)
    assert weights.abs().min() < 0.005
    critic_state, generator_state = (
        kept[f"{name}_optimizer"]["state"][0] for name in ("discriminator", "generator")
    )
    assert critic_state["step"] == 3 * generator_state["step"] == 6
    assert "square_avg" in critic_state
    assert "exp_avg" in generator_state


def test_without_a_discriminator() -> None:
    assert set(system("colorization_gan", adversarial="none").modules) == {"generator"}


# Without pairs.


class Calls:
    """Counts the calls of a module's forward, or of a function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> None:
        self.count = 0
        original = getattr(target, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(target, name, counted)


@pytest.mark.parametrize("term", WEIGHTS)
def test_a_term_of_weight_0_is_not_computed(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    weights = {name: float(name == term) for name in WEIGHTS}
    colorizer = system("unpaired_colorization", weights=weights, blocks=1, patches=16)
    calls = {
        "adv": Calls(monkeypatch, Adversary, "learn"),
        "nce": Calls(monkeypatch, unpaired_colorization.PatchNCELoss, "forward"),
        "tv": Calls(monkeypatch, unpaired_colorization.TotalVariationLoss, "forward"),
        "variance": Calls(monkeypatch, unpaired_colorization.ColorVarianceLoss, "forward"),
        "l1": Calls(monkeypatch, F, "l1_loss"),
    }
    painted = Calls(monkeypatch, unpaired_colorization.ResNetGenerator, "forward")
    source, style = batch()
    terms = colorizer.step(source, style)
    computed = "nce" if term == "style" else term
    assert {name for name, made in calls.items() if made.count} == {computed}
    assert calls[computed].count == 1
    assert painted.count == (2 if term in ("style", "l1") else 1)
    for name in WEIGHTS:
        assert (terms[name] != 0) == (name == term)
    assert terms["total"] == terms[term]


def test_learning_rate_follows_half_a_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, rates = unpaired_colorization.UnpairedColorizer, []
    step = kind.step

    def spy(self: System, *pair: Tensor) -> Any:
        rates.append([o.param_groups[0]["lr"] for o in self.optimizers.values()])
        return step(self, *pair)

    monkeypatch.setattr(kind, "step", spy)
    run("unpaired_colorization", tmp_path, "--steps", "5", "--learning-rate", "0.01")
    wanted = [0.01 * (1 + math.cos(math.pi * n / 5)) / 2 for n in range(5)]
    np.testing.assert_allclose(rates, np.transpose([wanted] * 3), rtol=1e-12)


def test_without_pairs_no_photo_is_its_own_style() -> None:
    colorizer = system("unpaired_colorization")
    dataset = open_dataset(colorizer.kind, None, split="train", size=32)
    for n in range(10):
        source, style = dataset[Draw(n, n)]
        assert split_lab(source[None])[1].abs().max() < 1e-3
        assert (source - lightness(style)).abs().mean() > 0.05


# Classes.


@pytest.mark.parametrize(("loss", "outputs"), [("l2", 2), ("classes", 313), ("rebalanced", 313)])
def test_outputs(loss: str, outputs: int) -> None:
    assert system("colorization_classes", loss=loss).modules["network"].head.out_channels == outputs


def test_one_hot_classes_are_plain_cross_entropy() -> None:
    """Of the nearest bin, in the resolution of the network's output; soft ones are not."""
    source, photos = batch()
    ab = resize(split_lab(photos)[1], (8, 8))
    nearest = ColorBins().encode(ab, neighbours=1)[0][:, 0]
    losses = {}
    for neighbours in (1, 5):
        colorizer = system("colorization_classes", loss="classes", neighbours=neighbours)
        logits = colorizer.modules["network"](split_lab(photos)[0]).detach()
        losses[neighbours] = colorizer.step(source, photos)["total"].detach()
    expected = F.cross_entropy(logits, nearest)
    torch.testing.assert_close(losses[1], expected)
    assert (losses[5] - expected).abs() > 1e-5


def test_l2_is_the_mean_square_of_chroma() -> None:
    source, photos = batch()
    colorizer = system("colorization_classes", loss="l2")
    output = colorizer.modules["network"](split_lab(photos)[0]).detach()
    expected = (output - resize(split_lab(photos)[1], (8, 8))).square().mean()
    torch.testing.assert_close(colorizer.step(source, photos)["total"].detach(), expected)


def test_colors_are_counted_once(tmp_path: Path) -> None:
    """A run keeps what it counted, for others and for itself; its checkpoint needs no prior."""
    first, second = tmp_path / "first", tmp_path / "second"
    run("colorization_classes", first, "--steps", "1")
    prior = first / "prior.json"
    run("colorization_classes", second, "--steps", "1", "--prior", str(prior))
    assert not (second / "prior.json").exists()
    weights = state(first)["loss"]["weights"]
    assert torch.equal(state(second)["loss"]["weights"], weights)
    p = ColorPrior.load(prior).probabilities()
    assert (p @ weights.double()).item() == pytest.approx(1, abs=1e-6)
    assert weights.max() > 2 * weights.min()

    prior.unlink()
    run("colorization_classes", second, "--steps", "2", "--resume")
    assert torch.equal(state(second)["loss"]["weights"], weights)


def test_prior_is_of_the_training_photos() -> None:
    """All pixels of each."""
    dataset = open_dataset("colorization_lab", None, split="train", size=8)
    assert len(dataset) == 500 <= COUNTED
    prior, expected = count_colors(dataset, ColorBins()), ColorPrior()
    for n in range(len(dataset)):
        expected.update(split_lab(dataset[Draw(n, n)].reference[None])[1])
    assert torch.equal(prior.counts, expected.counts)
    assert prior.pixels == 500 * 8 * 8


def test_prior_of_many_photos_is_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly among them."""
    monkeypatch.setattr(colorization, "COUNTED", 300)
    dataset = open_dataset("colorization_lab", None, split="train", size=8)
    seen, grey_pixel = [], Pair(*torch.zeros(2, 3, 1, 1))
    monkeypatch.setattr(
        type(dataset), "__getitem__", lambda self, draw: seen.append(draw.index) or grey_pixel
    )
    assert count_colors(dataset, ColorBins()).pixels == 300
    assert seen == [n * 500 // 300 for n in range(300)]


def test_priors_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prior.json"

    def message() -> str:
        return error(capsys, "colorization_classes", tmp_path / "run", "--prior", str(path))

    assert "No such file" in message()
    path.write_text("not a prior")
    assert str(path) in message()
    other = ColorPrior(ColorBins(20))
    other.update(torch.zeros(1, 2, 4, 4))
    other.save(path)
    assert "grid=20" in message()
    content = json.loads(path.read_text())
    (inner,) = content.values()
    inner.update(pixels=0, counts=[0] * inner["bins"])
    path.write_text(json.dumps(content))
    assert str(path) in message()
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_chroma_is_the_annealed_mean() -> None:
    """At the size of the photo; a low temperature gives the mode."""
    grey = batch()[0]
    colorizer = system("colorization_classes", temperature=1e-6)
    network = colorizer.modules["network"].eval()
    network.module.head.weight.data *= 1000  # no two bins as likely
    logits = network(split_lab(grey)[0])
    modes = ColorBins().centers[logits.argmax(1)].movedim(-1, 1)
    torch.testing.assert_close(colorizer.chroma(grey), resize(modes, (32, 32)), rtol=0, atol=1e-3)
