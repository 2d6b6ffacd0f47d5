"""The reference itself, against the paper's equations in NumPy and against cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from asserters import assert_gradient, assert_value
from histloss import reference
from histloss.binning import BOUNDARIES, KERNELS, Binning

F64 = torch.float64
Array = NDArray[np.float64]


# ---- the equations again, literally ---------------------------------------------------------------


def sigmoid(v: Array) -> Array:
    return 0.5 * (1 + np.tanh(v / 2))


def eq_6(z: Array, axis: Binning) -> Array:
    """Pi_k(z) = sigmoid((z - mu_k + L/2) / B) - sigmoid((z - mu_k - L/2) / B): (N,) -> (K, N)."""
    width = (axis.hi - axis.lo) / axis.bins
    scale = axis.bandwidth * width
    centre = axis.lo + width * (np.arange(axis.bins)[:, None] + 0.5)
    return sigmoid((z - centre + width / 2) / scale) - sigmoid((z - centre - width / 2) / scale)


def activations(z: Array, axis: Binning) -> Array:
    """Eq. 6 with its mirror images, or its copies one range apart, out to where nothing is left of them."""
    if axis.boundary == "open":
        return eq_6(z, axis)
    span = axis.hi - axis.lo
    copies = 5 + math.ceil(40 * axis.bandwidth / axis.bins)
    total = np.zeros((axis.bins, z.size))
    for m in range(-copies, copies + 1):
        if axis.boundary == "cyclic":
            total += eq_6(z + m * span, axis)
        else:
            total += eq_6(z + 2 * m * span, axis) + eq_6(2 * axis.lo - z + 2 * m * span, axis)
    return total


def eq_5(z: Array, axis: Binning) -> Array:
    return activations(z, axis).sum(1) / z.size


def eq_13(z1: Array, z2: Array, axis_1: Binning, axis_2: Binning) -> Array:
    return activations(z1, axis_1) @ activations(z2, axis_2).T / z1.size


def eq_14(h1: Array, h2: Array) -> float:
    return sum((h1[: i + 1].sum() - h2[: i + 1].sum()) ** 2 for i in range(h1.size))


def eq_15(joint: Array) -> float:
    p1, p2 = joint.sum(1), joint.sum(0)
    return sum(
        joint[k, n] * math.log(joint[k, n] / (p1[k] * p2[n]))
        for k, n in np.ndindex(joint.shape)
        if joint[k, n] > 0
    )


def eq_17(joint: Array) -> float:
    return -sum(p * math.log(p) for p in joint.flatten() if p > 0)


def keywords(axis: Binning) -> dict[str, object]:
    return {
        "bins": axis.bins,
        "range": (axis.lo, axis.hi),
        "bandwidth": axis.bandwidth,
        "boundary": axis.boundary,
    }


AXES = [
    Binning(bins, lo, hi, bandwidth, boundary)
    for boundary in BOUNDARIES
    for bins, lo, hi, bandwidth in (
        (1, -1.0, 1.0, 0.4),
        (2, 0.0, 1.0, 0.4),
        (7, -3.0, 4.0, 1.3),
        (5, 0.1, 0.7, 6.0),
        (64, -1.0, 1.0, 0.4),
        (256, -1.0, 1.0, 0.4),
        (33, 16.0, 235.0, 0.1),
    )
]


def pixels(axis: Binning, seed: int = 0) -> Array:
    """Inside the range, at its ends, at edges and centres of bins, and outside."""
    rng = np.random.default_rng(seed)
    span, width = axis.hi - axis.lo, (axis.hi - axis.lo) / axis.bins
    special = [
        axis.lo,
        axis.hi,
        axis.lo + width / 2,
        axis.lo + width,
        axis.hi - 1e-9 * span,
        axis.lo - 1e-9 * span,
    ]
    outside = [axis.lo - 0.3 * span, axis.hi + 0.4 * span, axis.lo - 1.2 * span, axis.hi + 2.7 * span]
    return np.concatenate([rng.uniform(axis.lo, axis.hi, 60), special, outside])


def tensor(a: Array) -> Tensor:
    """As an image (1, 1, N)."""
    return torch.from_numpy(a)[None, None]


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_activation_maps_are_eq_6(axis: Binning) -> None:
    z = pixels(axis)
    found = reference.activation_maps(tensor(z), **keywords(axis))
    assert_value(found[0, 0], torch.from_numpy(activations(z, axis)))


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_soft_histogram_is_eq_5(axis: Binning) -> None:
    z = pixels(axis)
    assert_value(reference.soft_histogram(tensor(z), **keywords(axis))[0, 0], torch.from_numpy(eq_5(z, axis)))


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_joint_histogram_is_eq_13(axis: Binning) -> None:
    other = Binning(4, -2.0, 3.0, 0.7, "open")
    z1, z2 = (
        pixels(axis),
        np.random.default_rng(1).permutation(np.resize(pixels(other, 2), pixels(axis).size)),
    )
    pair = {name: (value, keywords(other)[name]) for name, value in keywords(axis).items()}
    found = reference.joint_histogram(tensor(z1), tensor(z2), **pair)
    assert_value(found[0, 0], torch.from_numpy(eq_13(z1, z2, axis, other)))


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_weights_are_shares_of_the_mass(axis: Binning) -> None:
    z = pixels(axis)
    weight = np.random.default_rng(3).uniform(0, 2, z.size)
    expected = activations(z, axis) @ weight / weight.sum()
    found = reference.soft_histogram(tensor(z), **keywords(axis), weight=tensor(weight))
    assert_value(found[0, 0], torch.from_numpy(expected))


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_of_the_maps(axis: Binning, order: int) -> None:
    """plane_maps writes both derivatives out; they must be those of the maps (away from the fold's kinks)."""
    z = torch.from_numpy(pixels(axis))[None].requires_grad_()
    weight = torch.randn(axis.bins, 1, dtype=F64)
    lower = (weight * reference.plane_maps(z, axis, order - 1)).sum()
    (expected,) = torch.autograd.grad(lower, [z])
    found = (weight * reference.plane_maps(z.detach(), axis, order)).sum(1)
    scale = 2 / (axis.bandwidth * axis.width) ** order
    assert_gradient(found, expected, floor=1e-3 * scale)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_gradient_by_finite_differences(boundary: str) -> None:
    axis = Binning(16, boundary=boundary)
    z, step = pixels(axis), 1e-6
    away = np.abs((z - axis.lo) / 2 - np.round((z - axis.lo) / 2)) > 1e-4  # from the ends and their images
    z, weight = z[away], np.random.default_rng(4).normal(size=(axis.bins, 1))
    slope = ((weight * (activations(z + step, axis) - activations(z - step, axis))).sum(0)) / (2 * step)
    x = tensor(z).requires_grad_()
    maps = reference.activation_maps(x, **keywords(axis))
    (found,) = torch.autograd.grad((maps[0, 0] * torch.from_numpy(weight)).sum(), [x])
    np.testing.assert_allclose(found[0, 0].numpy(), slope, rtol=1e-6, atol=1e-6 * np.abs(slope).max())


def test_the_official_three_terms_suffice_for_a_narrow_kernel() -> None:
    """`reflect` sums all the mirror images, the official code Pi(z) + Pi(2 lo - z) + Pi(2 hi - z)."""
    axis = Binning()
    z = np.linspace(-1, 1, 501)
    three = eq_6(z, axis) + eq_6(-2 - z, axis) + eq_6(2 - z, axis)
    assert_value(reference.plane_maps(torch.from_numpy(z)[None], axis)[0], torch.from_numpy(three))


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 2, 3)], ids=str)
def test_every_plane_is_apart(shape: tuple[int, ...]) -> None:
    x, y = torch.rand(2, 3, *shape, dtype=F64), torch.rand(2, 3, *shape, dtype=F64)
    h, j = reference.soft_histogram(x, bins=5), reference.joint_histogram(x, y, bins=(5, 4))
    maps = reference.activation_maps(x, bins=5)
    assert (h.shape, j.shape, maps.shape) == ((2, 3, 5), (2, 3, 5, 4), (2, 3, 5, *shape))
    for b in range(2):
        for c in range(3):
            z1, z2 = x[b, c].flatten().numpy(), y[b, c].flatten().numpy()
            assert_value(h[b, c], torch.from_numpy(eq_5(z1, Binning(5))))
            assert_value(j[b, c], torch.from_numpy(eq_13(z1, z2, Binning(5), Binning(4))))
            assert_value(maps[b, c].flatten(1), torch.from_numpy(activations(z1, Binning(5))))


