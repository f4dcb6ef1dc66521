"""The registry: the folder, what was registered, what other packages offer; and that the door is light."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import fusion_onnx
from fusion_onnx import Fusion, FusionError, registry
from fusion_onnx.fusions import _folder

ROOT = Path(__file__).parents[1]


def _python(code):
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_folder_is_the_registry():
    files = {p.stem for p in (ROOT / "fusion_onnx" / "fusions").glob("*.py") if not p.stem.startswith("_")}
    assert set(_folder.names()) == files
    assert set(fusion_onnx.names()) >= files
    assert fusion_onnx.names() == sorted(fusion_onnx.names())


@pytest.mark.parametrize("name", _folder.names())
def test_one_name_throughout(name):
    cls = fusion_onnx.get(name)
    assert cls.strategy() == name
    assert cls.__module__ == f"fusion_onnx.fusions.{name}"
    assert str(cls._op) == f"fusion_onnx.{name}.default"
    assert getattr(fusion_onnx.fusions, cls.__name__) is cls
    assert getattr(fusion_onnx.fusions, name) is sys.modules[cls.__module__]
    assert cls.is_strategy()
    assert cls.formula
    assert cls.rule_n
    assert cls.rule_l
    assert cls.cases
    assert cls.__doc__
    assert sys.modules[cls.__module__].__doc__
    assert (
        not cls.options().keys()
        - cls.cases[0].create(cls).to_config()["function_parameters"].keys()
        - {
            "preprocess_functions",
            "postprocess_functions",
            "preprocess_function_configs",
            "postprocess_function_configs",
            "weights",
        }
    )


def test_unknown_names_are_told_what_is_known():
    with pytest.raises(
        FusionError, match=r"unknown strategy 'medain'. Did you mean 'median'\? Known are .*weighted_sum"
    ):
        fusion_onnx.get("medain")
    with pytest.raises(FusionError, match=r"made known by fusion_onnx.register\(cls\)"):
        fusion_onnx.create("zzz", dims=[4])
    with pytest.raises(AttributeError, match=r"has no strategy 'zzz'; it has .*median"):
        _ = fusion_onnx.fusions.zzz
    with pytest.raises(AttributeError, match="no attribute 'zzz'"):
        _ = fusion_onnx.zzz


def test_create_passes_every_option_on_also_the_name():
    fusion = fusion_onnx.create("sum", [2, 2], name="mine")
    assert (fusion.get_name(), fusion.get_dims(), type(fusion)) == ("mine", [2, 2], fusion_onnx.fusions.SumFusion)


@pytest.fixture
def clean(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def _define(name="OwnFusion"):
    return type(Fusion)(
        name,
        (fusion_onnx.fusions.SumFusion,),
        {"fuse": lambda self, xs, w, *b: xs[0] * 7, "__module__": __name__},
    )


@pytest.mark.usefixtures("clean")
def test_a_strategy_of_ones_own():
    own = fusion_onnx.register(_define())
    assert own.strategy() == "own"
    assert "own" in fusion_onnx.names()
    assert fusion_onnx.get("own") is own
    assert fusion_onnx.create("own", dims=[2, 2])([torch.ones(2)] * 2).tolist() == [7, 7]
    again = fusion_onnx.register(_define())
    assert fusion_onnx.get("own") is again is not own


@pytest.mark.usefixtures("clean")
def test_what_cannot_be_registered():
    with pytest.raises(FusionError, match="'sum' is a strategy of this package; rename the class"):
        fusion_onnx.register(_define("SumFusion"))
    assert fusion_onnx.register(fusion_onnx.fusions.SumFusion) is fusion_onnx.fusions.SumFusion
    for bad in (int, 3, "sum", torch.nn.Linear, fusion_onnx.fusions.SumFusion()):
        with pytest.raises(FusionError, match=r"is not a subclass of fusion_onnx.Fusion"):
            fusion_onnx.register(bad)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [("MaxFusion", "max"), ("L2NormFusion", "l2_norm"), ("HTTPLikeSumFusion", "http_like_sum"), ("plain", "plain")],
)
def test_the_snake_case_of_a_class(name, strategy):
    assert _define(name).strategy() == strategy


def test_entry_points(monkeypatch):
    loaded = []

    def point(name, value):
        return types.SimpleNamespace(name=name, load=lambda: (loaded.append(name), value)[1])

    offered = [point("theirs", _define("TheirsFusion")), point("sum", None), point("broken", int)]
    monkeypatch.setattr(registry, "entry_points", lambda group: offered if group == "fusion_onnx.fusions" else [])
    assert {"theirs", "broken", "sum"} <= set(fusion_onnx.names())
    assert loaded == []  # names are told without importing anyone's package
    assert fusion_onnx.create("theirs", dims=[2])([torch.ones(2)]).tolist() == [7, 7]
    assert fusion_onnx.get("sum") is fusion_onnx.fusions.SumFusion
    assert loaded == ["theirs"]
    with pytest.raises(FusionError, match="strategy 'broken': <class 'int'> is not a subclass"):
        fusion_onnx.get("broken")


HEAVY = "print(sorted({'torch', 'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime'} & set(sys.modules)))"


@pytest.mark.parametrize(
    "code",
    [
        "import fusion_onnx",
        "import fusion_onnx; fusion_onnx.names(); dir(fusion_onnx); fusion_onnx.FusionError",
        "import fusion_onnx; dir(fusion_onnx.fusions)",
        "import fusion_onnx.config, fusion_onnx.registry, fusion_onnx.errors",
    ],
)
def test_the_door_is_light(code):
    assert _python(f"import sys; {code}; {HEAVY}") == "[]"


def test_a_fusion_s_export_imports_no_compiler():
    code = (
        "import sys, torch, fusion_onnx; fusion_onnx.export(fusion_onnx.create('sum'), (list(torch.ones(2, 2)),));"
        "print(sorted({'torch.onnx', 'torch._dynamo', 'onnxscript.function_libs'} & set(sys.modules)))"
    )
    assert _python(code) == "[]"


def test_one_strategy_imports_one_file():
    out = _python(
        "import sys, fusion_onnx; fusion_onnx.get('max');"
        "print(sorted(m for m in sys.modules if m.startswith('fusion_onnx.fusions.') and '._' not in m))"
    )
    assert out == "['fusion_onnx.fusions.max']"


def test_every_public_name_is_there():
    names = """
        Case Fusion FusionLayer create from_config function fusion get names register register_function to_config
        fusions testing tinybig FusionError __version__
    """
    for name in names.split():
        assert getattr(fusion_onnx, name) is not None
        assert name in dir(fusion_onnx)


def test_a_fusion_unpickled_or_exported_in_a_fresh_process_computes_the_same(tmp_path):
    import pickle

    fusion = fusion_onnx.create("weighted_sum", weights=[2.0, -3.0])
    x = [torch.arange(3.0), torch.ones(3)]
    (tmp_path / "fusion.pkl").write_bytes(pickle.dumps(fusion))
    torch.export.save(torch.export.export(fusion, (x,)), tmp_path / "fusion.pt2")
    out = _python(
        "import pickle, torch, fusion_onnx;"
        "x = [torch.arange(3.0), torch.ones(3)];"
        f"print(pickle.load(open({str(tmp_path / 'fusion.pkl')!r}, 'rb'))(x).tolist());"
        "fusion_onnx.get('weighted_sum');"
        f"print(torch.export.load({str(tmp_path / 'fusion.pt2')!r}).module()(x).tolist())"
    )
    assert out.splitlines() == ["[-3.0, -1.0, 1.0]"] * 2
