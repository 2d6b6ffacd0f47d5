"""examples/shared/metrics.py, on images whose scores are known."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor, nn

from histloss.color import lab_to_rgb, rgb_to_lab
from shared import metrics
from shared.lab import lightness
from shared.metrics import (
    auc,
    classify,
    colorfulness,
    imagenet,
    load_classifier,
    random_chroma,
    top1,
)

SIZE = 16


def noise(count: int = 4) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE) * 2 - 1


def photos() -> Tensor:
    """Five photos that come with scikit-image."""
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
    images = [Image.open(str(files("skimage.data") / name)).resize((SIZE, SIZE)) for name in names]
    return torch.from_numpy(np.stack(images)).movedim(-1, 1) / 127.5 - 1


def lab_of_skimage(images: Tensor) -> np.ndarray:
    return rgb2lab((images.double().movedim(1, -1).numpy() + 1) / 2)


def painted(ab: Tensor) -> Tensor:
    """A mid grey with these a and b, (N, 2, H, W) in units of 1."""
    return lab_to_rgb(torch.cat([torch.zeros_like(ab[:, :1]), ab / 110], dim=1))


def flat(a: float, b: float) -> Tensor:
    return painted(torch.tensor([a, b]).reshape(1, 2, 1, 1).expand(1, 2, SIZE, SIZE))


def area(errors: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The definition: the curve at every threshold, and its trapezia."""
    curve = [np.average(errors <= t, weights=weights) for t in range(151)]
    return (sum(curve) - (curve[0] + curve[-1]) / 2) / 150


def test_auc_of_the_real_colors_is_1() -> None:
    images = torch.cat([noise(), photos()])
    assert auc(images, images).eq(1).all()


def test_auc_of_the_grey_baseline_is_that_of_the_chroma() -> None:
    images = torch.cat([noise(), photos()])
    chroma = np.hypot(*np.moveaxis(lab_of_skimage(images)[..., 1:], -1, 0))
    expected = [area(errors) for errors in chroma]
    np.testing.assert_allclose(auc(lightness(images), images), expected, atol=1e-4)
    assert max(expected) - min(expected) > 0.1


def test_auc_of_random_colors_is_that_of_their_distances() -> None:
    output, images = noise(5), photos()
    errors = np.linalg.norm(lab_of_skimage(output)[..., 1:] - lab_of_skimage(images)[..., 1:], axis=-1)
    expected = [area(image) for image in errors]
    np.testing.assert_allclose(auc(output, images), expected, atol=1e-4)


@pytest.mark.parametrize("error", [0, 0.4, 1, 7.5, 10, 41.2])
def test_auc_of_a_constant_error(error: float) -> None:
    """A step of the curve, up to which the trapezia reach by half a threshold."""
    first = np.ceil(error)
    expected = (150 - first + 0.5) / 150 if error else 1
    scores = auc(flat(10 + 0.6 * error, 5 + 0.8 * error), flat(10, 5))
    torch.testing.assert_close(scores, torch.tensor([expected], dtype=torch.float64))


def test_errors_beyond_the_last_threshold_count_as_nothing() -> None:
    """Saturated green and blue are farther apart than 150 in sRGB."""
    green, blue = (torch.tensor(rgb).reshape(1, 3, 1, 1).float() for rgb in ([-1, 1, -1], [-1, -1, 1]))
    assert auc(green, blue).item() == 0


def test_auc_does_not_see_lightness() -> None:
    ab = torch.rand(3, 2, SIZE, SIZE) * 20 - 10
    dark = lab_to_rgb(torch.cat([torch.full_like(ab[:, :1], -0.3), ab / 110], dim=1))
    assert auc(dark, painted(ab)).eq(1).all()


def test_a_weighted_auc_is_that_of_the_weighted_curve() -> None:
    output, images, weights = noise(5), photos(), torch.rand(5, 1, SIZE, SIZE)
    errors = np.linalg.norm(lab_of_skimage(output)[..., 1:] - lab_of_skimage(images)[..., 1:], axis=-1)
    expected = [area(image, weight[0].numpy()) for image, weight in zip(errors, weights, strict=True)]
    scores = auc(output, images, weights)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert (scores - auc(output, images)).abs().min() > 1e-4
    torch.testing.assert_close(auc(output, images, 8 * weights), scores)
    torch.testing.assert_close(auc(output, images, torch.ones_like(weights)), auc(output, images))


