"""examples/register3d.py: volumes that tens of milliseconds register."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

import register3d
from asserters import assert_agrees
from shared import mattes, phantom, registration
from shared.mattes import errors, fill_in, format_table, make_pair, summary
from shared.phantom import draw_transform, scan_pair
from shared.registration import (
    Motion,
    Objective,
    Settings,
    Volume,
    compose,
    distances,
    draw_points,
    identity,
    invert,
    move,
    register,
    resample,
    rotation,
    sample,
)
from shared.volumes import read_volume, world_of
from tolerances import TOLERANCES

SIZE = 48
EXACT = TOLERANCES[torch.float64].value
ROOT = Path(__file__).parents[1]


def random_volume(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_matrix(seed: int = 0) -> Tensor:
    """A transform near the identity, with a shift of some voxels."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, 4, generator=random, dtype=torch.float64)
    return identity() + noise * torch.tensor([0.1, 0.1, 0.1, 2.0])


def mean_error(matrix: Tensor, truth: Tensor, foreground: Tensor) -> float:
    return distances(foreground.nonzero().double(), matrix, truth).mean().item()


def voxels(scans: phantom.Scans) -> tuple[Volume, Volume]:
    return Volume(scans.fixed, identity()), Volume(scans.moving, identity())


# ---- transforms


def test_rotation_is_the_exponential_map() -> None:
    vector = torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64)
    assert_agrees(rotation(vector), torch.from_numpy(Rotation.from_rotvec(vector.numpy()).as_matrix()), EXACT)
    assert_agrees(rotation(0 * vector), torch.eye(3, dtype=torch.float64), EXACT)


def test_transforms_compose_and_invert() -> None:
    first, second = random_matrix(0), random_matrix(1)
    points = 10 * random_volume(20, 3, dtype=torch.float64)
    assert_agrees(move(points, compose(second, first)), move(move(points, first), second), EXACT)
    assert_agrees(move(move(points, first), invert(first)), points, EXACT)


@pytest.mark.parametrize("transform", ["rigid", "affine"])
def test_motion(transform: str) -> None:
    """At 0 it brings centre to centre; the jacobian is its derivative; a rigid one keeps lengths."""
    fixed = Volume(random_volume(5, 9, 7), random_matrix(2))
    moving = Volume(random_volume(8, 6, 7), random_matrix(3))
    motion = Motion(fixed, moving, transform)
    middles = [torch.tensor([[2.0, 4.0, 3.0]]).double(), torch.tensor([[3.5, 2.5, 3.0]]).double()]
    before, after = (move(p, v.to_world) for p, v in zip(middles, (fixed, moving), strict=True))
    assert_agrees(move(before, motion.matrix(motion.zero)), after, EXACT)

    points = 10 * random_volume(6, 3, seed=4, dtype=torch.float64)
    slopes = random_volume(6, 3, seed=5, dtype=torch.float64) - 0.5
    derivative = torch.autograd.functional.jacobian(
        lambda p: (move(points, motion.matrix(p)) * slopes).sum(1), motion.zero
    )
    assert_agrees(motion.jacobian(points, slopes), derivative, EXACT)

    parameters = random_volume(len(motion.zero), seed=6, dtype=torch.float64)
    parameters = parameters.requires_grad_()
    assert torch.autograd.gradcheck(motion.matrix, parameters)
    linear = motion.matrix(parameters)[:, :3]
    orthogonal = torch.allclose(linear.T @ linear, torch.eye(3, dtype=torch.float64))
    assert orthogonal == (transform == "rigid")


# ---- sampling


@pytest.mark.parametrize("count", [8 * 30, 8 * 30 + 1])  # in parts, and as a whole
def test_sample_is_trilinear(count: int) -> None:
    values = random_volume(6, 9, 7, dtype=torch.float64)
    points = random_volume(count, 3, seed=1, dtype=torch.float64) * torch.tensor([8.0, 11.0, 9.0]) - 1.5
    expected = ndimage.map_coordinates(values.numpy(), points.T.numpy(), order=1, mode="nearest")
    assert_agrees(sample(values, points), torch.from_numpy(expected), EXACT)


