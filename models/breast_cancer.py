"""Breast tumours, benign or malignant: 569 samples of cell nuclei in three views of ten measurements each.

The views are those of the data set: over the nuclei of a sample, the mean, the standard error and the worst (the mean
of the three largest) of radius, texture, perimeter, area, smoothness, compactness, concavity, concave points, symmetry
and fractal dimension. The widths are equal: with `width=None`, every strategy acts on the views themselves.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from torch import Tensor

from models._training import MultiViewNet, Progress, Split, Views, accuracy, as_tensors, fit, predict, seeded, split

__all__ = ["BreastCancerNet", "accuracy", "build", "example_inputs", "load", "predict", "train", "views"]

STRATEGY = "low_rank_concatenation"
DIMS = (10, 10, 10)


class BreastCancerNet(MultiViewNet):
    """Three views → two logits, malignant and benign. `options` are the strategy's own, as for `fusion_onnx.create`."""

    def __init__(self, strategy: str = STRATEGY, *, width: int | None = 16, **options: Any) -> None:
        super().__init__(strategy, DIMS, classes=2, width=width, **options)

    def forward(self, mean: Tensor, error: Tensor, worst: Tensor) -> Tensor:
        """Return the logits (N, 2) of three views (N, 10)."""
        return self.classify(mean, error, worst)


def views(measurements: NDArray[Any]) -> Views:
    """Return mean, error and worst, each (N, 10), of measurements (N, 30), standardised as the training samples are."""
    if measurements.ndim != 2 or measurements.shape[1] != sum(DIMS):
        raise ValueError(f"measurements are (N, 30); got shape {measurements.shape}. One sample: sample[None].")
    centre, spread = _scale()
    return _three((measurements - centre) / spread)


def _three(measurements: NDArray[Any]) -> Views:
    return tuple(np.ascontiguousarray(view, dtype=np.float32) for view in np.split(measurements, 3, axis=1))


@functools.cache
def _scale() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the mean and standard deviation of each measurement over the training samples alone."""
    cancer = load_breast_cancer()
    train = np.concatenate(split(cancer.data, cancer.target, lambda raw: (raw,)).train.views)
    return train.mean(0), train.std(0)


def load() -> Split:
    """Return the views and labels of 426 samples to train on and 143 held out; label 0 is malignant, 1 benign."""
    cancer = load_breast_cancer()
    return split(cancer.data, cancer.target, views)


def example_inputs(count: int = 5) -> tuple[Tensor, ...]:
    """Return the first held-out samples, a tensor (count, 10) for each view."""
    return as_tensors([view[:count] for view in load().test.views])


def build(strategy: str = STRATEGY, *, seed: int = 0, **options: Any) -> BreastCancerNet:
    """Return the network before training, its weights drawn from `seed`; `options` as for `BreastCancerNet`."""
    with seeded(seed):
        return BreastCancerNet(strategy, **options)


def train(
    strategy: str = STRATEGY, *, seed: int = 0, epochs: int = 40, progress: Progress | None = None, **options: Any
) -> BreastCancerNet:
    """Return the trained network, in eval mode; `progress(epoch, epochs)` is called as it goes."""
    network = build(strategy, seed=seed, **options)
    return fit(network, load().train, epochs=epochs, seed=seed, progress=progress)