# ---- worked by hand -------------------------------------------------------------------------------


def maps_at(z: float, **options: object) -> Tensor:
    return reference.activation_maps(torch.tensor([[[z]]], dtype=F64), **options)[0, 0, :, 0]


def test_a_pixel_at_a_bin_centre() -> None:
    """sigmoid(a/2) - sigmoid(-a/2) = tanh(a/4), and sigmoid(3a/2) - sigmoid(a/2) beside it; a = 2.5."""
    found = maps_at(0.0, bins=3, range=(-1.5, 1.5), boundary="open")
    one, three = 1 / (1 + math.exp(-1.25)), 1 / (1 + math.exp(-3.75))
    assert_value(found, torch.tensor([three - one, math.tanh(0.625), three - one], dtype=F64))


def test_a_pixel_at_a_bin_edge() -> None:
    """Half a sigmoid each: sigmoid(a) - 1/2 = tanh(a/2) / 2."""
    found = maps_at(0.0, bins=2, boundary="open")
    assert_value(found, torch.full((2,), math.tanh(1.25) / 2, dtype=F64))


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_a_pixel_at_an_end_of_the_range(end: float) -> None:
    """`open` keeps 1/2 - sigmoid(-K a) of it; the mirror image at the end brings the other half back."""
    lost = 1 / (1 + math.exp(4 * 2.5))
    assert maps_at(end, bins=4, boundary="open").sum().item() == pytest.approx(0.5 - lost, abs=1e-15)
    assert maps_at(end, bins=4, boundary="reflect").sum().item() == pytest.approx(1, abs=1e-15)
    assert maps_at(end, bins=256, boundary="open").sum().item() == pytest.approx(0.5, abs=1e-15)


