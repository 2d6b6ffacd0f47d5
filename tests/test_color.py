"""Colour transforms: values by hand and published, an independent oracle, ranges, round trips, gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import skimage.color
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from histloss import color

SPACES = ("yuv", "hsv", "lab")
FROM_RGB = {space: getattr(color, f"rgb_to_{space}") for space in SPACES}
TO_RGB = {space: getattr(color, f"{space}_to_rgb") for space in SPACES}
ALL = {f.__name__: f for f in (*FROM_RGB.values(), *TO_RGB.values())}

each_space = pytest.mark.parametrize("space", SPACES)
each_function = pytest.mark.parametrize("function", ALL.values(), ids=ALL.keys())


def pixels(*values: tuple[float, float, float], dtype: torch.dtype = torch.float64) -> Tensor:
    """One image of the given pixels, (1, 3, N)."""
    return torch.tensor(values, dtype=dtype).T[None]


def grid(*levels: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Every pixel with channels among the levels, (1, 3, N)."""
    return pixels(*itertools.product(levels, repeat=3), dtype=dtype)


def random_rgb(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(1, 3, n, dtype=dtype) * 2 - 1


# ---- values ----------------------------------------------------------------------------------------

PRIMARIES = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1)}


@pytest.mark.parametrize(
    ("rgb", "yuv"),
    [
        (PRIMARIES["red"], (2 * 0.299 - 1, (-1 - (2 * 0.299 - 1)) / 1.772, 1)),
        (PRIMARIES["green"], (2 * 0.587 - 1, (-1 - (2 * 0.587 - 1)) / 1.772, (-1 - (2 * 0.587 - 1)) / 1.402)),
        (PRIMARIES["blue"], (2 * 0.114 - 1, 1, (-1 - (2 * 0.114 - 1)) / 1.402)),
        ((0.25, 0.25, 0.25), (0.25, 0, 0)),
        ((-1, 1, 1), (1 - 2 * 0.299, (1 - (1 - 2 * 0.299)) / 1.772, -1)),  # cyan: 2 V would be -1.23
    ],
)
def test_yuv_worked_by_hand(rgb: tuple[float, ...], yuv: tuple[float, ...]) -> None:
    torch.testing.assert_close(color.rgb_to_yuv(pixels(rgb)), pixels(yuv), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("rgb", "hsv"),
    [
        ((1, 0, 0), (0, 1, 1)),
        ((1, 1, 0), (1 / 6, 1, 1)),
        ((0, 1, 0), (2 / 6, 1, 1)),
        ((0, 1, 1), (3 / 6, 1, 1)),
        ((0, 0, 1), (4 / 6, 1, 1)),
        ((1, 0, 1), (5 / 6, 1, 1)),
        ((1, 0.5, 0), (1 / 12, 1, 1)),
        ((1, 0, 0.5), (11 / 12, 1, 1)),
        ((0.5, 0.25, 0.25), (0, 0.5, 0.5)),
        ((0.125, 0.25, 0.1875), (2.5 / 6, 0.5, 0.25)),
        ((0, 0, 0), (0, 0, 0)),
        ((0.5, 0.5, 0.5), (0, 0, 0.5)),
        ((1, 1, 1), (0, 0, 1)),
    ],
)
def test_hsv_worked_by_hand(rgb: tuple[float, ...], hsv: tuple[float, ...]) -> None:
    """Both columns in their usual units."""
    actual = color.rgb_to_hsv(2 * pixels(rgb) - 1)
    torch.testing.assert_close(actual, 2 * pixels(hsv) - 1, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("rgb", "lab", "atol"),
    [
        ((1, 1, 1), (100, 0, 0), 1e-12),
        ((0, 0, 0), (0, 0, 0), 1e-12),
        ((0.02, 0.02, 0.02), (0.02 / 12.92 * (29 / 3) ** 3, 0, 0), 1e-12),  # the curves' straight parts
        ((0.5, 0.5, 0.5), (116 * (((0.5 + 0.055) / 1.055) ** 2.4) ** (1 / 3) - 16, 0, 0), 1e-12),
        ((1, 0, 0), (53.2408, 80.0925, 67.2032), 1e-3),  # Lindbloom's calculator
        ((0, 1, 0), (87.7347, -86.1827, 83.1793), 1e-3),
        ((0, 0, 1), (32.2970, 79.1875, -107.8602), 1e-3),
    ],
)
def test_lab_worked_by_hand(rgb: tuple[float, ...], lab: tuple[float, ...], atol: float) -> None:
    """Both columns in their usual units."""
    lightness, a, b = color.rgb_to_lab(2 * pixels(rgb) - 1)[0, :, 0].tolist()
    assert (50 * (lightness + 1), 110 * a, 110 * b) == pytest.approx(lab, abs=atol)