def test_gradient_of_sample() -> None:
    values = random_volume(5, 4, 6, dtype=torch.float64)
    points = torch.rand(16, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.8 + 0.1
    points = (points + torch.randint(0, 3, (16, 3))).requires_grad_()  # off the grid, where it has a kink
    assert torch.autograd.gradcheck(lambda p: sample(values, p), points)


@pytest.mark.parametrize("transform", ["rigid", "affine"])
@pytest.mark.parametrize("kernel", ["sigmoid", "bspline3", ("bspline3", "triangular")])
@pytest.mark.parametrize("measure", ["nmi", "mi"])
def test_gradient_of_the_objective(measure: str, transform: str, kernel: str | tuple[str, str]) -> None:
    fixed = Volume(random_volume(6, 7, 5, dtype=torch.float64), identity())
    moving = Volume(random_volume(7, 6, 6, seed=1, dtype=torch.float64), identity())
    motion = Motion(fixed, moving, transform)
    settings = Settings(transform, measure, bins=6, kernel=kernel)
    points = 1 + 3 * random_volume(40, 3, seed=2, dtype=torch.float64)
    objective = Objective(fixed, moving, motion, settings, points, motion.zero)
    parameters = 0.1 * random_volume(len(motion.zero), seed=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(objective, parameters.requires_grad_(), eps=1e-7, atol=1e-5)


def test_resample_is_that_of_simpleitk() -> None:
    sitk = pytest.importorskip("SimpleITK")
    images, volumes = [], []
    for seed, shape in enumerate([(10, 12, 14), (13, 9, 11)]):
        image = sitk.GetImageFromArray(random_volume(*shape, seed=seed).numpy())
        image.SetSpacing((1.0 + seed, 0.7, 1.3))
        image.SetOrigin((3.0, -2.0, 5.0 * seed))
        image.SetDirection(Rotation.from_rotvec([0.1, 0.2 * seed, -0.3]).as_matrix().flatten().tolist())
        images.append(image)
        volumes.append(Volume(torch.from_numpy(sitk.GetArrayFromImage(image)), world_of(image)))
    point = (2.0, 5.0, 3.0)  # x, y, z
    world = torch.tensor(images[1].TransformContinuousIndexToPhysicalPoint(point), dtype=torch.float64)
    assert_agrees(move(torch.tensor([point[::-1]]).double(), volumes[1].to_world)[0], world.flip(0), EXACT)

    matrix = random_matrix(7)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:, :3].flip(0, 1).flatten().tolist())
    transform.SetTranslation(matrix[:, 3].flip(0).tolist())
    expected = sitk.GetArrayFromImage(sitk.Resample(images[1], images[0], transform, sitk.sitkLinear, 0.0))
    found = resample(volumes[1], volumes[0], matrix).numpy()
    assert (expected > 0).mean() > 0.1
    assert (np.abs(found - expected) < 1e-4).mean() > 0.999  # but for rounding at the faces


def test_points() -> None:
    """About as many as asked for, inside, off the grid, all over the volume, the same for a seed."""
    draw = lambda seed: draw_points((20, 30, 40), 0.1, torch.Generator().manual_seed(seed))  # noqa: E731
    points = draw(0)
    assert len(points) == pytest.approx(2400, rel=0.15)
    assert bool((points >= 0).all())
    assert bool((points <= torch.tensor([19.0, 29.0, 39.0])).all())
    counts = torch.histc(points[:, 2], 10, 0, 39)
    assert counts.min() > 0.7 * counts.max()
    assert (points == points.round()).float().mean() < 0.01
    assert torch.equal(points, draw(0))
    assert not torch.equal(points, draw(1))


