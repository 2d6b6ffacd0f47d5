"""Lightness and chroma: images in Lab, in the units of histloss.color."""

from __future__ import annotations

import torch
from torch import Tensor

from histloss.color import lab_to_rgb, rgb_to_lab


def split_lab(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """L (B, 1, H, W) and ab (B, 2, H, W) of an image (B, 3, H, W)."""
    lab = rgb_to_lab(rgb)
    return lab[:, :1], lab[:, 1:]


def join_lab(lightness: Tensor, ab: Tensor) -> Tensor:
    """The image (B, 3, H, W) of L and ab; what RGB has not is clamped to it."""
    return lab_to_rgb(torch.cat([lightness, ab], dim=1)).clamp(-1, 1)


def lightness(photo: Tensor) -> Tensor:
    """The greys that have the L of a photo, (3, H, W) or (B, 3, H, W)."""
    light, ab = split_lab(photo if photo.ndim == 4 else photo[None])
    return join_lab(light, torch.zeros_like(ab)).reshape(photo.shape)