def test_three_quarters_white_keep_five_eighths_of_their_mass() -> None:
    x = torch.tensor([[[1.0, 1.0, 1.0, 0.0]]], dtype=F64)
    assert reference.soft_histogram(x, boundary="open").sum().item() == pytest.approx(0.625, abs=1e-15)
    assert reference.soft_histogram(x, boundary="reflect").sum().item() == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("bandwidth", [0.1, 0.4, 5.0])
@pytest.mark.parametrize("z", [-1.0, -0.4, 0.0, 0.9, 1.0, 3.7])
def test_one_bin_holds_everything(z: float, bandwidth: float) -> None:
    assert_value(maps_at(z, bins=1, bandwidth=bandwidth, boundary="reflect"), torch.ones(1, dtype=F64))
    assert_value(maps_at(z, bins=1, bandwidth=bandwidth, boundary="cyclic"), torch.ones(1, dtype=F64))
    a, y = 1 / bandwidth, z / (2 * bandwidth)  # one bin of width 2 about 0
    expected = math.sinh(a / 2) / (math.cosh(a / 2) + math.cosh(y))
    assert maps_at(z, bins=1, bandwidth=bandwidth, boundary="open").item() == pytest.approx(
        expected, rel=1e-12
    )


def test_two_cyclic_bins() -> None:
    """At the seam and opposite of it both bins are alike; half a range apart they swap."""
    half = torch.full((2,), 0.5, dtype=F64)
    for z in (-1.0, 0.0, 1.0, 2.0, -7.0):
        assert_value(maps_at(z, bins=2, boundary="cyclic"), half)
    assert_value(
        maps_at(0.3, bins=2, bandwidth=1.7, boundary="cyclic").flip(0),
        maps_at(-0.7, bins=2, bandwidth=1.7, boundary="cyclic"),
    )


