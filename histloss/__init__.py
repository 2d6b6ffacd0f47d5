"""Differentiable histograms and joint histograms for PyTorch, and the losses made of them."""

from . import color, reference
from .functional import activation_maps, emd, joint_histogram, mutual_information, soft_histogram
from .losses import DeepHistLoss, EMDHistLoss, MIHistLoss
from .native import backend_info

__version__ = "0.1.0"

__all__ = [
    "DeepHistLoss",
    "EMDHistLoss",
    "MIHistLoss",
    "activation_maps",
    "backend_info",
    "color",
    "emd",
    "joint_histogram",
    "mutual_information",
    "reference",
    "soft_histogram",
]
