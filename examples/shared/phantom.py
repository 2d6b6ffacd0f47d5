"""A phantom head in 3-D, seen by two kinds of scanner.

The head is a scene without voxels: ellipsoids of tissue, one inside another, with folds and a fine texture. A
scan shows it on a grid of voxels, through a transform, so that no image is made by resampling another and the
true transform is known exactly. The two modalities give the tissues other intensities, neither a function of
the other: what is dark in one is dark, grey or bright in the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.registration import grid_points, invert, move, rotation

MODALITIES = ("A", "B")


@dataclass(frozen=True)
class Tissue:
    """An ellipsoid of the scene; it covers what was there before.

    Args:
        levels: its intensity in each modality, 0 to 1.
        texture: how much of the texture each modality shows in it.
        centre, radii: along depth, height and width, in halves of the volume's side.
        turn: about the first axis, in degrees.
        folds: how far its surface goes in and out.
    """

    name: str
    levels: tuple[float, float]
    texture: tuple[float, float]
    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    turn: float = 0.0
    folds: float = 0.0


# Left and right are not alike, nor front and back: only one position of the head looks right.
TISSUES = (
    Tissue("scalp", (0.85, 0.45), (0.05, 0.10), (0.00, 0.00, 0.00), (0.80, 0.84, 0.68)),
    Tissue("skull", (0.12, 0.95), (0.02, 0.04), (0.01, 0.00, 0.00), (0.74, 0.77, 0.61)),
    Tissue("fluid", (0.25, 0.20), (0.00, 0.00), (0.02, 0.00, 0.00), (0.68, 0.71, 0.55)),
    Tissue("cortex", (0.55, 0.70), (0.08, -0.05), (0.02, 0.00, 0.00), (0.65, 0.68, 0.52), folds=0.02),
    Tissue("white matter", (0.92, 0.40), (0.06, 0.05), (0.03, 0.00, 0.00), (0.55, 0.58, 0.42), folds=0.05),
    Tissue("left ventricle", (0.22, 0.12), (0.00, 0.00), (0.08, 0.02, -0.11), (0.13, 0.32, 0.07), 14.0),
    Tissue("right ventricle", (0.22, 0.12), (0.00, 0.00), (0.06, 0.04, 0.12), (0.12, 0.28, 0.08), -18.0),
    Tissue("left nucleus", (0.68, 0.62), (0.05, 0.05), (-0.06, -0.02, -0.20), (0.12, 0.17, 0.08), 20.0),
    Tissue("right nucleus", (0.64, 0.58), (0.05, 0.05), (-0.05, 0.00, 0.22), (0.11, 0.16, 0.08), -20.0),
    Tissue("cerebellum", (0.62, 0.80), (0.12, 0.10), (-0.42, 0.33, 0.02), (0.18, 0.24, 0.33), folds=0.04),
    Tissue("tumour", (0.45, 0.90), (0.10, 0.15), (0.24, -0.24, 0.22), (0.13, 0.12, 0.14), folds=0.02),
    Tissue("left eye", (0.18, 0.15), (0.00, 0.00), (-0.36, -0.66, -0.25), (0.10, 0.11, 0.10)),
    Tissue("right eye", (0.18, 0.15), (0.00, 0.00), (-0.36, -0.65, 0.26), (0.10, 0.11, 0.10)),
)
EDGE = 0.4  # of a surface, in voxels: the standard deviation of a scanner's blur, about
TURN, SHIFT, STRAIN = 12.0, 0.06, 0.07  # how the moving scan lies: degrees, sides, and of a unit


class Scans(NamedTuple):
    """A fixed and a moving volume (D, H, W), and where the fixed one shows the head, bool."""

    fixed: Tensor
    moving: Tensor
    foreground: Tensor


class Phantom:
    """The scene of a seed, which draws its folds and its texture."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng([seed, 0])
        self.waves = torch.from_numpy(_waves(random, 24, 10.0, 36.0))
        self.folds = torch.from_numpy(_waves(random, 16, 14.0, 32.0))

    def levels(self, points: Tensor, edge: float) -> Tensor:
        """Intensities (2, N) of both modalities at points (N, 3), in halves of the side from the centre.

        edge is the blur of a surface, in the same unit.
        """
        texture, folds = _wave(points, self.waves), _wave(points, self.folds)
        result = points.new_zeros(len(MODALITIES), len(points))
        for tissue in TISSUES:
            inside = torch.sigmoid(_depth(points, tissue, folds) / edge)
            for level, base, amount in zip(result, tissue.levels, tissue.texture, strict=True):
                level.lerp_(base + amount * texture, inside)
        return result

    def head(self, points: Tensor) -> Tensor:
        """Which of the points (N, 3) are in the head."""
        return _depth(points, TISSUES[0], points.new_zeros(len(points))) > 0


