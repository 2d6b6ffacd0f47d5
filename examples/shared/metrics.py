"""How well colours are painted: a score for each image, and the baselines to read it against.

Images are RGB in [-1, 1], (N, 3, H, W), and scores (N,), float64, on the CPU. Mutual information with the
source and EMD are in evaluation.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from histloss.color import AB_UNIT
from shared.data import centre
from shared.evaluation import CHUNK
from shared.lab import join_lab, split_lab
from shared.networks import resize

LARGEST = 150  # error on the curve of auc
ROUNDING = 1e-3  # of a and b in float32, at most: greys do not differ
VGG16 = "vgg16"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Map = Callable[[Tensor], Tensor]


@torch.no_grad()
def auc(output: Tensor, real: Tensor, weights: Tensor | None = None) -> Tensor:
    """Area under the curve of colour errors (Zhang 2016, Sec. 3.1): 1 for the real colours, 0 at worst.

    The curve is the share of pixels whose error, the Euclidean distance in the ab plane of Lab, is at most
    t = 0, 1, ..., 150; the area is that of trapezia, divided by 150. So a pixel with an error between k - 1
    and k, k included, scores (150.5 - k) / 150, one without any 1, and one beyond 150 nothing.

    Args:
        output, real: the images.
        weights: of the pixels in their image's mean, (N, 1, H, W), not negative.

    Raises:
        ValueError: images or weights are not as described, or those of an image are all 0.
    """
    _check_images(output, "output")
    _check_images(real, "real")
    if output.shape != real.shape:
        raise ValueError(
            f"output must have the shape of real, {tuple(real.shape)}, got {tuple(output.shape)}"
        )
    if weights is None:
        weights = real.new_ones((len(real), 1, *real.shape[2:]))
    _check_weights(weights, real)
    chunks = zip(output.split(CHUNK), real.split(CHUNK), weights.split(CHUNK), strict=True)
    return torch.cat([_auc(*chunk) for chunk in chunks]).cpu()


def _auc(output: Tensor, real: Tensor, weights: Tensor) -> Tensor:
    painted, ab = (split_lab(images)[1] for images in (output, real))
    error = AB_UNIT * torch.linalg.vector_norm(painted - ab, dim=1, keepdim=True)
    scores = (2 * LARGEST + 1 - 2 * (error - ROUNDING).ceil()).clamp(0, 2 * LARGEST).double()
    weights = weights.to(scores)  # whole numbers times ones: such sums are exact
    return (weights * scores).sum((1, 2, 3)) / (2 * LARGEST * weights.sum((1, 2, 3)))


@torch.no_grad()
def colorfulness(images: Tensor) -> Tensor:
    """The colourfulness M of Hasler and Süsstrunk (2003): 0 of greys, 109 of the extremely colourful.

    With R, G, B from 0 to 255, rg = R - G and yb = (R + G) / 2 - B, it is the length of their standard
    deviations plus 0.3 times the length of their means.
    """
    _check_images(images)
    return torch.cat([_colorfulness(chunk) for chunk in images.split(CHUNK)]).cpu()


def _colorfulness(images: Tensor) -> Tensor:
    red, green, blue = ((images.double() + 1) * 127.5).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue])
    deviation = opponents.std(2, correction=0).square().sum(0).sqrt()
    return deviation + 0.3 * opponents.mean(2).square().sum(0).sqrt()


def imagenet(images: Tensor) -> Tensor:
    """What networks trained on ImageNet take: the shorter side at 256, its centre of 224, normalised."""
    centres = resize(centre(images), (256, 256))[..., 16:240, 16:240]
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((centres + 1) / 2 - mean) / std


def classify(classifier: Map, images: Tensor, preprocess: Map = imagenet) -> Tensor:
    """The class of each image, (N,): labels for `top1`, of the real images, where there are no others."""
    return _logits(classifier, images, preprocess).argmax(1)


def top1(classifier: Map, images: Tensor, labels: Tensor, preprocess: Map = imagenet) -> Tensor:
    """1 where the classifier's first answer is the label and 0 elsewhere: their mean is the accuracy.

    Args:
        classifier: logits (n, classes) of what preprocess gives; in eval mode, if it is a module.
        images: the images.
        labels: classes, (N,), int64.
        preprocess: images as the classifier takes them.

    Raises:
        ValueError: images, labels or logits are not as described.
    """
    logits = _logits(classifier, images, preprocess)
    classes = logits.shape[1]
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64, one for each of {len(images)} images, "
            f"got {labels.dtype}, shape {tuple(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, got {labels.min().item()} to {labels.max().item()}"
        )
    return (logits.argmax(1) == labels.cpu()).double()


@torch.no_grad()
def _logits(classifier: Map, images: Tensor, preprocess: Map) -> Tensor:
    _check_images(images)
    logits = torch.cat([classifier(preprocess(chunk)) for chunk in images.split(CHUNK)]).cpu()
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(
            f"a classifier must give logits (N, classes), got {tuple(logits.shape)} for {len(images)} images"
        )
    return logits


def load_classifier(name: str | Path) -> nn.Module:
    """A classifier from a file, on the CPU. Load only files that you trust: they hold programs.

    Args:
        name: a file of torch.export with the suffix .pt2, another file of TorchScript, or "vgg16":
            torchvision's, whose weights torch.hub has downloaded before. Here nothing is.

    Raises:
        ValueError: what is missing, or cannot be read.
    """
    if str(name) == VGG16:
        return _vgg16()
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"a classifier must be a file or {VGG16!r}, got {str(path)!r}")
    exported = path.suffix == ".pt2"
    try:
        return torch.export.load(path).module() if exported else torch.jit.load(path, "cpu").eval()
    except Exception as error:  # a file of another kind raises almost anything
        kind = "an exported program" if exported else "TorchScript, nor does it end in .pt2"
        raise ValueError(f"{str(path)!r} is not {kind}: {error}") from error


def _vgg16() -> nn.Module:
    try:
        from torchvision.models import VGG16_Weights, vgg16
    except (ImportError, RuntimeError) as error:  # the latter from one that was built for another torch
        raise ValueError(
            f"the classifier {VGG16!r} needs torchvision, built for torch {torch.__version__}: {error}"
        ) from error
    url = VGG16_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not path.is_file():
        raise ValueError(f"the classifier {VGG16!r} needs the file {str(path)!r}, which is {url}")
    with torch.device("meta"):  # no random weights, whose making would take seconds
        network = vgg16()
    network.load_state_dict(torch.load(path, "cpu", weights_only=True), assign=True)
    return network.eval()


def random_chroma(images: Tensor, *, seed: int = 0) -> Tensor:
    """Each image with the a and b of another one, drawn at random. What RGB has not, is clamped to it."""
    _check_images(images)
    count = len(images)
    if count < 2:
        raise ValueError(f"images must be at least 2, to take colours from each other, got {count}")
    steps = torch.randint(1, count, (count,), generator=torch.Generator().manual_seed(seed))
    others = (torch.arange(count) + steps) % count
    lightness, ab = split_lab(images)
    return join_lab(lightness, ab[others.to(ab.device)])


def _check_images(images: Tensor, name: str = "images") -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"{name} must have shape (N, 3, H, W) and pixels, got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinite pixels")


def _check_weights(weights: Tensor, images: Tensor) -> None:
    shape = (len(images), 1, *images.shape[2:])
    if weights.shape != shape:
        raise ValueError(f"weights must have shape {shape}, got {tuple(weights.shape)}")
    if not (weights.isfinite() & (weights >= 0)).all() or (weights.amax((1, 2, 3)) == 0).any():
        raise ValueError("weights must be finite and not negative, and some of each image above 0")
