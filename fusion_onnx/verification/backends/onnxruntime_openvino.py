"""ONNX Runtime with Intel's OpenVINO as a plug-in provider: Intel's CPUs, and what comes beside them."""

import functools
import os
import subprocess
import sys
from typing import Any

from fusion_onnx.runtime import Session
from fusion_onnx.verification.backends._backend import lacks, version_of
from fusion_onnx.verification.backends._onnxruntime import OnnxRuntime
from fusion_onnx.verification.backends._said import said

_NAME = "OpenVINOExecutionProvider"
# On CPUs that have bf16 instructions it multiplies matrices in bf16 unless told not to: relative error 2.4e-3.
_OPTIONS = {"load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32", "CPU_DENORMALS_OPTIMIZATION": "NO"}}'}


class OnnxRuntimeOpenvino(OnnxRuntime):
    """OpenVINOExecutionProvider on the CPU, in float32."""

    title = "ONNX Runtime, OpenVINO provider"
    install = "pip install 'fusion-onnx[openvino]'"

    def __init__(self, model: bytes, module: Any = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.add_provider_for_devices(_devices(), _OPTIONS)
        self._session = Session(model, session_options=options)

    @classmethod
    def missing(cls) -> str:
        """Register the plug-in in a process of its own, and look whether it offers a CPU."""
        return lacks(cls, "onnxruntime", "onnxruntime_ep_openvino") or _offers_none()

    @classmethod
    def version(cls) -> str:
        """Say the plug-in's version."""
        return version_of("onnxruntime-ep-openvino")


def _devices() -> list[Any]:
    import onnxruntime
    import onnxruntime_ep_openvino as plugin

    if all(device.ep_name != _NAME for device in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library(_NAME, plugin.get_library_path())
    cpu = onnxruntime.OrtHardwareDeviceType.CPU
    return [d for d in onnxruntime.get_ep_devices() if d.ep_name == _NAME and d.device.type == cpu]


@functools.cache
def _offers_none() -> str:
    code = (
        "import sys; sys.path[:] = sys.argv[1:]\n"
        "import onnxruntime as ort, onnxruntime_ep_openvino as plugin\n"
        f"ort.register_execution_provider_library({_NAME!r}, plugin.get_library_path())\n"
        "print('\\n'.join(f'{d.ep_name}/{d.device.type.name}' for d in ort.get_ep_devices()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *sys.path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )
    offered = done.stdout.split()
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return f"the plug-in cannot be registered ({said(lines[-1])}): {OnnxRuntimeOpenvino.install} --upgrade"
    if f"{_NAME}/CPU" in offered:
        return ""
    others = ", ".join(sorted({entry.partition("/")[0] for entry in offered}))
    return (
        f"the plug-in registers, but offers no device on this machine (ONNX Runtime lists only {others}): "
        f"it takes Intel hardware alone; use the runtime openvino instead, which runs on any x86-64 or Arm CPU"
    )