def draw_transform(transform: str, size: int, seed: int = 0) -> Tensor:
    """A matrix (3, 4), from voxels of one volume to those of another, both of this side.

    A turn of TURN degrees about the centre, then a shift of SHIFT sides; "affine" first stretches and shears
    by up to STRAIN. All directions are random.
    """
    random = np.random.default_rng([seed, 1])
    directions = random.standard_normal((2, 3))
    turn, shift = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    linear = rotation(torch.from_numpy(turn * np.deg2rad(TURN)))
    if transform == "affine":
        linear = linear @ torch.from_numpy(np.eye(3) + random.uniform(-STRAIN, STRAIN, (3, 3)))
    centre = torch.full((3,), (size - 1) / 2, dtype=torch.float64)
    shifted = centre + torch.from_numpy(shift * SHIFT * size) - linear @ centre
    return torch.cat([linear, shifted[:, None]], dim=1)


def scan_pair(size: int, truth: Tensor, *, seed: int = 0, noise: float = 0.03, bias: float = 0.2) -> Scans:
    """Two scans of one phantom, of side `size`: modality A as it lies, modality B moved by `truth` (3, 4).

    Args:
        truth: from voxels of the fixed volume to voxels of the moving one.
        noise: its standard deviation, where tissues have up to 1.
        bias: how far a smooth field, another in each scan, brightens and darkens.
    """
    phantom, random = Phantom(seed), np.random.default_rng([seed, 2])
    voxels = grid_points((size, size, size))
    middle, half = (size - 1) / 2, size / 2
    lying = (voxels - middle) / half
    moved = (move(voxels.double(), invert(truth)).float() - middle) / half
    volumes = []
    for modality, points in enumerate((lying, moved)):
        level = phantom.levels(points, EDGE / half)[modality]
        field = _wave(lying, torch.from_numpy(_waves(random, 4, 0.5, 2.5))).clamp(-1.5, 1.5) / 1.5
        grain = torch.from_numpy(random.standard_normal(len(level), dtype=np.float32))
        volumes.append((level * (1 + bias * field) + noise * grain).view(size, size, size))
    return Scans(volumes[0], volumes[1], phantom.head(lying).view(size, size, size))


def _depth(points: Tensor, tissue: Tissue, folds: Tensor) -> Tensor:
    """How deep points are inside an ellipsoid, about; negative outside."""
    angle = np.deg2rad(tissue.turn)
    c, s = float(np.cos(angle)), float(np.sin(angle))
    turn = points.new_tensor([[1, 0, 0], [0, c, s], [0, -s, c]])
    radii = points.new_tensor(tissue.radii)
    scaled = (points - points.new_tensor(tissue.centre)) @ turn.T / radii
    # Divided by the slope: near the surface this is the distance, whatever the ellipsoid's shape.
    radius = scaled.norm(dim=1)
    slope = (scaled / radii).norm(dim=1) / radius.clamp(min=1e-6)
    return (1 - radius) / slope.clamp(min=1e-6) + tissue.folds * folds


def _waves(random: np.random.Generator, count: int, slowest: float, fastest: float) -> np.ndarray:
    """Rows of a wave vector, in radians, and a phase; (count, 4) float32."""
    directions = random.standard_normal((count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = directions * random.uniform(slowest, fastest, (count, 1))
    return np.hstack([vectors, random.uniform(0, 2 * np.pi, (count, 1))]).astype(np.float32)


def _wave(points: Tensor, waves: Tensor) -> Tensor:
    """A sum of waves at points (N, 3), with a standard deviation of about 1."""
    total = points.new_zeros(len(points))
    for wave in waves:
        total += torch.sin(points @ wave[:3] + wave[3])
    return total * (2 / len(waves)) ** 0.5
