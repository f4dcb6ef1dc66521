"""The contract as checks that any fusion can be run through, yours too; needs torch, and no test framework.

    >>> from fusion_onnx import testing
    >>> testing.check_fusion(MyFusion)                                  # every check at every one of MyFusion.cases

    >>> @pytest.mark.parametrize("check", testing.checks(), ids=lambda check: check.__name__)
    ... @pytest.mark.parametrize("case", MyFusion.cases, ids=repr)
    ... def test_contract(check, case):
    ...     check(MyFusion, case)

A check knows nothing of a strategy's maths but that `fuse`, `decompose` and, where there is one, `reference` are the
same. It follows from the contract and from what the class says of itself. A class with a `forward` of its own is spared
the checks of what only the base class's forward promises: that bad input is refused, that low precision is rounded
once, that one node is exported.
"""

import copy
import functools
import json
import math
import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusion_onnx import config as _config
from fusion_onnx import registry
from fusion_onnx.contract import Case, Fusion
from fusion_onnx.errors import FusionError
from fusion_onnx.layer import FusionLayer
from fusion_onnx.torch_op import DOMAIN

if TYPE_CHECKING:
    from fusion_onnx.testing.parity import assert_parity as assert_parity
    from fusion_onnx.testing.matrix import Matrix

__all__ = ["Check", "assert_parity", "check_fusion", "check_runtimes", "checks"]

