"""What callers give: keywords, mappings, programs; modules that end at some size; modules that cannot be exported."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import fusion_onnx
from fusion_exporters import VerificationError
from fusion_onnx import ExportError, FusionLayer, InputError, Session, SessionError, create, export, locate, verify


class Merge(nn.Module):
    """The mean of two inputs, one through a linear layer, and whatever else its forward takes."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.merge = FusionLayer(create("mean", dims=[4, 4]))

    def forward(self, a, b, scale=1.0, *rest, flag=None, **others):
        y = self.merge([self.left(a), b]) * scale
        for tensor in (*rest, flag, *others.values()):
            y = y if tensor is None else y + tensor
        return {"y": y, "aux": None, "parts": [a, (b + 1,)]}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


A, B, C, D = (draw(3, 4, seed=seed) for seed in range(4))
GIVEN = {
    "a spare *args": ((A, B), None, ["a", "b"]),
    "a number": ((A, B, 0.5), None, ["a", "b"]),
    "None": ((A, B, 1.0, None), None, ["a", "b"]),
    "a mapping, in any order": ({"b": B, "a": A}, None, ["a", "b"]),
    "one by keyword": ((A,), {"b": B}, ["a", "b"]),
    "keyword-only": ((A, B), {"flag": C}, ["a", "b", "flag"]),
    "all kinds": ((A, B, 2.0, C), {"more": D, "flag": None}, ["a", "b", "rest1", "more"]),
}


@pytest.mark.parametrize("what", GIVEN)
def test_arguments_of_every_kind(what):
    args, kwargs, names = GIVEN[what]
    torch.manual_seed(0)
    network = Merge().eval()
    result = export(network, args, kwargs=kwargs)
    session = onnxruntime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [(name, ["batch", 4]) for name in names]
    assert [o.name for o in session.get_outputs()] == ["y", "parts1", "parts2_1"]
    assert result.notes == ("['aux'] is None, and no output of the graph.",)
    others = [draw(5, 4, seed=10 + i) for i in range(len(names))]  # another batch size
    replaced = iter(others)
    positional, keywords = ((), args) if isinstance(args, dict) else (args, kwargs or {})
    order = sorted(keywords, key=lambda key: ["a", "b", "flag", "more"].index(key))

    def other(value):
        return next(replaced) if isinstance(value, torch.Tensor) else value

    positional = [other(value) for value in positional]
    eager = network(*positional, **{key: other(keywords[key]) for key in order})
    outputs = session.run(None, {name: x.numpy() for name, x in zip(names, others, strict=True)})
    for y, wanted in zip(outputs, (eager["y"], eager["parts"][0], eager["parts"][1][0]), strict=True):
        np.testing.assert_allclose(y, wanted.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert {init.name for init in result.model.graph.initializer} >= {"left.weight", "left.bias"}
    assert {"left/Gemm", "merge"} <= {node.name for node in result.model.graph.node}
    assert verify(network, result, args, kwargs=kwargs).passed
    assert locate(network, result, args, kwargs=kwargs) is None


def test_a_fusion_takes_its_parameters_by_keyword():
    fusion, w = create("learned_weighted_sum", dims=[4, 4]), draw(2, seed=5)
    result = export(fusion, ([A, B],), kwargs={"w": w})
    assert [i.name for i in result.model.graph.input] == ["x1", "x2", "w"]
    assert "bits" in result.verdict.rule or result.verdict.rule.startswith("0")
    assert verify(fusion, result, {"x": [A, B], "w": w}).rule == result.verdict.rule


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((A,), None, "missing a required argument: 'b'"),
        ({"a": A, "c": B}, None, "missing a required argument: 'b'"),
        ((A, B), {"a": A}, "multiple values for argument 'a'"),
        (None, None, "a tuple of the module's positional arguments, or a mapping"),
        ((A, A), None, "the same tensor object"),
        ((1, 2), None, "holds no tensor"),
    ],
)
def test_an_example_that_does_not_fit_says_why(args, kwargs, words):
    with pytest.raises(ExportError, match=words):
        export(Merge(), args, kwargs=kwargs)


class Mapped(nn.Module):
    def forward(self, batch):
        return batch["a"] + batch["b"]


def test_a_mapping_as_the_only_argument_stands_in_a_tuple():
    assert [i.name for i in export(Mapped(), ({"a": A, "b": B},)).model.graph.input] == ["batch_a", "batch_b"]
    with pytest.raises(ExportError, match=r"for one argument that is a mapping: \(mapping,\)"):
        export(Mapped(), {"a": A, "b": B})


# --- sizes ------------------------------------------------------------------------------------------------------------


