"""The contract: every strategy at every case, classes written in other ways, classes that break it, and every error."""

import abc
import collections.abc
import json
import pickle
from typing import Generic, TypeVar

import numpy as np
import pytest
import torch

import fusion_onnx
from fusion_onnx import Case, Fusion, FusionError, FusionLayer, function, testing

TWICE = ("check_compile",)
"""Checks that look at two cases of a strategy: what breaks a graph is in its code, not in its widths, and each takes a
second. All others look at every case."""
CHECKS = [
    check for check in testing.checks() if check.__name__ != "check_export"
]  # test_export.py has that, at every dtype
TRIALS = [
    pytest.param(fusion_onnx.get(name), case, check, id=f"{name}-{case}-{check.__name__}")
    for name in fusion_onnx.names()
    for number, case in enumerate(fusion_onnx.get(name).cases)
    for check in CHECKS
    if number < 2 or check.__name__ not in TWICE
]


@pytest.mark.parametrize(("strategy", "case", "check"), TRIALS)
def test_every_strategy_keeps_the_contract(strategy, case, check):
    check(strategy, case)


# --- classes of the two other ways, as a user writes them -------------------------------------------------------------


class GatedSumFusion(Fusion):
    """As the specification has it: calculate_n, calculate_l and a forward of its own; with a trained layer inside."""

    equal_dims = True
    needs_dims = True
    cases = (Case(dims=(4, 4)), Case(dims=(3, 3, 3), scale=0.5))

    def __init__(self, dims=None, name="base_fusion", scale=1.0, **kwargs):
        super().__init__(dims=dims, name=name, **kwargs)
        self.scale = scale
        self.gate = torch.nn.Linear(dims[0], dims[0]) if dims else None
        if self.gate is not None:
            torch.nn.init.constant_(self.gate.weight, 0.1)
            torch.nn.init.zeros_(self.gate.bias)

    def calculate_n(self, dims=None):
        return (self.dims if dims is None else dims)[0]

    def calculate_l(self):
        return 0

    def forward(self, x, w=None, device="cpu"):
        y = sum(x) * self.scale
        return y * torch.sigmoid(torch.nn.functional.linear(y, *(p.to(y.dtype) for p in self.gate.parameters())))


class ScaledMaxFusion(Fusion):
    """Spec style, with parameters through w."""

    equal_dims = True
    cases = (Case(dims=(4, 4)), Case(dims=(2,)))

    def __init__(self, dims=None, require_parameters=True, **kwargs):
        super().__init__(dims=dims, require_parameters=require_parameters, **kwargs)

    def calculate_n(self, dims=None):
        return (self.dims if dims is None else dims)[0]

    def calculate_l(self):
        return 1

    def forward(self, x, w=None, device="cpu"):
        y = x[0]
        for t in x[1:]:
            y = torch.maximum(y, t)
        return y * w.reshape(-1)


class FuseOnlyFusion(Fusion):
    """fuse and no decompose: the base's forward, traced as ordinary operators."""

    equal_dims = True
    cases = (Case(dims=(4, 4)), Case(dims=(3,) * 5))

    def calculate_n(self, dims=None):
        return (self.dims if dims is None else dims)[0]

    def calculate_l(self):
        return 0

    def fuse(self, xs, w, *buffers):
        return torch.stack(list(xs)).logsumexp(0)


class ShiftedSumFusion(Fusion):
    """A strategy with a buffer that is optional and one that is not, and parameters."""

    equal_dims = True
    cases = (Case(dims=(4, 4)), Case(dims=(4, 4), shift=[1.0, 2.0, 3.0, 4.0]), Case(dims=(2, 2, 2)))

    def __init__(self, dims=None, *, shift=None, require_parameters=True, **base):
        super().__init__(dims, require_parameters=require_parameters, **base)
        self.register_buffer("shift", None if shift is None else torch.tensor(shift))

    def calculate_n(self, dims=None):
        return (self.dims if dims is None else dims)[0]

    def calculate_l(self):
        return 1

    def fuse(self, xs, w, *buffers):
        y = sum(xs[1:], xs[0]) * w
        return y + buffers[0] if buffers else y

    def decompose(self, op, xs, w, *buffers):
        y = xs[0]
        for x in xs[1:]:
            y = op.Add(y, x)
        y = op.Mul(y, w)
        return op.Add(y, buffers[0]) if buffers else y


