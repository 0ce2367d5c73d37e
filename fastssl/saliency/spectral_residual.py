"""The spectral residual (Hou & Zhang, "Saliency detection: a spectral residual approach", CVPR 2007).

Natural images share the shape of their log spectrum; what sticks out of it is what is unusual:

    R(f) = log A(f) − h₃ * log A(f),        S(x) = g * | F⁻¹[ exp(R + i P) ] |²

with A and P the amplitude and phase of the gray image's Fourier transform, h₃ the 3 × 3 mean and g a Gaussian. The
image is shrunk to 64 pixels first, the scale at which the paper finds objects; σ = 2.5 pixels of it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .scale import Maps, resized, unit_range

SIDE = 64
SIGMA = 2.5
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SMALLEST = 1e-8
"""Added to amplitudes before the logarithm: a flat image has none but the mean."""


def residual_energy(gray: NDArray) -> NDArray[np.float64]:
    """|F⁻¹[exp(R + iP)]|² of gray images `[N, H, W]`, before the Gaussian; float64 of the same shape."""
    spectrum = np.fft.fft2(gray.astype(np.float64))
    amplitude = np.abs(spectrum) + _SMALLEST
    log = np.log(amplitude)
    # The spectrum is periodic: its 3 × 3 mean wraps around.
    mean = sum(np.roll(log, (dy, dx), axis=(1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
    return np.abs(np.fft.ifft2(spectrum / amplitude * np.exp(log - mean))) ** 2


def spectral_residual(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The cue: uint8 `[N, S, S, 3]` to float32 `[N, S, S]`, in 0 … 1 in each image; 0 in a flat one."""
    gray: Maps = images.astype(np.float32) @ (_LUMA / np.float32(255))
    flat = np.ptp(gray, axis=(1, 2)) == 0
    energy = residual_energy(resized(gray, (SIDE, SIDE)))
    energy[flat] = 0
    return unit_range(resized(_blurred(energy).astype(np.float32), images.shape[1:3]))


def _blurred(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    reach = round(3 * SIGMA)
    taps = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * SIGMA**2))
    taps /= taps.sum()
    padded = F.pad(torch.from_numpy(maps)[:, None], (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, taps[None, None, None]), taps[None, None, :, None])[:, 0].numpy()