Check = Callable[[type[Fusion], Case], None]
"""A check: it takes the class and a case, and raises AssertionError, naming the rule, where the rule is broken."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BATCH = (3,)
_CHECKS: list[Check] = []


def checks() -> list[Check]:
    """Return every check of the contract, in order; `check.__name__` names it, its docstring is the rule."""
    return list(_CHECKS)


def check_fusion(cls: type[Fusion], cases: Sequence[Case] | None = None) -> None:
    """Run every check on the class at every case, by default `cls.cases`.

    Raises:
        AssertionError: one rule or more is broken; the message lists them all, each with the case and what was seen.
    """
    cases = cls.cases if cases is None else cases
    _demand(cases, f"{cls.__name__} has no cases to be checked at: give it `cases`, or pass them: [Case(dims=(4, 4))].")
    failures: list[AssertionError] = []
    for case in cases:
        for check in _CHECKS:
            try:
                check(cls, case)
            except AssertionError as failure:
                failures.append(failure)
    if failures:
        count = len(cases) * len(_CHECKS)
        text = "\n".join(f"- {failure}" for failure in failures)
        raise AssertionError(f"{len(failures)} of {count} checks of {cls.__name__} failed:\n{text}") from failures[0]


def check_runtimes(
    cls: type[Fusion], runtimes: Sequence[str] | None = None, dtypes: Sequence[str] = ("float32",)
) -> "Matrix":
    """Run the class at its first case in every runtime that is here, on the battery's values; return the matrix.

    Raises:
        AssertionError: a runtime that is here differs from eager, or cannot run it; the message names them all.
    """
    from fusion_onnx.testing.matrix import matrix

    found = matrix([cls], runtimes, dtypes, cases=1)
    _demand(found.passed, f"{cls.__name__} differs: " + "\n".join(found.notes()))
    return found


def __getattr__(name: str) -> Any:
    if name == "assert_parity":  # it needs the exporter, which this module does not
        from fusion_onnx.testing.parity import assert_parity

        return assert_parity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _check(body: Check) -> Check:
    """Make a function a check: whatever it raises becomes an AssertionError that names class, case and rule."""

    @functools.wraps(body)
    def check(cls: type[Fusion], case: Case) -> None:
        try:
            body(cls, case)
        except Exception as error:
            rule = (body.__doc__ or body.__name__).splitlines()[0].rstrip(".")
            seen = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{cls.__name__} at {case}: {body.__name__} ({rule}): {seen}") from error

    _CHECKS.append(check)
    return check


# --- what the checks are made of --------------------------------------------------------------------------------------


class _Trial:
    """A fusion at a case, with inputs and parameters to try it on.

    All values differ, lie between 0.5 and 1.5 in size, and have either sign; the inputs are positive where the fusion
    is not finite on negative ones (a geometric mean).
    """

    def __init__(
        self,
        cls: type[Fusion],
        case: Case,
        lead: Sequence[int] = _BATCH,
        dtype: torch.dtype = torch.float64,
        fusion: Fusion | None = None,
    ) -> None:
        self.fusion = case.create(cls) if fusion is None else fusion
        self.dtype = dtype
        length = self.fusion.calculate_l()
        self.w = _distinct((length,), 1).to(dtype) if length else None
        widths = case.dims
        flat = _distinct((math.prod(lead) * sum(widths),), 2).to(dtype)
        parts = torch.split(flat, [math.prod(lead) * width for width in widths])
        self.xs = [part.reshape(*lead, width) for part, width in zip(parts, widths, strict=True)]
        if not bool(self().isfinite().all()):
            self.xs = [x.abs() for x in self.xs]

    def __call__(self, xs: Sequence[Tensor] | None = None, fusion: Fusion | None = None) -> Tensor:
        fusion = self.fusion if fusion is None else fusion
        return _result(fusion(self.xs if xs is None else xs, self.w))


def _distinct(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    sizes = torch.linspace(0.5, 1.5, max(count, 1), dtype=torch.float64)[:count]
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return (sizes * signs)[torch.randperm(count, generator=generator)].reshape(shape)


def _result(y: Any) -> Tensor:
    assert isinstance(y, Tensor), f"the output is one tensor; got {type(y).__name__}"
    return y


def _demand(holds: Any, otherwise: str) -> None:
    """Raise AssertionError unless it holds; an `assert` would be gone under `python -O`."""
    if not holds:
        raise AssertionError(otherwise)


def _same(actual: Tensor, expected: Tensor, what: str) -> None:
    """Demand the same dtype, shape and numbers."""
    _demand(actual.dtype == expected.dtype, f"{what}: dtype is {actual.dtype}, where {expected.dtype} was expected")
    _demand(actual.shape == expected.shape, f"{what}: shape is {_of(actual)}, where {_of(expected)} was expected")
    _demand(torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN stands elsewhere")
    actual, expected = actual.nan_to_num(0.0), expected.nan_to_num(0.0)
    _demand(torch.equal(actual, expected), f"{what}: differs by up to {(actual - expected).abs().max().item():g}")


def _near(actual: Tensor, expected: Tensor, what: str) -> None:
    """Demand the same dtype and shape, and numbers that differ by no more than another order of float64 sums."""
    _demand(actual.dtype == expected.dtype, f"{what}: dtype is {actual.dtype}, where {expected.dtype} was expected")
    _demand(actual.shape == expected.shape, f"{what}: shape is {_of(actual)}, where {_of(expected)} was expected")
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=lambda text: f"{what}: {text}")


def _of(x: Tensor) -> list[int]:
    return list(x.shape)


def _refuses(what: str, call: Callable[[], Any], *names: str) -> None:
    """Demand a FusionError whose message has each of these in it."""
    try:
        call()
    except FusionError as error:
        for name in names:
            _demand(name in str(error), f"{what} is refused, but the message does not name {name!r}: {error}")
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__} ({error}), where FusionError is due") from error
    else:
        raise AssertionError(f"{what} is accepted, where FusionError is due")


def _base_forward(cls: type[Fusion]) -> bool:
    return cls.forward is Fusion.forward


# --- the checks -------------------------------------------------------------------------------------------------------


@_check
def check_shape(cls: type[Fusion], case: Case) -> None:
    """The output is (..., n), n = calculate_n() a whole number."""
    trial = _Trial(cls, case)
    n = trial.fusion.calculate_n()
    _demand(type(n) is int, f"calculate_n() is {n!r}")
    _demand(n >= 1, f"calculate_n() is {n}")
    _demand(trial.fusion.calculate_n(case.dims) == n, "calculate_n(dims) and calculate_n() differ")
    _demand(trial.fusion.calculate_n(list(case.dims)) == n, "calculate_n takes a tuple of dims, and not a list")
    _demand(_of(trial()) == [*_BATCH, n], f"the output is {_of(trial())}, where n = {n}")
    _demand(trial().isfinite().all(), "the output is not finite at values between 0.5 and 1.5")


@_check
def check_reference(cls: type[Fusion], case: Case) -> None:
    """Where the class gives `reference`, it computes the same in float64, also where an input is NaN or infinite."""
    if not cls.has_reference():
        return
    for seed in range(3):
        trial = _Trial(cls, case, lead=(5,))
        if trial.fusion.processes("pre_process") or trial.fusion.processes("post_process"):
            return  # the reference leaves them out
        generator = torch.Generator().manual_seed(seed)
        positive = all(bool((x > 0).all()) for x in trial.xs)
        values = [torch.randn(x.shape, generator=generator, dtype=trial.dtype) for x in trial.xs]
        trial.xs = [x.abs() if positive else x for x in values]
        if trial.w is not None:
            trial.w = torch.randn(trial.w.shape, generator=generator, dtype=trial.dtype)
        _agree(trial, f"seed {seed}")
        row = torch.cat([x[0] for x in trial.xs])
        for value in (math.nan, math.inf, -math.inf):
            rows = row.repeat(len(row), 1).fill_diagonal_(value)  # each entry in its turn
            trial.xs = list(torch.split(rows, list(case.dims), dim=-1))
            _agree(trial, f"seed {seed}, an entry of {value}")


def _agree(trial: _Trial, where: str) -> None:
    """Demand that the output is what the reference gives.

    An infinite input that meets a sum may become NaN or infinite, as the order decides; not so where an entry of the
    output depends on the inputs' entries at its own place alone, or is one of them.
    """
    w = None if trial.w is None else trial.w.clone().numpy()
    with np.errstate(all="ignore"):
        result = trial.fusion.reference([x.clone().numpy() for x in trial.xs], w)
    _demand(isinstance(result, np.ndarray), f"the reference gives a {type(result).__name__}, not an array")
    _demand(result.dtype == np.float64, f"the reference gives {result.dtype} where the inputs are float64")
    y, expected = trial(), torch.from_numpy(np.array(result))
    _demand(y.shape == expected.shape, f"the reference gives {_of(expected)}, where the output is {_of(y)}")
    if not (trial.fusion.entrywise or trial.fusion.exact):
        undecided = y.isinf() & expected.isnan() | y.isnan() & expected.isinf()
        infinite = torch.stack([x.isinf().any(-1) for x in trial.xs]).any(0).unsqueeze(-1)
        y, expected = (t.masked_fill(undecided & infinite, 0.0) for t in (y, expected))
    torch.testing.assert_close(
        y, expected, rtol=1e-12, atol=1e-12, equal_nan=True, msg=lambda text: f"fuse and reference, {where}: {text}"
    )


@_check
def check_parameters(cls: type[Fusion], case: Case) -> None:
    """l = calculate_l() parameters, given as (l,) or (1, l), alike."""
    trial = _Trial(cls, case)
    fusion, xs, length = trial.fusion, trial.xs, trial.fusion.calculate_l()
    _demand(type(length) is int, f"calculate_l() is {length!r}")
    _demand(length >= 0, f"calculate_l() is {length}")
    if trial.w is None:
        _same(fusion(xs, torch.empty(0, dtype=trial.dtype)), trial(), "w of shape (0,)")
        _same(fusion(xs, torch.empty(1, 0, dtype=trial.dtype)), trial(), "w of shape (1, 0)")
    else:
        _demand(fusion.require_parameters, f"l = {length}, and require_parameters is False")
        _same(fusion(xs, trial.w.reshape(1, -1)), trial(), "w of shape (1, l)")
        # for one that wants gradients torch.matmul may take another kernel, with other rounding
        _same(fusion(xs, torch.nn.Parameter(trial.w, requires_grad=False)), trial(), "w as a Parameter")


@_check
def check_wrong_parameters(cls: type[Fusion], case: Case) -> None:
    """w of a wrong length, shape or dtype is refused."""
    if not _base_forward(cls):
        return
    trial = _Trial(cls, case)
    fusion, xs, w, length = trial.fusion, trial.xs, trial.w, trial.fusion.calculate_l()
    _refuses("w too long", lambda: fusion(xs, torch.ones(length + 1, dtype=trial.dtype)), str(length + 1))
    if w is None:
        return
    _refuses("no w", lambda: fusion(xs), str(length))
    _refuses("w too short", lambda: fusion(xs, w[1:]), str(length))
    _refuses("w of shape (1, 1, l)", lambda: fusion(xs, w.reshape(1, 1, -1)), str(length))
    _refuses("w of another dtype", lambda: fusion(xs, w.float()), "float32", "float64")
    if length > 1:
        _refuses("w of shape (l, 1)", lambda: fusion(xs, w.reshape(-1, 1)), str(length))


@_check
def check_wrong_inputs(cls: type[Fusion], case: Case) -> None:
    """Inputs are a list of k floating tensors, of the widths dims, of one dtype, never broadcast."""
    if not _base_forward(cls):
        return
    trial = _Trial(cls, case)
    fusion, xs, w, k = trial.fusion, trial.xs, trial.w, len(trial.xs)
    _refuses("an empty list", lambda: fusion([], w), "empty list")
    _refuses("an empty tuple", lambda: fusion((), w), "empty tuple")
    _refuses("a tensor in place of the list", lambda: fusion(xs[0], w), "Tensor")
    _refuses("a number among the inputs", lambda: fusion([*xs[:-1], 1.0], w), "float")
    _refuses("an input too many", lambda: fusion([*xs, xs[-1]], w), str(k + 1))
    wide = torch.cat([xs[-1], xs[-1][..., :1]], dim=-1)
    _refuses("a wrong last dimension", lambda: fusion([*xs[:-1], wide], w), str(wide.shape[-1]))
    _refuses("integer inputs", lambda: fusion([x.long() for x in xs], w), "int64")
    _refuses("boolean inputs", lambda: fusion([x > 0 for x in xs], w), "bool")
    _refuses("complex inputs", lambda: fusion([x.to(torch.complex64) for x in xs], w), "complex64")
    _refuses("a scalar", lambda: fusion([*xs[:-1], xs[-1].sum()], w), "scalar")
    if k > 1:
        _refuses("an input too few", lambda: fusion(xs[1:], w), str(k - 1))
        _refuses("mixed dtypes", lambda: fusion([xs[0].float(), *xs[1:]], w), "float32", "float64")
        _refuses("a batch of 1 beside one of 3", lambda: fusion([*xs[:-1], xs[-1][:1]], w), str(_of(xs[-1][:1])))
        _refuses("inputs of two ranks", lambda: fusion([*xs[:-1], xs[-1][None]], w), str(_of(xs[-1][None])))


@_check
def check_construction(cls: type[Fusion], case: Case) -> None:
    """An unknown option is refused by name; dims are positive; `dims` may be left out where needs_dims is False."""
    _refuses("an unknown option", lambda: case.create(cls, no_such_option=1), "no_such_option", "dims")
    _refuses("a width of 0", lambda: cls(dims=(0,) * len(case.dims), **case.options), "0")
    _refuses("no widths", lambda: cls(dims=(), **case.options), "()")
    if cls.needs_dims:
        _refuses("dims left out", lambda: cls(**case.options), "dims")
        return
    trial, free = _Trial(cls, case), cls(**case.options)
    n = free.calculate_n(case.dims)
    _demand(n == trial.fusion.calculate_n(), f"calculate_n(dims) is {n} where dims is left out")
    _same(trial(fusion=free), trial(), "the output where dims is left out")


@_check
def check_dims(cls: type[Fusion], case: Case) -> None:
    """get_dim, get_dims and get_num tell the widths; out of bounds is a ValueError and an IndexError."""
    fusion = case.create(cls)
    _demand(list(fusion.get_dims() or ()) == list(case.dims), f"get_dims() is {fusion.get_dims()}")
    _demand(fusion.get_num() == len(case.dims), f"get_num() is {fusion.get_num()}")
    _demand([fusion.get_dim(i) for i in range(len(case.dims))] == list(case.dims), "get_dim(i) differs from dims[i]")
    _refuses("get_dim out of bounds", lambda: fusion.get_dim(len(case.dims)), str(len(case.dims)))
    free = fusion if cls.needs_dims else cls(**case.options)
    for kind in (ValueError, IndexError):
        try:
            fusion.get_dim(len(case.dims))
        except kind:
            continue
    if free is not fusion:
        _demand(free.get_dims() is None, f"get_dims() is {free.get_dims()} where dims is left out")
        _demand(free.get_num() == 0, f"get_num() is {free.get_num()} where dims is left out")
        _refuses("get_dim where dims is left out", lambda: free.get_dim(0), "dims")


@_check
def check_config(cls: type[Fusion], case: Case) -> None:
    """to_config() is plain data of known options, and gives back a fusion with the same outputs."""
    trial = _Trial(cls, case)
    config = trial.fusion.to_config()
    _demand(list(config) == ["function_class", "function_parameters"], f"its keys are {list(config)}")
    _demand(config["function_class"] == cls.strategy(), f"function_class is {config['function_class']!r}")
    parameters = json.loads(json.dumps(config, allow_nan=False))["function_parameters"]
    unknown = set(parameters) - set(cls.options())
    _demand(not unknown, f"{sorted(unknown)} are no options of the constructor")
    rebuilt = [cls(**parameters)]
    if cls.strategy() in registry.names() and registry.get(cls.strategy()) is cls:
        rebuilt += [_config.from_config(config), _config.from_config(json.dumps(config))]
    for fusion in rebuilt:
        _demand(type(fusion) is cls, f"from_config gives a {type(fusion).__name__}")
        _demand(fusion.to_config() == config, f"its config is now {fusion.to_config()}, it was {config}")
        _demand(fusion.get_name() == trial.fusion.get_name(), "get_name() differs after the round trip")
        _same(trial(fusion=fusion), trial(), "the output after the round trip")


@_check
def check_rank(cls: type[Fusion], case: Case) -> None:
    """Any rank from 1 up: leading axes are batch axes, rows that know nothing of each other."""
    lead = (2, 1, 2, 3)
    trial = _Trial(cls, case, lead)
    flat = trial([x.reshape(-1, x.shape[-1]) for x in trial.xs])
    for rank in range(2, 6):
        shape = (math.prod(lead[: 6 - rank]), *lead[6 - rank :])
        y = trial([x.reshape(*shape, x.shape[-1]) for x in trial.xs])
        _near(y, flat.reshape(*shape, flat.shape[-1]), f"rank {rank}")
    for row in range(flat.shape[0]):
        alone = trial([x.reshape(-1, x.shape[-1])[row] for x in trial.xs])
        _near(alone, flat[row], f"rank 1, row {row}")


@_check
def check_empty_batch(cls: type[Fusion], case: Case) -> None:
    """A batch of no rows is valid, forward and backward."""
    trial = _Trial(cls, case)
    n = trial.fusion.calculate_n()
    for lead in ((0,), (2, 0), (0, 3, 1)):
        xs = [x.new_empty(*lead, x.shape[-1]).requires_grad_() for x in trial.xs]
        y = trial(xs)
        _demand(_of(y) == [*lead, n], f"the output is {_of(y)} at leading axes {list(lead)}")
        torch.autograd.backward(y.sum())


@_check
def check_dtype(cls: type[Fusion], case: Case) -> None:
    """float16, bfloat16, float32, float64: the output has the inputs' dtype."""
    for dtype in DTYPES:
        fusion = case.create(cls)
        trial = _Trial(cls, case, dtype=dtype, fusion=fusion if _base_forward(cls) else fusion.to(dtype))
        _demand(trial().dtype == dtype, f"the output is {trial().dtype} where the inputs are {dtype}")


