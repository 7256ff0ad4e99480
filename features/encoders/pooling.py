"""States of a text's tokens → one vector: the ways in which text models are pooled."""

from __future__ import annotations

from typing import Any

POOLINGS = ("mean", "cls", "last", "max", "mean_sqrt", "weighted_mean")
"""Over the tokens of a text: their mean; the first; the last; the largest of each dimension; the
sum over the square root of their number; the mean with weights 1, 2, 3 …"""


def pool(hidden_BTD: Any, *, mask_BT: Any, how: str) -> Any:
    """float32 `[B, D]`, computed in float32; the mask is true for tokens, and each row has one."""
    import torch

    if how in ("cls", "last"):
        positions = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        if how == "cls":
            place_B = torch.where(mask_BT, positions, mask_BT.shape[1]).amin(dim=1)
        else:
            place_B = torch.where(mask_BT, positions, -1).amax(dim=1)
        rows_B = torch.arange(len(place_B), device=place_B.device)
        return hidden_BTD[rows_B, place_B].float()
    if how == "max":
        return hidden_BTD.masked_fill(~mask_BT[:, :, None], float("-inf")).amax(dim=1).float()
    weight_BT = mask_BT.float()
    if how == "weighted_mean":
        weight_BT = weight_BT * weight_BT.cumsum(dim=1)
    total_B = weight_BT.sum(dim=1)
    if how == "mean_sqrt":
        total_B = total_B.sqrt()
    sum_BD = torch.bmm(weight_BT[:, None, :], hidden_BTD.float())[:, 0]
    return sum_BD / total_B[:, None]
