"""Differentiable histograms and joint histograms for PyTorch, and the losses made of them."""

from . import color, distributed, reference
from .accumulate import HistogramAccumulator
from .functional import activation_maps, emd, joint_histogram, mutual_information, soft_histogram
from .losses import (
    AdversarialLoss,
    ColorBins,
    ColorPrior,
    ColorVarianceLoss,
    DCGANLoss,
    DeepHistLoss,
    EBGANLoss,
    EMDHistLoss,
    GANLoss,
    LSGANLoss,
    MIHistLoss,
    PatchNCELoss,
    RebalancedColorLoss,
    TotalVariationLoss,
    WGANLoss,
)
from .native import backend_info

__version__ = "0.1.0"

__all__ = [
    "AdversarialLoss",
    "ColorBins",
    "ColorPrior",
    "ColorVarianceLoss",
    "DCGANLoss",
    "DeepHistLoss",
    "EBGANLoss",
    "EMDHistLoss",
    "GANLoss",
    "HistogramAccumulator",
    "LSGANLoss",
    "MIHistLoss",
    "PatchNCELoss",
    "RebalancedColorLoss",
    "TotalVariationLoss",
    "WGANLoss",
    "activation_maps",
    "backend_info",
    "color",
    "distributed",
    "emd",
    "joint_histogram",
    "mutual_information",
    "reference",
    "soft_histogram",
]