class Bounded(nn.Module):
    """Refuses more than `most` steps and fewer than `least`; or does something else there."""

    def __init__(self, least=0, most=None, otherwise=None):
        super().__init__()
        self.least, self.most, self.otherwise = least, most, otherwise

    def forward(self, x):
        if x.shape[1] < self.least or (self.most is not None and x.shape[1] > self.most):
            if self.otherwise is None:
                raise ValueError("not made for this length")
            return x * self.otherwise
        return x * 2


class Positions(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.positions = nn.Parameter(draw(1, length, 3, seed=6))

    def forward(self, x):
        return x + self.positions[:, : x.shape[1]]


TIME = {"x": {0: "batch", 1: "time"}}
ENDS = {
    "a check": (Bounded(most=9), (0, 9)),
    "a least size": (Bounded(least=4), (4, None)),
    "both": (Bounded(4, 9), (4, 9)),
    "positions": (Positions(9), (0, 9)),
}


@pytest.mark.parametrize("what", ENDS)
def test_sizes_that_end_are_kept_in_the_file(what):
    module, (least, most) = ENDS[what]
    result = export(module, (draw(2, 6, 3),), dynamic=TIME)
    session = Session(result)
    assert session.limits == {"time": (least, most)}
    assert "a Session keeps to them" in result.notes[0]
    tried = [finding.case for finding in result.verdict.findings]
    assert "batch 2, time 9" in tried if most else "batch 1, time 4" in tried
    for size in {max(least, 1), 5, most or 40}:
        x = draw(3, size, 3)
        np.testing.assert_allclose(session.run(x)[0].numpy(), module(x).detach().numpy(), rtol=1e-6)
    for size in {least - 1, (most or 0) + 1} - {-1, 1}:
        with pytest.raises(InputError, match=rf"time: x has {size}; the model was exported for"):
            session.run(draw(3, size, 3))
        with pytest.raises(InputError, match="the model was exported for"):
            session.bind(draw(3, size, 3))
    assert verify(module, result, (draw(2, 6, 3),), battery=True).passed


def test_a_size_too_large_to_be_tried_is_kept():
    assert Session(export(Bounded(most=10**9), (draw(2, 6, 3),), dynamic=TIME)).limits == {"time": (0, 10**9)}


@pytest.mark.parametrize("ends", [{"most": 9}, {"least": 4}])
def test_another_branch_beyond_a_size_is_refused(ends):
    with pytest.raises(ExportError, match=r"axis 'time' is (larger than 9|smaller than 4)"):
        export(Bounded(**ends, otherwise=3), (draw(2, 6, 3),), dynamic=TIME)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"time": 3}', '{"time": [1, "2"]}', '{"time": [true, 2]}', "null", "[" * 10**5]
)
def test_limits_that_are_malformed_are_an_error(text):
    model = export(Halves(), (draw(2, 6, 3),), dynamic=TIME).model
    model.metadata_props.add(key="fusion_onnx.limits", value=text)
    with pytest.raises(SessionError, match=r"fusion_onnx.limits in its metadata is malformed"):
        Session(model)


class Halves(nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0], x.shape[1] // 2, 2, 3).mean(2)


class Chosen(nn.Module):
    def forward(self, x):
        return x[x[:, 0] > 0], (x > 0).nonzero()


def test_even_sizes_and_sizes_that_depend_on_data():
    module = Halves()
    result = export(module, (draw(2, 6, 3),), dynamic=TIME)
    np.testing.assert_allclose(Session(result).run(draw(2, 8, 3))[0], module(draw(2, 8, 3)), rtol=1e-5)
    module, x = Chosen(), draw(9, 4, seed=8)
    chosen, places = Session(export(module, (draw(3, 4),))).run(x)
    assert torch.equal(chosen, module(x)[0])
    assert torch.equal(places, module(x)[1])


