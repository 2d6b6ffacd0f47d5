"""The losses, one file a family."""

from .histogram import DeepHistLoss, DeepHistTerms, EMDHistLoss, MIHistLoss

__all__ = ["DeepHistLoss", "DeepHistTerms", "EMDHistLoss", "MIHistLoss"]
