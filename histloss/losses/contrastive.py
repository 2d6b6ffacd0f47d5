"""Contrastive losses: what belongs together is to look alike, and nothing else.

The arithmetic is float32, or float64 for float64 features, under autocast too. A NaN feature makes the loss
NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checks
from ..reference import matmul
from .common import show


class PatchNCELoss(nn.Module):
    r"""Patches of an output know the source's patches at their own places among those at other places.

    At S random places of a layer, the same in queries and keys and for all images of a batch, with z the
    features there behind the layer's head and divided by their norm,

    .. math:: \mathcal{L} = \operatorname{mean}_{layer} \operatorname{mean}_{b, s} -\log
              \frac{\exp(z^{query}_{b, s} \cdot z^{key}_{b, s} / \tau)}
                   {\sum_{s'} \exp(z^{query}_{b, s} \cdot z^{key}_{b, s'} / \tau)}

    in nats: Park et al., "Contrastive Learning for Unpaired Image-to-Image Translation" (CUT), ECCV 2020,
    Eq. 2 and 3, which sums over layers and places where this is a mean. The negatives are of the same image.
    Keys have no gradient, and the heads have none through them.

    The same loss serves the source (queries of the output, keys of the source) and, as the identity loss, the
    style image (queries of the output for a style image, keys of that image). With heads it has parameters,
    which learn with the generator's.

    Args:
        channels: of each layer's features, at least one layer.
        patches: S, at least 2; all places of a layer that has no more. They are drawn from PyTorch's global
            generator of the features' device.
        dim: of the heads' outputs.
        temperature: :math:`\tau`, positive and finite.
        heads: a head Linear, ReLU, Linear per layer; without, z are the features themselves.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    def __init__(
        self,
        channels: Sequence[int],
        patches: int = 256,
        dim: int = 256,
        temperature: float = 0.07,
        *,
        heads: bool = True,
    ) -> None:
        super().__init__()
        self.channels = checks.check_channels(channels)
        self.patches = checks.check_count("patches", patches, 2)
        self.dim = checks.check_count("dim", dim, 1)
        self.temperature = checks.check_positive("temperature", temperature)
        checks.check_bool("heads", heads)
        self.heads = nn.ModuleList(_Head(c, self.dim) for c in self.channels) if heads else None

    def forward(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
        r"""The loss of the features of an output with respect to those of its source.

        Args:
            queries: features of the output, a tensor (B, C, \*spatial) per layer with at least 2 places,
                float16, bfloat16, float32 or float64, on the device of the heads.
            keys: features of the source by the same encoder, same shapes and device.

        Returns:
            A scalar of at least 0, float32 or float64. Where z is 0 before the division it has no direction:
            its products are 0, and so is its gradient.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        device = None if self.heads is None else next(self.heads.parameters()).device
        checks.check_features(queries, keys, self.channels, device)
        layers = [self._layer(i, *pair) for i, pair in enumerate(zip(queries, keys, strict=True))]
        return torch.stack(layers).mean()

    def _layer(self, layer: int, query: Tensor, key: Tensor) -> Tensor:
        places = torch.randperm(math.prod(query.shape[2:]), device=query.device)[: self.patches]
        dtype = checks.accumulation_dtype(torch.promote_types(query.dtype, key.dtype))
        zq = self._directions(layer, query.flatten(2)[..., places].mT.to(dtype))
        with torch.no_grad():
            zk = self._directions(layer, key.flatten(2)[..., places].mT.to(dtype))
        zk = zk.detach()  # from tangents too, which no_grad lets through
        logits = matmul(zq, zk.mT) / self.temperature  # (B, S, S), with the positives on the diagonal
        return (logits.logsumexp(-1) - logits.diagonal(dim1=-2, dim2=-1)).mean()

    def _directions(self, layer: int, features: Tensor) -> Tensor:
        z: Tensor = features if self.heads is None else self.heads[layer](features)
        norm: Tensor = z.norm(dim=-1, keepdim=True)
        return z / norm.masked_fill(norm == 0, math.inf)

    def extra_repr(self) -> str:
        """The arguments."""
        return show(
            channels=self.channels,
            patches=self.patches,
            dim=self.dim,
            temperature=self.temperature,
            heads=self.heads is not None,
        )


class _Head(nn.Module):
    """Linear, ReLU, Linear, in the arithmetic of the features, whatever the parameters are kept in."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(channels, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return _linear(F.relu(_linear(x, self.first)), self.second)


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return matmul(x, layer.weight.mT.to(x.dtype)) + layer.bias.to(x.dtype)