class Table(nn.Module):
    """Looks up rows by identifiers that come as floating numbers, beside others that are none."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)

    def forward(self, x):
        return self.words(x[:, 0].long()) * x[:, 1:]


def test_whole_rows_are_tried_where_identifiers_are_floating_numbers():
    ids = torch.tensor([[8.0], [3.0], [5.0]])
    x = torch.cat([ids, 100 * draw(3, 4)], dim=1)
    assert [f.case for f in export(Table(), (x,)).verdict.findings][:2] == ["batch 3", "batch 7"]


# --- programs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [None, 64])
def test_a_program_brings_its_example_and_its_axes(most):
    size = torch.export.Dim("n", max=most) if most else torch.export.Dim("n")
    module = Merge().eval()
    program = torch.export.export(
        module, (A, B), {"flag": C}, dynamic_shapes={"a": {0: size}, "b": {0: size}, "flag": {0: size}}
    )
    result = export(program)
    session = Session(result)
    assert [str(info) for info in session.inputs] == [f"{name}: float32[batch, 4]" for name in ("a", "b", "flag")]
    assert session.limits == ({"batch": (0, most)} if most else {})
    others = [draw(7, 4, seed=seed) for seed in range(3)]
    np.testing.assert_allclose(
        session.run(*others)[0], module(*others[:2], flag=others[2])["y"].detach(), rtol=1e-5, atol=1e-6
    )
    assert verify(program, result, (A, B), kwargs={"flag": C}).passed


def test_a_saved_program_is_a_target(tmp_path):
    torch.export.save(torch.export.export(Merge().eval(), (A, B)), tmp_path / "merge.pt2")
    assert [node.domain for node in export(tmp_path / "merge.pt2").model.graph.node if node.domain] == ["fusion_onnx"]
    command = [sys.executable, "-m", "fusion_onnx", "export", "merge.pt2", "-o", "merge.onnx"]  # knows no fusion yet
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert onnx.load(tmp_path / "merge.onnx").functions
    (tmp_path / "broken.pt2").write_bytes(b"no")
    with pytest.raises(ExportError, match=r"is no program that torch.export saved"):
        export(tmp_path / "broken.pt2")
    with pytest.raises(FileNotFoundError, match=r"there is no file absent\.pt2"):
        export("absent.pt2")


# --- what cannot be exported ------------------------------------------------------------------------------------------


class After(nn.Module):
    """The sum of two inputs, and something after it."""

    def __init__(self, then, **parts):
        super().__init__()
        self.merge, self.then = FusionLayer(create("sum", dims=[4, 4])), then
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x, y):
        return self.then(self, self.merge(x, y))


def packed(network, h):
    sequence = nn.utils.rnn.pack_padded_sequence(h[:, None], torch.ones(len(h), dtype=torch.int64), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(network.recurrent(sequence)[0], batch_first=True)[0]


def chosen_by_value(network, h):
    return h if h.sum() > 0 else -h


def quantized():
    network = After(lambda n, h: n.part(h), part=nn.Linear(4, 4))
    return torch.ao.quantization.quantize_dynamic(network, {nn.Linear})


CANNOT = {
    "a branch on values": (
        lambda: After(chosen_by_value),
        r"decides by the values of a tensor \(test_examples.py:\d+: return h if h.sum\(\) > 0 else -h\).*torch.where",
    ),
    "a loop over rows": (
        lambda: After(lambda n, h: torch.stack([h[i] * i for i in range(h.shape[0])])),
        "fixes axis 0 of x at 3; axis 0 of y at 3",
    ),
    "packed sequences": (lambda: After(packed, recurrent=nn.GRU(4, 4, batch_first=True)), "packed sequences"),
    "an operator without translation": (
        lambda: After(lambda n, h: h.median(-1).values),
        r"no translation of aten.median \(test_examples.py:.*the fusion 'median'",
    ),
    "a lazy module": (lambda: After(lambda n, h: n.part(h), part=nn.LazyLinear(4)), "part.weight has no shape yet"),
    "the meta device": (
        lambda: After(lambda n, h: n.part(h), part=nn.Linear(4, 4, device="meta")),
        "part.weight is on the meta device",
    ),
    "a scripted part": (
        lambda: After(lambda n, h: n.part(h), part=torch.jit.script(nn.Linear(4, 4))),
        "part is made by torch.jit.script",
    ),
    "a traced module": (lambda: torch.jit.trace(After(lambda n, h: h), (A, B)), "the module is made by torch.jit"),
    "a quantized part": (quantized, r"part is quantized .*quantize the file"),
    "what is no tensor": (lambda: After(lambda n, h: {"y": h, "n": [3]}), r"returns \['n'\]\[0\] = int"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", CANNOT)
def test_the_reason_is_one_sentence_about_the_users_module(what, capfd):
    make, words = CANNOT[what]
    module = make()
    capfd.readouterr()
    with pytest.raises(ExportError, match=words) as caught:
        export(module, (A, B))
    assert len(str(caught.value)) < 420
    assert capfd.readouterr() == ("", "")


class PerSample(nn.Module):
    def __init__(self):
        super().__init__()
        self.merge = FusionLayer(create("sum", dims=[4, 4]))

    def forward(self, a, b, weights):
        return self.merge(a, b) * weights[:, None]


@pytest.mark.parametrize("dynamic", ["batch", {"a": {0: "batch"}}])
def test_axes_that_the_module_makes_one_are_named_with_what_to_write(dynamic):
    example = (A, B, draw(3, seed=9))
    with pytest.raises(
        ExportError, match=r"one with axis 0 of (b, )?weights, which (is|are) static, as what is of rank 1"
    ) as caught:
        export(PerSample(), example, dynamic=dynamic)
    written = str(caught.value).partition("Write dynamic=")[2].removesuffix(".")
    assert export(PerSample(), example, dynamic=eval(written)).verdict.passed  # noqa: S307 what the message says to write


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.merge = FusionLayer(create("max", dims=[8, 8]))

    def forward(self, x, y, mask):
        return self.merge(self.encoder(x, src_key_padding_mask=mask), y)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torchs_fast_path_is_named():
    torch.manual_seed(0)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 3:] = True
    example, network = (draw(3, 5, 8), draw(3, 5, 8, seed=1), mask), Encoder().eval()
    with pytest.raises(VerificationError, match="torch's fast path in encoder, which gives 0 at padded places"):
        export(network, example)
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_is_decided_is_said():
    class Named(nn.Module):
        def forward(self, y, x):
            return x + y

    assert export(Named(), (A, B)).notes == ("The output is named output_y, since an input has the other name.",)
    assert export(Named(), (A, B), output_names=["z"]).notes == ()


TARGETS = """
    import torch, fusion_onnx

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.merge = fusion_onnx.FusionLayer(fusion_onnx.create("weighted_sum", dims=[4, 4], weights=[1.0, 2.0]))

        def forward(self, x, y, *, scale=None):
            a, b = self.left(x), self.right(y)
            z = self.merge(a, b) + a
            return z if scale is None else z * scale

    def example_inputs():
        return {"y": torch.randn(3, 4), "x": torch.randn(3, 4)}

    def three():
        torch.manual_seed(0)
        return Two(), (torch.randn(3, 4), torch.randn(3, 4)), {"scale": torch.randn(3, 4)}
