"""What the networks share: one branch a view, a fusion, a classifier; the split; the training loop."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

import fusion_onnx

Views = tuple[NDArray[np.float32], ...]
Progress = Callable[[int, int], object]
Network = TypeVar("Network", bound=nn.Module)


class Samples(NamedTuple):
    """N samples: the views, arrays (N, d_i), and the labels (N,)."""

    views: Views
    labels: NDArray[np.int64]


class Split(NamedTuple):
    """What is trained on, and what is held out."""

    train: Samples
    test: Samples


class MultiViewNet(nn.Module):
    """k views (N, d_i) → a branch each, to one width → a fusion → logits (N, classes).

    A subclass gives a `forward` whose arguments name the views: they become the names of the exported graph's inputs.

    Args:
        strategy: the name of the fusion's strategy.
        dims: the views' widths d_i.
        classes: how many logits.
        width: the branches' common output width; None for no branches, where the fusion acts on the views themselves.
        options: the strategy's own. A rank `r` that is left out is a quarter of the width: rank 2, the strategies' own
            default, is too narrow for ten classes.
    """

    def __init__(self, strategy: str, dims: Sequence[int], classes: int, width: int | None, **options: Any) -> None:
        super().__init__()
        widths = list(dims) if width is None else [width] * len(dims)
        if "r" in fusion_onnx.get(strategy).options():
            options.setdefault("r", max(1, min(widths) // 4))
        fusion = fusion_onnx.create(strategy, dims=widths, **options)
        n = fusion.calculate_n()
        self.branches = nn.ModuleList(nn.Identity() if width is None else _branch(d, width) for d in dims)
        self.fusion = fusion_onnx.FusionLayer(fusion)
        self.norm = nn.Identity() if width is None else nn.LayerNorm(n)  # sums and products differ in scale
        self.classifier = nn.Linear(n, classes)

    def classify(self, *views: Tensor) -> Tensor:
        """Return the logits (N, classes) of the views (N, d_i)."""
        fused = self.fusion([branch(view) for branch, view in zip(self.branches, views, strict=True)])
        logits: Tensor = self.classifier(self.norm(fused))
        return logits


def _branch(d: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from this seed inside the block, and leave the caller's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def split(raw: NDArray[Any], labels: NDArray[Any], views: Callable[[NDArray[Any]], Views]) -> Split:
    """Hold out a quarter of the samples, each class in proportion; the same quarter every time."""
    train_rows, test_rows = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    train, test = (Samples(views(raw[rows]), labels[rows].astype(np.int64)) for rows in (train_rows, test_rows))
    return Split(train, test)


def as_tensors(views: Sequence[NDArray[Any]]) -> tuple[Tensor, ...]:
    """Return the arrays as tensors of their own memory."""
    return tuple(torch.tensor(view) for view in views)


def fit(network: Network, samples: Samples, *, epochs: int, seed: int, progress: Progress | None = None) -> Network:
    """Train on minibatches of 128 and return the network, in eval mode; `progress(epoch, epochs)` after each epoch."""
    inputs, labels = as_tensors(samples.views), torch.tensor(samples.labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    shuffle = torch.Generator().manual_seed(seed)
    network.train()
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(labels), generator=shuffle).split(128):
            loss = functional.cross_entropy(network(*(view[batch] for view in inputs)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if progress is not None:
            progress(epoch, epochs)
    return network.eval()


def predict(network: nn.Module, views: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Return the eager network's logits (N, classes) as an array."""
    with torch.no_grad():
        logits: NDArray[np.float32] = network(*as_tensors(views)).numpy()
    return logits


def accuracy(logits: Any, labels: Any) -> float:
    """Return the share of samples whose largest logit (N, classes) is the label's (N,); arrays or detached tensors."""
    return float((np.asarray(logits).argmax(-1) == np.asarray(labels)).mean())
