"""Registration of volumes by mutual information: which transform makes one tell most about the other?

A transform is a matrix (3, 4) of float64 that maps a point of the fixed volume's world to the moving one's.
Points are in the order of a volume's axes: depth, height, width. A pyramid goes from coarse to fine. At each
level some points of the fixed volume are drawn, once, and L-BFGS moves them over the moving volume: for the
same points the joint histogram, and with it mutual information, is a smooth function of a few parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from histloss import joint_histogram, mutual_information

TRANSFORMS = {"rigid": 6, "affine": 12}  # and their numbers of parameters
MEASURES = ("nmi", "mi")
KERNELS = ("sigmoid", "gaussian", "bspline3", "triangular")
COARSEST = 16  # voxels that the coarsest level's shortest side has at least
WINDOW = (0.001, 0.999)  # quantiles: what is darker or brighter counts as these
PARTS = 8  # of the points, which threads share: grid_sample has one thread for each volume of a batch
SCALE = 100.0  # of the measure: its hundredths count
OVERLAP = 0.1  # of the points that must at least be in the moving volume


class Volume(NamedTuple):
    """Values (D, H, W), float32 or float64, and the matrix (3, 4) of float64 from voxels to the world."""

    values: Tensor
    to_world: Tensor


@dataclass(frozen=True)
class Settings:
    """How to register.

    Args:
        transform: "rigid" or "affine".
        measure: what is to be most: "nmi", normalised mutual information, or "mi", in nats. Plain mutual
            information also grows with how much of a thing is in view, and so makes the moving volume larger.
        bins: of the joint histogram.
        kernel: of the joint histogram; a pair is (fixed, moving).
        sampling: how many points are drawn, as a fraction of the fixed volume's voxels. A level that is
            coarser by a factor f gets f^2 times that fraction of its own voxels, or all.
        seed: of the points.
        iterations: of the optimiser on a level, at most.
        scaled: whether the optimiser's parameters are scaled so that, near the solution, all matter alike.
    """

    transform: str = "affine"
    measure: str = "nmi"
    bins: int = 32
    kernel: str | tuple[str, str] = "bspline3"
    sampling: float = 0.2
    seed: int = 0
    iterations: int = 40
    scaled: bool = True


class Level(NamedTuple):
    """What the optimiser did on a level, and the most of the measure that it found there."""

    factor: int
    points: int
    evaluations: int
    value: float
    seconds: float


@dataclass(frozen=True)
class Registration:
    matrix: Tensor
    levels: list[Level] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(level.seconds for level in self.levels)


def register(
    fixed: Volume,
    moving: Volume,
    settings: Settings,
    watch: Callable[[int, float], None] = lambda level, value: None,
) -> Registration:
    """The transform, from the one that brings the centres of both volumes together.

    Args:
        watch: called after every evaluation with the number of the level, from 0, and the measure.

    Raises:
        ValueError: a volume is constant, or the volumes hardly overlap.
    """
    start = perf_counter()
    for name, volume in (("fixed", fixed), ("moving", moving)):
        low, high = window(volume.values)
        if not low < high:
            raise ValueError(f"{name} must have more than one value, got {low:g} everywhere")
    motion = Motion(fixed, moving, settings.transform)
    parameters, basis, levels = motion.zero, None, []
    random = torch.Generator().manual_seed(settings.seed)
    for number, (factor, coarse_fixed, coarse_moving) in enumerate(pyramid(fixed, moving)):
        fraction = min(1.0, settings.sampling * factor**2)
        points = draw_points(coarse_fixed.values.shape, fraction, random)
        objective = Objective(coarse_fixed, coarse_moving, motion, settings, points, parameters)
        if basis is None:  # the coarsest level's serves all
            basis = objective.basis() if settings.scaled else torch.eye(len(parameters), dtype=torch.float64)
            basis *= (len(basis) ** 0.5 / basis.norm()) * voxel(fixed.to_world)
        parameters = maximise(objective, parameters, basis, settings.iterations, partial(watch, number))
        seconds, start = perf_counter() - start, perf_counter()
        levels.append(Level(factor, len(objective.points), objective.evaluations, objective.best, seconds))
    return Registration(motion.matrix(parameters), levels)


def maximise(
    objective: Objective, parameters: Tensor, basis: Tensor, iterations: int, watch: Callable[[float], None]
) -> Tensor:
    """The parameters near these for which the objective is most, found along the columns of a basis."""
    steps = torch.zeros(len(parameters), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [steps],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=1e-3,
        tolerance_change=1e-4,
        history_size=len(parameters),
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        value = objective(parameters + basis @ steps)
        loss = -SCALE * value
        loss.backward()
        watch(value.item())
        return loss

    optimizer.step(evaluate)
    return (parameters + basis @ steps).detach()


class Objective:
    """The measure of a level as a function of the motion's parameters.

    Args:
        points: of the fixed volume, in voxels of this level.
        parameters: about right. What they bring outside of the moving volume is left out, whatever the
            parameters are later: points that come and go would make steps in what is to be climbed.

    Attributes:
        points: those that were kept.
        evaluations: how often it was asked.
        best: the most that it found.
    """

    def __init__(
        self,
        fixed: Volume,
        moving: Volume,
        motion: Motion,
        settings: Settings,
        points: Tensor,
        parameters: Tensor,
    ) -> None:
        self.fixed, self.moving, self.motion = fixed, moving, motion
        self.from_world = invert(moving.to_world)
        self.dtype = fixed.values.dtype
        points = points.to(self.dtype)
        inside = points[within(move(points, self.matrix(parameters)), moving.values.shape)]
        if len(inside) < max(PARTS, OVERLAP * len(points)):
            raise ValueError(
                f"moving must overlap at least {OVERLAP:.0%} of fixed, got {len(inside) / len(points):.1%}"
            )
        self.points = inside[: len(inside) // PARTS * PARTS]
        self.values = sample(fixed.values, self.points)
        self.keywords: dict[str, Any] = {
            "bins": settings.bins,
            "range": (window(fixed.values), window(moving.values)),
            "kernel": settings.kernel,
        }
        self.measure = settings.measure
        self.evaluations, self.best = 0, -1.0

    def __call__(self, parameters: Tensor) -> Tensor:
        values = sample(self.moving.values, move(self.points, self.matrix(parameters)))
        joint = joint_histogram(self.values[None, None], values[None, None], **self.keywords)[0, 0]
        value = mutual_information(joint.double(), mode=self.measure)
        self.evaluations += 1
        self.best = max(self.best, value.item())
        return value

    def matrix(self, parameters: Tensor) -> Tensor:
        """From voxels of the fixed volume to voxels of the moving one."""
        matrix = self.motion.matrix(parameters)
        return compose(self.from_world, compose(matrix, self.fixed.to_world)).to(self.dtype)

    def basis(self) -> Tensor:
        """Directions of parameters, as columns, along which a step changes the image about equally.

        As in Gauss-Newton: with J the derivative of the fixed image at the points, as the parameters move it,
        and J'J = LL', they are the columns of the inverse of L'. Both images have their edges in one place.
        """
        slopes = torch.stack(torch.gradient(self.fixed.values), dim=3)
        slopes = torch.stack([sample(slopes[..., axis], self.points) for axis in range(3)], dim=1).double()
        turned = slopes @ invert(self.fixed.to_world)[:, :3]  # per unit of the world
        world = move(self.points.double(), self.fixed.to_world)
        jacobian = self.motion.jacobian(world, turned)
        normal = jacobian.T @ jacobian / len(jacobian)
        normal += 1e-3 * normal.diagonal().mean() * torch.eye(len(normal), dtype=torch.float64)
        return torch.linalg.inv(torch.linalg.cholesky(normal)).T.contiguous()


class Motion:
    """Parameters of a transform, all in units of the world: how far they move what is far from the centre.

    Rigid: a rotation vector about the fixed volume's centre, then a translation. Affine: the rows of a matrix
    beyond the identity, then a translation.
    """

    def __init__(self, fixed: Volume, moving: Volume, transform: str) -> None:
        self.transform = transform
        self.centre, self.target = centre(fixed), centre(moving)
        sides = fixed.to_world[:, :3].norm(dim=0) * torch.tensor(fixed.values.shape)
        self.radius = (sides.square().sum() / 12).sqrt().item()  # of a box, its root mean square
        self.zero = torch.zeros(TRANSFORMS[transform], dtype=torch.float64)

    def matrix(self, parameters: Tensor) -> Tensor:
        linear, shift = parameters[:-3] / self.radius, parameters[-3:]
        if self.transform == "rigid":
            linear = rotation(linear)
        else:
            linear = torch.eye(3, dtype=linear.dtype) + linear.view(3, 3)
        return torch.cat([linear, (self.target + shift - linear @ self.centre)[:, None]], dim=1)

    def jacobian(self, points: Tensor, slopes: Tensor) -> Tensor:
        """How an image with these slopes (N, 3) at points (N, 3) changes with the parameters at 0."""
        arms = (points - self.centre) / self.radius
        if self.transform == "rigid":
            turns = torch.linalg.cross(arms, slopes)
        else:
            turns = (slopes[:, :, None] * arms[:, None, :]).flatten(1)
        return torch.cat([turns, slopes], dim=1)


def rotation(vector: Tensor) -> Tensor:
    """The rotation about a vector by its length in radians: the exponential of its cross product."""
    a, b, c = vector
    zero = torch.zeros_like(a)
    return torch.linalg.matrix_exp(torch.stack([zero, -c, b, c, zero, -a, -b, a, zero]).view(3, 3))


def move(points: Tensor, matrix: Tensor) -> Tensor:
    """Points (N, 3) through a transform."""
    return torch.addmm(matrix[:, 3], points, matrix[:, :3].T)


def compose(after: Tensor, before: Tensor) -> Tensor:
    linear = after[:, :3] @ before
    return torch.cat([linear[:, :3], linear[:, 3:] + after[:, 3:]], dim=1)


def invert(matrix: Tensor) -> Tensor:
    linear = torch.linalg.inv(matrix[:, :3])
    return torch.cat([linear, -linear @ matrix[:, 3:]], dim=1)


def identity() -> Tensor:
    return torch.eye(3, 4, dtype=torch.float64)


def centre(volume: Volume) -> Tensor:
    middle = (torch.tensor(volume.values.shape, dtype=torch.float64) - 1) / 2
    return move(middle[None], volume.to_world)[0]


def centred(fixed: Volume, moving: Volume) -> Tensor:
    """The shift that brings the centres of both volumes together."""
    return torch.cat([identity()[:, :3], (centre(moving) - centre(fixed))[:, None]], dim=1)


def voxel(to_world: Tensor) -> float:
    """The side of a voxel, of one as large and with equal sides."""
    return torch.linalg.det(to_world[:, :3]).abs().item() ** (1 / 3)


def sample(values: Tensor, points: Tensor) -> Tensor:
    """Trilinear values (N,) of a volume (D, H, W) at points (N, 3) in voxels; outside, those of its faces."""
    last = points.new_tensor([side - 1 for side in values.shape]).clamp(min=1)
    grid = (points * (2 / last) - 1).flip(1)
    parts = PARTS if len(points) % PARTS == 0 else 1
    volumes = values[None, None].expand(parts, -1, -1, -1, -1)
    grid = grid.view(parts, 1, 1, -1, 3)
    return F.grid_sample(volumes, grid, padding_mode="border", align_corners=True).view(-1)


def within(points: Tensor, shape: Sequence[int]) -> Tensor:
    """Which of the points (N, 3) are in voxels of a volume of this shape."""
    return ((points >= -0.5) & (points <= points.new_tensor(shape) - 0.5)).all(1)


def resample(moving: Volume, fixed: Volume, matrix: Tensor) -> Tensor:
    """The moving volume on the grid of the fixed one (D, H, W); 0 where there is nothing of it."""
    whole = compose(invert(moving.to_world), compose(matrix, fixed.to_world)).float()
    depth, *plane = fixed.values.shape
    slices = []
    for z in range(depth):
        points = grid_points((1, *plane)) + torch.tensor([z, 0.0, 0.0])
        points = move(points, whole)
        slices.append(sample(moving.values, points) * within(points, moving.values.shape))
    return torch.stack(slices).view(depth, *plane)


def grid_points(shape: Sequence[int]) -> Tensor:
    """Coordinates (N, 3) of all voxels."""
    return torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in shape))


def draw_points(shape: Sequence[int], fraction: float, random: torch.Generator) -> Tensor:
    """About a fraction of a volume's points (N, 3): one anywhere in each of many boxes.

    They are off the grid: on it, interpolation would sharpen the image at every whole shift.
    """
    boxes = [max(1, round(side * fraction ** (1 / 3))) for side in shape]
    points = grid_points(boxes)
    sides = [(side - 1) / count for side, count in zip(shape, boxes, strict=True)]
    return (points + torch.rand(points.shape, generator=random)) * torch.tensor(sides)


def pyramid(fixed: Volume, moving: Volume) -> Iterator[tuple[int, Volume, Volume]]:
    """Factors and volumes that are coarser by them, the coarsest first."""
    fixed, moving = (Volume(clamped(v.values), v.to_world) for v in (fixed, moving))
    least = min(chain(fixed.values.shape, moving.values.shape))
    factors = [1]
    while least // (2 * factors[-1]) >= COARSEST:
        factors.append(2 * factors[-1])
    for factor in reversed(factors):
        yield factor, shrink(fixed, factor), shrink(moving, factor)


def shrink(volume: Volume, factor: int) -> Volume:
    """Means of factor^3 voxels each, as a volume at the same place in the world."""
    if factor == 1:
        return volume
    values = F.avg_pool3d(volume.values[None, None], factor)[0, 0]
    first = torch.full((3, 1), (factor - 1) / 2, dtype=torch.float64)
    own = torch.cat([factor * torch.eye(3, dtype=torch.float64), first], dim=1)
    return Volume(values, compose(volume.to_world, own))


def clamped(values: Tensor) -> Tensor:
    """Without the few darkest and brightest voxels, which would leave the bins to nothing."""
    low, high = common_range(values)
    return values.clamp(low, high)


def common_range(values: Tensor) -> tuple[float, float]:
    """Between which nearly all values are, of some 100,000 voxels; all, if these are alike."""
    some = values.flatten()[:: max(1, values.numel() // 100_000)]
    low, high = some.quantile(some.new_tensor(WINDOW)).tolist()
    return (low, high) if low < high else window(values)


def window(values: Tensor) -> tuple[float, float]:
    low, high = values.aminmax()
    return low.item(), high.item()


def distances(points: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """How far apart two transforms bring each of the points (N, 3)."""
    return (move(points, first) - move(points, second)).norm(dim=1)