def test_weights_of_rare_colors_count_them_as_often_as_common_ones() -> None:
    """A quarter of the pixels is red and painted grey, the rest is right."""
    ab = torch.zeros(1, 2, SIZE, SIZE)
    ab[:, 0, : SIZE // 4] = 40.5
    real = painted(ab)

    rarity = torch.where(ab[:, :1] > 0, 4.0, 4 / 3)
    red = (150 - 41 + 0.5) / 150
    output = lightness(real)
    torch.testing.assert_close(auc(output, real), torch.tensor([0.75 + red / 4], dtype=torch.float64))
    torch.testing.assert_close(
        auc(output, real, rarity), torch.tensor([(1 + red) / 2], dtype=torch.float64), atol=1e-7, rtol=0
    )


def test_scores_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    output, images, weights = noise(5), photos(), torch.rand(5, 1, SIZE, SIZE)

    def scores() -> list[Tensor]:
        first = nn.Linear(SIZE * SIZE * 3, 7)
        first.load_state_dict(state)
        return [
            auc(output, images),
            auc(output, images, weights),
            colorfulness(images),
            classify(lambda x: first(x.flatten(1)), images, lambda x: x),
        ]

    state = nn.Linear(SIZE * SIZE * 3, 7).state_dict()
    whole = scores()
    monkeypatch.setattr(metrics, "CHUNK", 2)
    for expected, found in zip(whole, scores(), strict=True):
        assert found.shape == (5,)
        torch.testing.assert_close(found, expected)


def test_plain_auc_has_the_same_bits_for_any_number_of_threads(restore_threads: None) -> None:
    output, images = noise(5).repeat(1, 1, 8, 8), photos().repeat(1, 1, 8, 8)
    scores = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        scores.append(auc(output, images))
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["output", "real"])
def test_images_that_are_not_finite_are_refused(bad: float, which: str) -> None:
    images = {"output": noise(), "real": noise()}
    images[which][1, 2, 3, 4] = bad
    with pytest.raises(ValueError, match=f"{which} must be finite"):
        auc(**images)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"output must have shape \(N, 3, H, W\)"):
        auc(noise()[:, :1], noise())
    with pytest.raises(ValueError, match="output must have the shape of real"):
        auc(noise(2), noise(3))
    with pytest.raises(ValueError, match=r"images must have shape .* got \(0, 3, 16, 16\)"):
        colorfulness(noise(0))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_other_weights_are_refused(bad: float) -> None:
    images, weights = noise(2), torch.ones(2, 1, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"weights must have shape \(2, 1, 16, 16\), got \(2, 16, 16\)"):
        auc(images, images, weights[:, 0])
    with pytest.raises(ValueError, match=r"weights must have shape .* got \(2, 2, 16, 16\)"):
        auc(images, images, weights.expand(-1, 2, -1, -1))
    nothing = weights.clone()
    nothing[1] = 0
    weights[0, 0, 2, 3] = bad
    for of in (weights, nothing):
        with pytest.raises(ValueError, match="weights must be finite and not negative"):
            auc(images, images, of)