@pytest.mark.parametrize(
    ("space", "scale", "offset", "atol"),
    [
        ("yuv", (2, 1 / 0.43601035, 1 / 0.61497538), (-1, 0, 0), 1e-8),  # the digits of its matrix
        ("hsv", (2, 2, 2), (-1, -1, -1), 1e-14),
        ("lab", (1 / 50, 1 / 110, 1 / 110), (-1, 0, 0), 1e-4),  # likewise
    ],
)
def test_against_scikit_image(
    space: str, scale: tuple[float, ...], offset: tuple[float, ...], atol: float
) -> None:
    rgb = torch.cat((random_rgb(20_000), grid(-1, -0.5, 0, 0.5, 1)), 2)
    oracle: Callable[[np.ndarray], np.ndarray] = getattr(skimage.color, f"rgb2{space}")
    expected = oracle((rgb[0].T.numpy() + 1) / 2) * scale + offset
    np.testing.assert_allclose(FROM_RGB[space](rgb)[0].T.numpy(), expected, rtol=0, atol=atol)


# ---- ranges and round trips ------------------------------------------------------------------------

ROUND_TRIP = {  # float32, float64; Lab's way back divides dark channels' rounding by sRGB's slope 1 / 12.92
    "yuv": (5e-7, 2e-15),
    "hsv": (3e-6, 6e-15),
    "lab": (4e-5, 8e-14),
}


@each_space
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rgb_cube_maps_into_the_range(space: str, dtype: torch.dtype) -> None:
    levels = torch.linspace(-1, 1, 33).tolist()  # the 8 corners and the faces are among them
    rgb = torch.cat((grid(*levels, dtype=dtype), random_rgb(50_000, dtype)), 2)
    image = FROM_RGB[space](rgb)
    rounding = 2 * torch.finfo(dtype).eps
    assert image.amin() >= -1 - rounding
    assert image.amax() <= 1 + rounding


