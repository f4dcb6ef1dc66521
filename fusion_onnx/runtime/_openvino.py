"""OpenVINO as a plug-in: a library beside ONNX Runtime, which the package onnxruntime-ep-openvino brings."""

import functools
import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

OPENVINO = "OpenVINOExecutionProvider"
INSTALL = 'pip install "fusion-onnx[openvino]"'
_PACKAGE = "onnxruntime_ep_openvino"
# On CPUs with bf16 instructions it multiplies matrices in bf16 unless told not to (relative error 2.4e-3), and it may
# flush subnormals; ONNX Runtime's own provider does neither.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "CPU_DENORMALS_OPTIMIZATION": "NO"}


def is_installed() -> bool:
    """Return whether the package with the library is there."""
    return importlib.util.find_spec(_PACKAGE) is not None


def is_plugin(ort: Any) -> bool:
    """Return whether OpenVINO is a plug-in here: ONNX Runtime lists a registered plug-in among its own providers."""
    return OPENVINO not in ort.get_available_providers() or any(d.ep_name == OPENVINO for d in ort.get_ep_devices())


def provider_names(ort: Any) -> list[str]:
    """Return the names of ONNX Runtime's providers, without those of a plug-in's devices."""
    names = ort.get_all_providers()
    return [name for name in ort.get_available_providers() if name in names]


@functools.cache
def devices(ort: Any) -> list[Any]:
    """Register the library, once a process, and return the CPUs that it offers.

    Raises:
        Exception: ONNX Runtime's own, which share no base class, where the library does not load.
    """
    if _vendor() not in ("", "GenuineIntel"):  # it would offer nothing, so there is no need to load it
        return []
    plugin = importlib.import_module(_PACKAGE)
    if all(device.ep_name != OPENVINO for device in ort.get_ep_devices()):
        ort.register_execution_provider_library(OPENVINO, plugin.get_library_path())
    cpu = ort.OrtHardwareDeviceType.CPU
    return [d for d in ort.get_ep_devices() if d.ep_name == OPENVINO and d.device.type == cpu]


def _vendor() -> str:
    """Return the processor's vendor, "" where Linux does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = [file.readline() for _ in range(2)]
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def exact(options: Mapping[str, object], threads: int | None = None) -> dict[str, object]:
    """Return OpenVINO's options with float32 as the precision of inference, unless they say otherwise.

    ``load_config`` may be a mapping or its JSON; its options of the CPU stay.

    Raises:
        ValueError: load_config is neither.
    """
    import json  # for this alone

    load_config = options.get("load_config", {})
    try:
        config = json.loads(load_config) if isinstance(load_config, str) else load_config
    except json.JSONDecodeError:
        config = None
    if not isinstance(config, Mapping) or not isinstance(config.get("CPU", {}), Mapping):
        raise ValueError(f"load_config is {load_config!r}; give a mapping such as {{'CPU': {EXACT}}}, or its JSON")
    thread_options = {} if threads is None else {"INFERENCE_NUM_THREADS": str(threads)}
    cpu = {**EXACT, **thread_options, **config.get("CPU", {})}
    return {**options, "load_config": json.dumps({**config, "CPU": cpu})}
