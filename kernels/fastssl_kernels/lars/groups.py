"""Which parameters a recipe leaves out of trust ratio and weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

POLICIES = ("bias_and_norm", "none")


def exclude_from_adaptation(
    module: nn.Module, policy: str = "bias_and_norm", *, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Parameter groups of `module` for `LARS` (or, ignoring `adapt`, for any torch optimizer).

    `"bias_and_norm"` (SimCLR, BYOL, NNCLR, RELIC): biases and normalisation parameters, that is every parameter of at
    most one dimension, get neither trust ratio nor weight decay. `"none"` (SwAV): every parameter gets both.
    Parameters that do not require gradients are left out, shared ones appear once, empty groups are dropped.

    Args:
        module: the network to be optimised.
        policy: one of the two above.
        weight_decay: of the adapted parameters; None leaves the optimizer's own.

    Raises:
        ValueError: unknown policy, or no parameter that requires gradients.
        TypeError: `module` is not a module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"module {type(module).__name__} has no parameter that requires gradients")
    adapted = [p for p in parameters if policy == "none" or p.ndim > 1]
    excluded = [p for p in parameters if policy != "none" and p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": adapted, "adapt": True},
        {"params": excluded, "adapt": False, "weight_decay": 0.0},
    ]
    if weight_decay is not None:
        groups[0]["weight_decay"] = weight_decay
    return [group for group in groups if group["params"]]
