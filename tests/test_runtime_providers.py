"""Providers: what was asked for is what runs, or an error says why."""

import json
import subprocess
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from fusion_onnx.runtime import (
    Session,
    SessionError,
    _openvino,
    _ort,
    _probe,
    _providers,
    available_providers,
    diagnose,
)
from fusion_onnx.runtime._openvino import OPENVINO
from fusion_onnx.runtime._probe import CPU, CUDA, TENSORRT, ProviderStatus, tiny_model

X = np.ones(1, np.float32)


@pytest.fixture
def no_cuda():
    if _probe.probe(CUDA).starts:
        pytest.skip("CUDA starts here")


@pytest.mark.parametrize("providers", ["cpu", "CPU", CPU, ["cpu"], [CPU], [("cpu", {})], (("cpu", {}),)])
def test_the_cpu_by_each_of_its_names(providers):
    session = Session(tiny_model(), providers)
    assert session.providers == [CPU]
    assert session.run(X)[0] == 2


def test_auto_runs_here():
    session = Session(tiny_model())
    assert session.providers == _providers.auto_providers()
    assert session.run(X)[0] == 2


@pytest.mark.parametrize("providers", ["cuda", ["cuda"], ["cuda", "cpu"], [("cuda", {"device_id": 0})], CUDA])
def test_cuda_is_never_replaced_in_silence(no_cuda, providers, capfd):
    with pytest.raises(SessionError, match=r"CUDAExecutionProvider cannot start here: .*To fix it: "):
        Session(tiny_model(), providers)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("providers", "text"),
    [
        ("cudda", r"'cudda' is not known; did you mean 'cuda'\. The installed onnxruntime holds: .*cpu"),
        ("CUDAExecutionProvidr", "did you mean 'CUDAExecutionProvider'"),
        ("gpu", "'gpu' is not known"),
        (["cpu", "cpu"], "asked for twice"),
        (["auto", "cpu"], '"auto" stands alone'),
        ([], "providers is empty"),
        ([("cpu",)], "neither a name nor a pair"),
        ([3], "neither a name nor a pair"),
        ("qnn", "QNNExecutionProvider cannot start here: the installed onnxruntime.* was built without it"),
    ],
)
def test_a_wrong_provider_is_an_error(providers, text):
    with pytest.raises(SessionError, match=text):
        Session(tiny_model(), providers)


def fake_ort(**changes):
    names = [TENSORRT, CUDA, CPU]
    return SimpleNamespace(
        **{"get_all_providers": lambda: names, "get_available_providers": lambda: names, **changes}, __name__="fake"
    )


def starts_all(monkeypatch):
    monkeypatch.setattr(_providers, "probe", lambda name: ProviderStatus(name, "", True))