def test_a_narrow_kernel_counts() -> None:
    """Bins [0, 1), [1, 2), [2, 3) hold 1, 2 and 1 of four pixels well inside them."""
    x = torch.tensor([[[0.3, 1.5, 1.7, 2.5]]], dtype=F64)
    found = reference.soft_histogram(x, bins=3, range=(0, 3), bandwidth=0.005)
    assert_value(found[0, 0], torch.tensor([0.25, 0.5, 0.25], dtype=F64))
    y = torch.tensor([[[0.5, 0.5, 1.5, 1.5]]], dtype=F64)
    joint = reference.joint_histogram(x, y, bins=(3, 2), range=((0, 3), (0, 2)), bandwidth=0.005)
    assert_value(joint[0, 0], torch.tensor([[0.25, 0.0], [0.25, 0.25], [0.0, 0.25]], dtype=F64))


def test_a_flat_kernel_spreads_evenly() -> None:
    x = torch.tensor([[[0.3, -0.9]]], dtype=F64)
    assert_value(
        reference.soft_histogram(x, bins=4, bandwidth=100.0)[0, 0], torch.full((4,), 0.25, dtype=F64)
    )


def test_zero_weight_removes_a_pixel() -> None:
    x = torch.tensor([[[0.2, -0.8, 0.5]]], dtype=F64)
    weight = torch.tensor([3.0, 0.0, 1.0], dtype=F64)
    expected = reference.soft_histogram(x[..., [0, 0, 0, 2]], bins=8)
    assert_value(reference.soft_histogram(x, bins=8, weight=weight), expected)


def one_hot(k: int, bins: int = 256) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(k), bins).double()


@pytest.mark.parametrize(("shift", "norm"), [(1, 0.0625), (8, 0.17677669529663687), (64, 0.5)])
def test_emd_of_a_shift(shift: int, norm: float) -> None:
    """The sums differ by 1 over `shift` bins: shift, and the root of shift / 256."""
    h1, h2 = one_hot(100), one_hot(100 + shift)
    assert reference.emd(h1, h2).item() == shift
    assert reference.emd(h1, h2, form="norm").item() == pytest.approx(norm, rel=1e-15)
    for p in (1, 3):
        expected = (shift / 256) ** (1 / p)
        assert reference.emd(h1, h2, p=p, form="norm").item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("bins", [1, 2, 15, 16, 17, 255, 256, 257, 300, 4097])
@pytest.mark.parametrize("shape", [(), (2, 3), (0,)], ids=str)
def test_sums_in_blocks_are_cumulative_sums(shape: tuple[int, ...], bins: int) -> None:
    """What takes the place of cumsum on a GPU, here on the CPU."""
    values = torch.randn(*shape, bins, dtype=F64)
    expected = values.cumsum(-1)
    assert_value(reference._sum_before(values, 0), expected)
    assert_value(reference._sum_before(values, -1), expected - values, floor=1.0)