"""


def test_targets_give_mappings_and_keywords_and_say_what_is_drawn(tmp_path):
    (tmp_path / "net.py").write_text(textwrap.dedent(TARGETS))
    script = (
        "from typer.testing import CliRunner; from fusion_onnx.cli import app; import sys\n"
        "for line in sys.argv[1:]: print(CliRunner().invoke(app, line.split()).output)"
    )
    lines = [
        "export net.py:Two -o two.onnx --optimize algebra",
        "export net.py:three -o three.onnx",
        "verify net.py:three three.onnx --locate",
    ]
    command = [sys.executable, "-c", script, *lines]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "Two is a class, whose weights are drawn anew each time" in done.stdout, done.stdout + done.stderr
    assert "not done: the linear layers of left.weight have other users than the fusion" in done.stdout
    assert done.stdout.count("passed") == 3
    assert [i.name for i in onnx.load(tmp_path / "two.onnx").graph.input] == ["x", "y"]
    assert [i.name for i in onnx.load(tmp_path / "three.onnx").graph.input] == ["x", "y", "scale"]
    assert fusion_onnx.Session(tmp_path / "three.onnx").metadata


class Padded(nn.Module):
    """Its inputs have the names that torch gives to what it computes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, pad, add, linear, mul):
        return nn.functional.pad(self.linear(pad) * mul, (0, 1)) + nn.functional.pad(add + linear, (0, 1))


def test_inputs_have_names_that_torch_gives_to_what_it_computes():
    example = (A, B, C, D)
    result = export(Padded(), example, output_names=["pad_1"])
    assert [i.name for i in result.model.graph.input] == ["pad", "add", "linear", "mul"]
    assert [o.name for o in result.model.graph.output] == ["pad_1"]
    assert result.verdict.passed


BRANCHES = """
import sys
import torch
import fusion_onnx

class Branches(torch.nn.Module):
    def forward(self, x, y):
        return torch.cond(x.sum() > 0, lambda z: z.sin(), lambda z: z.cos(), (x + y,))

example = (torch.ones(3, 4), torch.ones(3, 4) / 2)
if sys.argv[1] == "export":
    fusion_onnx.export(Branches(), example, sys.argv[2])
else:
    assert fusion_onnx.verify(Branches(), sys.argv[2], example)
"""


@pytest.mark.slow
def test_the_first_branch_of_a_process(tmp_path):
    """torch imports its compiler with the first torch.cond, and would compile what watches the module."""
    for what in ("export", "verify"):
        subprocess.run([sys.executable, "-c", BRANCHES, what, str(tmp_path / "branches.onnx")], check=True, timeout=300)
