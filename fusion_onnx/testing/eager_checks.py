"""The checks of a fusion in eager execution: shapes, errors, configs, dtypes, NaN, gradients, buffers, parameters.

A check knows nothing of a strategy's maths but that `fuse`, `decompose` and, where there is one, `reference` are the
same. It follows from the contract and from what the class says of itself. A class with a `forward` of its own is spared
the checks of what only the base class's forward promises: that bad input is refused, that low precision is rounded
once, that one node is exported.
"""

import copy
import json
import math
import pickle

import numpy as np
import torch
from torch import Tensor

from fusion_onnx import config as _config
from fusion_onnx import registry
from fusion_onnx.contract import Case, Fusion
from fusion_onnx.contract.layer import FusionLayer
from fusion_onnx.testing.check import (
    BATCH,
    Trial,
    base_forward,
    check,
    demand,
    near,
    one_tensor,
    refuses,
    same,
    shape_of,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@check
def check_shape(cls: type[Fusion], case: Case) -> None:
    """The output is (..., n), n = calculate_n() a whole number."""
    trial = Trial(cls, case)
    n = trial.fusion.calculate_n()
    demand(type(n) is int, f"calculate_n() is {n!r}")
    demand(n >= 1, f"calculate_n() is {n}")
    demand(trial.fusion.calculate_n(case.dims) == n, "calculate_n(dims) and calculate_n() differ")
    demand(trial.fusion.calculate_n(list(case.dims)) == n, "calculate_n takes a tuple of dims, and not a list")
    demand(shape_of(trial()) == [*BATCH, n], f"the output is {shape_of(trial())}, where n = {n}")
    demand(trial().isfinite().all(), "the output is not finite at values between 0.5 and 1.5")


@check
def check_reference(cls: type[Fusion], case: Case) -> None:
    """Where the class gives `reference`, it computes the same in float64, also where an input is NaN or infinite."""
    if not cls.has_reference():
        return
    for seed in range(3):
        trial = Trial(cls, case, lead=(5,))
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


def _agree(trial: Trial, where: str) -> None:
    """Demand that the output is what the reference gives.

    An infinite input that meets a sum may become NaN or infinite, as the order decides; not so where an entry of the
    output depends on the inputs' entries at its own place alone, or is one of them.
    """
    w = None if trial.w is None else trial.w.clone().numpy()
    with np.errstate(all="ignore"):
        result = trial.fusion.reference([x.clone().numpy() for x in trial.xs], w)
    demand(isinstance(result, np.ndarray), f"the reference gives a {type(result).__name__}, not an array")
    demand(result.dtype == np.float64, f"the reference gives {result.dtype} where the inputs are float64")
    y, expected = trial(), torch.from_numpy(np.array(result))
    demand(y.shape == expected.shape, f"the reference gives {shape_of(expected)}, where the output is {shape_of(y)}")
    if not (trial.fusion.entrywise or trial.fusion.selects_only):
        undecided = y.isinf() & expected.isnan() | y.isnan() & expected.isinf()
        infinite = torch.stack([x.isinf().any(-1) for x in trial.xs]).any(0).unsqueeze(-1)
        y, expected = (t.masked_fill(undecided & infinite, 0.0) for t in (y, expected))
    close = torch.isclose(y, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    for place in (~close).nonzero().tolist()[:1]:
        at = tuple(place)
        demand(False, f"{where}: at {place} fuse gives {y[at].item():.17g}, reference {expected[at].item():.17g}")


@check
def check_parameters(cls: type[Fusion], case: Case) -> None:
    """l = calculate_l() parameters, given as (l,) or (1, l), alike."""
    trial = Trial(cls, case)
    fusion, xs, length = trial.fusion, trial.xs, trial.fusion.calculate_l()
    demand(type(length) is int, f"calculate_l() is {length!r}")
    demand(length >= 0, f"calculate_l() is {length}")
    if trial.w is None:
        same(fusion(xs, torch.empty(0, dtype=trial.dtype)), trial(), "w of shape (0,)")
        same(fusion(xs, torch.empty(1, 0, dtype=trial.dtype)), trial(), "w of shape (1, 0)")
    else:
        demand(fusion.require_parameters, f"l = {length}, and require_parameters is False")
        same(fusion(xs, trial.w.reshape(1, -1)), trial(), "w of shape (1, l)")
        # for one that wants gradients torch.matmul may take another kernel, with other rounding
        same(fusion(xs, torch.nn.Parameter(trial.w, requires_grad=False)), trial(), "w as a Parameter")


@check
def check_wrong_parameters(cls: type[Fusion], case: Case) -> None:
    """w of a wrong length, shape or dtype is refused."""
    if not base_forward(cls):
        return
    trial = Trial(cls, case)
    fusion, xs, w, length = trial.fusion, trial.xs, trial.w, trial.fusion.calculate_l()
    refuses("w too long", lambda: fusion(xs, torch.ones(length + 1, dtype=trial.dtype)), str(length + 1))
    if w is None:
        return
    refuses("no w", lambda: fusion(xs), str(length))
    refuses("w too short", lambda: fusion(xs, w[1:]), str(length))
    refuses("w of shape (1, 1, l)", lambda: fusion(xs, w.reshape(1, 1, -1)), str(length))
    refuses("w of another dtype", lambda: fusion(xs, w.float()), "float32", "float64")
    if length > 1:
        refuses("w of shape (l, 1)", lambda: fusion(xs, w.reshape(-1, 1)), str(length))


@check
def check_wrong_inputs(cls: type[Fusion], case: Case) -> None:
    """Inputs are a list of k floating tensors, of the widths dims, of one dtype, never broadcast."""
    if not base_forward(cls):
        return
    trial = Trial(cls, case)
    fusion, xs, w, k = trial.fusion, trial.xs, trial.w, len(trial.xs)
    refuses("an empty list", lambda: fusion([], w), "empty list")
    refuses("an empty tuple", lambda: fusion((), w), "empty tuple")
    refuses("a tensor in place of the list", lambda: fusion(xs[0], w), "Tensor")
    refuses("a number among the inputs", lambda: fusion([*xs[:-1], 1.0], w), "float")
    refuses("an input too many", lambda: fusion([*xs, xs[-1]], w), str(k + 1))
    wide = torch.cat([xs[-1], xs[-1][..., :1]], dim=-1)
    refuses("a wrong last dimension", lambda: fusion([*xs[:-1], wide], w), str(wide.shape[-1]))
    refuses("integer inputs", lambda: fusion([x.long() for x in xs], w), "int64")
    refuses("boolean inputs", lambda: fusion([x > 0 for x in xs], w), "bool")
    refuses("complex inputs", lambda: fusion([x.to(torch.complex64) for x in xs], w), "complex64")
    refuses("a scalar", lambda: fusion([*xs[:-1], xs[-1].sum()], w), "scalar")
    if k > 1:
        refuses("an input too few", lambda: fusion(xs[1:], w), str(k - 1))
        refuses("mixed dtypes", lambda: fusion([xs[0].float(), *xs[1:]], w), "float32", "float64")
        refuses("a batch of 1 beside one of 3", lambda: fusion([*xs[:-1], xs[-1][:1]], w), str(shape_of(xs[-1][:1])))
        refuses("inputs of two ranks", lambda: fusion([*xs[:-1], xs[-1][None]], w), str(shape_of(xs[-1][None])))


@check
def check_construction(cls: type[Fusion], case: Case) -> None:
    """An unknown option is refused by name; dims are positive; `dims` may be left out where needs_dims is False."""
    refuses("an unknown option", lambda: case.create(cls, no_such_option=1), "no_such_option", "dims")
    refuses("a width of 0", lambda: cls(dims=(0,) * len(case.dims), **case.options), "0")
    refuses("no widths", lambda: cls(dims=(), **case.options), "()")
    if cls.needs_dims:
        refuses("dims left out", lambda: cls(**case.options), "dims")
        return
    trial, free = Trial(cls, case), cls(**case.options)
    n = free.calculate_n(case.dims)
    demand(n == trial.fusion.calculate_n(), f"calculate_n(dims) is {n} where dims is left out")
    same(trial(fusion=free), trial(), "the output where dims is left out")


@check
def check_dims(cls: type[Fusion], case: Case) -> None:
    """get_dim, get_dims and get_num tell the widths; out of bounds is a ValueError and an IndexError."""
    fusion = case.create(cls)
    demand(list(fusion.get_dims() or ()) == list(case.dims), f"get_dims() is {fusion.get_dims()}")
    demand(fusion.get_num() == len(case.dims), f"get_num() is {fusion.get_num()}")
    demand([fusion.get_dim(i) for i in range(len(case.dims))] == list(case.dims), "get_dim(i) differs from dims[i]")
    refuses("get_dim out of bounds", lambda: fusion.get_dim(len(case.dims)), str(len(case.dims)))
    free = fusion if cls.needs_dims else cls(**case.options)
    for kind in (ValueError, IndexError):
        try:
            fusion.get_dim(len(case.dims))
        except kind:
            continue
    if free is not fusion:
        demand(free.get_dims() is None, f"get_dims() is {free.get_dims()} where dims is left out")
        demand(free.get_num() == 0, f"get_num() is {free.get_num()} where dims is left out")
        refuses("get_dim where dims is left out", lambda: free.get_dim(0), "dims")


@check
def check_config(cls: type[Fusion], case: Case) -> None:
    """to_config() is plain data of known options, and gives back a fusion with the same outputs."""
    trial = Trial(cls, case)
    config = trial.fusion.to_config()
    demand(list(config) == ["function_class", "function_parameters"], f"its keys are {list(config)}")
    demand(config["function_class"] == cls.strategy(), f"function_class is {config['function_class']!r}")
    parameters = json.loads(json.dumps(config, allow_nan=False))["function_parameters"]
    unknown = set(parameters) - set(cls.options())
    demand(not unknown, f"{sorted(unknown)} are no options of the constructor")
    rebuilt = [cls(**parameters)]
    if cls.strategy() in registry.names() and registry.get(cls.strategy()) is cls:
        rebuilt += [_config.from_config(config), _config.from_config(json.dumps(config))]
    for fusion in rebuilt:
        demand(type(fusion) is cls, f"from_config gives a {type(fusion).__name__}")
        demand(fusion.to_config() == config, f"its config is now {fusion.to_config()}, it was {config}")
        demand(fusion.get_name() == trial.fusion.get_name(), "get_name() differs after the round trip")
        same(trial(fusion=fusion), trial(), "the output after the round trip")


@check
def check_rank(cls: type[Fusion], case: Case) -> None:
    """Any rank from 1 up: leading axes are batch axes, rows that know nothing of each other."""
    lead = (2, 1, 2, 3)
    trial = Trial(cls, case, lead)
    flat = trial([x.reshape(-1, x.shape[-1]) for x in trial.xs])
    for rank in range(2, 6):
        shape = (math.prod(lead[: 6 - rank]), *lead[6 - rank :])
        y = trial([x.reshape(*shape, x.shape[-1]) for x in trial.xs])
        near(y, flat.reshape(*shape, flat.shape[-1]), f"rank {rank}")
    for row in range(flat.shape[0]):
        single = trial([x.reshape(-1, x.shape[-1])[row] for x in trial.xs])
        near(single, flat[row], f"rank 1, row {row}")


@check
def check_empty_batch(cls: type[Fusion], case: Case) -> None:
    """A batch of no rows is valid, forward and backward."""
    trial = Trial(cls, case)
    n = trial.fusion.calculate_n()
    for lead in ((0,), (2, 0), (0, 3, 1)):
        xs = [x.new_empty(*lead, x.shape[-1]).requires_grad_() for x in trial.xs]
        y = trial(xs)
        demand(shape_of(y) == [*lead, n], f"the output is {shape_of(y)} at leading axes {list(lead)}")
        torch.autograd.backward(y.sum())


@check
def check_dtype(cls: type[Fusion], case: Case) -> None:
    """float16, bfloat16, float32, float64: the output has the inputs' dtype."""
    for dtype in DTYPES:
        fusion = case.create(cls)
        trial = Trial(cls, case, dtype=dtype, fusion=fusion if base_forward(cls) else fusion.to(dtype))
        demand(trial().dtype == dtype, f"the output is {trial().dtype} where the inputs are {dtype}")


@check
def check_rounding(cls: type[Fusion], case: Case) -> None:
    """float16 and bfloat16 are computed in float32 and rounded once."""
    if not base_forward(cls):
        return
    for dtype in (torch.float16, torch.bfloat16):
        trial = Trial(cls, case, dtype=dtype)
        if trial.fusion.processes("pre_process") or trial.fusion.processes("post_process"):
            return  # they compute as they like
        wide = copy.deepcopy(trial.fusion).to(dtype).float()  # buffers are rounded as the inputs are
        w = None if trial.w is None else trial.w.float()
        same(trial(), one_tensor(wide([x.float() for x in trial.xs], w)).to(dtype), f"{dtype}")


@check
def check_nan(cls: type[Fusion], case: Case) -> None:
    """A NaN in any input reaches every entry of its row that the input's entry can move, and no other row."""
    trial = Trial(cls, case, lead=())
    total, plain = sum(case.dims), trial()

    def output(value: float) -> Tensor:
        """Return one row for each entry of the inputs, that entry being `value`."""
        rows = torch.cat(trial.xs).repeat(total, 1)
        rows.fill_diagonal_(value)
        return trial(list(torch.split(rows, list(case.dims), dim=-1)))

    nan, moved = output(math.nan).isnan(), torch.zeros(total, plain.shape[-1], dtype=torch.bool)
    for value in (1e3, 1e-3, -1e3):
        moved |= output(value) != output(0.75)
    places = (moved & ~nan).nonzero()
    if len(places):
        entry, column = places[0].tolist()
        index = next(i for i in range(len(case.dims)) if entry < sum(case.dims[: i + 1]))
        raise AssertionError(
            f"NaN at entry {entry - sum(case.dims[:index])} of input {index + 1} does not reach output entry {column}"
        )
    trial = Trial(cls, case)
    dirty = [torch.cat([torch.full_like(x[:1], math.nan), x[1:]]) for x in trial.xs]
    same(trial(dirty)[1:], trial()[1:], "the rows beside a row of NaN")


@check
def check_purity(cls: type[Fusion], case: Case) -> None:
    """Inputs and parameters are left as they were, however they lie in memory; the output is no view of them."""
    trial = Trial(cls, case, lead=(2, 3))
    tensors = [*trial.xs, *([] if trial.w is None else [trial.w])]
    before = [t.clone() for t in tensors]
    y = trial()
    for now, then in zip(tensors, before, strict=True):
        same(now, then, "an input after the call")
    same(trial(), y, "the output of a second call")
    same(trial(tuple(trial.xs)), y, "the output for a tuple of inputs")
    strided = [x.mT.contiguous().mT for x in trial.xs]
    near(trial(strided), y, "the output for inputs that are not contiguous")
    if base_forward(cls) and not trial.fusion.processes("post_process"):
        shared = {t.untyped_storage().data_ptr() for t in tensors} & {y.untyped_storage().data_ptr()}
        demand(not shared, "the output shares memory with an input")


@check
def check_gradient(cls: type[Fusion], case: Case) -> None:
    """Autograd agrees with finite differences in float64, in the inputs and in w."""
    trial = Trial(cls, case, lead=(2,))
    variables = [t.clone().requires_grad_() for t in (*trial.xs, *([] if trial.w is None else [trial.w]))]
    k = len(trial.xs)

    def function(*flat: Tensor) -> Tensor:
        return one_tensor(trial.fusion(list(flat[:k]), flat[k] if len(flat) > k else None))

    assert torch.autograd.gradcheck(function, variables)  # raises, and tells where


@check
def check_copies(cls: type[Fusion], case: Case) -> None:
    """A deep copy, and an unpickled one, compute the same."""
    trial = Trial(cls, case)
    same(trial(fusion=copy.deepcopy(trial.fusion)), trial(), "the output of a deep copy")
    if "<locals>" not in cls.__qualname__:  # pickle finds no class that was defined in a function
        unpickled = pickle.loads(pickle.dumps(trial.fusion))  # noqa: S301 - it was pickled right here
        same(trial(fusion=unpickled), trial(), "the output of an unpickled fusion")
        demand(unpickled.to_config() == trial.fusion.to_config(), "the config differs after pickling")


@check
def check_buffers(cls: type[Fusion], case: Case) -> None:
    """Fixed tensors are buffers: in the state_dict, which carries them to another fusion, and moved by .to()."""
    trial = Trial(cls, case)
    fusion = trial.fusion
    loose = [name for name, value in vars(fusion).items() if isinstance(value, Tensor)]
    demand(not loose, f"{loose} are tensors and not buffers: register_buffer(name, tensor)")
    buffers, state = dict(fusion.named_buffers()), fusion.state_dict()
    missing = sorted(set(buffers) - set(state))
    demand(not missing, f"the buffers {missing} are not in the state_dict")
    expected = trial()
    other = case.create(cls)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(state)
    same(trial(fusion=other), expected, "the output after load_state_dict")
    fusion.to(torch.float64)
    for name, buffer in fusion.named_buffers():
        kind = torch.float64 if buffers[name].is_floating_point() else buffers[name].dtype
        demand(buffer.dtype == kind, f"the buffer {name} is {buffer.dtype} after .to(torch.float64)")
    same(trial(), expected, "the output after .to(torch.float64)")
    fusion.to("meta")
    demand(all(buffer.is_meta for buffer in fusion.buffers()), "a buffer did not follow .to(device)")


@check
def check_layer(cls: type[Fusion], case: Case) -> None:
    """FusionLayer owns the parameters, starts them finite, and they learn."""
    trial = Trial(cls, case)
    layer = FusionLayer(case.create(cls)).to(trial.dtype)
    length = trial.fusion.calculate_l()
    owned = [p for name, p in layer.named_parameters() if name == "w"]
    shapes = [[1, length]] if length else []
    demand([shape_of(p) for p in owned] == shapes, f"l = {length}, and it owns {[shape_of(p) for p in owned]}")
    y = one_tensor(layer(trial.xs))
    same(layer(*trial.xs), y, "the layer called with the inputs one by one")
    demand(y.isfinite().all(), "the output is not finite at the start of training")
    for w in owned:
        demand(w.isfinite().all(), "w is not finite at the start of training")
        torch.autograd.backward(y.square().sum())
        assert w.grad is not None, "w has no gradient"
        demand(w.grad.isfinite().all(), "the gradient of w is not finite")
        demand(w.grad.any(), "the gradient of w is 0 throughout: training cannot start")
