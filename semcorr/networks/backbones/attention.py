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


class _Caught(Exception):
    """The input of a layer, which ends the pass that was run for it."""


def attention_input(block: Any, tokens: Tensor, **extra: Tensor) -> Tensor:
    """What a block's attention takes, whatever the block does before it."""

    def catch(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        raise _Caught(given[0])

    hook = block.attn.register_forward_pre_hook(catch)
    try:
        block(tokens, **extra)
    except _Caught as caught:
        return caught.args[0]
    finally:
        hook.remove()
    raise AssertionError("the block did not call its attention")


def projected(attention: Any, tokens: Tensor, facet: str) -> Tensor:
    """One facet (B, N, C) of an attention layer with input (B, N, C), before any norm or rotation of its own."""
    index = FACETS.index(facet)
    if getattr(attention, "qkv", None) is None:
        return getattr(attention, f"{'qkv'[index]}_proj")(tokens)
    if getattr(attention, "q_bias", None) is None:
        return attention.qkv(tokens).chunk(3, dim=-1)[index]
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return nn.functional.linear(tokens, attention.qkv.weight, bias).chunk(3, dim=-1)[index]
