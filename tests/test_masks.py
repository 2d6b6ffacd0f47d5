"""Masks without a pixel, a range for each sample, and what corrects a mutual information."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import histloss
from asserters import assert_gradient, assert_value
from devices import here, on_cpu
from histloss import DeepHistLoss, EMDHistLoss, MIHistLoss, distributed, exact, reference, soft_histogram
from histloss.binning import KERNELS, Binning, binning_pair
from histloss.sums import Sums, add, joint_sums

F64 = torch.float64
MI_MODES = ("relative", "mi", "conditional_entropy", "nmi")
SUMS: list[dict[str, Any]] = [{}, {"exact": True}, {"kernel": "gaussian"}]
pytestmark = pytest.mark.usefixtures("device")


def pictures(*shape: int, dtype: torch.dtype = torch.float32, n: int = 2) -> list[Tensor]:
    return [torch.randn(shape).mul(0.5).to(dtype) for _ in range(n)]


# ---- masks without a pixel ------------------------------------------------------------------------


def mask() -> Tensor:
    """Of (2, 3) planes of 30 pixels: in some all, a few, one, none."""
    m = torch.ones(2, 3, 30)
    m[0, 1, 4:] = 0
    m[0, 2, 1:] = 0
    m[1, 0], m[1, 2] = 0, 0
    return m


EMPTY = ((1, 0), (1, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64], ids=str)
@pytest.mark.parametrize("boundary", ["open", "reflect"])
@pytest.mark.parametrize("options", SUMS, ids=str)
def test_an_empty_mask_gives_zeros_and_pulls_at_nothing(
    path: str, options: dict[str, Any], boundary: str, dtype: torch.dtype
) -> None:
    x, y = (p.requires_grad_() for p in pictures(2, 3, 30, dtype=dtype))
    weight = mask().to(dtype).requires_grad_()
    options = {"bins": 6, "boundary": boundary, **options}
    for function, images in ((histloss.soft_histogram, (x,)), (histloss.joint_histogram, (x, y))):
        found = function(*images, **options, weight=weight, empty="zero")
        gradients = torch.autograd.grad(found.square().sum(), (*images, weight))
        for b in range(2):
            for c in range(3):
                plane = slice(b, b + 1), slice(c, c + 1)
                if (b, c) in EMPTY:
                    assert not found[plane].any()
                    for gradient in gradients:
                        assert not gradient[plane].any()
                    continue
                alone = [t[plane].detach().requires_grad_() for t in (*images, weight)]
                expected = function(*alone[:-1], **options, weight=alone[-1])
                others = torch.autograd.grad(expected.square().sum(), alone)
                assert_value(found[plane], expected)
                for gradient, other in zip(gradients, others, strict=True):
                    assert_gradient(gradient[plane], other)
        assert not function(*images, **options, weight=torch.zeros(1), empty="zero").any()


@on_cpu
@pytest.mark.parametrize("options", SUMS, ids=str)
def test_by_default_it_is_an_error(path: str, options: dict[str, Any]) -> None:
    x, y = pictures(2, 3, 30)
    for weight in (mask(), torch.zeros(30)):
        with pytest.raises(ValueError, match="weight must have a positive, finite sum for every image and"):
            histloss.soft_histogram(x, bins=4, weight=weight, **options)
        with pytest.raises(ValueError, match="weight must have a positive, finite sum for every image and"):
            histloss.joint_histogram(x, y, bins=4, weight=weight, **options, empty="error")
    for bad in (-1.0, math.nan, math.inf):
        weight = mask()
        weight[0, 0, 0] = bad
        with pytest.raises(ValueError, match="weight must"):
            histloss.soft_histogram(x, bins=4, weight=weight, **options, empty="zero")


@on_cpu
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("options", SUMS, ids=str)
def test_an_empty_mask_in_a_graph(options: dict[str, Any]) -> None:
    """Without reading a weight: compiled, mapped, and forward."""
    x, weight = pictures(2, 3, 30, n=1)[0], mask()

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return histloss.soft_histogram(x, bins=5, weight=weight, empty="zero", **options)

    expected = f(x, weight)
    assert_value(torch.compile(f, fullgraph=True, backend="aot_eager")(x, weight), expected)
    mapped = torch.func.vmap(lambda x, w: f(x[None], w[None])[0])(x, weight)
    assert_value(mapped, expected)
    value, tangent = torch.func.jvp(f, (x, weight), (torch.ones_like(x), torch.ones_like(weight)))
    assert_value(value, expected)
    assert bool(tangent.isfinite().all())
    assert not any(tangent[plane].any() for plane in EMPTY)
    assert f(x.to("meta"), weight.to("meta")).shape == (2, 3, 5)


@pytest.mark.parametrize("kernel", ["sigmoid", "bspline3"])
@pytest.mark.parametrize("form", ["squared", "norm"])
def test_an_empty_mask_costs_no_distance(path: str, form: str, kernel: str) -> None:
    (out, ref), weight = pictures(2, 3, 30), mask().requires_grad_()
    out.requires_grad_()
    loss = EMDHistLoss(16, form=form, kernel=kernel, empty="zero", reduction="none")
    target = soft_histogram(ref, **loss.binning)
    value = loss(out, target, weight=weight)
    gradients = torch.autograd.grad(value.sum(), (out, weight))
    assert {tuple(i) for i in (value == 0).nonzero().tolist()} == set(EMPTY)
    for gradient in gradients:
        assert bool(gradient.isfinite().all())
        assert {tuple(i) for i in (gradient == 0).all(-1).nonzero().tolist()} == set(EMPTY)
    mean = EMDHistLoss(16, form=form, kernel=kernel, empty="zero")(out, target, weight=weight)
    assert mean.item() == pytest.approx(value.sum().item() / 6, rel=1e-6)
    missing = target.clone()
    missing[0, 0] = 0
    again = loss(out, missing, weight=weight)
    assert again[0, 0] == 0
    assert torch.equal(again.flatten()[1:], value.flatten()[1:])


@pytest.mark.parametrize("correction", [None, "self", "miller_madow"])
@pytest.mark.parametrize("mode", MI_MODES)
def test_an_empty_mask_shares_no_information(path: str, mode: str, correction: str | None) -> None:
    (out, src), weight = pictures(2, 3, 30), mask().requires_grad_()
    out.requires_grad_()
    loss = MIHistLoss(6, mode=mode, correction=correction, empty="zero", reduction="none")
    value = loss(out, src, weight=weight)
    gradients = torch.autograd.grad(value.sum(), (out, weight))
    for plane in EMPTY:
        assert value[plane] == 0
        assert not any(gradient[plane].any() for gradient in gradients)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert value[0, 0] != 0
    mean = MIHistLoss(6, mode=mode, correction=correction, empty="zero")(out, src, weight=weight)
    assert mean.item() == pytest.approx(value.sum().item() / 6, rel=1e-5)


@on_cpu
def test_losses_refuse_empty_masks_by_default() -> None:
    out, src = pictures(2, 3, 30)
    target = soft_histogram(src)
    for loss, other in ((EMDHistLoss(), target), (MIHistLoss(8), src)):
        with pytest.raises(ValueError, match="weight must have a positive, finite sum"):
            loss(out, other, weight=mask())
    with pytest.raises(ValueError, match="ref_hist must sum to 1 over its bins, got a sum of 0"):
        EMDHistLoss()(out, 0 * target)
    assert EMDHistLoss(empty="zero")(out, 0 * target).item() == 0
    with pytest.raises(ValueError, match=r"ref_hist must sum to 1 over its bins, got a sum of 0\.5"):
        EMDHistLoss(empty="zero")(out, target / 2)
    for kind in (EMDHistLoss, MIHistLoss):
        with pytest.raises(ValueError, match="empty must be one of 'error', 'zero', got 'skip'"):
            kind(empty="skip")


def test_deephist_passes_everything_on(path: str) -> None:
    out, src = pictures(2, 3, 30)
    emd, mi = EMDHistLoss(8, empty="zero"), MIHistLoss(8, empty="zero", kernel="gaussian")
    range_ = torch.tensor([[-1.0, 1.0], [-2.0, 1.5]])
    target = soft_histogram(src, **{**emd.binning, "range": range_})
    options: dict[str, Any] = {"weight": mask(), "range": range_}
    terms = DeepHistLoss(emd=emd, mi=mi)(out, src, target, **options)
    assert torch.equal(terms.emd, emd(out, target, **options))
    assert torch.equal(terms.mi, mi(out, src, **options))


# ---- with the pixels of other processes -----------------------------------------------------------


class Others(NamedTuple):
    """What stands for a group: the sums of the other processes, and their counts of pixels."""

    sums: Sums
    counts: Tensor


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes and no communication: tests/test_distributed.py has them."""

    def combine(others: Others, *axes: Binning, dtype: torch.dtype | None) -> exact.Combine:
        assert all(isinstance(axis, Binning) for axis in axes)
        return lambda sums: add(sums, others.sums)

    monkeypatch.setattr(distributed, "combine", combine)
    monkeypatch.setattr(distributed, "all_sum", lambda tensor, others: tensor + others.counts)


