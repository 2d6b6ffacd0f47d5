"""examples/shared/data.py: every layout on generated files, jitter, order, and the shipped photos."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from histloss.color import rgb_to_lab
from shared import data
from shared.data import Draw, Draws, first_pairs, open_dataset

CPU = torch.device("cpu")
SIZE = 32
RED, BLUE = (0.9, 0.4, 0.3), (0.3, 0.4, 0.9)


def photo(tint: tuple[float, ...], width: int = 48, height: int = 40) -> Image.Image:
    """A bright disc, left of the middle, on a gradient."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    light = 0.2 + 0.2 * x + 0.5 * ((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.05)
    return Image.fromarray((light[..., None] * tint * 255).astype(np.uint8))


def write(folder: Path, tints: list[tuple[float, ...]], suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for i, tint in enumerate(tints):
        photo(tint).save(folder / f"{i:02}.{suffix}")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty photos of different colours, JPEG and PNG, at two depths, beside files that are none."""
    tints = [(0.2 + 0.04 * i, 0.5, 1 - 0.04 * i) for i in range(20)]
    folder = tmp_path / "photos"
    write(folder, tints[:10], "JPG")
    write(folder / "more" / "still more", tints[10:])
    (folder / "labels.txt").write_text("flowers")
    (folder / "._00.jpg").write_text("what macOS leaves")
    return folder


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A is red, B is blue."""
    for name, tint in (("A", RED), ("B", BLUE)):
        write(tmp_path / "sets" / f"train{name}", [tint] * 3)
        write(tmp_path / "sets" / f"test{name}", [tint] * 2)
    return tmp_path / "sets"


@pytest.fixture
def aligned(tmp_path: Path) -> Path:
    """A is red; B the same photo with red and blue exchanged."""
    for part, count in (("train", 4), ("val", 2)):
        (tmp_path / "aligned" / part).mkdir(parents=True)
        for i in range(count):
            a = np.asarray(photo(RED))
            both = Image.fromarray(np.concatenate([a, a[..., ::-1]], axis=1))
            both.save(tmp_path / "aligned" / part / f"{i}.png")
    return tmp_path / "aligned"


def is_red(image: Tensor) -> bool:
    return bool((image[0] > image[2]).all())


def is_luma(source: Tensor, reference: Tensor) -> bool:
    luma = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * reference).sum(0)
    return torch.allclose(source, luma.expand(3, -1, -1), atol=1e-5)


def is_grey(image: Tensor) -> bool:
    return bool((image.amax(0) - image.amin(0)).max() < 1e-3)


def is_lightness(source: Tensor, reference: Tensor) -> bool:
    (light, *_), (wanted, *_) = rgb_to_lab(torch.stack([source, reference]))
    return is_grey(source) and torch.allclose(light, wanted, atol=1e-4)