@_check
def check_rounding(cls: type[Fusion], case: Case) -> None:
    """float16 and bfloat16 are computed in float32 and rounded once."""
    if not _base_forward(cls):
        return
    for dtype in (torch.float16, torch.bfloat16):
        trial = _Trial(cls, case, dtype=dtype)
        if trial.fusion.processes("pre_process") or trial.fusion.processes("post_process"):
            return  # they compute as they like
        wide = copy.deepcopy(trial.fusion).to(dtype).float()  # buffers are rounded as the inputs are
        w = None if trial.w is None else trial.w.float()
        _same(trial(), _result(wide([x.float() for x in trial.xs], w)).to(dtype), f"{dtype}")


@_check
def check_nan(cls: type[Fusion], case: Case) -> None:
    """A NaN in any input reaches every entry of its row that the input's entry can move, and no other row."""
    trial = _Trial(cls, case, lead=())
    total, plain = sum(case.dims), trial()

    def output(value: float) -> Tensor:
        """Return one row for each entry of the inputs, that entry being `value`."""
        rows = torch.cat(trial.xs).repeat(total, 1)
        rows.fill_diagonal_(value)
        return trial(list(torch.split(rows, list(case.dims), dim=-1)))

    nan, moved = output(math.nan).isnan(), torch.zeros(total, plain.shape[-1], dtype=torch.bool)
    for value in (1e3, 1e-3, -1e3):
        moved |= output(value) != output(0.75)
    lost = (moved & ~nan).nonzero()
    if len(lost):
        entry, column = lost[0].tolist()
        index = next(i for i in range(len(case.dims)) if entry < sum(case.dims[: i + 1]))
        raise AssertionError(
            f"NaN at entry {entry - sum(case.dims[:index])} of input {index + 1} does not reach output entry {column}"
        )
    trial = _Trial(cls, case)
    dirty = [torch.cat([torch.full_like(x[:1], math.nan), x[1:]]) for x in trial.xs]
    _same(trial(dirty)[1:], trial()[1:], "the rows beside a row of NaN")


