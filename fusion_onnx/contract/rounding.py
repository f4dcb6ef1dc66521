"""The standard model of floating-point arithmetic, from which the strategies' error bounds are made.

fl(a ∘ b) = (a ∘ b)(1 + δ) + ε with |δ| ≤ u and |ε| ≤ η/2, ε = 0 for sums (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, chapters 2 and 3). n roundings in a row lose at most a share γ(n) = n u / (1 - n u).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arithmetic:
    """What is computed in: `dtype` is the type of every intermediate result."""

    dtype: torch.dtype

    @property
    def u(self) -> float:
        """The unit roundoff: half the machine epsilon."""
        return torch.finfo(self.dtype).eps / 2

    @property
    def eta(self) -> float:
        """The smallest positive subnormal number."""
        return torch.finfo(self.dtype).smallest_normal * torch.finfo(self.dtype).eps

    def gamma(self, n: int) -> float:
        """Return γ(n), what n roundings lose at most, as a share of the sum of the terms' sizes.

        Infinite from n u = 1 on. No bound of order √n takes its place: the terms of a sum may all round one way, as
        those of 4,096 equal ones do.
        """
        return n * self.u / (1 - n * self.u) if n * self.u < 1 else torch.inf

    def may_overflow(self, y: Tensor, e: Tensor) -> Tensor:
        """Return where a result within e of y, both in float64, may or may not be rounded to infinity."""
        info = torch.finfo(self.dtype)
        # half an ulp beyond the largest, 2^E (1 - u); float64 itself cannot hold that
        limit = info.max if self.dtype == torch.float64 else info.max / (1 - self.u) * (1 - self.u / 2)
        return (y.abs() - e < limit) & (y.abs() + e >= limit)

    def chain(
        self,
        fuse: Callable[..., Tensor],
        xs: Sequence[Tensor],
        tensors: Sequence[Tensor],
        stages: Sequence[tuple[int, Tensor]],
        further: int = 0,
    ) -> Tensor:
        """Bound what y = F_m (... (F_1 x)) loses where each factor is applied by inner products of any order.

        With M = |F_m| ... |F_1| |x|, the share of M that is lost is γ(Σ K_i + `further`); what underflows in stage i,
        K_i η, grows with the largest row sums of the factors after it. Infinite where a partial sum may overflow,
        for there the order decides what comes out.

        Args:
            fuse: the strategy's maths; M is its result for the sizes of all values.
            xs, tensors: the inputs, and what else `fuse` takes, in float64.
            stages: the length K_i of the inner products and the factor F_i (rows are outputs), in order.
            further: how many roundings each factor's own making takes.
        """
        sizes = [x.abs() for x in xs], [t.abs() for t in tensors]
        magnitude = fuse(sizes[0], *sizes[1])
        share = self.gamma(sum(length for length, _ in stages) + further)
        growth, underflow = 1.0, 0.0
        for length, factor in reversed(stages):
            underflow += growth * length * self.eta
            growth *= max(float(factor.abs().sum(-1).max()), 1.0)
        if further:  # a factor's entries may underflow too, and meet all of x
            largest = max(float(x.sum(-1).max()) if x.numel() else 0.0 for x in sizes[0])
            underflow += growth * further * self.eta * len(xs) * largest
        if further and any(not (2 * factor).to(self.dtype).isfinite().all() for _, factor in stages):
            return torch.full_like(magnitude, torch.inf)  # a factor that is made overflows in the making
        twice = fuse([(2 * x).to(self.dtype) for x in sizes[0]], *(t.to(self.dtype) for t in sizes[1]))
        return torch.where(twice.isfinite(), share * magnitude + underflow, torch.inf)