def test_the_plan_where_cuda_starts(monkeypatch):
    starts_all(monkeypatch)
    auto, alone, both, user = (
        _providers.plan(fake_ort(), providers)
        for providers in ("auto", "cuda", ["cuda", "cpu"], [("cuda", {"use_tf32": 1, "device_id": 1})])
    )
    assert auto == both
    assert both.names == [CUDA, CPU]
    assert not both.strict
    ours = {"use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}
    assert alone == _providers.Plan([(CUDA, ours)], strict=True)
    assert user.providers == [(CUDA, {**ours, "use_tf32": 1, "device_id": 1})]


def test_a_session_that_lost_its_provider_is_an_error(monkeypatch):
    """The real ONNX Runtime, made to believe that CUDA starts: it does drop it without a word."""
    starts_all(monkeypatch)
    if _probe.probe(CUDA).starts or CUDA not in _ort.load().get_available_providers():
        pytest.skip("needs a wheel with CUDA on a machine without")
    for providers in (["cuda", "cpu"], "cuda"):
        with pytest.raises(SessionError, match="started the session without CUDAExecutionProvider"):
            Session(tiny_model(), providers)


def test_diagnose_starts_each_provider():
    statuses = {status.name: status for status in diagnose()}
    ort = _ort.load()
    names = {*ort.get_available_providers()} & {*ort.get_all_providers()}  # a plug-in adds names of its devices
    assert set(statuses) == {*names, *([OPENVINO] if _openvino.is_installed() else [])}
    assert statuses[CPU] == ProviderStatus(CPU, "cpu", True, "", "")
    for status in statuses.values():
        assert status.starts != bool(status.reason and status.fix)
    assert available_providers() == [name for name, status in statuses.items() if status.starts]


@pytest.mark.parametrize("providers", ["auto", "openvino"])
def test_threads_may_be_the_first_at_once(providers):
    """They import ONNX Runtime and register the plug-in while others wait for both."""
    if providers == "openvino" and not _probe.probe(OPENVINO).starts:
        pytest.skip("OpenVINO does not start here")
    code = f"""if True:
        import threading
        from fusion_onnx.runtime import Session
        from fusion_onnx.runtime._probe import tiny_model
        gate, results = threading.Barrier(8), []
        def work():
            gate.wait()
            results.append(tuple(Session(tiny_model(), {providers!r}).providers))
        threads = [threading.Thread(target=work) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(results) == 8 and len(set(results)) == 1, results
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_providers_are_started_one_after_the_other(monkeypatch):
    """ONNX Runtime refuses a plug-in that two threads register, and one of them would do without it for ever."""
    starting, together = [], []

    def start(name):
        starting.append(name)
        time.sleep(0.01)
        together.append(len(starting))
        starting.remove(name)

    monkeypatch.setattr(_probe, "_start", start)
    threads = [threading.Thread(target=_probe.probe.__wrapped__, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1, 1, 1]


def test_a_plug_in_that_is_registered_is_one_still(monkeypatch):
    """ONNX Runtime then lists it among its own providers; named there, it would be dropped without a word."""
    starts_all(monkeypatch)
    names = [OPENVINO, CUDA, CPU]
    for devices, listed, plugin in (
        ([], [CPU], True),
        ([OPENVINO], [CPU, OPENVINO, f"{OPENVINO}.AUTO"], True),
        ([], [OPENVINO, CPU], False),
    ):
        ort = fake_ort(
            get_all_providers=lambda: names,
            get_available_providers=lambda listed=listed: listed,
            get_ep_devices=lambda devices=devices: [SimpleNamespace(ep_name=name) for name in devices],
        )
        assert _providers.plan(ort, ["openvino", "cpu"]).plugin is plugin
        assert _openvino.provider_names(ort) == [name for name in listed if "AUTO" not in name]


def test_diagnose_is_quiet():
    code = "from fusion_onnx.runtime import diagnose; assert diagnose()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_reasons_without_a_driver(monkeypatch):
    fresh = _probe.probe.__wrapped__
    monkeypatch.setattr(_probe, "_driver_problem", lambda: "no driver")
    assert fresh(CUDA).reason == "no driver"
    without = fake_ort(get_available_providers=lambda: [CPU], package_name="onnxruntime", __version__="1")
    monkeypatch.setattr(_ort, "load", lambda: without)
    assert "built without it" in fresh(CUDA).reason
    assert "fusion-onnx[gpu]" in fresh(CUDA).fix


def test_the_reason_with_a_driver_and_without_libraries(monkeypatch, capfd):
    if _probe.probe(CUDA).starts or CUDA not in _ort.load().get_available_providers():
        pytest.skip("needs a wheel with CUDA on a machine without")
    monkeypatch.setattr(_probe, "_driver_problem", lambda: "")
    status = _probe.probe.__wrapped__(CUDA)
    assert not status.starts
    assert "libcublas" in status.reason
    assert 'pip install "fusion-onnx[gpu]"' in status.fix
    assert capfd.readouterr() == ("", "")


def test_libraries_that_are_missing_are_told_and_stdout_is_left_alone(capsys):
    def preload_dlls(cuda=True):
        print("Failed to load libcudart.so.13: no such file")
        outputs.append(sys.stdout)
        print("See the notes,", 2)

    outputs = []
    assert _probe.preload(SimpleNamespace(preload_dlls=preload_dlls)) == ["libcudart.so.13"]
    assert outputs == [sys.stdout]
    assert capsys.readouterr().out == ""


def test_the_tiny_model_is_valid():
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load_from_string(tiny_model()), full_check=True)


def test_threads_and_options():
    ort = _ort.load()
    options = ort.SessionOptions()
    session = Session(tiny_model(), "cpu", threads=1, session_options=options)
    assert options.intra_op_num_threads == 1
    assert session.run(X)[0] == 2
    with pytest.raises(ValueError, match="threads is 0"):
        Session(tiny_model(), threads=0)
    with pytest.raises(TypeError, match="thread"):
        Session(tiny_model(), thread=1)


def test_providers_that_the_options_hold_are_taken():
    ort = _ort.load()
    options = ort.SessionOptions()
    [device] = [d for d in ort.get_ep_devices() if d.ep_name == CPU]
    options.add_provider_for_devices([device], {})
    session = Session(tiny_model(), session_options=options)
    assert session.providers == [CPU]
    assert session.run(X)[0] == 2


@pytest.mark.parametrize(("set_to", "expected"), [(None, "1"), ("0", "0"), ("", "")])
def test_telemetry_is_off_unless_the_user_decides(monkeypatch, set_to, expected):
    import os

    if set_to is None:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    else:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", set_to)
    values = []
    fake = ModuleType("onnxruntime")
    fake.InferenceSession = object
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(
        "importlib.import_module", lambda name: values.append(os.environ.get("ORT_DISABLE_TELEMETRY")) or fake
    )
    assert _ort.load() is fake
    assert values == [expected]


def test_without_onnxruntime_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(ImportError, match=r"not installed; install one of: .*\[cpu\].*\[gpu\].*never both"):
        _ort.load()


def test_half_an_onnxruntime_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(ImportError, match=r"installed in part .*pip uninstall"):
        _ort.load()


def test_auto_takes_openvino_where_it_starts_and_cuda_does_not(monkeypatch):
    monkeypatch.setattr(_providers, "probe", lambda name: ProviderStatus(name, "", name == OPENVINO))
    monkeypatch.setattr(_openvino, "is_installed", lambda: True)
    assert _providers.auto_providers() == [OPENVINO, CPU]
    monkeypatch.setattr(_openvino, "is_installed", lambda: False)
    assert _providers.auto_providers() == [CPU]
    starts_all(monkeypatch)
    assert _providers.auto_providers() == [CUDA, CPU]


def of_openvino(plan):
    return json.loads(dict(plan.providers)[OPENVINO]["load_config"])["CPU"]


def test_openvino_computes_in_float32_unless_asked_otherwise(monkeypatch):
    starts_all(monkeypatch)
    ort = fake_ort(get_all_providers=lambda: [OPENVINO, CPU])
    plan = _providers.plan(ort, "openvino", threads=3)
    assert (plan.names, plan.strict, plan.plugin) == ([OPENVINO], True, True)
    assert of_openvino(plan)["INFERENCE_PRECISION_HINT"] == "f32"
    assert of_openvino(plan)["INFERENCE_NUM_THREADS"] == "3"
    config = {"CPU": {"NUM_STREAMS": "1"}}
    for load_config in (config, json.dumps(config)):
        options = of_openvino(_providers.plan(ort, [("openvino", {"load_config": load_config}), "cpu"]))
        assert (options["NUM_STREAMS"], options["INFERENCE_PRECISION_HINT"]) == ("1", "f32")
    less = {"load_config": {"CPU": {"INFERENCE_PRECISION_HINT": "bf16"}}}
    assert of_openvino(_providers.plan(ort, [("openvino", less)]))["INFERENCE_PRECISION_HINT"] == "bf16"


@pytest.mark.parametrize("config", ["not json", "[1]", 7, {"CPU": "f32"}])
def test_a_wrong_load_config_is_an_error(monkeypatch, config):
    starts_all(monkeypatch)
    with pytest.raises(SessionError, match="load_config"):
        _providers.plan(fake_ort(get_all_providers=lambda: [OPENVINO, CPU]), [("openvino", {"load_config": config})])


def test_a_plug_in_stands_first_and_with_the_cpu_alone(monkeypatch):
    starts_all(monkeypatch)
    ort = fake_ort(get_all_providers=lambda: [OPENVINO, CUDA, CPU])
    for providers in (["cuda", "openvino"], ["openvino", "cuda"], ["cpu", "openvino"]):
        with pytest.raises(SessionError, match="stands first"):
            _providers.plan(ort, providers)


def test_a_plug_in_is_given_by_its_devices(monkeypatch):
    """The real ONNX Runtime with the CPU's own device in OpenVINO's place: it is run, and it is found out."""
    starts_all(monkeypatch)
    handed = []
    cpu = [d for d in _ort.load().get_ep_devices() if d.ep_name == CPU]

    def devices(ort):
        handed.append(cpu)
        return cpu

    monkeypatch.setattr(_openvino, "devices", devices)
    with pytest.raises(SessionError, match="started the session without OpenVINOExecutionProvider"):
        Session(tiny_model(), ["openvino", "cpu"])
    assert handed == [cpu]


def test_why_the_plug_in_of_openvino_does_not_start(monkeypatch):
    fresh = _probe.probe.__wrapped__
    monkeypatch.setattr(_openvino, "is_installed", lambda: False)
    status = fresh(OPENVINO)
    assert (status.reason, status.fix) == ("its plug-in is not installed", 'pip install "fusion-onnx[openvino]"')
    monkeypatch.setattr(_openvino, "is_installed", lambda: True)
    monkeypatch.setattr(_openvino, "devices", lambda ort: [])
    assert "offers no CPU" in fresh(OPENVINO).reason

    def broken(ort):
        raise RuntimeError("a symbol is missing\nand more")

    monkeypatch.setattr(_openvino, "devices", broken)
    assert fresh(OPENVINO).reason == "its plug-in cannot be registered: a symbol is missing"
