"""histloss.compat.huenet against the originals' equations, written out here in float64.

Neither original can be installed: the authors' code is TensorFlow, and both are scripts without a package.
So this file shows that the functions compute these equations, which were read in the originals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from asserters import assert_gradient, assert_value
from histloss.compat import huenet
from histloss.compat.huenet import HistogramLayers, HistogramLayersCT

pytestmark = pytest.mark.usefixtures("device")


def options(**changes: Any) -> SimpleNamespace:
    """What the originals' command lines give, with fewer bins."""
    defaults = {
        "bin_num": 32,
        "min_val": -1.0,
        "max_val": 1.0,
        "kernel_width_ratio": 2.5,
        "task": "color_transfer",
        "gan_loss_weight": 1,
        "mi_loss_weight": 0.5,
        "hist_loss_weight": 100,
    }
    return SimpleNamespace(**(defaults | changes))


# ---- the equations -----------------------------------------------------------------------------------


def maps(image: Tensor, args: Any) -> Tensor:
    """A box of one bin's width around each centre, with sigmoids for edges, and its mirror images.

    The originals have the difference of two sigmoids. This is the same, and far from the centre still exact.
    """
    width = (args.max_val - args.min_val) / args.bin_num
    scale = width / args.kernel_width_ratio
    centres = args.min_val + width * (torch.arange(args.bin_num, dtype=torch.float64) + 0.5)
    z = image.double().flatten(1).unsqueeze(-1)

    def box(distance: Tensor) -> Tensor:
        left, right = (distance + width / 2) / scale, (distance - width / 2) / scale
        return torch.sigmoid(left) * torch.sigmoid(-right) * -math.expm1(-width / scale)

    mirrored = (z + centres - 2 * end for end in (args.min_val, args.max_val))
    return box(z - centres) + sum(map(box, mirrored))


def histogram_loss(a: Tensor, b: Tensor, args: Any) -> Tensor:
    of_a, of_b = (maps(image, args).mean(1).cumsum(-1) for image in (a, b))
    return (of_a - of_b).square().mean(-1).sqrt().mean()


def conditional_entropy(x: Tensor, given: Tensor, args: Any, epsilon: float) -> Tensor:
    """H(x | given). An epsilon of 0 stands for x log x with 0 log 0 = 0, as tf.math.xlogy has it."""

    def plogp(p: Tensor) -> Tensor:
        return torch.xlogy(p, p) if epsilon == 0 else p * torch.log(p + epsilon)

    joint = maps(x, args).mT @ maps(given, args) / x[0].numel()
    return (plogp(joint.sum(1)).sum(-1) - plogp(joint).sum((1, 2))).mean()


def adversarial(logits: Tensor) -> Tensor:
    return -torch.log(torch.sigmoid(logits.double())).mean()


# ---- the layers --------------------------------------------------------------------------------------