def test_greys_have_no_color() -> None:
    greys = noise()[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(colorfulness(greys), torch.zeros(4, dtype=torch.float64))


def test_colorfulness_of_two_pixels() -> None:
    """Red 255, 0, 0 and blue 0, 0, 255: rg is 255 and 0, yb 127.5 and -255."""
    image = torch.tensor([[1.0, -1], [-1, -1], [-1, 1]]).reshape(1, 3, 1, 2)
    expected = np.hypot(127.5, 191.25) + 0.3 * np.hypot(127.5, -63.75)
    torch.testing.assert_close(colorfulness(image).item(), expected)


def test_colorfulness_of_one_color_is_that_of_the_means() -> None:
    yellow = torch.tensor([1.0, 1, -1]).reshape(1, 3, 1, 1).expand(1, 3, 5, 7)
    torch.testing.assert_close(colorfulness(yellow).item(), 0.3 * 255)


def test_colorfulness_is_of_each_image() -> None:
    images = photos()
    scores = colorfulness(images)
    for image, score in zip(images, scores, strict=True):
        red, green, blue = (image.double().numpy() + 1) * 127.5
        rg, yb = red - green, (red + green) / 2 - blue
        expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
        assert score.item() == pytest.approx(expected)
    assert (colorfulness(lightness(images)) < 0.1).all()


def test_greys_keep_lightness_alone() -> None:
    images = torch.cat([noise(), photos()])
    greys = lightness(images)
    assert greys.abs().max() <= 1
    torch.testing.assert_close(greys, greys[:, :1].expand_as(greys), atol=1e-5, rtol=0)
    torch.testing.assert_close(rgb_to_lab(greys)[:, 0], rgb_to_lab(images)[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_random_chroma_has_the_colors_of_another_image(count: int) -> None:
    ab = torch.rand(count, 2, SIZE, SIZE) * 30 - 15  # all in gamut
    light = torch.rand(count, 1, SIZE, SIZE) * 0.4
    images = lab_to_rgb(torch.cat([light, ab / 110], dim=1))
    partners = set()
    for seed in range(80):
        lab = rgb_to_lab(random_chroma(images, seed=seed))
        torch.testing.assert_close(lab[:, :1], light, atol=1e-5, rtol=0)
        distances = (110 * lab[:, None, 1:] - ab).abs().amax((2, 3, 4))
        assert distances.amin(1).max() < 1e-3
        others = distances.argmin(1)
        assert (others != torch.arange(count)).all(), "its own colours"
        partners |= {*enumerate(others.tolist())}
    assert len(partners) == count * (count - 1), "some colours are never drawn"


def test_random_chromas_of_a_seed_are_the_same() -> None:
    images = noise(8)
    first = random_chroma(images)
    torch.rand(3)
    assert torch.equal(random_chroma(images), first)
    assert not torch.equal(random_chroma(images, seed=1), first)
    assert first.abs().max() <= 1
    with pytest.raises(ValueError, match="images must be at least 2"):
        random_chroma(images[:1])


class Brightest(nn.Module):
    """Logits of the three channels: which of them is the brightest."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def primaries() -> Tensor:
    return torch.eye(3).reshape(3, 3, 1, 1).expand(3, 3, SIZE, SIZE)


def test_top1_is_of_each_image() -> None:
    labels = torch.tensor([0, 1, 0])
    for preprocess in (imagenet, lambda images: images):
        right = top1(Brightest(), primaries(), labels, preprocess)
        assert right.tolist() == [1, 1, 0]
        assert classify(Brightest(), primaries(), preprocess).tolist() == [0, 1, 2]


def test_labels_that_no_class_has_are_refused() -> None:
    for labels, message in (
        (torch.tensor([0, 1, 3]), "labels must be from 0 to 2, got 0 to 3"),
        (torch.tensor([0, -1, 1]), "labels must be from 0 to 2, got -1 to 1"),
        (torch.tensor([0, 1]), "labels must be int64, one for each of 3 images"),
        (torch.tensor([0.0, 1, 2]), "got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            top1(Brightest(), primaries(), labels)
    with pytest.raises(ValueError, match="must give logits"):
        classify(lambda images: images, primaries())


def test_imagenets_preprocessing() -> None:
    """The centre, at 224 of 256 pixels of the shorter side, with the statistics of ImageNet."""
    image = torch.full((1, 3, 512, 768), -1.0)
    image[..., 32:480, 160:608] = 1
    seen = imagenet(image)
    assert seen.shape == (1, 3, 224, 224)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0, :, 112, 112], (1 - mean) / std)
    torch.testing.assert_close(seen[0, :, 2:-2, 2:-2].amin((1, 2)), (1 - mean) / std)
    image[..., 32, :] = -1  # the edge is where it should be
    assert (imagenet(image)[0, 0, 0] < (1 - mean[0]) / std[0] - 0.5).all()


def test_classifiers_are_loaded_from_either_kind_of_file(tmp_path: Path) -> None:
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5), nn.Dropout())
    torch.jit.script(classifier).save(tmp_path / "scripted.pt")  # in training mode
    inputs, shapes = (torch.rand(2, 3, 224, 224),), ({0: torch.export.Dim("batch")},)
    torch.export.save(
        torch.export.export(classifier.eval(), inputs, dynamic_shapes=shapes), tmp_path / "exported.pt2"
    )
    images = imagenet(noise())
    for name in ("scripted.pt", "exported.pt2"):
        torch.testing.assert_close(load_classifier(tmp_path / name)(images), classifier(images))


def test_files_that_are_no_classifiers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a file or 'vgg16', got '.*none\.pt'"):
        load_classifier(tmp_path / "none.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt' is not TorchScript"):
        load_classifier(tmp_path / "weights.pt")
    (tmp_path / "text.pt2").write_text("no program")
    with pytest.raises(ValueError, match=r"text\.pt2' is not an exported program"):
        load_classifier(tmp_path / "text.pt2")


def test_vgg16_needs_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ValueError, match="'vgg16' needs torchvision"):
        load_classifier("vgg16")


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A torchvision whose VGG-16 is small, and where torch.hub would have put its weights."""
    models = ModuleType("torchvision.models")
    models.vgg16 = lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5), nn.Dropout())
    models.VGG16_Weights = SimpleNamespace(
        IMAGENET1K_V1=SimpleNamespace(url="https://host.test/models/vgg16-3979.pth")
    )
    package = ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints" / "vgg16-3979.pth"


def test_vgg16_without_its_weights_says_where_they_belong(torchvision: Path) -> None:
    with pytest.raises(
        ValueError, match=r"needs the file '.*vgg16-3979\.pth', which is https://host\.test/"
    ) as error:
        load_classifier("vgg16")
    assert str(torchvision) in str(error.value)


def test_vgg16_has_the_weights_on_disk(torchvision: Path) -> None:
    trained = sys.modules["torchvision.models"].vgg16().eval()
    torchvision.parent.mkdir()
    torch.save(trained.state_dict(), torchvision)
    state = torch.get_rng_state()
    classifier = load_classifier("vgg16")
    assert torch.equal(torch.get_rng_state(), state)
    images = noise()
    assert torch.equal(classifier(images), trained(images)), "with dropout, or other weights"