@pytest.mark.parametrize("cls", [GatedSumFusion, ScaledMaxFusion, FuseOnlyFusion, ShiftedSumFusion])
def test_a_class_of_ones_own_passes_the_suite(cls):
    testing.check_fusion(cls)


def test_an_optional_buffer_is_not_mistaken_for_w():
    x, w = [torch.ones(1, 4)] * 2, torch.tensor([10.0])
    plain, shifted = ShiftedSumFusion([4, 4]), ShiftedSumFusion([4, 4], shift=[0.0, 1.0, 2.0, 3.0])
    for _ in range(2):
        assert plain(x, w).tolist() == [[20, 20, 20, 20]]
        assert shifted(x, w).tolist() == [[20, 21, 22, 23]]


class TableFusion(ShiftedSumFusion):
    """A buffer that comes from an option without a default."""

    def __init__(self, dims=None, *, table, **base):
        super().__init__(dims, **base)
        self.register_buffer("table", torch.tensor(table))

    def fuse(self, xs, w, *buffers):
        return xs[0] * w + buffers[-1]


def test_an_unpickled_fusion_needs_nothing_that_was_made_before(monkeypatch):
    fusion = TableFusion([2, 2], table=[1.0, 2.0])
    data = pickle.dumps(fusion)
    monkeypatch.setattr("fusion_onnx.contract.torch_op._PROTOTYPES", {})  # as in a fresh process
    assert pickle.loads(data)([torch.ones(2)] * 2, torch.ones(1)).tolist() == [2, 3]  # noqa: S301 - pickled right here


