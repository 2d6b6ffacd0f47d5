"""The training that all trainers share, on the one that trains fastest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.objective import Objective
from shared.training import CHECKPOINT
from trainers import EXAMPLES, assert_same_bits, error, run, seconds, state, tiny


def test_resumed_as_if_never_stopped(tmp_path: Path) -> None:
    """Weights, optimizers, data order, noise and losses, whatever the workers and the samples drawn."""
    run("color_transfer", tmp_path / "whole", "--steps", "4", "--log-every", "1")
    run("color_transfer", tmp_path / "parts", "--steps", "2", "--log-every", "1", "--sample-every", "1")
    half = seconds(tmp_path / "parts")
    more = ("--steps", "4", "--log-every", "1", "--sample-every", "1", "--workers", "2")
    run("color_transfer", tmp_path / "parts", "--resume", *more)
    assert_same_bits(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert seconds(tmp_path / "parts") > half > 0


def test_resumed_to_the_same_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run knows how long it was to be; it cannot become shorter than it is. What is finished stays so."""
    run("color_transfer", tmp_path, "--steps", "2")
    before = (tmp_path / CHECKPOINT).read_bytes()
    run("color_transfer", tmp_path, "--resume")
    assert (tmp_path / CHECKPOINT).read_bytes() == before
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
        *tiny("color_transfer"),
    ]
    many = ["--steps", "100000", "--workers", "2", "--save-every", "2"]
    process = subprocess.Popen([*command, *many], start_new_session=True, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "run" / CHECKPOINT).exists():
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


def test_torchrun(tmp_path: Path) -> None:
    """Two processes train on the samples that one would, and write one checkpoint, which one can resume."""
    options = [
        *tiny("color_transfer"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "48"), "power of two"),
        (("--data", "/nowhere"), "'/nowhere' is not a folder"),
        (("--direction", "BtoA"), "BtoA"),
        (("--steps", "0"), "at least 1"),
        (("--learning-rate", "nan"), "above 0"),
        (("--accelerator", "cuda"), "--accelerator cuda"),
        (("--seed", "99999999999999999999"), "--seed"),
    ],
)
def test_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert message in error(capsys, "color_transfer", tmp_path, *options)
    assert not (tmp_path / CHECKPOINT).exists()


def test_errors_of_a_run_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("color_transfer", tmp_path, "--steps", "1")
    assert "--resume" in error(capsys, "color_transfer", tmp_path)
    assert "seed is 0" in error(capsys, "color_transfer", tmp_path, "--resume", "--seed", "1")
    assert "color_transfer" in error(capsys, "colorization", tmp_path, "--resume")
    weights = error(capsys, "color_transfer", tmp_path, "--resume", "--weights", "mi=3")
    assert "--weights is" in weights