def test_sums_in_blocks_lose_no_more_than_sums_one_by_one() -> None:
    values = torch.randn(64, 256) / 256
    exact = values.double().cumsum(-1)
    one_by_one, total = torch.empty_like(values), torch.zeros(64)
    for i, value in enumerate(values.unbind(-1)):
        total = total + value
        one_by_one[:, i] = total
    errors = [(sums - exact).norm() for sums in (reference._sum_before(values, 0), one_by_one)]
    assert errors[0] < errors[1]


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_sums_in_blocks_have_every_derivative() -> None:
    values = torch.randn(3, 40, dtype=F64, requires_grad=True)

    def cubes(v: Tensor) -> Tensor:
        return reference._sum_before(v, 0) ** 3

    assert gradcheck(cubes, values, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(cubes, values, check_fwd_over_rev=True, check_batched_grad=True)
    compiled = torch.compile(cubes, fullgraph=True, dynamic=True, backend="aot_eager")
    for bins in (40, 47, 300):
        v = torch.randn(2, bins, dtype=F64)
        assert_value(compiled(v), v.cumsum(-1) ** 3)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("bins", [256, 4096])
def test_sums_in_blocks_have_the_same_bits_for_any_thread_count(bins: int) -> None:
    values, upstream = torch.randn(48, bins, requires_grad=True), torch.randn(48, bins)
    results = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        sums = reference._sum_before(values, 0)
        results.append((sums, *torch.autograd.grad(sums, values, upstream)))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


def test_emd_is_eq_14() -> None:
    h1, h2 = torch.rand(2, 9, dtype=F64).softmax(-1)
    assert reference.emd(h1, h2).item() == pytest.approx(eq_14(h1.numpy(), h2.numpy()), rel=1e-13)


def test_cyclic_emd_of_neighbours_across_the_seam() -> None:
    """Bins 0 and 3 of 4: sums differ by 1, 1, 1, 0. c = 1 leaves 1; for p = 2, c = 3/4 leaves 3/16 + 9/16."""
    h1, h2 = one_hot(0, 4), one_hot(3, 4)
    assert reference.emd(h1, h2, p=1).item() == 3
    assert reference.emd(h1, h2, p=1, cyclic=True).item() == 1
    assert reference.emd(h1, h2, p=2, cyclic=True).item() == pytest.approx(0.75, rel=1e-15)
    assert reference.emd(h1, h2, p=1, form="norm", cyclic=True).item() == 0.25


@pytest.mark.parametrize("bins", [5, 8])
def test_cyclic_emd_of_order_one_is_the_best_place_to_cut(bins: int) -> None:
    h1, h2 = torch.rand(2, bins, dtype=F64).softmax(-1)
    cuts = [reference.emd(h1.roll(k), h2.roll(k), p=1).item() for k in range(bins)]
    assert reference.emd(h1, h2, p=1, cyclic=True).item() == pytest.approx(min(cuts), rel=1e-12)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 7])
def test_cyclic_emd_is_the_least_over_c(p: float) -> None:
    h1, h2 = torch.rand(2, 10, dtype=F64).softmax(-1)
    difference = (h1 - h2).cumsum(-1)
    tries = torch.linspace(difference.min().item(), difference.max().item(), 20001, dtype=F64)
    least = (difference - tries[:, None]).abs().pow(p).sum(-1).min().item()
    assert reference.emd(h1, h2, p=p, cyclic=True).item() == pytest.approx(least, rel=1e-3)
    assert reference.emd(h1, h2, p=p, cyclic=True).item() <= least * (1 + 1e-12)


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("form", ["squared", "norm"])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("bins", [5, 8])
def test_gradient_of_emd(bins: int, p: float, form: str, cyclic: bool) -> None:
    h1, h2 = torch.rand(2, bins, dtype=F64).softmax(-1)
    h1 = (1.1 * h1).requires_grad_()  # with equal masses the last sums are equal, a kink for p = 1
    assert torch.autograd.gradcheck(lambda h: reference.emd(h, h2, p=p, form=form, cyclic=cyclic), [h1])


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("form", ["squared", "norm"])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_equal_histograms_are_at_no_distance_and_feel_no_pull(p: float, form: str, cyclic: bool) -> None:
    h = torch.rand(3, 6, dtype=F64).softmax(-1).requires_grad_()
    distance = reference.emd(h, h.detach(), p=p, form=form, cyclic=cyclic)
    assert not distance.any()
    (grad,) = torch.autograd.grad(distance.sum(), [h])
    assert not grad.any()


def test_mutual_information_by_hand() -> None:
    """J = [[1/2, 1/4], [0, 1/4]]: H(J) = 3/2 ln 2, P = (3/4, 1/4), Q = (1/2, 1/2)."""
    joint = torch.tensor([[0.5, 0.25], [0.0, 0.25]], dtype=F64)
    ln2, ln3 = math.log(2), math.log(3)
    h_joint, h_p, h_q = 1.5 * ln2, 2 * ln2 - 0.75 * ln3, ln2
    value = {m: reference.mutual_information(joint, mode=m).item() for m in reference.MI_MODES}
    assert value["mi"] == pytest.approx(h_p + h_q - h_joint, rel=1e-14)
    assert value["relative"] == pytest.approx(1 - (h_p + h_q - h_joint) / h_joint, rel=1e-14)
    assert value["conditional_entropy"] == pytest.approx(h_joint - h_p, rel=1e-14)
    assert value["nmi"] == pytest.approx((h_p + h_q) / h_joint, rel=1e-14)


