"""Contrast (WCAG 2.1) and OKLab distance of colours, also as colour-blind people see them (Machado et al. 2009)."""

from __future__ import annotations

import numpy as np

VISION = {
    "trichromat": np.eye(3),
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanope": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
LIGHT_PAGE, DARK_PAGE = "#ffffff", "#0d1117"

_TO_LMS = np.array([[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]])
_TO_LAB = np.array([[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]])


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    luminances = sorted(float(linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, other))
    return (luminances[1] + 0.05) / (luminances[0] + 0.05)


def distances(colors: tuple[str, ...], vision: str) -> np.ndarray:
    """OKLab distances of all pairs."""
    seen = np.stack([linear(color) for color in colors]) @ np.array(VISION[vision]).T
    lab = np.cbrt(seen.clip(0, 1) @ _TO_LMS.T) @ _TO_LAB.T
    first, second = np.triu_indices(len(colors), 1)
    return np.linalg.norm(lab[first] - lab[second], axis=1)