@_check
def check_purity(cls: type[Fusion], case: Case) -> None:
    """Inputs and parameters are left as they were, however they lie in memory; the output is no view of them."""
    trial = _Trial(cls, case, lead=(2, 3))
    given = [*trial.xs, *([] if trial.w is None else [trial.w])]
    before = [t.clone() for t in given]
    y = trial()
    for now, then in zip(given, before, strict=True):
        _same(now, then, "an input after the call")
    _same(trial(), y, "the output of a second call")
    _same(trial(tuple(trial.xs)), y, "the output for a tuple of inputs")
    strided = [x.mT.contiguous().mT for x in trial.xs]
    _near(trial(strided), y, "the output for inputs that are not contiguous")
    if _base_forward(cls) and not trial.fusion.processes("post_process"):
        shared = {t.untyped_storage().data_ptr() for t in given} & {y.untyped_storage().data_ptr()}
        _demand(not shared, "the output shares memory with an input")


@_check
def check_gradient(cls: type[Fusion], case: Case) -> None:
    """Autograd agrees with finite differences in float64, in the inputs and in w."""
    trial = _Trial(cls, case, lead=(2,))
    variables = [t.clone().requires_grad_() for t in (*trial.xs, *([] if trial.w is None else [trial.w]))]
    k = len(trial.xs)

    def function(*flat: Tensor) -> Tensor:
        return _result(trial.fusion(list(flat[:k]), flat[k] if len(flat) > k else None))

    assert torch.autograd.gradcheck(function, variables)  # raises, and tells where