def test_mutual_information_is_eq_15_to_17() -> None:
    joint = torch.rand(6, 9, dtype=F64).flatten().softmax(0).view(6, 9)
    mi, entropy = eq_15(joint.numpy()), eq_17(joint.numpy())
    assert reference.mutual_information(joint, mode="mi").item() == pytest.approx(mi, rel=1e-12)
    assert reference.mutual_information(joint).item() == pytest.approx(1 - mi / entropy, rel=1e-12)


INDEPENDENT, DETERMINED = torch.full((4, 4), 1 / 16, dtype=F64), torch.eye(4, dtype=F64) / 4


@pytest.mark.parametrize(
    ("joint", "mode", "expected"),
    [
        (INDEPENDENT, "mi", 0.0),
        (INDEPENDENT, "relative", 1.0),
        (INDEPENDENT, "conditional_entropy", math.log(4)),
        (INDEPENDENT, "nmi", 1.0),
        (DETERMINED, "mi", math.log(4)),
        (DETERMINED, "relative", 0.0),
        (DETERMINED, "conditional_entropy", 0.0),
        (DETERMINED, "nmi", 2.0),
    ],
)
def test_independence_and_determination(joint: Tensor, mode: str, expected: float) -> None:
    assert reference.mutual_information(joint, mode=mode).item() == pytest.approx(expected, abs=1e-15)


def test_conditional_entropy_is_that_of_y_given_x() -> None:
    """x has one bin and says nothing of y: H(y | x) = ln 2. y has one bin: H(y | x) = 0."""
    half = torch.full((1, 2), 0.5, dtype=F64)
    for joint, expected in ((half, math.log(2)), (half.mT, 0.0)):
        value = reference.mutual_information(joint, mode="conditional_entropy")
        assert value.item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("mode", reference.MI_MODES)
