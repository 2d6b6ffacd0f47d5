"""The losses, one file a family."""

from .adversarial import AdversarialLoss, DCGANLoss, EBGANLoss, GANLoss, GANTerms, LSGANLoss, WGANLoss
from .color_classes import ColorBins, ColorPrior, RebalancedColorLoss
from .contrastive import PatchNCELoss
from .histogram import DeepHistLoss, DeepHistTerms, EMDHistLoss, MIHistLoss
from .regularization import ColorVarianceLoss, TotalVariationLoss

__all__ = [
    "AdversarialLoss",
    "ColorBins",
    "ColorPrior",
    "ColorVarianceLoss",
    "DCGANLoss",
    "DeepHistLoss",
    "DeepHistTerms",
    "EBGANLoss",
    "EMDHistLoss",
    "GANLoss",
    "GANTerms",
    "LSGANLoss",
    "MIHistLoss",
    "PatchNCELoss",
    "RebalancedColorLoss",
    "TotalVariationLoss",
    "WGANLoss",
]
