"""The runtimes: each runs exported models to numpy's own results, and fails in a way that hurts nobody else."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

import fusion_onnx
from fusion_onnx.verification import backends, known
from fusion_onnx.verification.backends import Backend, BackendError, MissingBackend

DIFFERENCES = Path(__file__).parent.parent / "docs" / "differences"
PLUG_IN = '''
"""A runtime for tests, which does what the model's bytes say."""

import os
import signal
import time

from fusion_onnx.verification.backends import Backend


class Tried(Backend):
    """Obeys."""

    title = "tried"
    install = "nothing"

    def __init__(self, model, module=None):
        print("loading", model, flush=True)  # a runtime that prints to stdout
        os.write(1, b"as native code does")
        self.model = model.decode()
        if self.model == "refuse":
            raise TypeError("no such\\n  model in /usr/src/runtime/loader.cpp:12\\nStack backtrace:\\n  0: main")

    def run(self, inputs):
        if self.model == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.model == "hang":
            time.sleep(600)
        if self.model == "leave":
            os._exit(3)
        if self.model == "pid":
            return [inputs[0] * 0 + os.getpid()]
        return [x + 1 for x in inputs]

    @classmethod
    def missing(cls):
        return ""

    @classmethod
    def version(cls):
        return "1"
'''


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """The folder of runtimes, with one more file."""
    (tmp_path / "tried.py").write_text(PLUG_IN)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, f"{backends.__name__}.tried", raising=False)
    return "tried"


def low_rank(xs, w):
    a, b = w[: 5 * 2].reshape(5, 2), w[5 * 2 :].reshape(2, -1)
    return np.concatenate(xs, -1) @ (a @ b).T


def kronecker(xs, w):
    n, p, q = 6, 3, 4
    a, b = w[: p * q].reshape(p, q), w[p * q :].reshape(n // p, -1)
    return np.concatenate(xs, -1) @ np.kron(a, b).T


MODELS = {
    "sum": ([4, 4, 4], {}, lambda xs, w: xs[0] + xs[1] + xs[2]),
    "median": ([4, 4, 4, 4], {}, lambda xs, w: np.sort(xs, 0)[1]),
    "low_rank_concatenation": ([4, 6], {"n": 5, "r": 2}, low_rank),
    "kronecker_concatenation": ([4, 6, 2], {"n": 6, "p": 3, "q": 4}, kronecker),
}


def drawn(fusion, dims, batch, seed=0):
    random = np.random.default_rng(seed)
    xs = [random.standard_normal((batch, d)).astype(np.float32) for d in dims]
    length = fusion.calculate_l()
    return xs, random.standard_normal(length).astype(np.float32) if length else None


@functools.cache
def exported(strategy):
    dims, options, _ = MODELS[strategy]
    fusion = fusion_onnx.create(strategy, dims=dims, **options)
    xs, w = drawn(fusion, dims, 3)
    args = ([torch.tensor(x) for x in xs], *([] if w is None else [torch.tensor(w)]))
    return fusion, fusion_onnx.export(fusion, args, verify=False).model.SerializeToString()


def started(name):
    if reason := backends.get(name).missing():
        pytest.skip(f"{name}: {reason}")
    return backends.start(name)


@pytest.mark.parametrize("name", backends.names())
def test_it_computes_what_numpy_does(name):
    with started(name) as runtime:
        for strategy, (dims, _, expected) in MODELS.items():
            fusion, model = exported(strategy)
            runtime.load(model, fusion)
            for seed, batch in enumerate((3, 8, 3)):
                xs, w = drawn(fusion, dims, batch, seed)
                outputs = runtime.run([*xs, *([] if w is None else [w])])
                assert [(y.dtype, y.shape) for y in outputs] == [(np.float32, (batch, fusion.calculate_n()))]
                np.testing.assert_allclose(outputs[0], expected(xs, w), rtol=1e-4, atol=1e-5, err_msg=strategy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("name", backends.names())
def test_other_dtypes_keep_their_precision_or_are_refused(name, dtype):
    fusion = fusion_onnx.create("sum", dims=[4, 4])
    xs = [torch.tensor([[1 / 3, 1.5, -2, 0]], dtype=dtype), torch.tensor([[1 / 7, 1, 2e-3, -0.25]], dtype=dtype)]
    model = fusion_onnx.export(fusion, (xs,), verify=False).model.SerializeToString()
    with started(name) as runtime:
        try:
            runtime.load(model, fusion)
        except BackendError as error:
            assert "float64" in str(error)  # noqa: PT017  a refusal must say what is refused
            return
        [y] = runtime.run([x.numpy() for x in xs])
    assert y.dtype == xs[0].numpy().dtype
    if not np.array_equal(y, (xs[0] + xs[1]).numpy()):
        kind = "sum", name, str(dtype).removeprefix("torch."), "differs", "normal", ""
        assert any(d.covers(*kind) for d in known.load(DIFFERENCES)), f"{name}: {y}"


@pytest.mark.parametrize("name", backends.names())
def test_its_own_error_arrives(name):
    if backends.get(name).from_module:
        bad, feeds = torch.nn.Linear(3, 2), [np.ones((2, 5), np.float32)]
    else:
        bad, feeds = None, []
    with started(name) as runtime:
        with pytest.raises(BackendError, match="no model is loaded"):
            runtime.run(feeds)
        with pytest.raises(BackendError) as caught:  # noqa: PT012 - some refuse it at the load, some at the run
            runtime.load(b"\x08\x08this is no model", bad)
            runtime.run(feeds)
        said = str(caught.value)
        assert 0 < len(said) <= 300
        assert "Traceback" not in said
        assert "/" + "work" not in said
        fusion, model = exported("sum")
        runtime.load(model, fusion)
        assert runtime.run(drawn(fusion, [4, 4, 4], 2)[0])[0].shape == (2, 4)


@pytest.mark.parametrize("name", backends.names())
def test_it_says_what_it_is(name):
    cls = backends.get(name)
    assert issubclass(cls, Backend)
    assert cls.title
    assert cls.install.startswith(("pip install", "npm install"))
    reason = cls.missing()
    assert reason == "" or any(word in reason for word in ("install", "use the CPU provider"))
    assert cls.version() or reason
    assert not (cls.from_module and cls.inlined)


def test_what_is_missing_says_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    for name, library in [("openvino", "openvino"), ("tract", "tract"), ("pytorch_roundtrip", "onnx2pytorch")]:
        with pytest.raises(MissingBackend, match=rf"{library}.* is not installed: pip install 'fusion-onnx\["):
            backends.start(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingBackend, match="node"):
        backends.start("onnxruntime_web")
    monkeypatch.undo()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingBackend, match=r"no-such-compiler.*install"):
        backends.start("torch_compile")


def test_the_web_runtime_is_looked_for_in_the_working_folder_too(monkeypatch, tmp_path):
    cls = backends.get("onnxruntime_web")
    monkeypatch.delenv("FUSION_ONNX_NODE_MODULES", raising=False)
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert cls.version() == ""
    package = tmp_path / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "0.1"}')
    assert cls.version() == "0.1"


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match=r"no runtime 'torch'; there are onnx_reference, "):
        backends.start("torch")


def test_a_file_more_is_a_runtime_more(tried):
    assert tried in backends.names()
    with backends.start(tried) as runtime:
        runtime.load(b"add")
        assert runtime.run([np.float64(1), np.zeros((0, 2), bool), np.ones(2, np.float16)])[0] == 2


def test_the_process_is_kept_over_many_models(tried):
    one = np.zeros(1, np.int64)
    with backends.start(tried) as runtime:
        seen = set()
        for _ in range(3):
            runtime.load(b"pid")
            seen.add(int(runtime.run([one])[0][0]))
        assert len(seen) == 1
        runtime.close()
        runtime.close()
        with pytest.raises(BackendError, match="no model is loaded"):
            runtime.run([one])


def test_an_error_loses_its_traces_and_folders(tried):
    with backends.start(tried) as runtime:
        with pytest.raises(BackendError) as caught:
            runtime.load(b"refuse")
        assert str(caught.value) == "TypeError: no such model in loader.cpp:12"
        runtime.load(b"add")


@pytest.mark.parametrize(
    ("model", "text"),
    [("crash", "crashed with SIGSEGV"), ("leave", "ended with exit code 3"), ("hang", "no answer within 3 s")],
)
def test_a_dead_process_is_replaced(tried, model, text):
    with backends.start(tried, limit=3) as runtime:
        runtime.load(model.encode())
        with pytest.raises(BackendError, match=text):
            runtime.run([np.ones(1)])
        with pytest.raises(BackendError, match="no model is loaded"):
            runtime.run([np.ones(1)])
        runtime.load(b"add")
        assert runtime.run([np.ones(1)])[0] == 2


def test_inlining_leaves_nothing_of_the_functions():
    import onnx

    from fusion_onnx.verification.backends._inlining import inlined

    _, model = exported("median")
    assert onnx.load_from_string(model).functions
    plain = onnx.load_from_string(inlined(model))
    assert not plain.functions
    assert [o.domain for o in plain.opset_import] == [""]
    assert inlined(plain.SerializeToString()) == plain.SerializeToString()