def test_spec_style_classes_work_in_a_network():
    net = torch.nn.ModuleDict({"gate": GatedSumFusion([4, 4]), "max": FusionLayer(ScaledMaxFusion([4, 4]))})
    x = [torch.randn(3, 4) for _ in range(2)]
    (net["gate"](x) + net["max"](x)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert {"gate.gate.weight", "gate.gate.bias", "max.w"} == set(net.state_dict())


# --- the suite itself finds breaches ----------------------------------------------------------------------------------


def _broken(name, fuse, **members):
    body = {
        "equal_dims": True,
        "cases": (Case(dims=(4, 4)),),
        "calculate_n": lambda self, dims=None: (self.dims if dims is None else dims)[0],
        "calculate_l": lambda self: 0,
        "fuse": lambda self, xs, w, *buffers: fuse(xs),
        "decompose": lambda self, op, xs, w, *buffers: None,
        **members,
    }
    return type(Fusion)(name, (Fusion,), {"__module__": __name__, "__qualname__": f"_broken.<locals>.{name}", **body})


def _in_place(xs):
    return xs[0].detach().add_(xs[1].detach()) + 0 * xs[0]


def _init(**members):
    def __init__(self, dims=None, *, option=None, **base):
        Fusion.__init__(self, dims, **base)
        self.__dict__.update({"option": option, **members})

    return __init__


def _forgets(self, dims=None, *, forgotten=1, **base):
    Fusion.__init__(self, dims, **base)


BROKEN = {
    "check_shape": lambda xs: torch.cat(xs, dim=-1),
    "check_nan": lambda xs: xs[0].nan_to_num(0.0) + xs[1],
    "check_rank": lambda xs: xs[0] + xs[1] - xs[1].mean(),
    "check_gradient": lambda xs: xs[0] * xs[1].detach(),
    "check_dtype": lambda xs: (xs[0] + xs[1]).to(torch.float64),
    "check_purity": _in_place,
    "check_torch_export": lambda xs: xs[0] + xs[1] if bool(xs[0].sum() > -1e9) else xs[0],
    "check_empty_batch": lambda xs: xs[0] + xs[1] + 0 * xs[1].max(),
}


@pytest.mark.parametrize("check", BROKEN)
def test_the_suite_catches_a_broken_fuse(check):
    cls = _broken(f"Broken{check.title().replace('_', '')}", BROKEN[check])
    with pytest.raises(AssertionError, match=rf"{cls.__name__} at Case\(dims=\(4, 4\)\): {check} \("):
        testing.check_fusion(cls)


@pytest.mark.parametrize(
    ("check", "members"),
    [
        ("check_shape", {"calculate_n": lambda self, dims=None: 5}),
        ("check_shape", {"calculate_n": lambda self, dims=None: 4.0}),
        ("check_parameters", {"calculate_l": lambda self: 2}),
        ("check_buffers", {"__init__": _init(table=torch.ones(4))}),
        ("check_config", {"__init__": _init(option={1, 2})}),
        ("check_construction", {"options": classmethod(lambda cls: {**Fusion.options(), "no_such_option": None})}),
        ("check_shape", {"__init__": _forgets}),
        ("check_rounding", {"evaluate": lambda self, xs, w, buffers: self.fuse(xs, w)}),
        ("check_dims", {"get_num": lambda self: 1}),
        ("check_wrong_inputs", {"check_inputs": lambda self, x: list(x)}),
        ("check_wrong_parameters", {"operands": lambda self, x, w: (self.check_inputs(x), None, [])}),
        ("check_reference", {"reference": lambda self, xs, w: xs[0] * xs[1]}),
        ("check_reference", {"reference": lambda self, xs, w: np.nan_to_num(xs[0] * xs[1] + xs[1], posinf=np.inf)}),
        ("check_reference", {"reference": lambda self, xs, w: (xs[0] * xs[1] + xs[1]).astype(np.float32)}),
        ("check_reference", {"reference": lambda self, xs, w: (xs[0] * xs[1] + xs[1])[:1]}),
        ("check_reference", {"reference": lambda self, xs, w: torch.from_numpy(xs[0] * xs[1] + xs[1])}),
        ("check_reference", {"reference": lambda self, xs, w: xs[1] * (xs[0] + 1) + 0 * xs[1], "entrywise": True}),
    ],
)
def test_the_suite_catches_a_broken_class(check, members):
    cls = _broken("BrokenClassFusion", lambda xs: xs[0] * xs[1] + xs[1], **members)
    with pytest.raises(AssertionError, match=check):
        testing.check_fusion(cls, [Case(dims=(4, 4))])


def test_a_reference_is_optional_and_need_not_tell_apart_what_the_order_decides():
    def check(**members):
        cls = _broken("SumFusion", lambda xs: (xs[0] + xs[1]) * 2 - xs[0], **members)  # NaN where xs[0] is infinite
        testing.checks()[[c.__name__ for c in testing.checks()].index("check_reference")](cls, Case(dims=(4, 4)))

    check()
    check(reference=lambda self, xs, w: xs[0] + 2 * xs[1])
    with pytest.raises(AssertionError, match="an entry of inf"):
        check(reference=lambda self, xs, w: xs[0] + 2 * xs[1], entrywise=True)


def test_the_suite_needs_cases_and_lists_all_failures():
    cls = _broken("NoCasesFusion", lambda xs: xs[0], cases=())
    with pytest.raises(AssertionError, match="NoCasesFusion has no cases"):
        testing.check_fusion(cls)
    with pytest.raises(AssertionError) as caught:
        testing.check_fusion(_broken("TwiceFusion", lambda xs: xs[0].nan_to_num() + xs[1].detach()))
    assert "check_nan" in str(caught.value)
    assert "check_gradient" in str(caught.value)
    assert str(caught.value).startswith("2 of ") or "check_compile" in str(caught.value)


# --- the base class ---------------------------------------------------------------------------------------------------


def test_the_base_class_is_abstract():
    with pytest.raises(NotImplementedError, match="Subclass it, or take a strategy"):
        Fusion(dims=[4, 4])
    with pytest.raises(TypeError):
        fusion_onnx.fusion()
    assert fusion_onnx.fusion is Fusion
    assert issubclass(Fusion, torch.nn.Module)
    assert issubclass(Fusion, function)


def test_what_was_not_given_is_named():
    class BareFusion(Fusion):
        pass

    bare = BareFusion(dims=[4, 4])
    for method, call in {
        "calculate_n": bare.calculate_n,
        "calculate_l": bare.calculate_l,
        "forward": lambda: bare([torch.ones(1, 4)] * 2),
        "fuse": lambda: bare.fuse([], None),
        "decompose": lambda: bare.decompose(None, [], None),
        "reference": lambda: bare.reference([], None),
    }.items():
        with pytest.raises(NotImplementedError, match=rf"BareFusion does not give {method}\(\)"):
            call()
    with pytest.raises(NotImplementedError, match="Nameless does not give forward"):
        type("Nameless", (function,), {})()(1)


def test_the_constructor_is_the_specifications():
    known = Fusion.options()
    assert {key: p.default for key, p in known.items()} == {
        "dims": None,
        "name": "base_fusion",
        "require_parameters": False,
        "preprocess_functions": None,
        "postprocess_functions": None,
        "preprocess_function_configs": None,
        "postprocess_function_configs": None,
        "device": "cpu",
    }
    fusion = fusion_onnx.fusions.MaxFusion([4, 4], "mine", False, None, ["relu"], None, None, "cpu")
    assert (fusion.get_name(), fusion.get_dims(), fusion.device) == ("mine", [4, 4], "cpu")
    with pytest.raises(FusionError, match="given 'surplus', which it does not know"):
        fusion_onnx.fusions.MaxFusion([4, 4], "mine", False, None, None, None, None, "cpu", "surplus")


def test_an_unknown_option_names_itself_and_the_known_ones():
    with pytest.raises(FusionError, match=r"LowRankConcatenationFusion has no option 'rank'. Its options are .*\br\b"):
        fusion_onnx.create("low_rank_concatenation", dims=[4, 6], n=5, rank=2)
    with pytest.raises(TypeError):  # as Python has it for an unknown keyword
        fusion_onnx.create("sum", dim=[4, 4])
    with pytest.raises(TypeError, match="colour"):
        fusion_onnx.create("sum")([torch.ones(1, 4)], colour=1)


def test_spec_style_surplus_keywords_are_refused_too():
    class Swallows(Fusion):
        def __init__(self, name="swallows", *args, **kwargs):
            super().__init__(*args, name=name, **kwargs)

    assert Swallows(dims=[3]).get_name() == "swallows"
    with pytest.raises(FusionError, match="Swallows has no option 'nmae'"):
        Swallows(nmae="x")


@pytest.mark.parametrize("dims", [4, "44", [], (), [0], [-1, 4], [4.0], [True], [None], {4: 4}, [[4]]])
def test_dims_are_positive_whole_numbers(dims):
    with pytest.raises(FusionError, match="dims"):
        fusion_onnx.create("sum", dims=dims)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, torch.tensor])