def test_levels_are_at_the_same_place() -> None:
    """Of a volume that holds a coordinate of its world, every level does."""
    to_world = random_matrix(8)
    shape = (33, 40, 36)
    ramp = move(registration.grid_points(shape).double(), to_world)[:, 1].view(shape).float()
    levels = list(registration.pyramid(Volume(ramp, to_world), Volume(ramp, to_world)))
    assert [factor for factor, *_ in levels] == [2, 1]
    for _, fixed, moving in levels:
        inner = tuple(slice(2, side - 2) for side in fixed.values.shape)
        here = move(registration.grid_points(fixed.values.shape).double(), fixed.to_world)[:, 1]
        middle = ramp.aminmax()
        clear = (here.view(fixed.values.shape)[inner] > middle.min + 2) & (
            here.view(fixed.values.shape)[inner] < middle.max - 2
        )
        difference = fixed.values[inner] - here.view(fixed.values.shape)[inner]
        assert clear.float().mean() > 0.5
        assert difference[clear].abs().max() < 1e-4
        assert torch.equal(fixed.values, moving.values)


def test_few_bright_voxels_do_not_widen_the_range() -> None:
    values = random_volume(30, 30, 30)
    values[0, 0, :5] = 1000.0
    assert registration.clamped(values).max() < 1.01
    sparse = torch.zeros(30, 30, 30)
    sparse[0, 0, 0] = 1.0
    assert torch.equal(registration.clamped(sparse), sparse)


# ---- the phantom


