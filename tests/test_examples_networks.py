"""The networks of the example trainers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from histloss import soft_histogram
from shared.networks import CODES, LIMIT, CountCode, Discriminator, Generator, RootCode, hard_histogram

BINS = 16


def photos(batch: int = 2, size: int = 32) -> Tensor:
    return torch.rand(batch, 3, size, size) * 2 - 1


def histograms(batch: int = 2, bins: int = BINS) -> Tensor:
    return soft_histogram(photos(batch), bins=bins)


def small(size: int = 32, *, code: str = "soft", residual: bool = False) -> Generator:
    return Generator(size, bins=BINS, width=4, code=code, residual=residual)


def seeded(generator: Generator, source: Tensor, ref_hist: Tensor) -> Tensor:
    torch.manual_seed(1)
    return generator(source, ref_hist)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("code", CODES)
def test_any_power_of_two_from_32_is_a_size(size: int, code: str) -> None:
    generator = small(size, code=code)
    codes = []
    generator.downs[-1].register_forward_hook(lambda module, inputs, code: codes.append(code.shape))
    output = generator(photos(1, size), histograms(1))
    assert output.shape == (1, 3, size, size)
    assert output.abs().max() < 1
    assert codes == [(1, 32, 1, 1)]


@pytest.mark.parametrize("size", [0, 16, 31, 48, -64])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be a power of two, at least 32, got {size}"):
        Generator(size)


def test_other_codes_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="got 'hard'"):
        small(code="hard")
    generator = small()
    with pytest.raises(ValueError, match="source must have shape"):
        generator(photos(2, 64), histograms())
    with pytest.raises(ValueError, match="ref_hist must have shape"):
        generator(photos(), histograms(bins=8))
    with pytest.raises(ValueError, match="ref_hist must have shape"):
        generator(photos(2), histograms(1))


@pytest.mark.parametrize("code", CODES)
def test_every_weight_learns_from_a_batch_of_one(code: str) -> None:
    generator = small(code=code)
    generator(photos(1), histograms(1)).square().sum().backward()
    for name, weight in generator.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


@pytest.mark.parametrize("code", CODES)
def test_the_output_depends_on_each_histogram(code: str) -> None:
    generator, source, ref_hist = small(code=code), photos(), histograms()
    before = seeded(generator, source, ref_hist)
    for channel in range(3):
        other = ref_hist.clone()
        other[0, channel] = other[0, channel].flip(0)
        assert (seeded(generator, source, other)[0] - before[0]).abs().max() > 1e-4


def test_square_roots_have_one_scale_for_every_histogram() -> None:
    flat = torch.full((1, 3, BINS), 1 / BINS)
    peak = torch.zeros(1, 3, BINS)
    peak[..., 3] = 1
    torch.testing.assert_close(RootCode()(flat), torch.ones(1, 3 * BINS))
    torch.testing.assert_close(RootCode()(peak).max(), torch.tensor(BINS**0.5))
    for ref_hist in (flat, peak, histograms(1)):
        torch.testing.assert_close(RootCode()(ref_hist).square().mean(), torch.tensor(1.0))


def test_a_hard_histogram_counts_as_torch_does() -> None:
    image = photos(size=64)
    image[0, :, 0, :4] = torch.tensor([-1.0, 1.0, -1.2, 1.2])
    shares = hard_histogram(image, bins=BINS)
    counted = [[torch.histc(plane.clamp(-1, 1), BINS, -1, 1) for plane in planes] for planes in image]
    assert torch.equal(shares * 64 * 64, torch.stack([torch.stack(planes) for planes in counted]))


def test_counts_are_looked_up_bin_by_bin_in_the_table_of_their_channel() -> None:
    code = CountCode(32 * 32)
    for channel, table in enumerate(code.tables):
        table.weight.data = 1e4 * channel + torch.arange(32.0 * 32 + 1)[:, None]
    image = photos(1, 32)
    numbers = code(hard_histogram(image, bins=BINS)).reshape(3, BINS)
    for channel in range(3):
        counts = torch.histc(image[0, channel], BINS, -1, 1)
        assert torch.equal(numbers[channel] - 1e4 * channel, counts)
    more = hard_histogram(image, bins=BINS) + 0.6 / (32 * 32)
    assert torch.equal(code(more).reshape(3, BINS), numbers + 1), "not rounded to whole pixels"
    larger = image.repeat_interleave(4, dim=2)
    assert torch.equal(code(hard_histogram(larger, bins=BINS)).reshape(3, BINS), numbers)


@pytest.mark.parametrize("code", CODES)
def test_a_residual_generator_starts_from_the_source_and_then_leaves_it(code: str) -> None:
    generator, source, ref_hist = small(code=code, residual=True), photos(), histograms()
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.01)
    output = generator(source, ref_hist)
    torch.testing.assert_close(output, source.clamp(-LIMIT, LIMIT))
    output.sum().backward()
    optimizer.step()
    assert generator(source, ref_hist).mean() < source.mean() - 0.05


def test_dropout_is_noise_that_the_seed_repeats_in_eval_mode_too() -> None:
    generator, source, ref_hist = small().eval(), photos(), histograms()
    first = seeded(generator, source, ref_hist)
    assert not torch.equal(generator(source, ref_hist), first)
    assert torch.equal(seeded(generator, source, ref_hist), first)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(75, 41), (20, 100), (32, 32)])
def test_photos_of_any_size_are_recolored(residual: bool, shape: tuple[int, int]) -> None:
    generator = small(residual=residual).eval()
    photo = torch.rand(1, 3, *shape) * 2 - 1
    output = generator.recolor(photo, histograms(1))
    assert output.shape == photo.shape
    assert not output.requires_grad


def test_a_photo_of_the_size_trained_on_is_recolored_as_in_training() -> None:
    generator, source, ref_hist = small(residual=True).eval(), photos(), histograms()
    torch.nn.init.normal_(generator.ups[-1][-1].weight)
    expected = seeded(generator, source, ref_hist)
    torch.manual_seed(1)
    torch.testing.assert_close(generator.recolor(source, ref_hist), expected)


def test_a_residual_generator_keeps_detail_finer_than_its_size() -> None:
    generator = small(residual=True).eval()
    generator.ups[-1][-1].bias.data = torch.tensor([0.5, 0.0, -0.5])
    y, x = torch.meshgrid(torch.arange(128), torch.arange(192), indexing="ij")
    checkers = ((x + y) % 2 - 0.5).expand(1, 3, -1, -1)
    expected = torch.tanh(torch.atanh(checkers) + torch.tensor([0.5, 0.0, -0.5]).reshape(1, 3, 1, 1))
    torch.testing.assert_close(generator.recolor(checkers, histograms(1)), expected)


def test_bfloat16_autocast_leaves_the_output_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = small()(photos(), histograms())
    assert output.dtype == torch.float32
    assert not torch.equal(output, output.bfloat16().float())


@pytest.mark.parametrize(("size", "logits"), [(32, 2), (64, 6), (256, 30)])
def test_the_discriminator_judges_patches(size: int, logits: int) -> None:
    images = photos(1, size)
    assert Discriminator(conditional=False, width=4)(images).shape == (1, 1, logits, logits)
    assert Discriminator(conditional=True, width=4)(images, images).shape == (1, 1, logits, logits)


def test_a_patch_is_70_pixels_wide() -> None:
    discriminator = Discriminator(conditional=False, width=4).eval()
    image = photos(1, 256).requires_grad_()
    discriminator(image)[0, 0, 15, 15].backward()
    seen = image.grad.abs().sum(1)[0] > 0
    for axis in (0, 1):
        pixels = seen.any(axis).nonzero()
        assert pixels.max() - pixels.min() + 1 == 70


def test_only_a_conditional_discriminator_sees_the_source() -> None:
    image, source = photos(), photos().requires_grad_()
    Discriminator(conditional=True, width=4)(image, source).sum().backward()
    assert source.grad.any()
    with pytest.raises(ValueError, match="conditional=True needs a source"):
        Discriminator(conditional=True, width=4)(image)
    with pytest.raises(ValueError, match="conditional=False takes no source"):
        Discriminator(conditional=False, width=4)(image, source)


def test_weights_start_from_a_narrow_normal_distribution() -> None:
    weights = Discriminator(conditional=True).layers[2][0].weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weights.mean().item()) < 1e-3