def test_whole_numbers_of_any_kind_are_taken(kind):
    options = {"low_rank_concatenation": ("n", "r"), "kronecker_concatenation": ("n", "p", "q")}
    options["random_matrix_adaptation"] = ("n", "r", "seed")
    for name in fusion_onnx.names():
        taken = {key: kind(2) for key in options.get(name, ())}
        fusion = fusion_onnx.create(name, dims=[kind(2), kind(2)], **taken)
        plain = fusion_onnx.create(name, dims=[2, 2], **dict.fromkeys(taken, 2))
        assert json.dumps(fusion.to_config()) == json.dumps(plain.to_config())
        assert fusion.signature == plain.signature
        assert fusion.get_dim(kind(1)) == 2
    for bad in (np.float64(2), np.bool_(True), np.int64(0), torch.tensor(2.0)):
        with pytest.raises(FusionError, match="dims are positive whole numbers"):
            fusion_onnx.create("sum", dims=[bad])


def test_get_dim():
    fusion = fusion_onnx.create("concatenation", dims=(4, 6, 2))
    assert [fusion.get_dim(i) for i in range(3)] == [4, 6, 2]
    for index in (3, -1, -4, 100, None, 1.0, "1", True):
        with pytest.raises(ValueError, match=rf"get_dim\({index!r}\): 'concatenation' has 3 dims, \[4, 6, 2\]"):
            fusion.get_dim(index)
        with pytest.raises(IndexError):
            fusion.get_dim(index)
    with pytest.raises(ValueError, match="dims is not set"):
        fusion_onnx.create("concatenation").get_dim(0)
    fusion.get_dims().append(5)
    assert fusion.get_dims() == [4, 6, 2]