def is_edges(source: Tensor) -> bool:
    """Black lines on white."""
    lines = (source == -1).float().mean()
    return bool(((source == 1) | (source == -1)).all()) and 0 < lines < 0.5


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("task", "layout"),
    [
        *(
            (task, layout)
            for task in ("color_transfer", "colorization", "colorization_lab", "unpaired_colorization")
            for layout in ("none", "photos", "sets")
        ),
        *(("edges2photo", layout) for layout in ("none", "photos", "sets", "aligned")),
    ],
)
def test_layouts(request: pytest.FixtureRequest, task: data.Kind, layout: str, split: data.Split) -> None:
    folder = None if layout == "none" else request.getfixturevalue(layout)
    dataset = open_dataset(task, folder, split=split, size=SIZE)
    train, val = {"none": (500, 30), "photos": (18, 2), "sets": (6, 4), "aligned": (4, 2)}[layout]
    if task in data.UNPAIRED and layout == "sets":
        train, val = 3, 2  # the sources are A alone
    assert len(dataset) == (train if split == "train" else val)

    pairs = [dataset[Draw(i, seed=i)] for i in range(min(len(dataset), 20))]
    for source, reference in pairs:
        for image in (source, reference):
            assert image.shape == (3, SIZE, SIZE)
            assert image.dtype == torch.float32
            assert -1 <= image.min() < image.max() <= 1
    if task == "colorization":
        assert all(is_luma(*pair) for pair in pairs)
    elif task == "colorization_lab":
        assert all(is_lightness(*pair) for pair in pairs)
    elif task == "unpaired_colorization":
        assert all(is_grey(source) and not is_grey(reference) for source, reference in pairs)
        assert not any(is_lightness(*pair) for pair in pairs)
    elif layout == "aligned":
        assert all(torch.equal(source, reference.flip(0)) for source, reference in pairs)
    elif task == "edges2photo":
        assert sum(is_edges(pair.source) for pair in pairs) >= 0.9 * len(pairs)  # a crop may be sky alone
    else:
        assert not any(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("task", ["colorization", "colorization_lab", "edges2photo"])
def test_sets_are_one_for_a_task_of_single_photos(sets: Path, task: data.Kind) -> None:
    dataset = open_dataset(task, sets, split="val", size=SIZE)
    assert [is_red(dataset[Draw(i, 0)].reference) for i in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(("task", "layout"), [("color_transfer", "sets"), ("edges2photo", "aligned")])
def test_direction(request: pytest.FixtureRequest, task: data.Kind, layout: str) -> None:
    folder = request.getfixturevalue(layout)
    for direction, source_is_red in (("AtoB", True), ("BtoA", False)):
        for split in ("train", "val"):
            dataset = open_dataset(task, folder, split=split, size=SIZE, direction=direction)
            for i in range(len(dataset)):
                source, reference = dataset[Draw(i, i)]
                assert is_red(source) is source_is_red
                assert is_red(reference) is not source_is_red


def test_hold_out() -> None:
    names = [f"image_{i:05}.jpg" for i in range(1, 8190)]
    train, val = data.hold_out(names)
    assert (len(train), len(val)) == (7370, 819)  # Oxford 102 flowers
    assert sorted(train + val) == names
    assert data.hold_out(names) == (train, val)
    assert train != names[:7370]
    assert [len(part) for part in data.hold_out(names[:10])] == [8, 2]


def test_splits_of_a_folder_are_disjoint(photos: Path) -> None:
    train, val = (open_dataset("edges2photo", photos, split=split, size=SIZE) for split in ("train", "val"))
    assert not set(train.images.paths) & set(val.images.paths)
    assert len({*train.images.paths, *val.images.paths}) == 20


@pytest.mark.parametrize("layout", ["none", "photos"])
@pytest.mark.parametrize("task", ["color_transfer", "colorization", "edges2photo"])
def test_draw_decides_in_training_and_index_alone_in_val(
    request: pytest.FixtureRequest, task: data.Kind, layout: str
) -> None:
    folder = None if layout == "none" else request.getfixturevalue(layout)
    train, val = (open_dataset(task, folder, split=split, size=SIZE) for split in ("train", "val"))
    for a, b in zip(train[Draw(1, 5)], train[Draw(1, 5)], strict=True):
        assert torch.equal(a, b)
    assert len({train[Draw(1, seed)].reference.sum().item() for seed in range(8)}) > 2
    for a, b in zip(val[Draw(1, 5)], val[Draw(1, 6)], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(val[Draw(0, 5)].reference, val[Draw(1, 5)].reference)


def test_jitter_cuts_the_official_square_and_mirrors_half_of_them() -> None:
    column = torch.linspace(-1, 1, 286).expand(1, 3, 286, -1)  # brightness tells where a pixel was
    firsts, mirrored = set(), 0
    for seed in range(200):
        cut = data.Cut(256, data.JITTER)
        row = cut(column, cut.random(Draw(0, seed)))[0, 0, 0]
        mirrored += bool(row[0] > row[-1])
        assert row.max() - row.min() == pytest.approx(2 * 255 / 285, abs=1e-5)
        firsts.add(round((row.min().item() + 1) * 285 / 2))
    assert firsts <= set(range(31))
    assert len(firsts) > 25
    assert 70 < mirrored < 130


@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_val_is_the_square_at_the_centre(shape: tuple[int, int]) -> None:
    image = torch.full((3, *shape), -1.0)
    height, width = shape
    image[:, (height - 64) // 2 :, (width - 64) // 2 :][:, :64, :64] = 1
    cut = data.Cut(SIZE)
    assert torch.equal(cut(image, cut.random(Draw(0, 0))), torch.ones(3, SIZE, SIZE))


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "small").mkdir(exist_ok=True)
        photo(RED, 5 + i, 1).save(tmp_path / "small" / f"{i}.png")
    for split in ("train", "val"):
        dataset = open_dataset("color_transfer", tmp_path / "small", split=split, size=SIZE)
        assert dataset[Draw(0, 0)].source.shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("size", [32, 64, 256])
def test_edges_are_lines_around_what_is_there(size: int) -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    radius = (x**2 + y**2).sqrt()
    lines = data.edges(torch.where(radius < 0.6, 0.5, -0.5).expand(3, -1, -1))
    assert is_edges(lines)
    near = (radius - 0.6).abs() < 4 / size
    assert (lines[:, ~near] == 1).all()
    assert (lines[0] == -1).sum() == pytest.approx(2 * np.pi * 0.3 * size, rel=0.25)  # thin, and all around


# The shipped photos.


def test_shipped_photos_hold_out_their_right() -> None:
    for name, left, right in zip(
        data.SHIPPED, data.shipped_photos("train"), data.shipped_photos("val"), strict=True
    ):
        whole = data.shipped_photo(name)
        assert torch.equal(torch.cat([left, right], dim=2), whole)
        assert 0.4 < right.shape[2] / whole.shape[2] < 0.5


@pytest.mark.parametrize("task", data.UNPAIRED)
def test_references_are_crops_of_another_shipped_photo(task: data.Kind) -> None:
    photos = len(data.SHIPPED)
    flat = [torch.full((3, 40, 40), i / 10) for i in range(photos)]
    for images, scales in ((flat * 20, data.TRAIN_SIDES), (flat * 6, None)):
        dataset = data.from_photos(task, images, data.Cut(SIZE, scales), photos)
        partners = set()
        for i in range(len(dataset)):
            source, reference = dataset[Draw(i, i)]
            assert source.mean() == pytest.approx(i % photos / 10, abs=1e-5)
            assert not torch.isclose(source.mean(), reference.mean(), atol=0.01)
            partners.add((i % photos, round(reference.mean().item() * 10)))
        assert len(partners) > 0.6 * photos * (photos - 1)


def test_first_pairs() -> None:
    dataset = open_dataset("colorization", None, split="val", size=SIZE)
    source, reference = first_pairs(dataset, 3)
    assert source.shape == reference.shape == (3, 3, SIZE, SIZE)
    assert torch.equal(reference[2], dataset[Draw(2, 0)].reference)
    assert len(first_pairs(dataset, 1000).source) == len(dataset)


# Order.


def test_every_pass_has_every_sample_once_in_another_order() -> None:
    draws = list(Draws(10, seed=0, stop=30))
    orders = [tuple(draw.index for draw in draws[i : i + 10]) for i in (0, 10, 20)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(orders)) == 3
    assert len({draw.seed for draw in draws}) == 30
    assert list(Draws(10, seed=0, stop=30)) == draws
    other = list(Draws(10, seed=1, stop=30))
    assert not {draw.seed for draw in draws} & {draw.seed for draw in other}
    assert [draw.index for draw in other] != [draw.index for draw in draws]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_draws_of_one(world: int) -> None:
    alone = list(Draws(7, seed=3, start=5, stop=29))
    ranks = [Draws(7, seed=3, start=5, stop=29, rank=rank, world=world) for rank in range(world)]
    assert [draw for together in zip(*ranks, strict=True) for draw in together] == alone
    assert [len(draws) for draws in ranks] == [24 // world] * world


def test_resumed_draws_go_on_where_they_stopped() -> None:
    assert list(Draws(7, seed=3, start=11, stop=29)) == list(Draws(7, seed=3, stop=29))[11:]


def test_batches_are_the_same_for_any_number_of_workers(photos: Path) -> None:
    dataset = open_dataset("color_transfer", photos, split="train", size=SIZE)
    state = torch.get_rng_state()
    alone, shared = (
        list(
            data.loader(
                dataset, Draws(len(dataset), seed=0, stop=22), batch_size=4, workers=workers, device=CPU
            )
        )
        for workers in (0, 2)
    )
    assert [len(batch.source) for batch in alone] == [4, 4, 4, 4, 4, 2]
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a.source, b.source)
        assert torch.equal(a.reference, b.reference)
    assert torch.equal(torch.get_rng_state(), state)


class Threads(data.Samples):
    def __getitem__(self, draw: Draw) -> int:
        return torch.get_num_threads()


def test_workers_compute_with_one_thread() -> None:
    dataset = Threads([torch.empty(0)] * 4, data.Cut(SIZE))
    batches = data.loader(dataset, Draws(4, seed=0, stop=4), batch_size=2, workers=2, device=CPU)
    assert torch.cat(list(batches)).tolist() == [1, 1, 1, 1]


# Files that cannot be used, and folders that do not fit.


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_broken_file_is_skipped_with_a_warning(photos: Path) -> None:
    dataset = open_dataset("edges2photo", photos, split="train", size=SIZE)
    broken = dataset.images.paths[-1]
    break_file(broken)
    with pytest.warns(UserWarning, match="skipped: cannot read") as caught:
        pair = dataset[Draw(len(dataset) - 1, 0)]
    assert str(broken) in str(caught[0].message)
    assert len(caught) == 1
    assert torch.equal(pair.reference, dataset[Draw(0, 0)].reference)  # the next one, which is the first


@pytest.mark.parametrize("task", ["colorization", "colorization_lab"])
def test_grey_photo_is_skipped_where_colors_are_learned(photos: Path, task: data.Kind) -> None:
    dataset = open_dataset(task, photos, split="train", size=SIZE)
    grey = dataset.images.paths[0]
    photo((0.5, 0.5, 0.5)).convert("L").save(grey)
    with pytest.warns(UserWarning, match="is grey: it has no colours to learn") as caught:
        reference = dataset[Draw(0, 0)].reference
    assert repr(str(grey)) in str(caught[0].message)
    assert torch.equal(reference, dataset[Draw(1, 0)].reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source, _ = open_dataset("color_transfer", photos, split="train", size=SIZE)[Draw(0, 0)]
    assert torch.equal(source[0], source[1])


def test_grey_photo_is_a_source_but_no_style_in_unpaired_sets(sets: Path) -> None:
    """Greys of A, colours of B."""
    for part in ("trainA", "trainB"):
        photo((0.5, 0.5, 0.5)).save(sets / part / "00.png")
    dataset = open_dataset("unpaired_colorization", sets, split="train", size=SIZE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = [dataset[Draw(0, seed)] for seed in range(8)]
    assert all(is_grey(source) and not is_red(style) and not is_grey(style) for source, style in pairs)
    assert caught
    assert all(repr(str(sets / "trainB" / "00.png")) in str(warning.message) for warning in caught)


def test_pair_of_odd_width_is_skipped_with_a_warning(aligned: Path) -> None:
    photo(RED, width=41).save(aligned / "val" / "0.png")
    dataset = open_dataset("edges2photo", aligned, split="val", size=SIZE)
    with pytest.warns(
        UserWarning, match=r"0\.png' is 41 pixels wide: two images side by side have even width"
    ):
        dataset[Draw(0, 0)]


def test_folder_without_a_file_that_can_be_used(aligned: Path) -> None:
    for path in (aligned / "val").iterdir():
        break_file(path)
    dataset = open_dataset("edges2photo", aligned, split="val", size=SIZE)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=r"none of 2 files can be used, the last: .*0\.png"),
    ):
        dataset[Draw(1, 0)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_unfit_folders(tmp_path: Path, aligned: Path, sets: Path, photos: Path, split: data.Split) -> None:
    def message(task: data.Kind, folder: Path | None, **options: str) -> str:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            open_dataset(task, folder, split=split, size=SIZE, **options)
        return str(error.value)

    assert message("colorization", tmp_path / "none") == f"{str(tmp_path / 'none')!r} is not a folder"
    (tmp_path / "empty").mkdir()
    assert f"folder {str(tmp_path / 'empty')!r} holds no image" in message("colorization", tmp_path / "empty")
    write(tmp_path / "few", [RED] * 3)
    assert "few' holds 3 images: at least 4 are needed" in message("colorization", tmp_path / "few")

    for task in ("color_transfer", "colorization"):
        assert "aligned' holds train and val, which are aligned pairs, for edges2photo" in message(
            task, aligned
        )
    (sets / "testB").rename(sets / "valB")
    assert "sets' holds trainA, trainB, testA and lacks testB: it may hold" in message("color_transfer", sets)
    (aligned / "val").rename(aligned / "validation")
    assert "aligned' holds train and lacks val: it may hold" in message("edges2photo", aligned)

    for task, folder in (("color_transfer", photos), ("edges2photo", None)):
        assert "direction 'BtoA' is for aligned pairs" in message(task, folder, direction="BtoA")
    assert "direction must be one of AtoB, BtoA, got 'btoa'" in message("edges2photo", None, direction="btoa")
    assert "kind must be one of color_transfer, colorization, edges2photo, " in message("colourisation", None)


HALF = (128, 128, 128)


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("grey.png", Image.new("L", (3, 2), 128), HALF),
        ("grey16.png", Image.fromarray(np.full((2, 3), 128 * 257, np.uint16)), HALF),
        ("grey16in32.tiff", Image.fromarray(np.full((2, 3), 128 * 257, np.int32)), HALF),
        ("palette.gif", Image.new("RGB", (3, 2), (255, 0, 0)).convert("P"), (255, 0, 0)),
        ("cmyk.tiff", Image.new("CMYK", (3, 2), (0, 255, 255, 0)), (255, 0, 0)),
        ("transparent.png", Image.new("RGBA", (3, 2), (255, 0, 0, 0)), (255, 255, 255)),
        ("translucent.png", Image.new("LA", (3, 2), (0, 127)), HALF),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_read_image(tmp_path: Path, name: str, image: Image.Image, expected: tuple[int, int, int]) -> None:
    image.save(tmp_path / name)
    rgb = data.read_image(tmp_path / name)
    wanted = torch.tensor(expected)[:, None, None] / 127.5 - 1
    torch.testing.assert_close(rgb, wanted.expand(3, 2, 3), atol=1e-6, rtol=0)


def test_read_image_turns_it_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the camera was turned by a quarter
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    rgb = data.read_image(tmp_path / "turned.png")
    np.testing.assert_array_equal(((rgb + 1) * 127.5).round().byte().movedim(0, -1), np.rot90(pixels, -1))


def test_unreadable_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*no\.png' as a photo: .*No such file"):
        data.read_image(tmp_path / "no.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep\.tiff' has 32-bit pixels: save it with 8 or 16 bits"):
        data.read_image(tmp_path / "deep.tiff")
