"""Why a module cannot be exported, in the user's words: what in it is the cause, where, and what to write instead."""

import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxscript
import torch

from fusion_exporters.graph_inputs import GraphInputs
from fusion_onnx import errors

_FOREIGN = tuple(f"{Path(str(module.__file__)).parent}/" for module in (torch, onnxscript, errors))
_FOREIGN += (f"{Path(__file__).parent.parent}/",)
_STATIC = re.compile(r"static shape of (\d+) for dimension inputs\['tensors'\]\[(\d+)\]\.shape\[(\d+)\]")
_SIGNS = ("specialized", "static shape", "not all values", "Constraints violated")
LENGTH = 600


def unfit(module: torch.nn.Module) -> str:
    """Return why a module cannot be exported, whatever it is called with; nothing where it may be."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)):
            return f"{name} has no shape yet, as in torch's lazy modules: call the module once on an example first."
        if tensor.is_meta:
            return f"{name} is on the meta device, which holds no values: load the module's weights first."
    if isinstance(module, torch.jit.ScriptModule):
        return f"the module is made by torch.jit ({type(module).__name__}): give the module that it was made of."
    traces: tuple[str, ...] = ()
    for name, part in module.named_modules():
        kind = type(part)
        if kind.__name__ == "TopLevelTracedModule":
            traces += (f"{name}.",)
        elif isinstance(part, torch.jit.ScriptModule) and not name.startswith(traces):
            return f"{name} is made by torch.jit.script, which cannot be traced: give what it was made of."
        if kind.__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            return (
                f"{name or 'the module'} is quantized ({kind.__module__}.{kind.__name__}). Export the float module and "
                "quantize the file, by onnxruntime.quantization.quantize_dynamic (with inline='all', fusions too)."
            )
    return ""


def of_fast_path(module: torch.nn.Module, passes: Callable[[], bool]) -> str:
    """Say where torch's fast path for Transformer encoders is what the file differs from; nothing where it is not.

    passes: whether the file is right as of now.
    """
    kinds = (torch.nn.TransformerEncoder, torch.nn.TransformerEncoderLayer, torch.nn.MultiheadAttention)
    part = next((name or "the module" for name, part in module.named_modules() if isinstance(part, kinds)), "")
    mha = torch.backends.mha
    if not part or not mha.get_fastpath_enabled():
        return ""
    mha.set_fastpath_enabled(False)
    try:
        right = passes()
    finally:
        mha.set_fastpath_enabled(True)
    return (
        f"The file is right but for torch's fast path in {part}, which gives 0 at padded places, as no graph and no "
        "training does. Switch it off, torch.backends.mha.set_fastpath_enabled(False), and export again."
        if right
        else ""
    )


def reason(error: BaseException, inputs: GraphInputs) -> str:
    """Return what an error of torch's exporter means."""
    cause = _cause(error)
    kind, text = type(cause).__name__, str(cause).strip()
    place = _place(error)
    at = f" ({place})" if place else ""
    if any(sign in text for sign in _SIGNS):
        return _static_axis(text, inputs)
    if kind == "GuardOnDataDependentSymNode":
        return (
            f"forward decides by the values of a tensor{at}, and a graph has no such branch: choose with torch.where, "
            f"or branch with torch.cond. torch says: {_first(text)}"
        )
    if "packed" in place:
        return (
            f"packed sequences{at} take their lengths as numbers, which tracing would fix: run the layer on the padded "
            "batch, and mask what it gives beyond each length."
        )
    if kind == "DispatchError" and (operator := re.search(r"op='([\w.]+)'", text)):
        hint = " For the median of k tensors there is the fusion 'median'." if "median" in operator[1] else ""
        return f"torch.onnx has no translation of {operator[1]}{at}; write it with other operators.{hint}"
    return f"torch could not export the module{at}. {kind}: {_first(text)}"


def _static_axis(text: str, inputs: GraphInputs) -> str:
    axes_by_input = {name: dict(axes) for name, axes in zip(inputs.names, inputs.axes, strict=True) if axes}
    leaves = inputs.leaves()
    places = [(int(size), int(i), int(axis)) for size, i, axis in _STATIC.findall(text)]
    for size, i, axis in places:
        alike = [
            name
            for name, leaf, axes in zip(inputs.names, leaves, inputs.axes, strict=True)
            if axis < leaf.ndim and leaf.shape[axis] == size and axis not in axes
        ]
        if alike:
            axis_name = inputs.axes[i][axis]
            suggestion = {
                name: {**axes_by_input.get(name, {}), **({axis: axis_name} if name in alike else {})}
                for name in inputs.names
                if name in axes_by_input or name in alike
            }
            by_default = any(leaves[inputs.names.index(name)].ndim == 1 for name in alike)
            return (
                f"axis {axis} of {inputs.names[i]} was to be dynamic, and the module makes it one with axis {axis} of "
                f"{', '.join(alike)}, which {'are' if len(alike) > 1 else 'is'} static"
                f"{', as what is of rank 1 is by default' if by_default else ''}. Write dynamic={suggestion!r}."
            )
    sizes = [(inputs.names[i], axis, size) for size, i, axis in places]
    if sizes:
        message = "; ".join(f"axis {axis} of {name} at {size}" for name, axis, size in dict.fromkeys(sizes))
        return (
            f"the module fixes {message}, which was to be dynamic. Take sizes from x.shape inside forward, not from "
            "numbers, len() or a loop over rows; or say with dynamic= which axes are."
        )
    lines = [line.strip(" -") for line in text.splitlines() if any(sign in line for sign in _SIGNS[:3])]
    message = re.sub(
        r"inputs\['tensors'\]\[(\d+)\]", lambda match: inputs.names[int(match[1])], " ".join(lines) or text
    )
    return (
        f"the module fixes an axis that was to be dynamic, {axes_by_input}. torch says: {message[:LENGTH]} "
        "Take sizes from x.shape inside forward, not from numbers; or say which axes are dynamic with dynamic=."
    )


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first(text: str) -> str:
    """Return the first paragraph of what torch says: its advice is about torch's own insides."""
    return re.sub(r"\x1b\[\d*m", "", text.split("\n\n")[0])[:LENGTH]


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


def _place(error: BaseException) -> str:
    """Return the innermost line of the user's code, from the error's frames or from the node that was translated."""
    for cause in _chain(error):
        frames = [frame for frame in _frames(cause) if _is_own(frame.filename) and frame.name != "<module>"]
        if "export(" not in (frames[-1].line or "" if frames else "export("):
            return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}"
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            trace = getattr(frame.f_locals.get("node"), "meta", {}).get("stack_trace") or ""
            lines = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s*(.*)', trace)
            if own_lines := [line for line in lines if _is_own(line[0])]:
                return f"{Path(own_lines[-1][0]).name}:{own_lines[-1][1]}: {own_lines[-1][2]}"
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error's causes, the first one first."""
    if error.__cause__ is not None:
        yield from _chain(error.__cause__)
    yield error


def _is_own(file: str) -> bool:
    return not file.startswith((*_FOREIGN, "<"))