# --- what callers do that the specification lets them -----------------------------------------------------------------


@pytest.mark.parametrize("name", fusion_onnx.names())
def test_the_methods_take_the_specifications_args_and_kwargs(name):
    case = fusion_onnx.get(name).cases[0]
    fusion = case.create(fusion_onnx.get(name))
    x, dims = [torch.rand(3, d) for d in case.dims], list(case.dims)
    w = torch.rand(1, fusion.calculate_l()) if fusion.calculate_l() else None
    assert fusion.calculate_l(dims) == fusion.calculate_l(dims, 7) == fusion.calculate_l()
    assert fusion.calculate_n(dims, 7, "extra") == fusion.calculate_n(dims=dims) == fusion.calculate_n()
    expected = fusion(x, w)
    assert torch.equal(fusion(x, w, "cpu", "extra", 3), expected)
    assert torch.equal(fusion.forward(x, w=w, device="cpu"), expected)
    assert torch.equal(fusion.pre_process(x[0], "cpu", 1), x[0])
    assert torch.equal(fusion.post_process(x=x[0], device="cpu"), x[0])
    for call, known in (
        (lambda: fusion.calculate_n(dims, dmis=1), "calculate_n was given 'dmis'.*its keywords are dims"),
        (lambda: fusion.calculate_l(n=3), "calculate_l was given 'n'.*it has no keywords"),
        (lambda: fusion(x, w, dtype=3), "forward was given 'dtype'.*its keywords are x, w, device"),
        (lambda: fusion.pre_process(x[0], dim=1), "pre_process was given 'dim'.*its keywords are x, device"),
        (lambda: fusion.post_process(x[0], dim=1), "post_process was given 'dim'.*its keywords are x, device"),
    ):
        with pytest.raises(FusionError, match=f"{type(fusion).__name__}.{known}"):
            call()
        with pytest.raises(TypeError):
            call()


def test_methods_of_any_signature_take_them():
    class Counts:
        def calculate_l(self):
            return 5

    class Keywords(Counts, Fusion):
        def calculate_n(self, dims=None, *, factor=1):
            return factor * sum(dims or self.dims)

    class OwnArgs(Keywords):
        def calculate_l(self, *args, **kwargs):
            return super().calculate_l(*args) + len(args) + len(kwargs)

    class OwnKeywords(Keywords):
        def calculate_l(self, **kwargs):
            return len(kwargs)

        @staticmethod
        def calculate_n(dims=None):
            return 4

    assert Keywords(dims=[2, 2]).calculate_l([2, 2]) == 5
    assert Keywords(dims=[2, 2]).calculate_n([3], 1, factor=2) == 6
    with pytest.raises(FusionError, match=r"calculate_n was given 'fcator'.*its keywords are dims, factor"):
        Keywords(dims=[2, 2]).calculate_n(fcator=2)
    assert OwnArgs(dims=[2]).calculate_l(1, 2, any=3) == 8
    assert OwnKeywords(dims=[2]).calculate_l(1, any=3) == 1
    assert OwnKeywords(dims=[2]).calculate_n([2]) == 4
    assert Keywords.calculate_n.__name__ == "calculate_n"


def test_abstract_methods_say_so_whatever_they_are_given():
    class Bare(Fusion):
        pass

    bare, x = Bare(), [torch.ones(2)]
    for call, method in (
        (lambda *args, **kwargs: bare.calculate_n(*args, **kwargs), "calculate_n"),
        (lambda *args, **kwargs: bare.calculate_l(*args, **kwargs), "calculate_l"),
        (lambda *args, **kwargs: bare(x, *args, **kwargs), "forward"),
    ):
        for args, kwargs in (((), {}), ((1,), {"k": 2}), ((1, 2, 3, 4), {}), ((), {"k": 2})):
            with pytest.raises(NotImplementedError, match=rf"Bare does not give {method}\(\)"):
                call(*args, **kwargs)


