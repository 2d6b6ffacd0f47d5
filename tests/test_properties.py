"""What must hold for any image and any binning, on both paths."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import histloss
from asserters import assert_value
from histloss.binning import BOUNDARIES
from histloss.reference import MI_MODES

F64 = torch.float64
pytestmark = pytest.mark.usefixtures("path")

settings.register_profile(
    "histloss",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("histloss")

CLOSED = ("reflect", "cyclic")  # the boundaries that lose no mass


def seeded(seed: int) -> torch.Generator:
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


@st.composite
def binnings(
    draw: st.DrawFn, boundaries: tuple[str, ...] = BOUNDARIES, least_bins: int = 1
) -> dict[str, Any]:
    lo, span = draw(st.floats(-300, 300)), draw(st.floats(0.5, 500))
    return {
        "bins": draw(st.integers(least_bins, 48)),
        "range": (lo, lo + span),
        "bandwidth": draw(st.floats(0.05, 3.0)),
        "boundary": draw(st.sampled_from(boundaries)),
    }


@st.composite
def images(draw: st.DrawFn, binning: dict[str, Any], outside: float = 2.0) -> Tensor:
    """(1, 1, N) of float64: inside the range, on its ends, and up to `outside` range widths beyond."""
    lo, hi = binning["range"]
    count, seed = draw(st.integers(1, 60)), draw(st.integers(0, 2**31))
    kind = draw(st.sampled_from(["spread", "constant", "saturated", "outside"]))
    t = torch.rand(1, 1, count, dtype=F64, generator=seeded(seed))
    t = {
        "spread": t,
        "constant": t[..., :1].expand_as(t),
        "saturated": (3 * t - 1).clamp(0, 1),
        "outside": (1 + 2 * outside) * t - outside,
    }[kind]
    return lo + (hi - lo) * t


@st.composite
def histograms(draw: st.DrawFn, count: int = 2) -> tuple[Tensor, ...]:
    bins, seed = draw(st.integers(1, 40)), draw(st.integers(0, 2**31))
    generator = seeded(seed)
    sharpness = draw(st.sampled_from([0.0, 1.0, 20.0]))
    return tuple(
        (sharpness * torch.randn(bins, dtype=F64, generator=generator)).softmax(-1) for _ in range(count)
    )


def permutation(n: int) -> Tensor:
    return torch.randperm(n, generator=seeded(n))


def close(actual: Tensor, expected: Tensor) -> None:
    """Rounding of positions far from 0 is multiplied by the slope of a narrow kernel."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-9)


@given(st.data())
def test_mass_is_one(data: st.DataObject) -> None:
    binning = data.draw(binnings(CLOSED))
    x = data.draw(images(binning))
    y = x.flip(-1)
    for total in (
        histloss.soft_histogram(x, **binning).sum(-1),
        histloss.joint_histogram(x, y, **binning).sum((-1, -2)),
        histloss.activation_maps(x, **binning).sum(2),
    ):
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-11, atol=0)


@given(st.data())
def test_mass_is_one_in_float32(data: st.DataObject) -> None:
    binning = data.draw(binnings(CLOSED))
    x = data.draw(images(binning)).float()
    total = histloss.soft_histogram(x, **binning).sum(-1)
    lo, hi = binning["range"]
    place = torch.finfo(torch.float32).eps * max(abs(lo), abs(hi)) * binning["bins"] / (hi - lo)  # in bins
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-6 + place, atol=0)


@given(st.data())
def test_open_mass_is_what_the_sigmoids_at_the_ends_leave(data: st.DataObject) -> None:
    """The sum over the bins telescopes to sigmoid((z - lo) / B) - sigmoid((z - hi) / B)."""
    binning = data.draw(binnings(("open",)))
    x = data.draw(images(binning))
    (lo, hi), scale = binning["range"], binning["bandwidth"] * (binning["range"][1] - binning["range"][0])
    scale /= binning["bins"]
    expected = (torch.sigmoid((x - lo) / scale) - torch.sigmoid((x - hi) / scale)).mean(-1)
    close(histloss.soft_histogram(x, **binning).sum(-1), expected)


@given(st.data())
def test_values_are_probabilities(data: st.DataObject) -> None:
    binning = data.draw(binnings())
    x = data.draw(images(binning))
    maps = histloss.activation_maps(x, **binning)
    assert bool((maps >= 0).all() & (maps <= 1 + 1e-12).all())
    h, j = histloss.soft_histogram(x, **binning), histloss.joint_histogram(x, x, **binning)
    assert bool((h >= 0).all() & (j >= 0).all())


@given(st.data())
def test_a_histogram_is_the_mean_of_the_maps(data: st.DataObject) -> None:
    binning = data.draw(binnings())
    x = data.draw(images(binning))
    y = x.flip(-1)
    maps_x, maps_y = histloss.activation_maps(x, **binning), histloss.activation_maps(y, **binning)
    close(histloss.soft_histogram(x, **binning), maps_x.mean(-1))
    close(histloss.joint_histogram(x, y, **binning), maps_x @ maps_y.mT / x.shape[-1])