def joint_of_others(src: Tensor, out: Tensor, weight: Tensor, loss: MIHistLoss) -> Others:
    axes = binning_pair(*loss.binning.values())
    planes = [reference.planes(t) for t in (out, src, weight.expand(out.shape))]
    w = weight.expand(out.shape).flatten(2).double()
    return Others(joint_sums(*planes, *axes), torch.stack([w.sum(-1), w.square().sum(-1)]))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("correction", [None, "miller_madow"])
@pytest.mark.parametrize("kernel", ["sigmoid", "gaussian"])
def test_pixels_of_several_processes(path: str, kernel: str, correction: str | None) -> None:
    """A process has some pixels, with a weight, none, or weights of 0: all get the loss of all pixels."""
    (out, src), weight = pictures(2, 3, 50), torch.rand(2, 3, 50)
    weight[..., 30:40] = 0
    loss = MIHistLoss(6, kernel=kernel, mode="mi", correction=correction, reduction="none")
    out.requires_grad_()
    nobody = Others(Sums(torch.zeros(1, 6, 6, 6).long(), torch.zeros(1, 6).long()), torch.zeros(2, 2, 3))
    expected = loss(out, src, weight=weight, process_group=nobody)
    (gradient,) = torch.autograd.grad(expected.sum(), out)
    for own in (slice(0, 20), slice(30, 40), slice(40, 50), slice(50, 50)):
        rest = [i for i in range(50) if not own.start <= i < own.stop]
        others = joint_of_others(*(t[..., rest].detach() for t in (src, out, weight)), loss)
        mine = out[..., own].detach().requires_grad_()
        found = loss(mine, src[..., own], weight=weight[..., own], process_group=others)
        assert torch.equal(found, expected)
        assert torch.equal(torch.autograd.grad(found.sum(), mine)[0], gradient[..., own])


