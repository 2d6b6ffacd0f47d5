"""Pairs of images to train on: from a folder, or from photos that come with scikit-image.

What a folder may hold, told by the folders in it:

- train and val: aligned pairs, A and B side by side in a file, as pix2pix publishes edges2shoes and
  edges2handbags (A, the left half, is the edges, B the photo). For edges2photo alone.
- trainA, trainB, testA, testB: two sets of photos, as CycleGAN publishes summer2winter_yosemite.
  color_transfer and unpaired_colorization give photos of A the colours of photos of B; the other kinds take A
  and B together.
- images, at any depth: photos, such as the Oxford 102 flowers. 10 % are held out, the same of the same files.

In color_transfer the source is a photo and the reference another one of the same split; in
unpaired_colorization the source is the lightness of one. In the other kinds it is computed from the
reference: its luma in colorization, its lightness in colorization_lab, its edges in edges2photo.

A file that cannot be used is replaced by the next one, with a warning that names it: a broken one, a pair of
odd width and, where colours are to be learned from greys, a grey photo. Elsewhere grey is a colour like any
other. When no file can be used, that is an error.

Jitter is the official code's, a square of 256/286 of the image and a mirror, both at random. The square is
cut first and then resized, once and antialiased; the official code takes the nearest pixel. A photo of
another shape is not squashed: the square is a part of its shorter side. Held-out images are
cut at the centre.
"""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from skimage.feature import canny
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from histloss.color import rgb_to_yuv
from shared.lab import lightness

Name = TypeVar("Name")