@_check
def check_compile(cls: type[Fusion], case: Case) -> None:
    """torch.compile takes it without a graph break, and gives the same output and gradients."""
    trial = _Trial(cls, case)
    torch.compiler.reset()  # graphs of other fusions would count against the limit
    compiled = torch.compile(trial.fusion, fullgraph=True, backend="aot_eager")
    results, leaves = [], []
    for run in (trial.fusion, compiled):
        xs = [x.clone().requires_grad_() for x in trial.xs]
        w = None if trial.w is None else trial.w.clone().requires_grad_()
        results.append(_result(run(xs, w)))
        torch.autograd.backward(results[-1].sum())
        leaves.append([*xs, *([] if w is None else [w])])
    _near(results[1], results[0], "the compiled output")
    for i, (a, b) in enumerate(zip(*leaves, strict=True), 1):
        name = f"input {i}" if i <= len(trial.xs) else "w"
        assert a.grad is not None, f"{name} has no gradient"
        assert b.grad is not None, f"{name} has no gradient when compiled"
        _near(b.grad, a.grad, f"the compiled gradient of {name}")


@_check
def check_torch_export(cls: type[Fusion], case: Case) -> None:
    """torch.export takes it with a dynamic batch; a strategy with fuse and decompose stays one node."""
    trial, other = _Trial(cls, case), _Trial(cls, case, lead=(5,))
    batch = torch.export.Dim("batch")
    shapes = ([{0: batch} for _ in trial.xs], None)
    program = torch.export.export(trial.fusion, (trial.xs, trial.w), dynamic_shapes=shapes)
    _near(_result(program.module()(trial.xs, trial.w)), trial(), "the exported program's output")
    _near(_result(program.module()(other.xs, other.w)), other(), "the exported program's output at another batch size")
    if cls.is_strategy() and trial.fusion._record is not None:  # None: an option is no plain data, so it is traced
        ours = [n.target for n in program.graph.nodes if str(n.target).startswith(f"{DOMAIN}.")]
        _demand(ours == [cls._op], f"the nodes of the domain {DOMAIN} are {[str(t) for t in ours]}, not [{cls._op}]")
        _demand(str(cls._op).startswith(f"{DOMAIN}.{cls.strategy()}"), f"the node is {cls._op}, not {cls.strategy()}")