@on_cpu
@pytest.mark.usefixtures("group")
def test_some_process_has_a_weight(path: str) -> None:
    x, weight = torch.rand(1, 2, 20), torch.zeros(1, 2, 20)
    nobody = Others(Sums(torch.zeros(1, 2, 4).long(), torch.zeros(1, 2).long()), torch.zeros(2))
    one = Others(Sums(torch.ones(1, 2, 4).long(), torch.tensor([[4, 0]])), torch.zeros(2))
    for others, total in ((nobody, r"\[0.0, 0.0\]"), (one, r"\[3.7\d*e-09, 0.0\]")):
        message = (
            f"weight must have a positive sum over all processes for every image and channel, got {total}"
        )
        with pytest.raises(ValueError, match=message):
            soft_histogram(x, bins=4, weight=weight, process_group=others)
        for pixels in (x[..., :0], x):
            w = weight[..., : pixels.shape[-1]].clone().requires_grad_()
            h = soft_histogram(pixels, bins=4, weight=w, process_group=others, empty="zero")
            assert h.tolist() == [[[0.25 * (others is one)] * 4, [0.0] * 4]]
            (gradient,) = torch.autograd.grad(h.square().sum(), w)
            assert bool(gradient.isfinite().all())
            assert not gradient[0, 1].any()
    # A process cannot tell whether others have weights: without pixels anywhere all raise alike.
    with pytest.raises(ValueError, match="a positive sum over all processes"):
        soft_histogram(x[..., :0], bins=4, process_group=nobody)
    h = soft_histogram(x[..., :0], bins=4, process_group=nobody, empty="zero")
    assert h.tolist() == [[[0.0] * 4] * 2]


