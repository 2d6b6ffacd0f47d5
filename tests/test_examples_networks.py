"""The networks of the example trainers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from histloss import soft_histogram
from shared.networks import (
    CODES,
    LIMIT,
    AutoencoderDiscriminator,
    ColorfulNet,
    CountCode,
    Discriminator,
    Generator,
    ResNetGenerator,
    RootCode,
    UNet,
    hard_histogram,
)

BINS = 16


def images(*shape: int) -> Tensor:
    return torch.rand(*shape) * 2 - 1


def photos(batch: int = 2, size: int = 32) -> Tensor:
    return images(batch, 3, size, size)


def parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def assert_every_weight_has_a_gradient(network: nn.Module) -> None:
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


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
    assert_every_weight_has_a_gradient(generator)


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
    photo = photos(1, size)
    assert Discriminator(conditional=False, width=4)(photo).shape == (1, 1, logits, logits)
    assert Discriminator(conditional=True, width=4)(photo, photo).shape == (1, 1, logits, logits)


def test_a_patch_is_70_pixels_wide() -> None:
    discriminator = Discriminator(conditional=False, width=4).eval()
    image = photos(1, 256).requires_grad_()
    discriminator(image)[0, 0, 15, 15].backward()
    seen = image.grad.abs().sum(1)[0] > 0
    for axis in (0, 1):
        pixels = seen.any(axis).nonzero()
        assert pixels.max() - pixels.min() + 1 == 70


@pytest.mark.parametrize("kind", [Discriminator, AutoencoderDiscriminator])
def test_only_a_conditional_discriminator_sees_the_condition(kind: type[nn.Module]) -> None:
    ab, lightness = images(2, 2, 32, 32), images(2, 1, 32, 32)
    conditional = kind(conditional=True, width=4, image=2, condition=1)
    scores = conditional(ab, lightness)
    scores.sum().backward()
    assert_every_weight_has_a_gradient(conditional)
    assert (conditional(ab, -lightness) - scores).abs().min() > 0
    unconditional = kind(conditional=False, width=4, image=2, condition=1)
    assert unconditional(ab).shape == scores.shape
    with pytest.raises(ValueError, match="conditional=True needs a condition"):
        conditional(ab)
    with pytest.raises(ValueError, match="conditional=False takes no condition"):
        unconditional(ab, lightness)
    with pytest.raises(ValueError, match=r"image must have shape \(B, 2, H, W\).*got \(2, 1, 32, 32\)"):
        conditional(lightness, ab)
    with pytest.raises(ValueError, match=r"condition must have shape \(B, 1, H, W\)"):
        conditional(ab, ab)


def test_the_smallest_image_that_a_patch_gan_judges() -> None:
    discriminator = Discriminator(conditional=False, width=4)
    assert discriminator(images(2, 3, 24, 25)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match="from 24 on"):
        discriminator(images(2, 3, 23, 32))


def test_weights_start_from_a_narrow_normal_distribution() -> None:
    weights = Discriminator(conditional=True).layers[2][0].weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weights.mean().item()) < 1e-3


@pytest.mark.parametrize("size", [32, 64])
def test_a_u_net_paints_ab_on_lightness(size: int) -> None:
    network = UNet(size, width=4)
    output = network(images(2, 1, size, size))
    assert output.shape == (2, 2, size, size)
    assert output.abs().max() < 1
    output.square().sum().backward()
    assert_every_weight_has_a_gradient(network)
    with pytest.raises(ValueError, match="source must have shape"):
        network(photos(2, size))


def test_a_u_net_is_a_generator_without_a_code() -> None:
    """All weights but those that the code is made of and goes through."""
    plain, generator = UNet(256, inputs=3, outputs=3), Generator(256, bins=BINS)
    dense = 3 * BINS * 2 * BINS + 2 * BINS
    assert parameters(generator) - parameters(plain) == dense + 2 * BINS * 512 * 3 * 3
    down = [3 * 64, 64 * 128, 128 * 256, 256 * 512, *[512 * 512] * 4]
    up = [512 * 512, *[1024 * 512] * 3, 1024 * 256, 512 * 128, 256 * 64, 128 * 3]
    norms = [128, 256, *[512] * 4, *[512] * 3, 256, 128, 64]
    biases = 64 + 512 + 512 + 3  # where there is no norm
    assert parameters(plain) == 16 * sum(down) + 9 * sum(up) + 2 * sum(norms) + biases


@pytest.mark.parametrize("outputs", [2, 313])
@pytest.mark.parametrize("shape", [(8, 8), (24, 40)])
def test_a_colorful_net_answers_for_every_fourth_pixel(outputs: int, shape: tuple[int, int]) -> None:
    network = ColorfulNet(outputs, width=2)
    output = network(images(2, 1, *shape))
    assert output.shape == (2, outputs, shape[0] // 4, shape[1] // 4)
    output.square().sum().backward()
    assert_every_weight_has_a_gradient(network)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 32, 36), (2, 1, 0, 32), (1, 32, 32)])
def test_a_colorful_net_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"lightness must have shape \(B, 1, H, W\).*multiples of 8"):
        ColorfulNet(2, width=2)(images(*shape))


def test_a_colorful_net_of_full_width_is_the_published_one() -> None:
    """Its weights counted layer by layer, and which of them are dilated."""
    network = ColorfulNet(313)
    pairs = [(1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)]
    pairs += [(512, 512)] * (2 + 3 + 3 + 3) + [(256, 256)] * 2
    count = sum((9 * before + 1) * after for before, after in pairs)
    count += 16 * 512 * 256 + 256  # the transposed convolution of conv8
    count += 2 * (64 + 128 + 256 + 4 * 512)  # batch norms
    count += 256 * 313 + 313
    assert parameters(network) == count == 32_235_385
    dilations = [{conv.dilation for conv in block if isinstance(conv, nn.Conv2d)} for block in network.blocks]
    assert dilations == [{(1, 1)}] * 4 + [{(2, 2)}] * 2 + [{(1, 1)}] * 2


def test_an_output_of_a_colorful_net_sees_349_pixels() -> None:
    convs = [(1, 2), (2, 2), (4, 3), (8, 3), (16, 3), (16, 3), (8, 3)]  # pixels from tap to tap, how many
    seen = 1 + sum(2 * step * count for step, count in convs)
    seen += 8  # the transposed convolution: two places of conv7
    seen += 2 * 4 * 2  # conv8's other two
    network = ColorfulNet(1, width=1).eval()
    for weight in network.parameters():
        nn.init.constant_(weight, 0.1)  # positive: no ReLU closes
    lightness = torch.ones(1, 1, 512, 512, requires_grad=True)
    network(lightness)[0, 0, 64, 64].backward()
    pixels = lightness.grad[0, 0].any(0).nonzero()
    assert pixels.max() - pixels.min() + 1 == seen


def test_a_colorful_net_starts_near_grey() -> None:
    assert ColorfulNet(2, width=16)(images(2, 1, 32, 32)).abs().max() < 0.5


@pytest.mark.parametrize("shape", [(8, 12), (32, 32)])
def test_a_residual_network_paints_photos(shape: tuple[int, int]) -> None:
    network = ResNetGenerator(width=4, blocks=2)
    output = network(images(2, 3, *shape))
    assert output.shape == (2, 3, *shape)
    assert output.abs().max() < 1
    output.square().sum().backward()
    assert_every_weight_has_a_gradient(network)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 32, 34), (2, 3, 4, 32)])
def test_a_residual_network_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    network = ResNetGenerator(width=4, blocks=1)
    with pytest.raises(ValueError, match=r"source must have shape \(B, 3, H, W\).*multiples of 4 from 8"):
        network(images(*shape))
    with pytest.raises(ValueError, match="image must have shape"):
        network.features(images(*shape))


def test_a_residual_network_of_full_width_is_cyclegans() -> None:
    """Without the biases that instance norm takes out."""
    convs = [49 * 3 * 64, 9 * 64 * 128, 9 * 128 * 256, 9 * 256 * 128, 9 * 128 * 64, 49 * 64 * 3 + 3]
    for blocks in (6, 9):
        assert parameters(ResNetGenerator(blocks=blocks)) == sum(convs) + blocks * 2 * 9 * 256 * 256


@pytest.mark.parametrize("blocks", [1, 3, 6])
@pytest.mark.parametrize("taps", [None, (0,), (1, 3, 9), (10,)])
def test_taps_are_activations_on_the_way_to_the_output(blocks: int, taps: tuple[int, ...] | None) -> None:
    network = ResNetGenerator(width=4, blocks=blocks, taps=taps)
    source, seen = photos(), {}
    for i, layer in enumerate(network.layers):
        layer.register_forward_hook(lambda module, inputs, output, i=i: seen.update({i: output}))
    network(source)
    assert [*seen] == [*range(len(network.layers))]
    on_the_way = [seen[tap] for tap in network.taps]
    seen.clear()
    features = network.features(source)
    assert max(seen) == network.taps[-1], "what follows the last tap has run"
    for found, expected in zip(features, on_the_way, strict=True):
        assert torch.equal(found, expected)
    assert [found.shape[1] for found in features] == network.tap_channels


def test_the_default_taps_are_cuts() -> None:
    network = ResNetGenerator(width=4, blocks=9)
    pixels, first, second, *blocks = (network.layers[tap] for tap in network.taps)
    assert isinstance(pixels, nn.ReflectionPad2d)
    assert [conv.stride for conv in (first, second)] == [(2, 2), (2, 2)]
    residual = [layer for layer in network.layers if type(layer) is type(blocks[0])]
    assert blocks == [residual[0], residual[4]]
    assert network.tap_channels == [3, 8, 16, 16, 16]


@pytest.mark.parametrize("taps", [(), (4, 0), (4, 4), (-1,), (0, 13)])
def test_other_taps_are_refused(taps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="taps must be increasing indices from 0 to 12"):
        ResNetGenerator(width=4, blocks=3, taps=taps)
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        ResNetGenerator(width=4, blocks=0)


@pytest.mark.parametrize("conditional", [False, True])
def test_an_energy_is_the_squared_error_of_each_image(conditional: bool) -> None:
    network = AutoencoderDiscriminator(conditional=conditional, width=4).eval()
    image, condition = images(3, 3, 16, 24), images(3, 3, 16, 24) if conditional else None
    shown = torch.cat([condition, image], dim=1) if conditional else image
    repeated = network.layers(shown)
    assert repeated.shape == shown.shape
    energy = network(image, condition)
    expected = torch.stack([(repeated[i] - shown[i]).square().mean() for i in range(3)])
    torch.testing.assert_close(energy, expected)
    with pytest.raises(ValueError, match="multiples of 8"):
        network(images(2, 3, 12, 16), condition)


def test_an_autoencoder_learns_a_low_energy_for_what_it_is_shown() -> None:
    network, real = AutoencoderDiscriminator(conditional=False, width=8), photos(4, 16) * 0.1 + 0.5
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    before = network(real).mean().item()
    for _ in range(20):
        optimizer.zero_grad()
        network(real).mean().backward()
        optimizer.step()
    assert network(real).mean() < before / 4
    assert network(-real).mean() > 4 * network(real).mean()


def test_the_full_width_of_an_autoencoder() -> None:
    convs = [16 * 3 * 64, 16 * 64 * 128, 16 * 128 * 256, 9 * 256 * 128, 9 * 128 * 64, 9 * 64 * 3]
    others = 64 + 3 + 2 * (128 + 256 + 128 + 64)  # biases, batch norms
    assert parameters(AutoencoderDiscriminator(conditional=False)) == sum(convs) + others


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (UNet(32, width=4), 1),
        (ColorfulNet(2, width=4), 1),
        (ResNetGenerator(width=4, blocks=1), 3),
        (AutoencoderDiscriminator(conditional=False, width=4), 3),
    ],
)
def test_bfloat16_autocast_leaves_outputs_in_float32(network: nn.Module, channels: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images(2, channels, 32, 32)).dtype == torch.float32