@given(st.data())
def test_the_order_of_the_pixels_does_not_matter(data: st.DataObject) -> None:
    binning = data.draw(binnings())
    x = data.draw(images(binning))
    y, order = x.roll(1, -1) * 0.9, permutation(x.shape[-1])
    close(histloss.soft_histogram(x[..., order], **binning), histloss.soft_histogram(x, **binning))
    shuffled = histloss.joint_histogram(x[..., order], y[..., order], **binning)
    close(shuffled, histloss.joint_histogram(x, y, **binning))


@given(st.data())
def test_the_joint_histogram_is_symmetric(data: st.DataObject) -> None:
    """J(x, y) = J(y, x)^T, with binnings of their own."""
    first, second = data.draw(binnings()), data.draw(binnings())
    x = data.draw(images(first))
    lo, hi = second["range"]
    y = lo + (hi - lo) * torch.linspace(-0.5, 1.5, x.shape[-1], dtype=F64)[None, None]
    forth = {name: (first[name], second[name]) for name in first}
    back = {name: (second[name], first[name]) for name in first}
    close(histloss.joint_histogram(x, y, **forth), histloss.joint_histogram(y, x, **back).mT)


@given(st.data())
def test_the_marginals_are_the_histograms(data: st.DataObject) -> None:
    binning = data.draw(binnings(CLOSED))
    x = data.draw(images(binning))
    y = x.flip(-1)
    joint = histloss.joint_histogram(x, y, **binning)
    close(joint.sum(-1), histloss.soft_histogram(x, **binning))
    close(joint.sum(-2), histloss.soft_histogram(y, **binning))


@given(st.data())
def test_a_shift_by_one_bin_shifts_the_histogram(data: st.DataObject) -> None:
    """All the way round for `cyclic`; with `open` what leaves at one end leaves, and nothing enters."""
    binning = data.draw(binnings(("cyclic", "open"), least_bins=2))
    lo, hi = binning["range"]
    x, width = data.draw(images(binning)), (hi - lo) / binning["bins"]
    h, shifted = histloss.soft_histogram(x, **binning), histloss.soft_histogram(x + width, **binning)
    if binning["boundary"] == "cyclic":
        close(shifted, h.roll(1, -1))
    else:
        close(shifted[..., 1:], h[..., :-1])


@given(st.data())
def test_a_turn_by_the_whole_range_changes_nothing(data: st.DataObject) -> None:
    binning = data.draw(binnings(("cyclic",)))
    x, (lo, hi) = data.draw(images(binning)), binning["range"]
    for turns in (1, -2):
        turned = x + turns * (hi - lo)
        close(histloss.soft_histogram(turned, **binning), histloss.soft_histogram(x, **binning))


@given(st.data())
def test_a_mirrored_image_has_the_mirrored_histogram(data: st.DataObject) -> None:
    binning = data.draw(binnings())
    x, (lo, hi) = data.draw(images(binning)), binning["range"]
    close(histloss.soft_histogram(lo + hi - x, **binning), histloss.soft_histogram(x, **binning).flip(-1))


@given(st.data())
def test_reflect_sees_values_beyond_an_end_as_their_mirror_image(data: st.DataObject) -> None:
    binning = data.draw(binnings(("reflect",)))
    x, (lo, hi) = data.draw(images(binning)), binning["range"]
    close(histloss.soft_histogram(2 * hi - x, **binning), histloss.soft_histogram(x, **binning))
    close(histloss.soft_histogram(2 * lo - x, **binning), histloss.soft_histogram(x, **binning))


@given(st.data())
def test_units_do_not_matter(data: st.DataObject) -> None:
    """Bandwidth is in bin widths: image and range may be scaled and moved together."""
    binning = data.draw(binnings())
    x, (lo, hi) = data.draw(images(binning)), binning["range"]
    unit = {**binning, "range": (0.0, 1.0)}
    close(histloss.soft_histogram((x - lo) / (hi - lo), **unit), histloss.soft_histogram(x, **binning))


@given(st.data())
def test_weights_count_pixels(data: st.DataObject) -> None:
    """A weight of 2 is a pixel twice, 0 is none, and only ratios of weights matter."""
    binning = data.draw(binnings())
    x = data.draw(images(binning))
    n = x.shape[-1]
    counts = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    counts[0] += 1
    repeated = x.repeat_interleave(counts, -1)
    h = histloss.soft_histogram(x, **binning, weight=counts.double())
    close(h, histloss.soft_histogram(repeated, **binning))
    close(h, histloss.soft_histogram(x, **binning, weight=counts * 0.37))
    j = histloss.joint_histogram(x, x.flip(-1), **binning, weight=counts.double())
    y = x.flip(-1).repeat_interleave(counts, -1)
    close(j, histloss.joint_histogram(repeated, y, **binning))