def test_each_space_uses_its_range() -> None:
    """The corners reach both ends, but for the a and b of Lab, which share a scale."""
    corners = grid(-1, 1)
    for space, low, high in (
        ("yuv", (-1, -1, -1), (1, 1, 1)),
        ("hsv", (-1, -1, -1), (2 / 3, 1, 1)),
        ("lab", (-1, -86.18 / 110, -107.86 / 110), (1, 98.25 / 110, 94.49 / 110)),
    ):
        image = FROM_RGB[space](corners)[0]
        assert image.amin(1).tolist() == pytest.approx(low, abs=2e-4)
        assert image.amax(1).tolist() == pytest.approx(high, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hue_just_below_red_stays_below_one(dtype: torch.dtype) -> None:
    """6 less a rounding error is 6 in floating point, and hue 1 is hue -1."""
    least = torch.nextafter(torch.tensor(-1.0, dtype=dtype), torch.tensor(0.0, dtype=dtype)).item()
    hue = color.rgb_to_hsv(pixels((1, -1, least), (1, -1, -1 + 3e-7), dtype=dtype))[0, 0]
    assert bool((hue < 1).all())
    assert hue[0] == -1


@each_space
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_from_rgb(space: str, dtype: torch.dtype) -> None:
    knee = 2 * 0.04044997 - 1  # just below the bend of sRGB's curve
    rgb = torch.cat((random_rgb(50_000, dtype), grid(-1, knee, -0.5, 0, 0.3, 1, dtype=dtype)), 2)
    back = TO_RGB[space](FROM_RGB[space](rgb))
    torch.testing.assert_close(back, rgb, rtol=0, atol=ROUND_TRIP[space][dtype == torch.float64])


@each_space
def test_round_trip_to_rgb(space: str) -> None:
    """From the other side, outside of the RGB cube too."""
    image = random_rgb(2_000)
    if space == "hsv":  # hue is lost near grey, saturation near black
        image[:, 1:] = image[:, 1:] * 0.45 + 0.5
    back = FROM_RGB[space](TO_RGB[space](image))
    torch.testing.assert_close(back, image, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greys_go_through_hsv_unchanged(dtype: torch.dtype) -> None:
    grey = torch.linspace(-1, 1, 257, dtype=dtype).expand(1, 3, -1)
    assert torch.equal(color.hsv_to_rgb(color.rgb_to_hsv(grey)), grey)


def test_any_hue_wraps_round() -> None:
    hsv = random_rgb(100)
    turned = hsv + torch.tensor([2.0, 0, 0], dtype=hsv.dtype)[:, None]
    torch.testing.assert_close(color.hsv_to_rgb(turned), color.hsv_to_rgb(hsv), rtol=0, atol=1e-14)


# ---- gradients -------------------------------------------------------------------------------------


@each_function
def test_gradcheck(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.cat((0.9 * random_rgb(8), 0.03 * random_rgb(4) - 0.95), 2).requires_grad_()  # and dark pixels
    assert gradcheck(function, x)
    assert gradgradcheck(function, x)


@each_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_everywhere(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Black, white, greys, equal channels, neighbours of these a rounding error away, and values outside."""
    exact = grid(-1, -0.5, 0, 1, dtype=dtype)
    above = torch.nextafter(exact, torch.full_like(exact, 2))
    mixed = torch.where(torch.rand_like(exact) < 0.5, exact, above)
    outside = grid(-1.2, -1, 1.2, dtype=dtype)
    x = torch.cat((exact, above, mixed, outside), 2).requires_grad_()
    image = function(x)
    assert bool(image.isfinite().all())
    for channel in range(3):
        (gradient,) = torch.autograd.grad(image[:, channel].sum(), x, retain_graph=True)
        assert bool(gradient.isfinite().all()), channel


def test_hue_of_grey_and_saturation_of_black_have_no_gradient() -> None:
    rgb = pixels((-1, -1, -1), (0, 0, 0), (1, 1, 1)).requires_grad_()
    hue, saturation, _ = color.rgb_to_hsv(rgb)[0]
    (gradient,) = torch.autograd.grad(hue.sum(), rgb, retain_graph=True)
    assert torch.equal(gradient, torch.zeros_like(rgb))
    (gradient,) = torch.autograd.grad(saturation[0], rgb)
    assert torch.equal(gradient, torch.zeros_like(rgb))


@each_function
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_pixel_is_nan_without_gradient(function: Callable[[Tensor], Tensor], bad: float) -> None:
    clean = 0.5 * random_rgb(4)
    x = clean.clone()
    x[0, 1, 2] = bad
    x.requires_grad_()
    image = function(x)
    image.nan_to_num().sum().backward()
    others = torch.tensor([0, 1, 3])
    assert bool(image[0, :, 2].isnan().all())
    assert torch.equal(image[..., others], function(clean)[..., others])
    assert torch.equal(x.grad[0, :, 2], torch.zeros(3, dtype=x.dtype))
    assert bool((x.grad[..., others] != 0).any(1).all())


# ---- layouts, dtypes, compilation ------------------------------------------------------------------


@each_function
@pytest.mark.parametrize("spatial", [(24,), (4, 6), (2, 3, 4), (1, 2, 3, 4), (0,), (3, 0)])
def test_any_number_of_spatial_dimensions(
    function: Callable[[Tensor], Tensor], spatial: tuple[int, ...]
) -> None:
    x = torch.rand(2, 3, *spatial) - 0.5
    image = function(x)
    assert image.shape == x.shape
    assert torch.equal(image.flatten(2), function(x.flatten(2)))


@each_function
def test_strides_do_not_matter(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.rand(2, 3, 8, 8) - 0.5
    expected = function(x)
    assert torch.equal(function(x.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(function(x.mT.contiguous().mT), expected)


@each_function
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = (torch.rand(2, 3, 16) - 0.5).to(dtype).requires_grad_()
    image = function(x)
    image.sum().backward()
    assert image.dtype == torch.float32
    assert torch.equal(image, function(x.float()))
    assert x.grad.dtype == dtype


@each_function
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    x = torch.rand(2, 3, 16) - 0.5
    expected = function(x)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(function(x), expected)


@each_function
def test_compiles_into_one_graph(function: Callable[[Tensor], Tensor]) -> None:
    x = (torch.rand(2, 3, 4, 5, dtype=torch.float64) - 0.5).requires_grad_()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    image, expected = compiled(x), function(x)
    torch.testing.assert_close(image, expected)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (image, expected)]
    torch.testing.assert_close(*gradients)


# ---- bad input -------------------------------------------------------------------------------------


@each_function
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([[1.0]], TypeError, r"must be a torch.Tensor of shape \(B, C, \*spatial\), got list"),
        (None, TypeError, "got NoneType"),
        (torch.zeros(1, 3, 4, dtype=torch.uint8), TypeError, "must be float16, .* got torch.uint8"),
        (torch.zeros(1, 3, 4, dtype=torch.complex64), TypeError, "must be float16, .* got torch.complex64"),
        (torch.zeros(3, 4), ValueError, r"must have shape \(B, C, \*spatial\), got \(3, 4\)"),
        (torch.zeros(3, 4, 4), ValueError, r"must have shape \(B, 3, \*spatial\), got \(3, 4, 4\)"),
        (torch.zeros(1, 1, 4, 4), ValueError, r"must have shape \(B, 3, \*spatial\), got \(1, 1, 4, 4\)"),
        (torch.zeros(1, 4, 4, 3), ValueError, r"must have shape \(B, 3, \*spatial\), got \(1, 4, 4, 3\)"),
    ],
)
def test_bad_input(
    function: Callable[[object], Tensor], bad: object, error: type[Exception], message: str
) -> None:
    argument = function.__name__.split("_")[0]
    with pytest.raises(error, match=f"^{argument} .*{message}"):
        function(bad)
