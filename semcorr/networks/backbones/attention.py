"""Queries, keys and values of timm's attention layers."""

from typing import Any

import torch
from torch import Tensor, nn

FACETS = ("query", "key", "value")


def has_projections(attention: Any) -> bool:
    """Whether a layer computes queries, keys and values of its input's width, in one linear layer or in three."""
    qkv = getattr(attention, "qkv", None)
    if isinstance(qkv, nn.Linear):
        return qkv.out_features == 3 * qkv.in_features
    parts = [getattr(attention, f"{letter}_proj", None) for letter in "qkv"]
    return all(isinstance(part, nn.Linear) and part.in_features == part.out_features for part in parts)


def projected(attention: Any, tokens: Tensor, facet: str) -> Tensor:
    """One facet (B, N, C) of an attention layer with input (B, N, C), before any norm or rotation of its own."""
    index = FACETS.index(facet)
    if getattr(attention, "qkv", None) is None:
        return getattr(attention, f"{'qkv'[index]}_proj")(tokens)
    if getattr(attention, "q_bias", None) is None:
        return attention.qkv(tokens).chunk(3, dim=-1)[index]
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return nn.functional.linear(tokens, attention.qkv.weight, bias).chunk(3, dim=-1)[index]