@_check
def check_copies(cls: type[Fusion], case: Case) -> None:
    """A deep copy, and an unpickled one, compute the same."""
    trial = _Trial(cls, case)
    _same(trial(fusion=copy.deepcopy(trial.fusion)), trial(), "the output of a deep copy")
    if "<locals>" not in cls.__qualname__:  # pickle finds no class that was defined in a function
        unpickled = pickle.loads(pickle.dumps(trial.fusion))  # noqa: S301 - it was pickled right here
        _same(trial(fusion=unpickled), trial(), "the output of an unpickled fusion")
        _demand(unpickled.to_config() == trial.fusion.to_config(), "the config differs after pickling")


@_check
def check_buffers(cls: type[Fusion], case: Case) -> None:
    """Fixed tensors are buffers: in the state_dict, which carries them to another fusion, and moved by .to()."""
    trial = _Trial(cls, case)
    fusion = trial.fusion
    loose = [name for name, value in vars(fusion).items() if isinstance(value, Tensor)]
    _demand(not loose, f"{loose} are tensors and not buffers: register_buffer(name, tensor)")
    buffers, state = dict(fusion.named_buffers()), fusion.state_dict()
    missing = sorted(set(buffers) - set(state))
    _demand(not missing, f"the buffers {missing} are not in the state_dict")
    expected = trial()
    target = case.create(cls)
    for buffer in target.buffers():
        buffer.zero_()
    target.load_state_dict(state)
    _same(trial(fusion=target), expected, "the output after load_state_dict")
    fusion.to(torch.float64)
    for name, buffer in fusion.named_buffers():
        kind = torch.float64 if buffers[name].is_floating_point() else buffers[name].dtype
        _demand(buffer.dtype == kind, f"the buffer {name} is {buffer.dtype} after .to(torch.float64)")
    _same(trial(), expected, "the output after .to(torch.float64)")
    fusion.to("meta")
    _demand(all(buffer.is_meta for buffer in fusion.buffers()), "a buffer did not follow .to(device)")