# ---- a range for each sample ----------------------------------------------------------------------

RANGES = [[-1.0, 1.0], [-0.25, 0.75], [-3.0, 5.0]]


@pytest.mark.parametrize("options", [*SUMS, {"boundary": "open"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64], ids=str)
def test_each_sample_is_as_if_alone(path: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    x, y = (p.requires_grad_() for p in pictures(3, 2, 40, dtype=dtype))
    ranges = torch.tensor(RANGES, dtype=F64)
    others = torch.tensor([[0.0, 1.0], [-1.0, 1.0], [-2.0, 2.0]])
    weights = (None, torch.rand(40), torch.rand(3, 1, 40), torch.rand(1, 2, 1), torch.rand(2, 40))
    for weight in weights:
        several = weight is not None and weight.ndim == 3 and len(weight) == 3
        h = soft_histogram(x, bins=7, range=ranges, weight=weight, **options)
        j = histloss.joint_histogram(x, y, bins=5, range=(others, (-1, 1)), weight=weight, **options)
        both = histloss.joint_histogram(x, y, bins=5, range=ranges, weight=weight, **options)
        gradient = torch.autograd.grad(h.square().sum() + j.square().sum(), (x, y))
        for i, own in enumerate(RANGES):
            sample = slice(i, i + 1)
            u, v = (p[sample].detach().requires_grad_() for p in (x, y))
            w = weight[sample] if weight is not None and several else weight
            alone = soft_histogram(u, bins=7, range=own, weight=w, **options)
            pair = (others[i].tolist(), (-1, 1))
            joint = histloss.joint_histogram(u, v, bins=5, range=pair, weight=w, **options)
            assert torch.equal(h[sample], alone)
            assert torch.equal(j[sample], joint)
            same = histloss.joint_histogram(u, v, bins=5, range=own, weight=w, **options)
            assert torch.equal(both[sample], same)
            for a, b in zip(
                gradient,
                torch.autograd.grad(alone.square().sum() + joint.square().sum(), (u, v)),
                strict=True,
            ):
                assert torch.equal(a[sample], b)


def test_maps_and_the_reference_take_them_too(path: str) -> None:
    x, y = pictures(3, 2, 40, dtype=F64)
    ranges = torch.tensor(RANGES)
    for oracle, found in (
        (reference.activation_maps(x, range=ranges), histloss.activation_maps(x, range=ranges)),
        (reference.soft_histogram(x, range=ranges), soft_histogram(x, range=ranges)),
        (
            reference.joint_histogram(x, y, bins=9, range=(ranges, ranges - 1)),
            histloss.joint_histogram(x, y, bins=9, range=(ranges, ranges - 1)),
        ),
    ):
        assert_value(found, oracle)
    assert soft_histogram(x[:0], bins=4, range=ranges[:0]).shape == (0, 2, 4)
    assert histloss.joint_histogram(x[:0], y[:0], bins=4, range=ranges[:0]).shape == (0, 2, 4, 4)


def test_losses_take_them_at_a_call(path: str) -> None:
    out, ref = pictures(3, 2, 40)
    ranges = torch.tensor(RANGES)
    emd = EMDHistLoss(16, reduction="none")
    target = soft_histogram(ref, **{**emd.binning, "range": ranges})
    found = emd(out, target, range=ranges)
    for correction in (None, "self", "miller_madow"):
        mi = MIHistLoss(8, mode="mi", correction=correction, reduction="none")
        one, pair = mi(out, ref, range=ranges), mi(out, ref, range=((-2, 2), ranges))
        numbers = mi(out, ref, range=(-2, 2))
        for i, own in enumerate(RANGES):
            sample = slice(i, i + 1)
            fixed = MIHistLoss(8, own, mode="mi", correction=correction, reduction="none")
            assert torch.equal(one[sample], fixed(out[sample], ref[sample]))
            fixed = MIHistLoss(8, ((-2, 2), own), mode="mi", correction=correction, reduction="none")
            assert torch.equal(pair[sample], fixed(out[sample], ref[sample]))
            assert torch.equal(
                found[sample], EMDHistLoss(16, own, reduction="none")(out[sample], target[sample])
            )
        assert torch.equal(
            numbers, MIHistLoss(8, (-2, 2), mode="mi", correction=correction, reduction="none")(out, ref)
        )


@pytest.mark.parametrize(
    ("range_", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"range must have shape \(B, 2\) = \(3, 2\) .* got \(3,\)"),
        (torch.zeros(2, 2), ValueError, r"range must have shape \(B, 2\) = \(3, 2\) .* got \(2, 2\)"),
        (torch.zeros(3, 2, dtype=torch.int64), TypeError, "range must be float16, .* got torch.int64"),
        (torch.rand(3, 2).requires_grad_(), ValueError, r"range has no gradient, .* range.detach\(\)"),
        (
            torch.tensor([[0, 1], [2, 2.0], [0, 1]]),
            ValueError,
            r"range must be finite with lo < hi, got \(2.0, 2.0\) for sample 1",
        ),
        (
            torch.tensor([[0, 1], [0, 1.0], [0, math.nan]]),
            ValueError,
            r"range must be finite with lo < hi, got \(0.0, nan\) for sample 2",
        ),
        (
            torch.tensor([[0, 1], [0, 1e-35], [0, 1]], dtype=F64),
            ValueError,
            r"range must give bins 1e-30 to 1e\+30 wide, got \[0.0, 1e-35\] for 4 bins",
        ),
    ],
)
def test_bad_ranges(range_: Tensor, error: type[Exception], message: str) -> None:
    x = torch.zeros(3, 2, 5)
    range_ = here(range_)
    for call in (
        lambda: soft_histogram(x, bins=4, range=range_),
        lambda: histloss.joint_histogram(x, x, bins=4, range=range_),
        lambda: histloss.joint_histogram(x, x, bins=4, range=((0, 1), range_)),
        lambda: EMDHistLoss(4)(x, torch.full((2, 4), 0.25), range=range_),
        lambda: MIHistLoss(4)(x, x, range=range_),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_range_for_each_sample_is_not_for_a_constructor() -> None:
    for loss in (EMDHistLoss, MIHistLoss):
        with pytest.raises(TypeError, match=r"range must be a pair of numbers .* got a tensor: one for each"):
            loss(4, torch.tensor(RANGES))
    with pytest.raises(TypeError, match="range must be a pair of numbers"):
        soft_histogram(torch.zeros(3, 1, 4), range=(torch.tensor(RANGES), (0, 1)))


# ---- corrections ----------------------------------------------------------------------------------

TABLE = [[0.5, 0.25], [0.0, 0.25]]  # of four pixels: 3 cells occupied, 2 rows, 2 columns


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_miller_and_madow_by_hand(dtype: torch.dtype) -> None:
    joint = torch.tensor(TABLE, dtype=dtype)
    ln2, ln3 = math.log(2), math.log(3)
    h_joint, h_p, h_q = 1.5 * ln2 + 2 / 8, 2 * ln2 - 0.75 * ln3 + 1 / 8, ln2 + 1 / 8
    expected = {
        "mi": h_p + h_q - h_joint,
        "relative": 1 - (h_p + h_q - h_joint) / h_joint,
        "conditional_entropy": h_joint - h_p,
        "nmi": (h_p + h_q) / h_joint,
    }
    for mode, value in expected.items():
        for count in (4, 4.0, torch.tensor(4), torch.tensor(4.0, dtype=F64)):
            found = histloss.mutual_information(joint, mode=mode, correction="miller_madow", count=count)
            assert_value(found, torch.tensor(value, dtype=F64))
            assert found.dtype == dtype


def test_a_bin_is_occupied_by_half_a_pixel() -> None:
    """With 2 pixels 1/4 is as much, and with 1 it is not; bins of less than half count for none."""
    joint = torch.tensor(TABLE, dtype=F64)
    plain = histloss.mutual_information(joint, mode="mi").item()
    for count, m in ((2, (2, 2, 3)), (1, (1, 2, 1)), (0.1, (1, 1, 1))):
        found = histloss.mutual_information(joint, mode="mi", correction="miller_madow", count=count)
        bias = (m[0] + m[1] - m[2] - 1) / (2 * count)
        assert found.item() == pytest.approx(plain + bias, rel=1e-12), count


def test_a_count_for_each() -> None:
    joint = torch.tensor(TABLE, dtype=F64).expand(2, 3, 2, 2).clone().requires_grad_()
    counts = torch.tensor([[4.0, 8, 100], [1, 2, 3]], dtype=F64)
    found = histloss.mutual_information(joint, correction="miller_madow", count=counts)
    for b in range(2):
        for c in range(3):
            one = histloss.mutual_information(
                joint[b, c], correction="miller_madow", count=counts[b, c].item()
            )
            assert_value(found[b, c].detach(), one.detach(), floor=1.0)  # the difference of entropies
    plain = histloss.mutual_information(joint, mode="mi")
    corrected = histloss.mutual_information(joint, mode="mi", correction="miller_madow", count=counts[:1])
    gradients = [torch.autograd.grad(value.sum(), joint)[0] for value in (plain, corrected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["sigmoid", "triangular"])
def test_the_loss_counts_its_pixels(path: str, kernel: str) -> None:
    out, src = pictures(2, 3, 5, 8)
    for mode in MI_MODES:
        loss = MIHistLoss(6, kernel=kernel, mode=mode, correction="miller_madow", reduction="none")
        sign = -1 if mode in ("mi", "nmi") else 1

        def expected(count: float | Tensor, weight: Tensor | None, loss: Any = loss, s: int = sign) -> Tensor:
            joint = histloss.joint_histogram(out, src, **loss.binning, weight=weight)
            return s * histloss.mutual_information(
                joint, mode=loss.mode, correction="miller_madow", count=count
            )

        assert torch.equal(loss(out, src), expected(40, None))
        half = torch.zeros(5, 8)
        half[:2] = 0.7  # sixteen pixels, whatever each weighs
        assert_value(loss(out, src, weight=half), expected(16, half))
        weight = torch.rand(2, 1, 5, 8)
        w = weight.flatten(2).double()
        kish = w.sum(-1).square() / w.square().sum(-1)
        assert_value(loss(out, src, weight=weight), expected(kish, weight))


def test_it_corrects_independent_images(path: str) -> None:
    """Of 500 pixels in 8 x 8 bins: plain MI is about 49 / 1000 too large, the corrected one little."""
    out, src = torch.rand(2, 1, 20, 500) * 2 - 1
    options: dict[str, Any] = {"bins": 8, "bandwidth": 0.001, "mode": "mi"}
    plain = -MIHistLoss(**options)(out, src)
    corrected = -MIHistLoss(**options, correction="miller_madow")(out, src)
    assert 0.04 < plain < 0.06
    assert abs(corrected) < 0.01


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("boundary", ["open", "reflect", "cyclic"])
@pytest.mark.parametrize("mode", MI_MODES)
def test_an_image_has_no_distance_to_itself(mode: str, boundary: str, kernel: str) -> None:
    """Nor a pull away from itself; only H(src | out) is not symmetric, and keeps half that of H(out)."""
    out, noise = pictures(2, 2, 120, dtype=F64)
    src = out.clone()
    out.requires_grad_(), src.requires_grad_()
    options: dict[str, Any] = {"bins": 12, "boundary": boundary, "kernel": kernel, "mode": mode}
    loss, plain = MIHistLoss(**options, correction="self"), MIHistLoss(**options)
    value = loss(out, src)
    assert abs(value.item()) < 1e-14
    gradients = torch.autograd.grad(value, (out, src))
    size = torch.autograd.grad(plain(out, src.detach()), out)[0].abs().max()
    assert size > 1e-5
    if mode == "conditional_entropy" and boundary == "open":
        pass  # the marginals of a joint histogram are then not those of either image
    elif mode == "conditional_entropy":
        p = histloss.joint_histogram(out, out, **{k: options[k] for k in ("bins", "boundary", "kernel")}).sum(
            -1
        )
        entropy = -(p * torch.where(p == 0, 1.0, p).log()).sum(-1).mean()
        (half,) = torch.autograd.grad(entropy / 2, out)
        assert (gradients[0] + half).abs().max() < 1e-12 * size
        assert (gradients[1] - half).abs().max() < 1e-12 * size
    else:
        assert all(gradient.abs().max() < 1e-12 * size for gradient in gradients)
    values = [loss(out + s * noise, out).item() for s in (0.05, 0.2, 0.8)]
    assert 0 < values[0] < values[1] < values[2]


@pytest.mark.parametrize("mode", MI_MODES)
def test_each_image_is_compared_with_itself_in_its_own_bins(path: str, mode: str) -> None:
    out, src = pictures(1, 2, 90)
    pair: dict[str, Any] = {
        "bins": (8, 5),
        "range": ((-1, 1), (-2, 2)),
        "bandwidth": (0.4, 1.0),
        "boundary": ("open", "cyclic"),
        "kernel": ("sigmoid", "bspline3"),
    }
    found = MIHistLoss(**pair, mode=mode, correction="self")(out, src)
    halves = [
        MIHistLoss(**{k: v[i] for k, v in pair.items()}, mode=mode)(image, image)
        for i, image in enumerate((out, src))
    ]
    expected = MIHistLoss(**pair, mode=mode)(out, src) - sum(halves) / 2
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MIHistLoss(correction="mm"), ValueError, "correction must be one of 'miller_madow', 'self'"),
        (lambda: MIHistLoss(correction=True), TypeError, "correction must be a string, one of"),
        (
            lambda: histloss.mutual_information(torch.ones(2, 2), correction="self", count=3),
            ValueError,
            "correction must be one of 'miller_madow', got 'self'",
        ),
        (
            lambda: histloss.mutual_information(torch.ones(2, 2), correction="miller_madow"),
            TypeError,
            "count must be the number of pixels for the correction 'miller_madow', got None",
        ),
        (
            lambda: histloss.mutual_information(torch.ones(2, 2), count=3),
            ValueError,
            "count must be None without a correction",
        ),
        (
            lambda: histloss.mutual_information(torch.ones(2, 2), correction="miller_madow", count=0),
            ValueError,
            "count must be positive, got 0",
        ),
        (
            lambda: histloss.mutual_information(torch.ones(2, 2), correction="miller_madow", count="4"),
            TypeError,
            "count must be a number, got '4'",
        ),
        (
            lambda: histloss.mutual_information(
                torch.ones(3, 2, 2), correction="miller_madow", count=torch.ones(2)
            ),
            ValueError,
            r"count must broadcast to the shape of the result, \(3,\), got \(2,\)",
        ),
        (
            lambda: histloss.mutual_information(
                torch.ones(2, 2), correction="miller_madow", count=torch.ones((), device="meta")
            ),
            ValueError,
            "count must be on .*, got meta",
        ),
        (lambda: EMDHistLoss(kernel="box"), ValueError, "kernel must be one of .* got 'box'"),
        (lambda: MIHistLoss(kernel=("sigmoid", "box")), ValueError, "kernel must be one of .* got 'box'"),
    ],
)
def test_bad_corrections(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("loss", [EMDHistLoss(8, kernel="gaussian"), EMDHistLoss(8, bandwidth=2)], ids=str)
def test_the_binning_makes_a_matching_target(path: str, loss: nn.Module) -> None:
    (x,) = pictures(2, 3, 30, n=1)
    assert isinstance(loss, EMDHistLoss)
    assert isinstance(loss.binning["bandwidth"], float)
    assert loss(x, soft_histogram(x, **loss.binning)).item() == 0


@on_cpu
@pytest.mark.parametrize(
    "options",
    [{"correction": "miller_madow"}, {"correction": "self", "empty": "zero"}, {"kernel": "gaussian"}],
    ids=str,
)
def test_losses_compile_for_every_size(options: dict[str, Any]) -> None:
    loss = MIHistLoss(6, **options)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 3, 9, 8), (3, 3, 7, 11)):
        (out, src), weight = pictures(*shape), torch.rand(*shape)
        out.requires_grad_()
        value, expected = compiled(out, src, weight=weight), loss(out, src, weight=weight)
        assert_value(value, expected)
        gradients = [torch.autograd.grad(v, out)[0] for v in (value, expected)]
        assert_gradient(*gradients)