def images(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Output, target and source; the output leaves the range, as chroma does."""
    out = torch.rand(shape, dtype=dtype) * 2.4 - 1.2
    tar = torch.rand(shape, dtype=dtype) - 0.5
    src = 0.6 * out + 0.4 * torch.rand(shape, dtype=dtype)
    return out.requires_grad_(), tar.requires_grad_(), src.requires_grad_()


def assert_same(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    __tracebackhide__ = True
    assert_value(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, inputs, retain_graph=True),
        torch.autograd.grad(expected, inputs, retain_graph=True),
        strict=True,
    ):
        assert_gradient(a, b)


def test_the_box_is_a_difference_of_sigmoids() -> None:
    z = torch.rand(1, 50, dtype=torch.float64) * 2.4 - 1.2
    width, scale = 2 / 8, 2 / 8 / 2.5
    centres = -1 + width * (torch.arange(8, dtype=torch.float64) + 0.5)
    expected = torch.zeros(1, 50, 8, dtype=torch.float64)
    for distance in (z[..., None] - centres, z[..., None] + centres + 2, z[..., None] + centres - 2):
        expected += torch.sigmoid((distance + width / 2) / scale)
        expected -= torch.sigmoid((distance - width / 2) / scale)
    assert_value(maps(z, options(bin_num=8)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"bin_num": 256}, {"min_val": 0.0, "max_val": 2.0}, {"kernel_width_ratio": 2.0}], ids=str
)
def test_the_layers_compute_the_equations(changes: dict[str, Any], dtype: torch.dtype) -> None:
    args = options(**changes)
    out, tar, src = images(2, 13, 12, dtype=dtype)
    for epsilon in (0.0, 1e-9):
        layers = HistogramLayersCT(out, tar, src, args, epsilon=epsilon)
        assert_same(layers.calc_hist_loss_tar_out(), histogram_loss(tar, out, args), tar, out)
        for found, x in (
            (layers.calc_cond_entropy_loss_tar_out(), tar),
            (layers.calc_cond_entropy_loss_src_out(), src),
        ):
            assert_same(found, conditional_entropy(x, out, args, epsilon), x, out)
    assert_value(layers.calc_activation_maps(out), maps(out, args))


def test_the_layers_have_the_ports_defaults() -> None:
    out, tar, src = images(2, 10, 9, dtype=torch.float64)
    args = options(bin_num=200)
    layers = HistogramLayers(out, tar, args)
    of_port, of_authors = (conditional_entropy(tar, out, args, epsilon) for epsilon in (1e-9, 0.0))
    assert (of_port - of_authors).abs() > 1e-8
    assert_value(layers.calc_cond_entropy_loss_tar_out(), of_port)
    assert (layers.n_pixels, layers.bs, layers.bin_num) == (90, 2, 200)
    assert (layers.interval_length, layers.kernel_width) == (0.01, 0.004)
    assert isinstance(HistogramLayersCT(out, tar, src, args), HistogramLayers)


@pytest.mark.usefixtures("path")
def test_equal_images_are_at_rest() -> None:
    """The port's gradient is NaN."""
    out, _, _ = images(2, 8, 8)
    layers = HistogramLayers(out, out.detach().clone(), options())
    loss = layers.calc_hist_loss_tar_out()
    (grad,) = torch.autograd.grad(loss, out)
    assert loss.item() == 0
    assert not grad.any()
    equation = histogram_loss(out.detach().clone(), out, options())
    assert bool(torch.autograd.grad(equation, out)[0].isnan().any())


def test_the_target_may_have_a_size_of_its_own() -> None:
    out, _, src = images(2, 8, 8)
    _, tar, _ = images(2, 5, 20)
    layers = HistogramLayersCT(out, tar, src, options())
    assert_same(layers.calc_hist_loss_tar_out(), histogram_loss(tar, out, options()), tar, out)
    with pytest.raises(
        ValueError, match=r"tar_img must have the shape of out_img, \(2, 8, 8\), got \(2, 5, 20\)"
    ):
        layers.calc_cond_entropy_loss_tar_out()


# ---- the losses --------------------------------------------------------------------------------------


def terms(out: Tensor, tar: Tensor, x: Tensor, logits: Tensor, args: Any, epsilon: float) -> list[Tensor]:
    """Each channel's terms and their mean, as the originals take it: (first + second + third) / 3."""
    channels = range(out.shape[1])
    gan = adversarial(logits)
    mi = sum(conditional_entropy(x[:, c], out[:, c], args, epsilon) for c in channels) / len(channels)
    hist = sum(histogram_loss(tar[:, c], out[:, c], args) for c in channels) / len(channels)
    weighted = args.gan_loss_weight * gan + args.mi_loss_weight * mi + args.hist_loss_weight * hist
    return [weighted, gan, mi, hist]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_generators_losses(dtype: torch.dtype) -> None:
    out, tar, src = images(2, 3, 9, 8, dtype=dtype)
    logits = torch.randn(2, 1, 4, 4, dtype=dtype)
    args = options()
    cases = (
        (huenet.G_loss_color_transfer(logits, out, src, tar, args), terms(out, tar, src, logits, args, 1e-9)),
        (
            huenet.generator_loss_color_transfer(logits, out, src, tar, args),
            terms(out, tar, src, logits, args, 0.0),
        ),
        (huenet.generator_loss(logits, out, tar, args), terms(out, tar, tar, logits, args, 0.0)),
    )
    for found, expected in cases:
        assert found._fields == ("total", "gan", "mi", "hist")
        for a, b in zip(found, expected, strict=True):
            assert_value(a, b)
        assert_gradient(*(torch.autograd.grad(each[0], out)[0] for each in (found, expected)))


def test_the_ports_task_of_one_channel() -> None:
    out, tar, src = images(2, 1, 9, 8)
    logits, args = torch.randn(2, 1, 4, 4), options(task="SAMPLE")
    found = huenet.G_loss_color_transfer(logits, out, src, tar, args)
    for a, b in zip(found, terms(out, tar, src, logits, args, 1e-9), strict=True):
        assert_value(a, b)


def test_the_discriminators_loss() -> None:
    real, generated = torch.randn(2, 1, 5, 5), torch.randn(2, 1, 4, 4)
    expected = adversarial(real) + adversarial(-generated)
    for function in (huenet.D_loss, huenet.discriminator_loss):
        assert_value(function(real, generated), expected)


# ---- what is refused ---------------------------------------------------------------------------------

X, RGB, LOGITS = torch.rand(2, 6, 6), torch.rand(2, 3, 6, 6), torch.rand(2, 1)
G = huenet.G_loss_color_transfer
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: HistogramLayers(X, X, None), TypeError, "args must have the attribute 'bin_num', got None"),
    (
        lambda: HistogramLayers(X, X, options(bin_num=0)),
        ValueError,
        "args must have bin_num.*at least 1, got 0",
    ),
    (lambda: HistogramLayers(X, X, options(max_val=-1.0)), ValueError, "args must.*max_val.*lo < hi"),
    (
        lambda: HistogramLayers(X, X, options(kernel_width_ratio=0)),
        ValueError,
        "args must.*kernel_width_ratio must be positive, got 0",
    ),
    (lambda: HistogramLayers(X, X, options(), epsilon=-1.0), ValueError, "epsilon must not be negative"),
    (lambda: HistogramLayers(X.long(), X, options()), TypeError, "out_img must be float16.*int64"),
    (lambda: HistogramLayers(X, X[0, 0], options()), ValueError, r"tar_img must have shape \(B, ...\)"),
    (
        lambda: HistogramLayers(X, X[:1], options()).calc_hist_loss_tar_out(),
        ValueError,
        "tar_img must have a batch of 2 as out_img has, got 1",
    ),
    (
        lambda: HistogramLayersCT(X, X, X[:, :5], options()),
        ValueError,
        r"src_img must have the shape of out_img, \(2, 6, 6\), got \(2, 5, 6\)",
    ),
    (
        lambda: G(LOGITS, RGB[:, :2], RGB, RGB, options()),
        ValueError,
        "gen_output must have at least 3 channels",
    ),
    (
        lambda: G(LOGITS, RGB, RGB, RGB[:1], options()),
        ValueError,
        "tar_img must have a batch of 2 as gen_output",
    ),
    (
        lambda: G(LOGITS, RGB, RGB[..., :5], RGB, options()),
        ValueError,
        "src_img must have the shape of gen_output",
    ),
    (
        lambda: G(LOGITS, RGB, RGB, RGB, options(task="")),
        ValueError,
        "args.task must be one of 'color_transfer'",
    ),
    (
        lambda: G(LOGITS, RGB, RGB, RGB, options(task="SAMPLE")),
        ValueError,
        "gen_output must have 1 channel, got shape",
    ),
    (
        lambda: G(LOGITS, RGB, RGB, RGB, options(mi_loss_weight=None)),
        TypeError,
        "args.mi_loss_weight must be a number, got None",
    ),
    (lambda: G(None, RGB, RGB, RGB, options()), TypeError, "disc_generated_output must be a torch.Tensor"),
    (lambda: huenet.D_loss(LOGITS[:0], LOGITS), ValueError, "disc_real_output must hold at least one value"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_is_named(case: int) -> None:
    call, kind, message = BAD[case]
    with torch.device("cpu"), pytest.raises(kind, match=message):
        call()
