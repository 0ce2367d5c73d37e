"""What launches ask of a device: which column of the tables of tiles it is, and how much runs on it at once."""

from __future__ import annotations

import torch


def target_of(device: torch.device) -> str:
    """The column of a table of tiles for a device."""
    if device.type != "cuda":
        return "sm_90"
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def processors(device: torch.device) -> int:
    """Streaming multiprocessors; the interpreter pretends to have four, so that work is split."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