def test_gradient_of_mutual_information(mode: str) -> None:
    joint = torch.rand(2, 3, 4, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(lambda j: reference.mutual_information(j / j.sum(), mode=mode), [joint])


@pytest.mark.parametrize("mode", reference.MI_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_empty_cells_neither_count_nor_pull(mode: str, dtype: torch.dtype) -> None:
    joint = torch.zeros(4, 4, dtype=dtype)
    joint[1, 1], joint[2, 1] = 0.75, 0.25
    joint.requires_grad_()
    value = reference.mutual_information(joint, mode=mode)
    (grad,) = torch.autograd.grad(value, [joint])
    assert bool(value.isfinite() & grad.isfinite().all())
    assert not grad[3, 3]


@pytest.mark.parametrize(("mode", "expected"), [("mi", 0.0), ("relative", 0.0), ("nmi", 2.0)])
def test_one_cell_that_holds_everything(mode: str, expected: float) -> None:
    joint = torch.zeros(3, 3)
    joint[1, 2] = 1
    joint.requires_grad_()
    value = reference.mutual_information(joint, mode=mode)
    (grad,) = torch.autograd.grad(value, [joint])
    assert value.item() == expected
    assert bool(grad.isfinite().all())


def test_nan_is_not_hidden() -> None:
    joint = torch.full((2, 3, 3), 1 / 9)
    joint[0, 1, 1] = torch.nan
    for mode in reference.MI_MODES:
        value = reference.mutual_information(joint, mode=mode)
        assert bool(value[0].isnan() & value[1].isfinite())


def test_relative_mi_of_a_uniform_image_with_itself() -> None:
    """Not 0: neighbouring soft bins overlap. 0.428 at K = 256, bandwidth 0.4."""
    x = torch.linspace(-1, 1, 20001, dtype=F64)[None, None]
    joint = reference.joint_histogram(x, x)
    assert reference.mutual_information(joint).item() == pytest.approx(0.428, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_narrow_dtypes_compute_in_float32(boundary: str, dtype: torch.dtype) -> None:
    """Against float64 on the same pixels; at [-1, 1] and 256 bins the centres are exact in float32."""
    x, y = (torch.rand(2, 1, 400) * 2 - 1).to(dtype)[:, None]
    options = {"bins": 256, "boundary": boundary}
    h, j = reference.soft_histogram(x, **options), reference.joint_histogram(x, y, **options)
    assert h.dtype == j.dtype == torch.float32
    assert_value(h, reference.soft_histogram(x.double(), **options))
    assert_value(j, reference.joint_histogram(x.double(), y.double(), **options))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_far_from_the_bin_no_digit_is_lost(boundary: str) -> None:
    """The difference of two sigmoids is exactly 0 in float32 from 8 bins on; the true value is 3e-9 there."""
    x = torch.zeros(1, 1, 1)
    found = reference.activation_maps(x, bins=64, boundary=boundary)[0, 0, :, 0].double()
    expected = reference.activation_maps(x.double(), bins=64, boundary=boundary)[0, 0, :, 0]
    near = torch.arange(64).sub(31.5).abs() < 20
    torch.testing.assert_close(found[near], expected[near], rtol=2e-5, atol=0)


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 64, 129])
def test_sums_by_halves(bins: int) -> None:
    values = torch.randn(2, bins, 33, dtype=F64)
    assert_value(reference.add_up(values), values.sum(1, keepdim=True), floor=1.0)
    some = [0, 5, 32]
    assert torch.equal(reference.add_up(values[..., some]), reference.add_up(values)[..., some])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64], ids=str)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_exact_maps_are_the_maps(kernel: str, boundary: str, dtype: torch.dtype) -> None:
    """But for the last digit, which has no regard to where in the tensor a pixel is."""
    axis = Binning(16, boundary=boundary, kernel=kernel, bandwidth=1.0)
    x = torch.randn(2, 1003).to(dtype)
    x[0, 5], x[1, 1000] = math.nan, math.inf
    for order in range(3):
        found = reference.exact_maps(x, axis, order)
        assert_value(found, reference.plane_maps(x.double(), axis, order), floor=0.1 * 8**order)
        parts = [reference.exact_maps(part, axis, order) for part in x.split([1, 2, 500, 500], -1)]
        assert torch.equal(torch.cat(parts, -1), found)


@pytest.mark.parametrize("huge", [1e30, -1e30, 3e38, -3e38])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_huge_values_keep_their_mass_in_the_range(dtype: torch.dtype, huge: float) -> None:
    x = torch.full((1, 1, 3), huge, dtype=dtype)
    for boundary, mass in (("open", 0.0), ("reflect", 1.0), ("cyclic", 1.0)):
        h = reference.soft_histogram(x, bins=7, range=(0.1, 0.7), boundary=boundary)
        assert h.sum().item() == pytest.approx(mass, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_pixel_that_is_not_finite_counts_for_nothing(boundary: str, bad: float) -> None:
    x = torch.tensor([[[0.2, bad, -0.3, 0.9]]], dtype=F64).requires_grad_()
    y = torch.tensor([[[0.1, 0.5, -0.6, 0.9]]], dtype=F64).requires_grad_()
    keep = [0, 2, 3]
    h = reference.soft_histogram(x, bins=6, boundary=boundary)
    assert_value(h, reference.soft_histogram(x[..., keep], bins=6, boundary=boundary) * 3 / 4)
    j = reference.joint_histogram(x, y, bins=6, boundary=boundary)
    assert_value(j, reference.joint_histogram(x[..., keep], y[..., keep], bins=6, boundary=boundary) * 3 / 4)
    grad_x, grad_y = torch.autograd.grad(h.square().sum() + j.square().sum(), [x, y])
    assert bool(grad_x.isfinite().all() & grad_y.isfinite().all())
    assert grad_x[0, 0, 1] == grad_y[0, 0, 1] == 0