Kind = Literal["color_transfer", "colorization", "edges2photo", "colorization_lab", "unpaired_colorization"]
UNPAIRED = ("color_transfer", "unpaired_colorization")  # the source and the reference are of two photos
Split = Literal["train", "val"]
Direction = Literal["AtoB", "BtoA"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
ALIGNED, SETS = ("train", "val"), ("trainA", "trainB", "testA", "testB")
LAYOUTS = "train and val, of aligned pairs; trainA, trainB, testA and testB; or images"
JITTER = (256 / 286, 256 / 286)

SHIPPED = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
TRAIN_PART = 0.55  # of a shipped photo, its left; the rest is held out
TRAIN_CROPS, VAL_CROPS = 100, 6  # of each shipped photo in an epoch, and held out
TRAIN_SIDES, VAL_SIDES = (0.5, 1.0), (0.8, 1.0)  # of the crops, as parts of the shorter side


class Pair(NamedTuple):
    """RGB in [-1, 1], (3, size, size) each, or (B, 3, size, size) in a batch."""

    source: Tensor
    reference: Tensor


class Draw(NamedTuple):
    """Which sample, and the seed of its jitter and of its partner. Held-out samples ignore the seed."""

    index: int
    seed: int


def read_image(path: Path) -> Tensor:
    """An image as RGB in [-1, 1], shape (3, H, W): upright, grey as RGB, transparency over white."""
    name = str(path)
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
    except Exception as error:  # a broken file raises almost anything
        raise ValueError(f"cannot read {name!r} as a photo: {error}") from error
    if image.mode == "F" or (image.mode == "I" and image.getextrema()[1] > 65535):
        raise ValueError(f"{name!r} has 32-bit pixels: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to 8 bits
        grey = np.asarray(image).astype(np.float32) / 65535
        values = np.stack([grey, grey, grey], axis=-1)
    else:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        values = np.asarray(image.convert("RGB")).astype(np.float32)
        values /= 255  # in place, as below: fresh memory for large photos takes longer than decoding them
    return torch.from_numpy(values).movedim(-1, 0).mul_(2).sub_(1)


def to_bytes(images: Tensor) -> np.ndarray:
    """RGB in [-1, 1], shape (..., 3, H, W), as uint8, shape (..., H, W, 3)."""
    return ((images.detach().float().clamp(-1, 1).movedim(-3, -1) + 1) * 127.5).round().byte().cpu().numpy()


def read_colors(path: Path) -> Tensor:
    """A photo that is not grey, (3, H, W)."""
    photo = read_image(path)
    if (photo.amax(0) - photo.amin(0)).max() < 4 / 127.5:  # what JPEG adds to a grey
        raise ValueError(f"{str(path)!r} is grey: it has no colours to learn")
    return photo


def read_pair(path: Path) -> Tensor:
    """The left and the right half of an image, (2, 3, H, W / 2)."""
    both = read_image(path)
    if both.shape[2] % 2:
        raise ValueError(
            f"{str(path)!r} is {both.shape[2]} pixels wide: two images side by side have even width"
        )
    return torch.stack(both.chunk(2, dim=2))


class Images:
    """Files read when asked for. For one that cannot be used comes the next one that can, with a warning."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Tensor] = read_image) -> None:
        self.paths = paths
        self.read = read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        for step in range(len(self)):
            try:
                return self.read(self.paths[(index + step) % len(self)])
            except ValueError as error:
                reason = error
                warnings.warn(f"skipped: {error}", stacklevel=2)
        raise ValueError(f"none of {len(self)} files can be used, the last: {reason}")


@dataclass(frozen=True)
class Cut:
    """How a square of size x size pixels comes out of an image.

    With ``scales``, at random: the least and the largest side of the square, as parts of the image's shorter
    side. Without, always the same, at the centre.
    """

    size: int
    scales: tuple[float, float] | None = None

    def random(self, draw: Draw) -> Random:
        return Random(draw.index if self.scales is None else draw.seed)

    def __call__(self, images: Tensor, random: Random) -> Tensor:
        """The same square of all images, (..., 3, H, W) to (..., 3, size, size)."""
        if self.scales is None:
            return resize(centre(images), self.size)
        return jitter(images, self.size, self.scales, random)


@dataclass(eq=False)
class Samples(Dataset[Pair]):
    """One sample or more from each image."""

    images: Images | list[Tensor]
    cut: Cut

    def __len__(self) -> int:
        return len(self.images)


@dataclass(eq=False)
class PhotoPairs(Samples):
    """A photo, or what is computed from it, and another photo to take the colours from.

    Indices that are equal modulo ``photos`` are the same photo; None: images and references share none.
    """

    references: Images | list[Tensor]
    photos: int | None
    source_of: Callable[[Tensor], Tensor]

    def __getitem__(self, draw: Draw) -> Pair:
        random = self.cut.random(draw)
        partner = random.randrange(len(self.references))
        while self.photos is not None and partner % self.photos == draw.index % self.photos:
            partner = random.randrange(len(self.references))
        source, reference = self.images[draw.index], self.references[partner]
        return Pair(self.source_of(self.cut(source, random)), self.cut(reference, random))


@dataclass(eq=False)
class PhotosAlone(Samples):
    """A photo as the reference, and the source computed from it."""

    source_of: Callable[[Tensor], Tensor]

    def __getitem__(self, draw: Draw) -> Pair:
        reference = self.cut(self.images[draw.index], self.cut.random(draw))
        return Pair(self.source_of(reference), reference)


@dataclass(eq=False)
class AlignedPairs(Samples):
    """A and B, (2, 3, H, W), cut alike. AtoB: A is the source, B the reference."""

    direction: Direction

    def __getitem__(self, draw: Draw) -> Pair:
        a, b = self.cut(self.images[draw.index], self.cut.random(draw))
        return Pair(a, b) if self.direction == "AtoB" else Pair(b, a)


def centre(images: Tensor) -> Tensor:
    """The largest square at the centre."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def jitter(images: Tensor, size: int, scales: tuple[float, float], random: Random) -> Tensor:
    """A square at random, mirrored or not, the same in all images; its side is a part of the shorter side."""
    height, width = images.shape[-2:]
    side = max(1, round(min(height, width) * random.uniform(*scales)))
    top, left = random.randint(0, height - side), random.randint(0, width - side)
    square = images[..., top : top + side, left : left + side]
    return resize(square.flip(-1) if random.random() < 0.5 else square, size)


def resize(images: Tensor, size: int) -> Tensor:
    """(..., 3, H, W) to (..., 3, size, size), antialiased."""
    batch = images.reshape(-1, *images.shape[-3:])
    resized = F.interpolate(batch, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    return resized.reshape(*images.shape[:-2], size, size)


def grey(photo: Tensor) -> Tensor:
    """The luma of a photo, (3, H, W) or (B, 3, H, W), in three equal channels."""
    batch = photo if photo.ndim == 4 else photo[None]
    return rgb_to_yuv(batch)[:, :1].expand_as(batch).reshape(photo.shape)


def edges(photo: Tensor) -> Tensor:
    """Canny's edges of a photo, (3, size, size): black lines, one pixel wide, on white."""
    sigma = math.sqrt(photo.shape[-1]) / 8  # 1 at 64 pixels, 2 at 256
    lines = canny((grey(photo)[0].numpy() + 1) / 2, sigma=sigma)
    return 1 - 2 * torch.from_numpy(lines).float().repeat(3, 1, 1)


def whole(photo: Tensor) -> Tensor:
    """The photo itself."""
    return photo


SOURCES: dict[Kind, Callable[[Tensor], Tensor]] = {  # what is to be painted, of a photo
    "color_transfer": whole,
    "colorization": grey,
    "colorization_lab": lightness,
    "edges2photo": edges,
    "unpaired_colorization": lightness,
}


@cache
def shipped_photo(name: str) -> Tensor:
    with as_file(files("skimage.data") / name) as path:
        return read_image(path)


def shipped_photos(split: Split) -> list[Tensor]:
    """The left part of each photo that comes with scikit-image, for training, or the rest."""
    photos = [shipped_photo(name) for name in SHIPPED]
    parts = [photo.tensor_split([round(TRAIN_PART * photo.shape[2])], dim=2) for photo in photos]
    return [left if split == "train" else right for left, right in parts]


def shipped_squares(size: int) -> list[Tensor]:
    """Held-out crops, always the same, (3, size, size) each."""
    random = Random(0)
    return [jitter(photo, size, VAL_SIDES, random) for photo in shipped_photos("val") * VAL_CROPS]


def find_images(folder: Path) -> list[Path]:
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise ValueError(f"folder {str(folder)!r} holds no image ({', '.join(SUFFIXES)})")
    return paths


def hold_out(names: Sequence[Name]) -> tuple[list[Name], list[Name]]:
    """Train, val: a tenth of the names, but at least two, is held out, the same for the same names."""
    shuffled = Random(1).sample(names, len(names))
    count = min(round(0.9 * len(names)), len(names) - 2)
    return shuffled[:count], shuffled[count:]


def layout_of(folder: Path) -> tuple[str, ...]:
    """ALIGNED, SETS, or () for a folder of images."""
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder")
    for names in (ALIGNED, SETS):
        missing = [name for name in names if not (folder / name).is_dir()]
        if not missing:
            return names
        if len(missing) < len(names):
            found = [name for name in names if name not in missing]
            raise ValueError(
                f"folder {str(folder)!r} holds {', '.join(found)} and lacks {', '.join(missing)}: "
                f"it may hold {LAYOUTS}"
            )
    return ()


def open_dataset(
    kind: Kind, folder: Path | None, *, split: Split, size: int, direction: Direction = "AtoB"
) -> Samples:
    """The samples of a split, of size x size pixels: jittered in train, always the same in val.

    Args:
        folder: what it may hold, the module says. None: crops of the photos that come with scikit-image.
        direction: which of A and B is the source, in aligned pairs and in the unpaired kinds of two sets.

    Raises:
        ValueError: the folder is missing or empty, or does not fit the kind.
    """
    given = {"kind": (kind, Kind), "split": (split, Split), "direction": (direction, Direction)}
    for name, (value, allowed) in given.items():
        if value not in get_args(allowed):
            raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")
    layout = () if folder is None else layout_of(folder)
    if direction == "BtoA" and layout != ALIGNED and (layout != SETS or kind not in UNPAIRED):
        raise ValueError(
            f"direction 'BtoA' is for aligned pairs, and for {' and '.join(UNPAIRED)} of two sets"
        )

    if folder is None:
        if split == "val":
            return from_photos(kind, shipped_squares(size), Cut(size), len(SHIPPED))
        images = shipped_photos("train") * TRAIN_CROPS
        return from_photos(kind, images, Cut(size, TRAIN_SIDES), len(SHIPPED))

    cut = Cut(size, JITTER if split == "train" else None)
    if layout == ALIGNED:
        if kind != "edges2photo":
            raise ValueError(
                f"folder {str(folder)!r} holds train and val, which are aligned pairs, for edges2photo: "
                f"{kind} takes trainA, trainB, testA and testB, or a folder of images"
            )
        return AlignedPairs(Images(find_images(folder / split), read_pair), cut, direction)

    if layout == SETS:
        part = "train" if split == "train" else "test"
        a, b = find_images(folder / f"{part}A"), find_images(folder / f"{part}B")
        if kind in UNPAIRED:
            sources, references = (a, b) if direction == "AtoB" else (b, a)
            return PhotoPairs(Images(sources), cut, Images(references, reader(kind)), None, SOURCES[kind])
        paths = a + b
    else:
        paths = find_images(folder)
        if len(paths) < 4:
            raise ValueError(f"folder {str(folder)!r} holds {len(paths)} images: at least 4 are needed")
        train, val = hold_out(paths)
        paths = train if split == "train" else val
    return from_photos(kind, Images(paths, reader(kind)), cut, len(paths))


def from_photos(kind: Kind, images: Images | list[Tensor], cut: Cut, photos: int) -> Samples:
    """Samples of one set of photos. Indices that are equal modulo ``photos`` are the same photo."""
    if kind in UNPAIRED:
        return PhotoPairs(images, cut, images, photos, SOURCES[kind])
    return PhotosAlone(images, cut, SOURCES[kind])


def reader(kind: Kind) -> Callable[[Path], Tensor]:
    """How photos are read whose colours are to be learned."""
    return read_colors if SOURCES[kind] in (grey, lightness) else read_image


class Draws(Sampler[Draw]):
    """Samples number start to stop of a training, counted over all processes: those that fall to this one.

    Every pass over a data set of ``length`` samples has an order of its own. What sample n is, depends on the
    seed and on n alone: not on the number of processes, nor on where the training was resumed.
    """

    def __init__(
        self, length: int, *, seed: int, start: int = 0, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        self.length = length
        self.seed = seed
        self.numbers = range(start + rank, stop, world)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Draw]:
        epoch, order = -1, []
        for n in self.numbers:
            if n // self.length != epoch:
                epoch = n // self.length
                generator = torch.Generator().manual_seed(mix(self.seed, 0, epoch))
                order = torch.randperm(self.length, generator=generator).tolist()
            yield Draw(order[n % self.length], mix(self.seed, 1, n))


def mix(*numbers: int) -> int:
    """One seed out of several numbers, of 63 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def loader(
    dataset: Samples, draws: Sampler[Draw], *, batch_size: int, workers: int, device: torch.device
) -> DataLoader[Pair]:
    """Batches of the draws in their order, the last one perhaps smaller, read by worker processes.

    Each worker computes with one thread. The batches are the same for any number of workers, and torch's
    global random state stays as it is.
    """
    return DataLoader(
        dataset,
        batch_size,
        sampler=draws,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
        worker_init_fn=ignore_interrupts,
    )


def ignore_interrupts(worker: int) -> None:
    """Signals reach the whole group of processes: workers read on until the training has come to its end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def first_pairs(dataset: Samples, count: int) -> Pair:
    """The first samples of a dataset, or all of a smaller one, (count, 3, size, size) each."""
    return default_collate([dataset[Draw(index, 0)] for index in range(min(count, len(dataset)))])
