"""What the Kronecker concatenations share: y = x Wᵀ with W = L ⊗ R, L (p, q) and R (s, t), and tinyBIG's outer form.

With x (..., D) read as X (..., q, t), row-major, y is Y = L X Rᵀ (..., p, s), row-major (Van Loan, The ubiquitous
Kronecker product, 2000). L and R may be products themselves: their factors are applied one by one, in an order that
keeps the intermediate results small. W is never formed.

`product="outer"` is what tinyBIG's code computes instead: W is vec(L) vec(R)ᵀ (pq, st), reshaped to (n, D). Row i of W
then is a run of D entries in the sequence vec(L)_1 vec(R), vec(L)_2 vec(R), ..., so that
 1. where s divides q, with c = q / s, a row is c whole copies of vec(R): y = Z A'ᵀ, Z (..., c) the products of x's c
    pieces with vec(R), and A' = vec(L) as (n, c);
 2. where q divides s, with c = s / q, a copy of vec(R) fills c rows: y = vec(L) ⊗ z, z = x B'ᵀ, B' = vec(R) as (c, D);
 3. elsewhere copies and rows do not meet, and W is formed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fusion_onnx.contract import Arithmetic, Array, FusionError, form
from fusion_onnx.fusions._projection import (
    ProjectionFusion,
    concatenate,
    concatenate_decomposition,
    divides,
    matrices,
    matrices_decomposition,
    positive,
    transpose,
)

Shapes = list[tuple[int, int]]


class KroneckerBase(ProjectionFusion):
    """Sizes and options: p divides n, q divides D, s = n / p, t = D / q."""

    tinybig_defaults = {"product": "outer"}
    bench_options = {"p": 32, "q": 32}

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        *,
        n: int | None = None,
        p: int = 2,
        q: int | None = None,
        product: str = "kronecker",
        **base: Any,
    ) -> None:
        super().__init__(dims, n=n, **base)
        self.p = positive("p", p)
        self.q = self.p if q is None else positive("q", q)
        self.s = divides("p", self.p, "n", self.n)
        self.t = divides("q", self.q, "D", self.total)
        if product not in ("kronecker", "outer"):
            raise FusionError(f"product is 'kronecker', or 'outer' for weights from tinyBIG; got {product!r}.")
        self.product = product

    def factor_shapes(self) -> tuple[Shapes, Shapes]:
        """Return the shapes of the factors of L and of R, in the order w holds them."""
        raise NotImplementedError

    def fuse(self, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        assert w is not None
        left_shapes, right_shapes = self.factor_shapes()
        factors = matrices(w, *left_shapes, *right_shapes)
        left, right = factors[: len(left_shapes)], factors[len(left_shapes) :]
        if self.product == "outer":
            return self._outer(concatenate(xs), _product(left), _product(right))
        z: Tensor = concatenate(xs).unflatten(-1, (self.q, self.t))
        for side, i in self._order(left_shapes, right_shapes):
            z = z @ right[i].T if side == "right" else left[i] @ z
        return z.flatten(-2)

    @form("factored")
    def decompose(self, op: Any, xs: Sequence[Any], w: Any, *buffers: Any) -> Any:
        left_shapes, right_shapes = self.factor_shapes()
        factors = matrices_decomposition(op, w, *left_shapes, *right_shapes)
        left, right = factors[: len(left_shapes)], factors[len(left_shapes) :]
        if self.product == "outer":
            return self._outer_decomposition(
                op, concatenate_decomposition(op, xs), _product(left, op), _product(right, op)
            )
        lead = [0] * (op.rank - 1)  # Reshape copies an axis where it is told 0, so an empty batch passes
        x = concatenate_decomposition(op, xs)
        z, columns = op.Reshape(x, op.integers([*lead, self.q, self.t])), self.t
        for side, i in self._order(left_shapes, right_shapes):
            if side == "right":
                z, columns = op.MatMul(z, transpose(op, right[i])), right_shapes[i][0]
            else:
                z = self._left_decomposition(op, left[i], left_shapes[i], z, columns)
        return op.Reshape(z, op.integers([*lead, self.n]))

    def _left_decomposition(self, op: Any, factor: Any, shape: tuple[int, int], z: Any, columns: int) -> Any:
        """Write factor (p, q) times z (..., q, columns); not one MatMul, which ONNX Runtime refuses for an empty batch.

        Einsum transposes z and its result, MatMul wants a copy of the factor for each row of x: the smaller is taken.
        """
        (p, q), batch = shape, "abcdefghijklmno"[: op.rank - 1]
        if p * q > (p + q) * columns:
            return op.Einsum(z, factor, equation=f"{batch}qt,pq->{batch}pt")  # no "...": tract misreads it
        lead = op.rank - 1
        if not lead:
            return op.MatMul(factor, z)
        # the shape (..., 1, 1) of a value a row: one put together by Concat would be left to the CPU on CUDA, and a
        # corner of z by Slice takes longer
        row = op.Reshape(op.ConstantOfShape(op.Shape(z, end=-2)), op.integers([0] * lead + [1, 1]))
        factor = op.Reshape(factor, op.integers([1] * lead + [p, q]))  # tract wants the rank of the result
        return op.MatMul(op.Expand(factor, op.Shape(row)), z)

    def combined(self, left: Array, right: Array) -> Array:
        """Return W = L ⊗ R, or tinyBIG's reshaped outer product, for `matrix`."""
        if self.product == "kronecker":
            return np.kron(left, right)
        return np.outer(left, right).reshape(self.n, self.total)

    def matrix_decomposition(self, op: Any, w: Any, *buffers: Any) -> Any:
        """Write the same in ONNX."""
        left_shapes, right_shapes = self.factor_shapes()
        factors = matrices_decomposition(op, w, *left_shapes, *right_shapes)
        left = _product(factors[: len(left_shapes)], op)
        right = _product(factors[len(left_shapes) :], op)
        first, second = ([-1, 1], [1, -1]) if self.product == "outer" else ([self.p, 1, self.q, 1], [self.s, 1, self.t])
        blocks = op.Mul(op.Reshape(left, op.integers(first)), op.Reshape(right, op.integers(second)))
        return op.Reshape(blocks, op.integers([self.n, self.total]))

    def matrix_roundings(self) -> int:
        """Return the lengths of the inner products in L and in R, and one for the product of the two."""
        return 1 + sum(shape[1] for shapes in self.factor_shapes() for shape in shapes[:-1])

    def _order(self, left: Shapes, right: Shapes) -> list[tuple[str, int]]:
        """Return the cheapest order: R's narrowing factor first and its widening one last, or one side wholly first."""
        lefts = [("left", i) for i in reversed(range(len(left)))]
        rights = [("right", i) for i in reversed(range(len(right)))]
        best = rights[:1] + lefts + rights[1:]
        for order in (rights + lefts, lefts + rights):  # not min(key=...), which torch.compile cannot follow
            if self._cost(order, left, right) < self._cost(best, left, right):
                best = order
        return best

    def _cost(self, order: list[tuple[str, int]], left: Shapes, right: Shapes) -> int:
        """Return the multiplications a row takes."""
        rows, columns, cost = self.q, self.t, 0
        for side, i in order:
            if side == "right":
                cost, columns = cost + rows * columns * right[i][0], right[i][0]
            else:
                cost, rows = cost + left[i][0] * rows * columns, left[i][0]
        return cost

    def error_bound(self, arithmetic: Arithmetic, xs: Sequence[Tensor], w: Tensor | None, *buffers: Tensor) -> Tensor:
        assert w is not None
        left_shapes, right_shapes = self.factor_shapes()
        factors = matrices(w, *left_shapes, *right_shapes)
        left, right = factors[: len(left_shapes)], factors[len(left_shapes) :]
        if self.product == "kronecker":
            sides = {"left": left, "right": right}
            applied = [sides[side][i] for side, i in self._order(left_shapes, right_shapes)]
            return arithmetic.chain(self.fuse, xs, [w], [(factor.shape[1], factor) for factor in applied])
        roundings = sum(
            shape[1] for shapes in (left_shapes, right_shapes) for shape in shapes[:-1]
        )  # L and R themselves
        factor, column = _product(right), _product(left).reshape(-1, 1)
        if self.q % self.s == 0:
            c = self.q // self.s
            stages = [(self.s * self.t, factor.reshape(1, -1)), (c, column.reshape(self.n, c))]
        elif self.s % self.q == 0:
            stages = [(self.total, factor.reshape(-1, self.total)), (1, column)]
        else:
            roundings += 1
            stages = [(self.total, (column * factor.reshape(1, -1)).reshape(self.n, self.total))]
        return arithmetic.chain(self.fuse, xs, [w], stages, roundings)

    def _outer(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        if self.q % self.s == 0:
            c = self.q // self.s
            pieces: Tensor = x.unflatten(-1, (c, self.s * self.t))
            return (pieces @ right.flatten()) @ left.reshape(self.n, c).T
        if self.s % self.q == 0:
            z: Tensor = x @ right.reshape(self.s // self.q, self.total).T
            return (left.reshape(-1, 1) * z.unsqueeze(-2)).flatten(-2)
        return x @ (left.reshape(-1, 1) * right.reshape(1, -1)).reshape(self.n, self.total).T

    def _outer_decomposition(self, op: Any, x: Any, left: Any, right: Any) -> Any:
        lead = [0] * (op.rank - 1)
        if self.q % self.s == 0:
            c = self.q // self.s
            pieces = op.Reshape(x, op.integers([*lead, c, self.s * self.t]))
            column = op.Reshape(right, op.integers([self.s * self.t, 1]))
            z = op.Reshape(op.MatMul(pieces, column), op.integers([*lead, c]))
            return op.MatMul(z, transpose(op, op.Reshape(left, op.integers([self.n, c]))))
        column = op.Reshape(left, op.integers([self.p * self.q, 1]))
        if self.s % self.q == 0:
            c = self.s // self.q
            z = op.MatMul(x, transpose(op, op.Reshape(right, op.integers([c, self.total]))))
            # z is written q times, so that what is multiplied by one row of L is long
            z = op.Reshape(op.Tile(z, op.integers([1] * (op.rank - 1) + [self.q])), op.integers([*lead, 1, self.s]))
            spread = op.Expand(column, op.integers([self.p * self.q, c]))
            blocks = op.Mul(op.Reshape(spread, op.integers([self.p, self.s])), z)
            return op.Reshape(blocks, op.integers([*lead, self.n]))
        row = op.Reshape(right, op.integers([1, self.s * self.t]))
        dense = op.Reshape(op.Mul(column, row), op.integers([self.n, self.total]))
        return op.MatMul(x, transpose(op, dense))


def _product(factors: Sequence[Any], op: Any = None) -> Any:
    result = factors[0]
    for factor in factors[1:]:
        result = result @ factor if op is None else op.MatMul(result, factor)
    return result
