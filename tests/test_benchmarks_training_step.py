"""The benchmark of a training step: what it trains, what it times and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import histloss

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import run  # noqa: E402
import training_step  # noqa: E402
from training_step import SIDES  # noqa: E402

SIZE = training_step.QUICK


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run in a process of its own writes."""
    path = tmp_path_factory.mktemp("results") / "quick.json"
    command = [sys.executable, str(BENCHMARKS / "training_step.py"), "--quick", "--output", str(path)]
    environment = os.environ | {"PYTHONPATH": str(Path(histloss.__file__).parent.parent)}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return json.loads(path.read_text())


def test_a_run_writes_rows_of_both_sides(result: dict[str, Any]) -> None:
    rows = {(row["side"], row["metric"], row["stage"]): row for row in result["rows"]}
    figures = (("time", "step"), ("time", "losses"), ("share", "losses"))
    assert set(rows) == {(side, *figure) for side in SIDES for figure in figures}
    for side in SIDES:
        step, losses, share = (rows[(side, *figure)] for figure in figures)
        assert 0 < losses["value"] < step["value"]
        assert 0 < share["p20"] <= share["value"] <= share["p80"] < 100
        assert (step["shape"], step["bins"], step["threads"]) == ([2, 3, 32, 32], SIZE.bins, 1)
        assert step["samples"] == training_step.QUICK_ROUNDS
    assert [rows[side, "time", "step"]["images at once"] for side in SIDES] == [2, 1]


def test_a_run_says_where_it_was_made(result: dict[str, Any]) -> None:
    made_with = result["provenance"]
    assert made_with["version"] == histloss.__version__
    assert made_with["malloc"] == run.KEPT_PAGES
    assert made_with["command"].startswith("python benchmarks/training_step.py --quick --output")


def test_both_sides_compute_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = training_step.Trainer(SIZE, 4)
    output = trainer.source * 0.9
    calls = []
    planes = histloss.reference.plane_histogram
    monkeypatch.setattr(
        histloss.reference, "plane_histogram", lambda *arguments: calls.append(side) or planes(*arguments)
    )
    gradients = []
    for side in SIDES:
        target = trainer.target(side)
        gradients.append(trainer.gradient(side, output.clone(), target))
    assert set(calls) == {"reference"}
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    assert gradients[0].abs().max() > 1e-5


def test_a_step_trains_both_networks_and_times_the_losses() -> None:
    trainer = training_step.Trainer(SIZE, 4)
    networks = (trainer.generator, trainer.discriminator)
    before = [[weight.clone() for weight in network.parameters()] for network in networks]
    losses, rest = trainer.step("histloss")
    assert losses > 0
    assert rest > 0
    for network, weights in zip(networks, before, strict=True):
        assert any(not torch.equal(*pair) for pair in zip(network.parameters(), weights, strict=True))


def test_the_generator_follows_the_gradient_of_the_histogram_losses() -> None:
    """The step's gradient in two parts is that of the whole objective."""
    trainer = training_step.Trainer(SIZE, 4)
    source, target = trainer.source, trainer.target("histloss")
    objective = histloss.DeepHistLoss(emd=trainer.loss.emd, mi=trainer.loss.mi)
    output = trainer.generator(source, target)
    logits = trainer.discriminator(output, source)
    yuv = (histloss.color.rgb_to_yuv(image) for image in (output, source))
    wanted = torch.autograd.grad(objective(*yuv, target, logits).total, output, retain_graph=True)[0]

    found = []
    output.register_hook(found.append)
    gradient = trainer.gradient("histloss", output.detach(), target)
    trainer.improve_generator(output, gradient)
    torch.testing.assert_close(found[-1], wanted)


def test_the_target_is_for_full_size_and_histloss_alone() -> None:
    full = {"side": "histloss", "bins": 256, "shape": [1, 3, 256, 256]}
    assert training_step.verdict(full | {"value": 1.9}) == "reached (2)"
    assert training_step.verdict(full | {"value": 2.1}) == "MISSED (2)"
    assert training_step.verdict(full | {"value": 2.1, "side": "reference"}) == ""
    assert training_step.verdict(full | {"value": 2.1, "shape": [1, 3, 32, 32]}) == ""


@pytest.mark.parametrize(
    "arguments", [["--rounds", "1"], ["--threads", "0"], ["--batch", "0"], ["--unknown"]]
)
def test_bad_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        training_step.parse(arguments)