@_check
def check_export(cls: type[Fusion], case: Case) -> None:
    """Exported, it computes what eager execution does: `decompose` and `fuse` are the same maths."""
    from fusion_onnx import VerificationError, export

    trial = _Trial(cls, case)
    fusion = case.create(cls)
    args = (trial.xs,) if trial.w is None else (trial.xs, trial.w)
    try:
        export(fusion.to(trial.dtype), args)
    except VerificationError as error:
        _demand(False, f"fuse and decompose differ: {'; '.join(error.verdict.reasons)}")


@_check
def check_forms(cls: type[Fusion], case: Case) -> None:
    """Every form of a strategy computes what eager execution does."""
    if not _base_forward(cls):
        return
    from fusion_exporters import ExportError, VerificationError, export

    trial = _Trial(cls, case, dtype=torch.float32)
    for name in list(trial.fusion.forms())[1:]:
        try:
            export(trial.fusion, (trial.xs,) if trial.w is None else (trial.xs, trial.w), form=name)
        except VerificationError as error:
            _demand(False, f"the form {name!r} and fuse differ: {'; '.join(error.verdict.reasons)}")
        except ExportError as error:
            _demand("offers" in str(error), f"the form {name!r}: {error}")


@_check
def check_battery(cls: type[Fusion], case: Case) -> None:
    """Exported in float32, a strategy with fuse and decompose is equal on hostile values and in every memory layout."""
    from fusion_onnx import export, verify

    if not cls.is_strategy():
        return  # ordinary operators, of which ONNX Runtime approximates some, such as Sigmoid below -18
    trial = _Trial(cls, case, dtype=torch.float32)
    fusion = case.create(cls).to(trial.dtype)
    args = (trial.xs,) if trial.w is None else (trial.xs, trial.w)
    verdict = verify(fusion, export(fusion, args, verify=False).model, args, battery=True)
    _demand(verdict.passed, f"fuse and decompose differ: {'; '.join(verdict.reasons)}")


@_check
def check_layer(cls: type[Fusion], case: Case) -> None:
    """FusionLayer owns the parameters, starts them finite, and they learn."""
    trial = _Trial(cls, case)
    layer = FusionLayer(case.create(cls)).to(trial.dtype)
    length = trial.fusion.calculate_l()
    owned = [p for name, p in layer.named_parameters() if name == "w"]
    shapes = [[1, length]] if length else []
    _demand([_of(p) for p in owned] == shapes, f"l = {length}, and it owns {[_of(p) for p in owned]}")
    y = _result(layer(trial.xs))
    _same(layer(*trial.xs), y, "the layer called with the inputs one by one")
    _demand(y.isfinite().all(), "the output is not finite at the start of training")
    for w in owned:
        _demand(w.isfinite().all(), "w is not finite at the start of training")
        torch.autograd.backward(y.square().sum())
        assert w.grad is not None, "w has no gradient"
        _demand(w.grad.isfinite().all(), "the gradient of w is not finite")
        _demand(w.grad.any(), "the gradient of w is 0 throughout: training cannot start")
