"""Volumes from files and back: NumPy's .npy, and what SimpleITK reads where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.registration import Volume, identity


def read_volume(path: Path) -> Volume:
    """A volume of one channel. That of a .npy file has voxels of side 1, the first at 0.

    Raises:
        ValueError: the file cannot be read, or is no volume of finite numbers.
    """
    try:
        if path.suffix == ".npy":
            values, to_world = np.load(path), identity()
        else:
            image = _simpleitk(path).ReadImage(str(path))
            if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
                raise ValueError(
                    f"it must have 3 dimensions and one channel, got {image.GetDimension()} dimensions and "
                    f"{image.GetNumberOfComponentsPerPixel()} channels"
                )
            values, to_world = _simpleitk(path).GetArrayFromImage(image), world_of(image)
        if values.ndim != 3 or min(values.shape) < 2:
            raise ValueError(f"it must have shape (D, H, W), each at least 2, got {values.shape}")
        if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
            raise ValueError(f"it must hold finite real numbers, got {values.dtype}")
    except (OSError, ValueError, RuntimeError, EOFError) as error:  # SimpleITK's are RuntimeErrors
        raise ValueError(f"cannot read {str(path)!r} as a volume: {str(error).strip()}") from error
    return Volume(torch.from_numpy(values.astype(np.float32)), to_world)


def write_results(folder: Path, resampled: Tensor, matrix: Tensor, like: Path) -> list[Path]:
    """The moving volume on the grid of the fixed one, which is at `like`, and the transform.

    Beside a .npy: resampled.npy. Beside another file: resampled.nii.gz, and transform.tfm for SimpleITK and
    other tools of ITK.
    """
    if like.suffix == ".npy":
        np.save(folder / "resampled.npy", resampled.numpy())
        return [folder / "resampled.npy"]
    sitk = _simpleitk(like)
    image = sitk.GetImageFromArray(resampled.numpy())
    image.CopyInformation(sitk.ReadImage(str(like)))
    transform = sitk.AffineTransform(3)
    linear, shift = matrix[:, :3].flip(0, 1), matrix[:, 3].flip(0)
    transform.SetMatrix(linear.flatten().tolist())
    transform.SetTranslation(shift.tolist())
    sitk.WriteImage(image, str(folder / "resampled.nii.gz"))
    sitk.WriteTransform(transform, str(folder / "transform.tfm"))
    return [folder / "resampled.nii.gz", folder / "transform.tfm"]


def world_of(image: Any) -> Tensor:
    """From voxels (depth, height, width) of SimpleITK's image to its world, in the same order: z, y, x."""
    direction = torch.tensor(image.GetDirection(), dtype=torch.float64).view(3, 3)
    linear = direction * torch.tensor(image.GetSpacing(), dtype=torch.float64)
    origin = torch.tensor(image.GetOrigin(), dtype=torch.float64)
    return torch.cat([linear.flip(0, 1), origin.flip(0)[:, None]], dim=1)


def _simpleitk(path: Path) -> Any:
    if find_spec("SimpleITK") is None:
        raise ValueError(f"files of type {path.suffix!r} need the package SimpleITK; .npy does not")
    import SimpleITK

    return SimpleITK