@given(st.data())
def test_relative_mi_distance_is_between_0_and_1(data: st.DataObject) -> None:
    binning = data.draw(binnings())
    x = data.draw(images(binning))
    dtype = data.draw(st.sampled_from([torch.float32, F64]))
    y = data.draw(st.sampled_from([x, x.flip(-1), torch.full_like(x, binning["range"][0])]))
    joint = histloss.joint_histogram(x.to(dtype), y.to(dtype), **binning)
    distance = histloss.mutual_information(joint).item()
    entropy = -torch.special.xlogy(joint, joint).sum().item()
    slack = 1e-9 if dtype == F64 else 1e-4 + 1e-5 / max(entropy, 1e-5)  # a quotient of rounded entropies
    assert -slack <= distance <= 1 + slack


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 30.0]))
def test_bounds_of_mutual_information(rows: int, columns: int, seed: int, sharpness: float) -> None:
    """0 <= I <= min(H(P), H(Q)), 0 <= H(y | x), 1 <= NMI <= 2, and I is symmetric."""
    generator = seeded(seed)
    joint = (
        (sharpness * torch.randn(rows * columns, dtype=F64, generator=generator))
        .softmax(-1)
        .view(rows, columns)
    )
    value = {mode: histloss.mutual_information(joint, mode=mode).item() for mode in MI_MODES}
    h_x, h_y = (-torch.special.xlogy(p, p).sum().item() for p in (joint.sum(1), joint.sum(0)))
    assert -1e-12 <= value["mi"] <= min(h_x, h_y) + 1e-12
    assert value["conditional_entropy"] >= -1e-12
    assert 1 - 1e-9 <= value["nmi"] <= 2 + 1e-9
    assert -1e-9 <= value["relative"] <= 1 + 1e-9
    torch.testing.assert_close(
        histloss.mutual_information(joint.mT, mode="mi").item(), value["mi"], rtol=0, atol=1e-12
    )


FORMS = st.fixed_dictionaries(
    {
        "p": st.sampled_from([1, 1.5, 2, 3]),
        "form": st.sampled_from(["squared", "norm"]),
        "cyclic": st.booleans(),
    }
)


@given(histograms(), FORMS)
def test_emd_is_zero_only_at_equality(pair: tuple[Tensor, ...], options: dict[str, Any]) -> None:
    h1, h2 = pair
    assert histloss.emd(h1, h1, **options).item() == 0
    distance = histloss.emd(h1, h2, **options).item()
    if (h1 - h2).abs().max() > 1e-6:
        assert distance > 0
    assert histloss.emd(h2, h1, **options).item() == pytest.approx(distance, rel=1e-9, abs=1e-15)


@given(histograms(3), st.sampled_from([1, 2, 3]), st.booleans())
def test_the_norm_form_is_a_metric(three: tuple[Tensor, ...], p: float, cyclic: bool) -> None:
    a, b, c = three

    def distance(h1: Tensor, h2: Tensor) -> float:
        return histloss.emd(h1, h2, p=p, form="norm", cyclic=cyclic).item()

    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-12


@given(histograms(), st.integers(0, 40), FORMS)
def test_cyclic_emd_does_not_see_a_rotation(
    pair: tuple[Tensor, ...], shift: int, options: dict[str, Any]
) -> None:
    h1, h2 = pair
    options = {**options, "cyclic": True}
    turned = histloss.emd(h1.roll(shift), h2.roll(shift), **options)
    assert turned.item() == pytest.approx(histloss.emd(h1, h2, **options).item(), rel=1e-7, abs=1e-15)


@given(histograms(), FORMS)
def test_cyclic_emd_is_at_most_the_plain_one(pair: tuple[Tensor, ...], options: dict[str, Any]) -> None:
    h1, h2 = pair
    plain = histloss.emd(h1, h2, **{**options, "cyclic": False}).item()
    assert histloss.emd(h1, h2, **{**options, "cyclic": True}).item() <= plain * (1 + 1e-9) + 1e-15


@given(st.integers(2, 60), st.data())
def test_emd_of_a_shift_grows_with_the_shift(bins: int, data: st.DataObject) -> None:
    """All the mass from bin i to bin j: |i - j| in Eq. 14, on a circle the short way round."""
    i, j = (data.draw(st.integers(0, bins - 1)) for _ in range(2))
    h1, h2 = (torch.nn.functional.one_hot(torch.tensor(k), bins).double() for k in (i, j))
    assert histloss.emd(h1, h2).item() == abs(i - j)
    around = min(abs(i - j), bins - abs(i - j))
    assert histloss.emd(h1, h2, p=1, cyclic=True).item() == around


@given(st.data())
def test_gradients_of_constant_images_are_alike(data: st.DataObject) -> None:
    """Every pixel of a constant image is pulled the same way, and the pull is finite."""
    binning = data.draw(binnings())
    lo, hi = binning["range"]
    x = torch.full(
        (1, 1, 20), lo + (hi - lo) * data.draw(st.floats(0, 1)), dtype=torch.float32
    ).requires_grad_()
    h, j = histloss.soft_histogram(x, **binning), histloss.joint_histogram(x, x, **binning)
    loss = histloss.emd(h, h.detach().roll(1, -1), form="norm").sum() + histloss.mutual_information(j).sum()
    (grad,) = torch.autograd.grad(loss, [x])
    assert bool(grad.isfinite().all())
    assert_value(grad, grad[..., :1].double().expand_as(grad))
