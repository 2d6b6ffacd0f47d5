"""Palettes that a user types."""

from __future__ import annotations

import argparse

import pytest
import torch

from histloss import soft_histogram
from shared.palette import Palette, apportion, parse_palette


@pytest.mark.parametrize(
    ("text", "colors", "weights"),
    [
        ("#b03020:0.6,#203050:0.4", ((176, 48, 32), (32, 48, 80)), (0.6, 0.4)),
        (" #f00 : 3 , navy:1 ", ((255, 0, 0), (0, 0, 128)), (0.75, 0.25)),
        ("red,lime,blue,#FFFFFF", ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)), (0.25,) * 4),
        ("#123456", ((18, 52, 86),), (1.0,)),
        ("black:1e-3", ((0, 0, 0),), (1.0,)),
    ],
)
def test_a_palette_is_parsed(
    text: str, colors: tuple[tuple[int, int, int], ...], weights: tuple[float, ...]
) -> None:
    palette = parse_palette(text)
    assert palette.colors == colors
    assert palette.weights == pytest.approx(weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a colour must be #rrggbb, #rgb or a CSS name such as navy, got ''"),
        ("red,,blue", "a colour must be .*, got ''"),
        ("rde:1", "a colour must be .*, got 'rde'"),
        ("#12345", "a colour must be .*, got '#12345'"),
        ("#b0302080", "a colour must be .*, got '#b0302080'"),
        ("red:0", "a colour's weight must be a positive number, got '0'"),
        ("red:-1", "got '-1'"),
        ("red:much", "got 'much'"),
        ("red:", "got ''"),
        ("red:nan", "got 'nan'"),
        ("red:inf", "got 'inf'"),
        ("red:1:2", "got '1:2'"),
        ("red:0.5,blue", "'blue' has no weight: give all colours one, or none"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse_palette(text)


def test_pixels_are_shared_by_largest_remainder() -> None:
    assert apportion((0.6, 0.4), 10) == [6, 4]
    assert apportion((1 / 3, 1 / 3, 1 / 3), 16) == [6, 5, 5]
    assert apportion((0.34, 0.56, 0.1), 16) == [5, 9, 2]
    for colors in range(1, 12):
        weights = torch.rand(colors, dtype=torch.float64)
        counts = apportion(tuple((weights / weights.sum()).tolist()), 4096)
        assert sum(counts) == 4096


def test_an_image_has_the_colours_in_their_shares() -> None:
    palette = parse_palette("#b03020:0.6,#203050:0.4")
    pixels = palette.image(32, spread=0).flatten(2)[0].T
    colors, counts = pixels.unique(dim=0, return_counts=True)
    torch.testing.assert_close((colors + 1) * 127.5, torch.tensor([[32.0, 48, 80], [176.0, 48, 32]]))
    assert counts.tolist() == [410, 614]
    torch.testing.assert_close((pixels[0] + 1) * 127.5, torch.tensor([176.0, 48, 32]))


def test_noise_widens_the_colours_alike_each_time() -> None:
    palette = Palette(((128, 100, 150),), (1.0,))
    image = palette.image(64)
    assert torch.equal(image, palette.image(64))
    pure = palette.image(64, spread=0)
    torch.testing.assert_close((image - pure).std((2, 3)), torch.full((1, 3), 0.1), rtol=0.05, atol=0)
    torch.testing.assert_close(image.mean((2, 3)), pure.mean((2, 3)), rtol=0, atol=0.01)
    assert soft_histogram(image, bins=64).max() < 0.3 < soft_histogram(pure, bins=64).max()
    assert parse_palette("white,black").image(32).abs().max() <= 1