@pytest.mark.parametrize(
    "base", [abc.ABC, collections.abc.Sized, Generic[TypeVar("T")]], ids=["ABC", "Sized", "Generic"]
)
def test_a_fusion_inherits_from_other_kinds_of_classes(base):
    class Abstract(Fusion, base):
        @abc.abstractmethod
        def scale(self):
            """Give a factor."""

        def __len__(self):
            return self.get_num()

        def calculate_n(self, dims=None):
            return (dims or self.dims)[0]

        def calculate_l(self):
            return 0

        def fuse(self, xs, w):
            return sum(xs) * self.scale()

        def decompose(self, op, xs, w):
            return op.Mul(op.Sum(*xs), op.constant(self.scale()))

    class TripleSumFusion(Abstract):
        def scale(self):
            return 3

    with pytest.raises(TypeError, match="abstract"):
        Abstract(dims=[2, 2])
    fusion = TripleSumFusion(dims=[2, 2])
    assert TripleSumFusion.strategy() == "triple_sum"
    assert TripleSumFusion.is_strategy()
    assert isinstance(fusion, getattr(base, "__origin__", base))
    assert fusion([torch.ones(1, 2)] * 2).tolist() == [[6, 6]]
    assert len(fusion) == 2
    with pytest.raises(FusionError, match="has no option 'dmis'"):
        TripleSumFusion(dmis=[2, 2])


def _x(*shapes, dtype=torch.float32):
    return [torch.ones(shape, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("name", "dims", "x", "message"),
    [
        ("sum", None, [], "at least one input is needed; got an empty list"),
        ("sum", None, (), "got an empty tuple"),
        ("sum", None, torch.ones(2, 3), "a list or tuple of tensors; got Tensor"),
        ("sum", None, None, "got NoneType"),
        ("sum", None, [torch.ones(2), None], "input 2 is a NoneType, not a tensor"),
        (
            "sum",
            None,
            [torch.ones(2).int()] * 2,
            r"inputs are floating; input 1 is torch.int32. Convert it: x.float\(\)",
        ),
        ("sum", None, [torch.ones(())], "input 1 is a scalar"),
        ("sum", None, [torch.ones(2), torch.ones(2).double()], "input 1 is torch.float32, input 2 is torch.float64"),
        ("sum", None, [torch.ones(2), torch.ones(2, device="meta")], "input 1 is on cpu, input 2 on meta"),
        ("sum", [4, 4], _x((2, 4)), r"dims=\[4, 4\] means 2 inputs; got 1"),
        (
            "sum",
            [4, 4],
            _x((2, 4), (2, 5)),
            r"input 2 has last dimension 5, shape \[2, 5\], where dims=\[4, 4\] asks for 4",
        ),
        ("sum", None, _x((2, 4), (2, 5)), r"one shape; input 1 is \[2, 4\], input 2 is \[2, 5\]"),
        ("sum", None, _x((2, 4), (1, 4)), "never broadcast"),
        ("sum", None, _x((2, 4), (4,)), "never broadcast"),
        ("concatenation", None, _x((2, 4), (3, 4)), r"all axes but the last; input 1 is \[2, 4\], input 2 is \[3, 4\]"),
        ("concatenation", None, _x((2, 4), (4,)), "never broadcast"),
        ("concatenation", [4, 6], _x((2, 6), (2, 4)), "input 1 has last dimension 6"),
        ("weighted_sum", None, _x((2, 4), (2, 4)), "weights want as many inputs; got 2"),
    ],
)
def test_bad_inputs(name, dims, x, message):
    options = {"weights": [1.0, 2.0, 3.0]} if name == "weighted_sum" else {}
    with pytest.raises(FusionError, match=message):
        fusion_onnx.create(name, dims=dims, **options)(x)


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (
            None,
            r"needs its 10 parameters: call it with w of shape \(10,\) or \(1, 10\), or let fusion_onnx.FusionLayer",
        ),
        (torch.ones(9), r"w has shape \(10,\) or \(1, 10\); got \(9,\)"),
        (torch.ones(10, 1), r"got \(10, 1\)"),
        (torch.ones(2, 5), r"got \(2, 5\)"),
        (torch.ones(10).double(), r"w is torch.float64 on cpu, the inputs torch.float32"),
        (torch.ones(10, device="meta"), r"on meta, the inputs torch.float32 on cpu"),
    ],
)
def test_bad_parameters(w, message):
    with pytest.raises(FusionError, match=message):
        fusion_onnx.create("linear_concatenation", dims=[2, 3], n=2)(_x((1, 2), (1, 3)), w)