def test_phantom_of_a_seed() -> None:
    truth = draw_transform("affine", 16, 3)
    assert torch.equal(truth, draw_transform("affine", 16, 3))
    first, again, other = (scan_pair(16, truth, seed=seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        if a.is_floating_point():
            assert not torch.equal(a, c)


@pytest.mark.parametrize("transform", ["rigid", "affine"])
def test_truth_of_the_phantom(transform: str) -> None:
    """What a scan shows at the true place of a voxel is what an unmoved scan shows in the voxel."""
    truth = draw_transform(transform, SIZE)
    linear = truth[:, :3]
    assert torch.allclose(linear.T @ linear, identity()[:, :3]) == (transform == "rigid")
    shift = identity()
    shift[:, 3] = torch.tensor([2.0, -3.0, 1.0])
    still, shifted, moved = (
        scan_pair(SIZE, matrix, noise=0, bias=0).moving for matrix in (identity(), shift, truth)
    )
    assert_agrees(shifted[6:-6, 6:-6, 6:-6], still[4:-8, 9:-3, 5:-7], TOLERANCES[torch.float32].gradient)
    back = resample(Volume(moved, identity()), Volume(still, identity()), truth)
    before = (moved - still).square().mean()
    assert (back - still).square().mean() < 0.02 * before


def test_modalities_are_no_functions_of_each_other() -> None:
    first, second = (np.argsort([tissue.levels[i] for tissue in phantom.TISSUES]) for i in (0, 1))
    assert abs(np.corrcoef(np.argsort(first), np.argsort(second))[0, 1]) < 0.8
    scans = scan_pair(SIZE, identity(), noise=0, bias=0)
    inside = scans.foreground
    assert 0.15 < inside.float().mean() < 0.4
    assert abs(torch.corrcoef(torch.stack([scans.fixed[inside], scans.moving[inside]]))[0, 1]) < 0.5
    assert scans.fixed[~inside].mean() < 0.05 < 0.3 < scans.fixed[inside].mean()


# ---- registration


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("transform", ["rigid", "affine"])
def test_finds_the_truth(transform: str, seed: int) -> None:
    settings = Settings(transform, seed=seed, sampling=0.5)
    scans, truth = make_pair(settings, SIZE)
    seen: list[tuple[int, float]] = []
    found = register(*voxels(scans), settings, lambda level, value: seen.append((level, value)))
    assert mean_error(identity(), truth, scans.foreground) > 2.5
    assert mean_error(found.matrix, truth, scans.foreground) < 0.5
    assert [level.factor for level in found.levels] == [2, 1]
    assert sum(level.evaluations for level in found.levels) == len(seen)
    assert max(value for level, value in seen if level == 1) == found.levels[1].value
    assert found.seconds == pytest.approx(sum(level.seconds for level in found.levels))


@pytest.mark.parametrize("transform", ["rigid", "affine"])
def test_worlds(transform: str) -> None:
    """Spacing and place of either volume count: the transform is one of their worlds."""
    settings = Settings(transform, sampling=0.5)
    scans, truth = make_pair(settings, SIZE)
    worlds = []
    for seed in (0, 1):
        turn = rotation(torch.tensor([0.4, -0.2, 0.1 + seed]).double())
        spacing = 1.7 * torch.eye(3).double()
        if transform == "affine":
            spacing = spacing @ torch.diag(torch.tensor([1.0, 2.0, 0.8]).double())
        worlds.append(torch.cat([turn @ spacing, torch.tensor([[5.0 + seed], [-80.0], [3.0]])], dim=1))
    # The worlds lie otherwise, so that in them the volumes are as far apart as in voxels.
    worlds[1] = torch.cat([worlds[0][:, :3], worlds[1][:, 3:]], dim=1)
    fixed, moving = (Volume(v, w) for v, w in zip(scans[:2], worlds, strict=True))
    found = register(fixed, moving, settings).matrix
    matrix = compose(invert(worlds[1]), compose(found, worlds[0]))
    assert mean_error(matrix, truth, scans.foreground) < 0.5
    if transform == "rigid":
        assert torch.allclose(found[:, :3].T @ found[:, :3], identity()[:, :3])


def test_a_part_of_the_fixed_volume_is_missing() -> None:
    """The moving volume ends within the head: what it does not show is left out."""
    settings = Settings("rigid", sampling=0.5)
    scans, truth = make_pair(settings, SIZE)
    cut = scans.moving[:, : SIZE - 14]
    # The centres are not those of the head now, by 7 voxels.
    shift = identity()
    shift[1, 3] = 7.0
    found = register(Volume(scans.fixed, shift), Volume(cut, identity()), settings).matrix
    assert mean_error(compose(found, shift), truth, scans.foreground) < 0.6


def test_options_matter() -> None:
    settings = Settings("rigid", sampling=0.3)
    scans, truth = make_pair(settings, SIZE)
    first = register(*voxels(scans), settings)
    again = register(*voxels(scans), settings)
    assert torch.equal(first.matrix, again.matrix)
    for changed in ({"seed": 1}, {"sampling": 0.1}, {"bins": 24}, {"measure": "mi"}, {"scaled": False}):
        other = register(*voxels(scans), replace(settings, **changed))
        assert not torch.equal(other.matrix, first.matrix), changed
        assert mean_error(other.matrix, truth, scans.foreground) < 0.6, changed
    short = register(*voxels(scans), replace(settings, iterations=1))
    assert all(level.evaluations <= 2 + 25 for level in short.levels)
    assert sum(level.evaluations for level in short.levels) < sum(x.evaluations for x in first.levels)


def test_scaled_parameters_need_fewer_evaluations() -> None:
    counts = {True: 0, False: 0}
    for seed in range(2):
        settings = Settings("rigid", seed=seed)
        scans, _ = make_pair(settings, SIZE)
        for scaled in counts:
            levels = register(*voxels(scans), replace(settings, scaled=scaled)).levels
            counts[scaled] += sum(level.evaluations for level in levels)
    assert counts[True] < counts[False]


def test_plain_mutual_information_enlarges() -> None:
    """Why it is not the default: it gains by bringing more of the head into view."""
    scans, truth = make_pair(Settings(), SIZE)
    sizes = [
        torch.linalg.det(register(*voxels(scans), Settings(measure=measure)).matrix[:, :3]).item()
        for measure in ("nmi", "mi")
    ]
    assert sizes[1] < sizes[0] < 1.02 * torch.linalg.det(truth[:, :3]).item()


def test_volumes_that_cannot_be_registered() -> None:
    some, flat = Volume(random_volume(20, 20, 20), identity()), Volume(torch.ones(20, 20, 20), identity())
    with pytest.raises(ValueError, match="fixed must have more than one value, got 1 everywhere"):
        register(flat, some, Settings())
    with pytest.raises(ValueError, match="moving must have more than one value, got 1 everywhere"):
        register(some, flat, Settings())
    small = Volume(some.values, identity() * torch.tensor([0.2, 0.2, 0.2, 1.0]))
    with pytest.raises(ValueError, match=r"moving must overlap at least 10% of fixed, got 0\.\d%"):
        register(some, small, Settings())


# ---- the command


def error(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What a run that must not start says."""
    with pytest.raises(SystemExit) as exit_info:
        register3d.main(list(options))
    assert exit_info.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("transform", ["rigid", "affine"])
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], transform: str) -> None:
    register3d.main(["--size", "32", "--transform", transform, "--seed", "2", "--output", str(tmp_path)])
    report = json.loads((tmp_path / f"{transform}.json").read_text())
    assert report["settings"]["transform"] == transform
    assert report["settings"]["kernel"] == "bspline3"
    assert report["after"]["mean"] < 0.6 < 1.5 < report["before"]["mean"]
    scans, truth = make_pair(Settings(transform, seed=2), 32)
    assert report["truth"] == truth.tolist()
    assert report["after"] == errors(scans, torch.tensor(report["matrix"], dtype=torch.float64), truth)
    out, err = capsys.readouterr()
    assert f"error after: {report['after']['mean']:.3f} voxels" in out
    assert "NMI=" in err  # the progress bar
    with Image.open(tmp_path / f"{transform}.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(float)
    assert pixels.shape[1] == round(6 * 2.2 * 110)
    assert pixels.std() > 30


def test_picture() -> None:
    """Every panel shows what its title says."""
    scans, truth = make_pair(Settings("rigid"), 32)
    fixed, moving = voxels(scans)
    true = resample(moving, fixed, truth)
    figure = register3d.draw(fixed, scans.moving, true, true)
    panels = np.array([axes for axes in figure.axes if axes.get_label() != "<colorbar>"]).reshape(3, 6)
    assert [axes.get_title() for axes in panels[0]] == [
        *("fixed", "moving before", "moving after"),
        *("fixed and before", "fixed and after", "after less the truth"),
    ]
    for axis, row in enumerate(panels):
        a, b, c, ab, ac, left = (np.asarray(axes.images[0].get_array()) for axes in row)
        for image, volume in ((a, scans.fixed), (b, scans.moving), (c, true)):
            slice_ = volume.select(axis, 16).numpy()
            assert np.corrcoef(image.flatten(), slice_.flatten())[0, 1] > 0.999
        squares = register3d.checkerboard(a.shape)
        assert np.array_equal(ab, np.where(squares, a, b))
        assert np.array_equal(ac, np.where(squares, a, c))
        assert np.abs(left).max() < 1e-6
    assert len(register3d.draw(fixed, scans.moving, true, None).axes) == 15


def test_checkerboard() -> None:
    squares = register3d.checkerboard((12, 18))
    assert squares[0, 0]
    assert squares[:2, :2].all()
    assert not squares[0, 2]
    assert not squares[2, 0]
    assert squares[2, 2]
    assert squares.mean() == 0.5


def test_own_volumes(tmp_path: Path) -> None:
    scans, truth = make_pair(Settings("rigid", seed=1), SIZE)
    paths = [tmp_path / "fixed.npy", tmp_path / "moving.npy"]
    for path, values in zip(paths, scans[:2], strict=True):
        np.save(path, 1000 * values.double().numpy())
    register3d.main(
        [
            *("--fixed", str(paths[0]), "--moving", str(paths[1]), "--transform", "rigid"),
            *("--sampling", "0.5", "--output", str(tmp_path / "out")),
        ]
    )
    report = json.loads((tmp_path / "out" / "rigid.json").read_text())
    assert "truth" not in report
    assert mean_error(torch.tensor(report["matrix"]).double(), truth, scans.foreground) < 0.5
    assert report["matrix"] == report["world_matrix"]
    resampled = np.load(tmp_path / "out" / "resampled.npy")
    assert resampled.dtype == np.float32
    matrix = np.array(report["matrix"])
    expected = ndimage.affine_transform(1000 * scans.moving.numpy(), matrix[:, :3], matrix[:, 3], order=1)
    inner = (slice(12, -12),) * 3
    np.testing.assert_allclose(resampled[inner], expected[inner], atol=0.1)
    assert (tmp_path / "out" / "rigid.png").exists()


def test_own_volumes_of_simpleitk(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    scans, truth = make_pair(Settings("affine", seed=1), SIZE)
    images = []
    for name, values, origin in zip(("f", "m"), scans[:2], ((1.0, 2.0, 3.0), (90.0, 8.0, 7.0)), strict=True):
        images.append(sitk.GetImageFromArray(values.numpy()))
        images[-1].SetSpacing((0.9, 1.1, 2.0))
        images[-1].SetOrigin(origin)
        sitk.WriteImage(images[-1], str(tmp_path / f"{name}.nii.gz"))
    out = tmp_path / "out"
    register3d.main(
        [
            *("--fixed", str(tmp_path / "f.nii.gz"), "--moving", str(tmp_path / "m.nii.gz")),
            *("--sampling", "0.5", "--output", str(out)),
        ]
    )
    report = json.loads((out / "affine.json").read_text())
    assert mean_error(torch.tensor(report["matrix"]).double(), truth, scans.foreground) < 0.5
    resampled = sitk.ReadImage(str(out / "resampled.nii.gz"))
    assert resampled.GetSpacing() == pytest.approx((0.9, 1.1, 2.0))
    assert resampled.GetOrigin() == pytest.approx((1.0, 2.0, 3.0))
    transform = sitk.ReadTransform(str(out / "transform.tfm"))
    expected = sitk.GetArrayFromImage(sitk.Resample(images[1], images[0], transform, sitk.sitkLinear, 0.0))
    inner = (slice(12, -12),) * 3
    np.testing.assert_allclose(sitk.GetArrayFromImage(resampled)[inner], expected[inner], atol=1e-3)


def test_volumes_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = random_volume(4, 5, 6).numpy()
    bad: dict[str, Any] = {
        "shape": good[0],
        "thin": good[:1],
        "complex": good.astype(complex),
        "nan": np.where(good > 0.5, np.nan, good),
    }
    for name, values in bad.items():
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(good))
    reasons = {
        "missing": "No such file",
        "shape": r"must have shape \(D, H, W\), each at least 2, got \(5, 6\)",
        "thin": r"got \(1, 5, 6\)",
        "complex": "finite real numbers, got complex128",
        "nan": "finite real numbers, got float32",
        "text": "",
        "pickle": "",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=rf"cannot read '.*{name}\.npy' as a volume: .*{reason}"):
            read_volume(tmp_path / f"{name}.npy")
    monkeypatch.setattr("shared.volumes.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"files of type '.nii' need the package SimpleITK; .npy does not"):
        read_volume(tmp_path / "brain.nii")


def test_images_that_are_no_volumes(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    flat = sitk.GetImageFromArray(random_volume(4, 5).numpy())
    sitk.WriteImage(flat, str(tmp_path / "flat.mha"))
    with pytest.raises(ValueError, match="3 dimensions and one channel, got 2 dimensions and 1 channels"):
        read_volume(tmp_path / "flat.mha")
    (tmp_path / "text.mha").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read '.*text\.mha' as a volume"):
        read_volume(tmp_path / "text.mha")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "31"], "argument --size: must be a whole number, at least 32, got '31'"),
        (["--bins", "1"], "argument --bins: must be a whole number, at least 2, got '1'"),
        (["--sampling", "0"], "argument --sampling: must be above 0 and at most 1, got '0'"),
        (["--sampling", "1.1"], "argument --sampling: must be above 0 and at most 1, got '1.1'"),
        (["--sampling", "nan"], "argument --sampling: must be above 0 and at most 1, got 'nan'"),
        (["--sampling", "all"], "argument --sampling: must be above 0 and at most 1, got 'all'"),
        (["--kernel", "box"], "argument --kernel: must be one of sigmoid, gaussian, bspline3, triangular"),
        (["--kernel", "gaussian,gaussian,sigmoid"], "or two as a,b, got 'gaussian,gaussian,sigmoid'"),
        (["--measure", "joint"], "argument --measure: invalid choice: 'joint'"),
        (["--transform", "elastic"], "argument --transform: invalid choice: 'elastic'"),
        (["--seed", "-1"], "argument --seed: must be a whole number, at least 0, got '-1'"),
        (["--threads", "0"], "argument --threads: must be a whole number, at least 1, got '0'"),
        (["--pairs", "0"], "argument --pairs: must be a whole number, at least 1, got '0'"),
        (["--fixed", "a.npy"], "--fixed and --moving go together"),
        (["--moving", "a.npy"], "--fixed and --moving go together"),
        (["--fixed", "a.npy", "--moving", "b.npy"], "cannot read 'a.npy' as a volume"),
        (["--fixed", "a.npy", "--moving", "b.npy", "--compare"], "--compare needs the phantom"),
    ],
)
def test_bad_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error(capsys, *options)


def test_bad_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert "File exists" in error(capsys, "--output", str(tmp_path / "file"))


def test_constant_volume(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.zeros((20, 20, 20)))
    flat = str(tmp_path / "flat.npy")
    with pytest.raises(SystemExit, match="register3d: fixed must have more than one value, got 0 everywhere"):
        register3d.main(["--fixed", flat, "--moving", flat, "--output", str(tmp_path)])


def test_kernel_pair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = register3d.parse(["--kernel", "bspline3,triangular", "--output", str(tmp_path)])
    assert args.settings.kernel == ("bspline3", "triangular")


# ---- the comparison


def test_simpleitk_finds_the_truth() -> None:
    """Every way in which it is asked leads there."""
    pytest.importorskip("SimpleITK")
    for transform in ("rigid", "affine"):
        settings = Settings(transform)
        scans, truth = make_pair(settings, SIZE)
        before = mean_error(identity(), truth, scans.foreground)
        for own in (
            mattes.Mattes("descent", (1.0, 0.2, 0.05), iterations=50),
            mattes.Mattes("lbfgs", (1.0, 0.2, 0.05), iterations=20),
            mattes.Mattes("lbfgsb", (1.0, 0.2, 0.05), iterations=20, random=True),
        ):
            matrix = mattes.mattes(scans, own, settings)
            assert mean_error(matrix, truth, scans.foreground) < 0.6 * before, (transform, own)


def test_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("SimpleITK")
    few = lambda settings: [  # noqa: E731
        mattes.Side("histloss", settings),
        mattes.Side("SimpleITK, quick", mattes.Mattes("descent", (0.2, 0.1, 0.05), iterations=5)),
    ]
    for module in (mattes, register3d):
        monkeypatch.setattr(module, "sides", few)
    monkeypatch.setattr(register3d, "memory_of", lambda name, argv: 12.0 if name == "histloss" else None)
    register3d.main(["--size", "32", "--compare", "--pairs", "2", "--seed", "5", "--output", str(tmp_path)])
    report = json.loads((tmp_path / "affine.json").read_text())
    assert [(row["seed"], row["side"]) for row in report["rows"]] == [
        *((5, "histloss"), (5, "SimpleITK, quick")),
        *((6, "histloss"), (6, "SimpleITK, quick")),
    ]
    assert report["rows"][0]["mean"] == report["after"]["mean"]
    assert [row["megabytes"] for row in report["summary"]] == [12.0, None]
    made_with = report["provenance"]
    assert made_with["command"].startswith("python examples/register3d.py --size 32 --compare --pairs 2")
    assert made_with["threads"] == torch.get_num_threads()
    assert {"SimpleITK", "torch", "histloss", "cpu", "date", "load", "commit"} <= {*made_with}
    assert format_table(report) in capsys.readouterr().out
    with Image.open(tmp_path / "affine-times.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_memory() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no such file on this system")
    peak = register3d.memory_of("histloss", ["--size", "48", "--threads", "1"])
    assert peak is not None
    assert 1 < peak < 100


def test_summary() -> None:
    rows = [
        {
            "seed": seed,
            "side": side,
            "seconds": seconds,
            "mean": mean,
            "max": None if mean is None else 2 * mean,
        }
        for seed, side, seconds, mean in (
            (0, "histloss", 1.0, 0.2),
            (0, "other", 4.0, 0.3),
            (1, "histloss", 2.0, 0.1),
            (1, "other", 4.0, None),
            (2, "histloss", 3.0, 0.4),
            (2, "other", 3.1, 0.3),
        )
    ]
    ours, other = summary(rows, {"histloss": 5.0})
    assert ours == {
        **{"side": "histloss", "seconds": 2.0, "times": 1.0, "mean": 0.2, "worst": 0.4, "max": 0.4},
        **{"failed": 0, "beaten": None, "megabytes": 5.0},
    }
    assert other["times"] == 2.0
    assert other["beaten"] == 2  # closer and faster once, and once the other one failed
    assert other["failed"] == 1
    assert math.isclose(other["mean"], 0.3)
    peer = other | {"side": "SimpleITK, slow", "seconds": 9.0, "mean": 0.05, "failed": 0}
    near = other | {"side": "SimpleITK, fast"}
    text = format_table({"pairs": 3, "size": 40, "summary": [ours, near, peer]})
    assert "SimpleITK, fast (1 failed)" in text
    assert "2 of 3" in text
    assert "SimpleITK, slow, comes closest of SimpleITK's: 0.05 voxels in 9.00 s" in text
    assert "SimpleITK, fast, is its fastest: 0.30 voxels in 4.00 s" in text
    assert "histloss is within 0.20 voxels in 2.00 s" in text


def test_a_search_that_fails_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(scans: phantom.Scans, own: mattes.Mattes, settings: Settings) -> Tensor:
        if scans.fixed.shape[0] != 33:  # the small pair that warms up
            return identity()
        raise RuntimeError("Exception thrown\nall samples are outside")

    monkeypatch.setattr(mattes, "mattes", fail)
    monkeypatch.setattr(
        mattes, "sides", lambda settings: [mattes.Side("x", mattes.Mattes("lbfgs", (1, 1, 1)))]
    )
    (row,) = mattes.compare(Settings(), 33, 1)
    assert row["mean"] is None
    assert row["why"] == "all samples are outside"


# ---- the results that are published


@pytest.mark.parametrize("transform", ["rigid", "affine"])
def test_results(transform: str) -> None:
    folder = ROOT / "examples" / "results" / "register3d"
    text = (ROOT / "examples" / "RESULTS.md").read_text()
    report = json.loads((folder / f"{transform}.json").read_text())
    assert format_table(report) in text
    assert fill_in(text, report) == text
    assert f"`{report['provenance']['command']}`" in text
    assert report["settings"]["bins"] == 32
    for picture in (f"{transform}.png", f"{transform}-times.png"):
        assert (folder / picture).exists()
    assert f"](results/register3d/{transform}-times.png)" in text
