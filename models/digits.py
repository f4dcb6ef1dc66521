"""Handwritten digits, seen through four views: 1797 scans of 8 x 8 pixels.

The views: the pixels; the ink along rows, columns and both diagonals; the magnitudes of the Fourier transform, which do
not change where a digit is shifted round; and the directions of the strokes in each quarter of the scan.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from models._training import MultiViewNet, Progress, Split, Views, accuracy, as_tensors, fit, predict, seeded, split

__all__ = ["DigitsNet", "accuracy", "build", "example_inputs", "load", "predict", "train", "views"]

STRATEGY = "low_rank_concatenation"
DIMS = (64, 42, 40, 32)


class DigitsNet(MultiViewNet):
    """Four views → ten logits. `options` are the strategy's own, as for `fusion_onnx.create`."""

    def __init__(self, strategy: str = STRATEGY, *, width: int | None = 32, **options: Any) -> None:
        super().__init__(strategy, DIMS, classes=10, width=width, **options)

    def forward(self, pixels: Tensor, profiles: Tensor, fourier: Tensor, zones: Tensor) -> Tensor:
        """Return the logits (N, 10) of the views (N, 64), (N, 42), (N, 40), (N, 32)."""
        return self.classify(pixels, profiles, fourier, zones)


def views(images: NDArray[Any]) -> Views:
    """Return pixels (N, 64), profiles (N, 42), fourier (N, 40), zones (N, 32) of images (N, 8, 8), values 0 to 16."""
    if images.ndim != 3 or images.shape[1:] != (8, 8):
        raise ValueError(f"digits are images (N, 8, 8); got shape {images.shape}. One image: image[None].")
    ink = images / 16.0
    flat = (ink, _profiles(ink), np.abs(np.fft.rfft2(ink)) / 8, _zones(ink))
    return tuple(view.reshape(len(images), d).astype(np.float32) for view, d in zip(flat, DIMS, strict=True))


def _profiles(ink: NDArray[Any]) -> NDArray[Any]:
    """Return the mean ink of 8 rows, 8 columns, 13 diagonals and 13 antidiagonals (the corner pixels aside)."""
    diagonals = [np.trace(side, o, 1, 2) / 8 for side in (ink, ink[:, :, ::-1]) for o in range(-6, 7)]
    return np.concatenate([ink.mean(2), ink.mean(1), np.stack(diagonals, 1)], 1)


def _zones(ink: NDArray[Any]) -> NDArray[Any]:
    """Return, for each of 8 directions and each quarter, the ink's slope in that direction (Dalal and Triggs, 2005)."""
    down, across = np.gradient(ink, axis=(1, 2))
    direction = np.round(np.arctan2(down, across) / (np.pi / 4)) % 8
    slopes = np.where(direction[:, None] == np.arange(8)[:, None, None], np.hypot(down, across)[:, None], 0)
    zones: NDArray[Any] = slopes.reshape(-1, 8, 2, 4, 2, 4).sum((3, 5))
    return zones


def load() -> Split:
    """Return the views and labels of 1347 digits to train on and 450 held out."""
    digits = load_digits()
    return split(digits.images, digits.target, views)


def example_inputs(count: int = 5) -> tuple[Tensor, ...]:
    """Return the first held-out digits, a tensor (count, d_i) for each view."""
    return as_tensors([view[:count] for view in load().test.views])


def build(strategy: str = STRATEGY, *, seed: int = 0, **options: Any) -> DigitsNet:
    """Return the network before training, its weights drawn from `seed`; `options` as for `DigitsNet`."""
    with seeded(seed):
        return DigitsNet(strategy, **options)


def train(
    strategy: str = STRATEGY, *, seed: int = 0, epochs: int = 40, progress: Progress | None = None, **options: Any
) -> DigitsNet:
    """Return the trained network, in eval mode; `progress(epoch, epochs)` is called as it goes."""
    network = build(strategy, seed=seed, **options)
    return fit(network, load().train, epochs=epochs, seed=seed, progress=progress)