def test_parameters_where_there_are_none():
    with pytest.raises(FusionError, match=r"sum has no trainable parameters \(l = 0\); got w of shape \(2,\)"):
        fusion_onnx.create("sum")(_x((2,), (2,)), torch.ones(2))
    with pytest.raises(FusionError, match=r"sum has no parameters to train \(l = 0\).*learned_weighted_sum"):
        fusion_onnx.create("sum", dims=[2, 2], require_parameters=True)  # tinyBIG ignores it
    with pytest.raises(FusionError, match="take weighted_sum"):
        fusion_onnx.create("learned_weighted_sum", dims=[2, 2], require_parameters=False)


def test_a_strategy_with_parameters_of_its_own_is_refused():
    class Keeps(Fusion):
        def __init__(self, dims=None, **base):
            super().__init__(dims, **base)
            self.theta = torch.nn.Parameter(torch.ones(1))

        def fuse(self, xs, w, *buffers): ...

        def decompose(self, op, xs, w, *buffers): ...

    with pytest.raises(
        FusionError, match=r"Keeps keeps parameters \['theta'\] of its own; a strategy takes them through w"
    ):
        Keeps()


def test_a_buffer_on_another_device_is_named():
    fusion = fusion_onnx.create("weighted_sum", weights=[1.0, 2.0]).to("meta")
    with pytest.raises(
        FusionError, match=r"weights is on meta, the inputs on cpu; move the fusion: fusion.to\('cpu'\)"
    ):
        fusion(_x((2,), (2,)))


def test_the_device_argument_is_accepted_and_the_inputs_decide():
    fusion = fusion_onnx.create("weighted_sum", weights=[1.0, 2.0], device="meta")
    assert fusion.weights.device.type == "meta"
    x = [torch.ones(2, 3, device="meta")] * 2
    assert fusion(x, None, "cpu").device.type == "meta"
    assert fusion(x, device="cpu").shape == (2, 3)


def test_a_class_defined_anew_under_its_name_leaves_older_fusions_as_they_are():
    def define(factor):
        return _broken("RedefinedFusion", lambda xs: xs[0] * factor)

    x = _x((2, 4), (2, 4))
    first_class = define(2)
    first = first_class(dims=[4, 4])
    second_class = define(3)
    second, again = second_class(dims=[4, 4]), first_class(dims=[4, 4])
    assert [f(x)[0, 0].item() for f in (first, second, again, first)] == [2, 3, 2, 2]
    assert first_class.strategy() == second_class.strategy() == "redefined"


def test_what_a_fusion_shows_and_says():
    fusion = fusion_onnx.create("low_rank_concatenation", dims=[4, 6], n=5, r=3)
    assert repr(fusion) == "LowRankConcatenationFusion(dims=[4, 6], n=5, r=3, require_parameters=True)" or all(
        part in repr(fusion) for part in ("LowRankConcatenationFusion", "dims=[4, 6]", "n=5", "r=3")
    )
    assert fusion.get_name() == "low_rank_concatenation"
    assert json.loads(json.dumps(fusion.to_config()))["function_class"] == "low_rank_concatenation"
    assert repr(Case(dims=[4, 6], n=5, r=2)) == "Case(dims=(4, 6), n=5, r=2)"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, as it loads inductor
def test_compiled_by_inductor_once():
    fusion = fusion_onnx.create("median")
    x = [torch.randn(4, 8) for _ in range(5)]
    torch.compiler.reset()
    compiled = torch.compile(fusion, fullgraph=True)
    try:
        y = compiled(x)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"inductor cannot compile here: {error.inner_exception}")
    assert torch.equal(y, fusion(x))
