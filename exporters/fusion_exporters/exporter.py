"""`export`: from a PyTorch module with fusions in it to a verified ONNX file."""

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
import torch

from fusion_exporters import graph
from fusion_exporters.algebra import rewrite
from fusion_exporters.errors import ExportError, VerificationError
from fusion_exporters.external import MAX_BYTES, file_beside, move_weights, refuse_too_large, too_large
from fusion_exporters.forms.choice import AUTO, Chooser, FormRequest
from fusion_exporters.graph_inputs import Dynamic, GraphInputs, graph_inputs, none_outputs, output_names
from fusion_exporters.programs import as_program, example_of
from fusion_exporters.single import entrywise_strategy_of, observe, single
from fusion_exporters.translation.reasons import of_fast_path, unfit
from fusion_exporters.translation.tracing import Limits, import_compiler, trace
from fusion_onnx.contract import Fusion
from fusion_onnx.contract.layer import bare_fusion
from fusion_onnx.errors import FusionError
from fusion_onnx.file_format import ALGEBRA, ENTRYWISE, FORMS, FUSIONS, LIMITS, TORCH, VERIFICATION, VERSION, version
from fusion_onnx.files import vacant, write_file
from fusion_onnx.runtime import Providers, SessionError
from fusion_onnx.verification import Verdict, verify
from fusion_onnx.verification.arguments import ExampleInputs, opened
from fusion_onnx.verification.eval_mode import EvalMode, copies
from fusion_onnx.verification.trials import LARGEST

OPSETS = range(18, 27)
DEFAULT_OPSET = 18
# `export(verify=...)` hides the function of that name
_verify = verify


@dataclass(frozen=True)
class ExportResult:
    """What `export` made: where it is (None if kept in memory), the model, and the verdict (None if not verified).

    notes: what was decided on the way and is not plain from the call, a sentence each.
    """

    path: Path | None
    model: onnx.ModelProto
    verdict: Verdict | None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        where = self.path or "in memory"
        verdict = "not verified" if self.verdict is None else repr(self.verdict)
        return f"ExportResult({where}, {self.model.ByteSize()} bytes, {verdict})"


def export(
    module: torch.nn.Module,
    example_inputs: ExampleInputs | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic: Dynamic = "batch",
    opset: int = DEFAULT_OPSET,
    inline: Literal["none", "all"] = "none",
    form: FormRequest = AUTO,
    optimize: Literal["none", "algebra"] = "none",
    verify: bool = True,
    providers: Providers = "cpu",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    external_data: bool | str = False,
    overwrite: bool = False,
) -> ExportResult:
    """Export a bare fusion, or any module with fusions in it, to ONNX; verify it; write it.

    Each fusion becomes one node of the domain `fusion_onnx` with its config as an attribute, and its decomposition
    into standard operators attached as a model-local function. The module is exported in eval mode.

    Args:
        module: any torch.nn.Module; a torch.export.ExportedProgram, or the path of a saved one (.pt2), which bring an
            example and dynamic axes of their own.
        example_inputs: a tuple of the positional arguments of its forward, or a mapping of its keyword arguments, such
            as a tokenizer gives; for a bare fusion `([x1, x2],)`, with its parameters `([x1, x2], w)`.
        path: the file to write; None keeps the model in memory.
        kwargs: keyword arguments beside positional ones. What is no tensor is fixed in the graph.
        dynamic: which axes are dynamic: "batch" (the default: axis 0 of every input of rank 2 or more), None for
            static shapes, or a mapping from input names to `{axis: name}`.
        opset: of the standard operators, 18 to 26.
        inline: "none" keeps the fusions' nodes; "all" puts their bodies in place of them, for runtimes without
            support for functions.
        form: in which of its exact forms each fusion is written. "auto": the cheapest by the cost rule
            (forms/costs.py) of those that give the same bits and the same Inf and NaN as eager execution's order of
            operations; "fastest": the cheapest of all; a form's name; a mapping from fusions' paths in the module to
            one of these; or the path of a file that `tune` wrote. The rule counts for the example's sizes and the first
            of `providers`.
        optimize: "none", or "algebra": the weights of a weighted sum or mean are multiplied into the linear layers that
            feed it, and a concatenation before a linear layer becomes one fusion with it, which adds up a product for
            each input. Exact, with other rounding; not done where verification finds it beyond the tolerance.
        verify: compare with eager execution, at the example's batch size and at others, and refuse to leave a file
            that differs.
        providers: where it is verified, as `Session` takes them.
        input_names: names for the graph's inputs, by default those of forward's parameters; x1, x2, ... for a list x.
        output_names: names for its outputs; by default y, or y1, y2, ....
        external_data: whether weights go into a file beside the model, as those of more than 2 GiB have to: True for
            `<path>.data`, or the file's name; one that ends in .safetensors is a safetensors file.
        overwrite: whether a file that exists may be replaced.

    Returns:
        ExportResult with `.path`, `.model` and `.verdict`.

    Raises:
        ExportError: (a ValueError) the module cannot be exported as asked, or what came out differs from it.
        FusionError: the inputs break a fusion's contract.
        FileExistsError, FileNotFoundError: the file is there already, or is a pipe or a device; its folder is not.
        OSError: it cannot be written.
    """
    target = None if path is None else Path(path)
    if target is not None:
        vacant(target, overwrite=overwrite)  # it is raised before the work, not after it
    if program := as_program(module):
        example_inputs, kwargs, dynamic = example_of(program, example_inputs, kwargs, dynamic)
    module = opened(program or module)
    _check(module, opset, inline, optimize)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(EvalMode(module))
        writer = _Writer(target, external_data, overwrite, stack)
        if not external_data:
            refuse_too_large(module)
        inputs = graph_inputs(module, example_inputs, dynamic, input_names, kwargs)
        builder = _Builder(run, inputs, opset, inline, output_names, form, providers)
        data = writer.prepare(builder.model(algebra=optimize == "algebra"))
        verdict = _verdict_of(module, data, inputs, providers) if verify else None
        if verdict is not None and not verdict.passed and optimize == "algebra":
            data = writer.prepare(builder.model(note=f"not done, it would differ: {verdict.reasons[0]}"))
            verdict = _verdict_of(module, data, inputs, providers)
        if verdict is not None and not verdict.passed:
            note = of_fast_path(module, lambda: _verdict_of(module, data, inputs, providers).passed)
            raise VerificationError(verdict, note)
        _check_types(data)
        writer.finish(_append_fact(writer.proto, VERIFICATION, verdict.summary()) if verdict else b"")
    return ExportResult(target, writer.proto, verdict, tuple(builder.notes))


class _Writer:
    """Writes a model into a file: as bytes, or with weights in a file of their own, beside it in a folder."""

    proto: onnx.ModelProto

    def __init__(
        self, target: Path | None, external_data: bool | str, overwrite: bool, stack: contextlib.ExitStack
    ) -> None:
        self._target, self._overwrite, self._weights = target, overwrite, None
        if external_data:
            if target is None:
                raise ExportError("external_data writes a file beside the model: give a path.")
            self._weights = file_beside(target, external_data, overwrite=overwrite)
            folder = tempfile.TemporaryDirectory(prefix=".fusion-onnx.", dir=target.parent)
            self._folder = Path(stack.enter_context(folder))

    def prepare(self, model: ir.Model) -> Any:
        """Serialise a model; return what is verified: the bytes, or the path of the model beside its weights."""
        if self._weights is None:
            self.proto = ir.to_proto(model)
            self._data = _serialize(self.proto)
            return self._data
        place = self._folder / self._weights.name
        place.unlink(missing_ok=True)
        move_weights(model, place)
        self.proto = ir.to_proto(model)
        self._data = _serialize(self.proto)
        path = self._folder / "model.onnx"
        path.write_bytes(self._data)
        return str(path)

    def finish(self, more: bytes) -> None:
        """Write the file; `more` goes behind the model's bytes."""
        if self._target is None:
            return
        if self._weights is not None:
            place = self._folder / self._weights.name
            if not self._overwrite:
                os.link(place, vacant(self._weights, overwrite=False)[0])
            else:
                if self._weights.exists():  # no reader may find the old model beside new weights
                    self._target.unlink(missing_ok=True)
                os.replace(place, vacant(self._weights)[0])
        write_file(self._target, self._data, more, overwrite=self._overwrite)


@dataclass(frozen=True)
class _Builder:
    """Builds the model of a module, as often as it is asked to."""

    run: EvalMode
    inputs: GraphInputs
    opset: int
    inline: str
    output_names: Sequence[str] | None
    form: FormRequest
    providers: Providers
    notes: dict[str, None] = field(default_factory=dict)  # each once, in order

    def model(self, *, algebra: bool = False, note: str = "") -> ir.Model:
        """Return the model; note: what the file says of the algebra that was tried before."""
        module = self.run.module
        model = self._translate()
        graph.check_axes(model, self.inputs.names, self.inputs.axes)
        refusals = rewrite(model) if algebra else []
        strategy, sizes = entrywise_strategy_of(module), self.inputs.sizes()
        chooser = Chooser.from_request(self.form, self.providers, sizes, isolated=bool(strategy))
        forms = graph.attach_bodies(model, module, chooser)
        graph.tidy(model)
        facts: dict[str, Any] = {**_facts(module), FORMS: forms}
        if strategy and len(list(model.graph)) == 1:  # a check of the inputs may compute
            facts[ENTRYWISE] = True
        if self.inline == "all":
            model = graph.inline_bodies(model)
        graph.store_once(model)
        if algebra and not refusals and not any("algebra" in form for form in forms.values()):
            refusals = ["nothing to do: no fusion has linear layers beside it to fold"]
        note = note or "; ".join(refusals)
        if limits := model.meta.get(LIMITS):
            facts[LIMITS] = limits
        graph.describe(model, {**facts, **({ALGEBRA: note} if note else {})})
        return model

    def _translate(self) -> ir.Model:
        run, inputs = self.run, self.inputs
        module, example = run.module, replace(inputs, args=copies(inputs.args))
        if bare_fusion(module) is None:
            import_compiler()
        with torch.no_grad(), run.undone():
            # what is wrong with the inputs shows here, in the module's own words
            outputs, observation = observe(module, example)
        names = output_names(outputs, self.output_names, inputs.names)
        if self.output_names is None:
            clashes = [name for name in names if name.removeprefix("output_") in inputs.names]
            self.notes.update(
                (f"The output is named {name}, since an input has the other name.", None) for name in clashes
            )
        self.notes.update((f"{name} is None, and no output of the graph.", None) for name in none_outputs(outputs))
        with run.undone():
            model = single(module, example, outputs, observation, names[0], self.opset) or trace(
                module, inputs, names, self.opset
            )
        _check_limits(run, inputs, model.meta.get(LIMITS, {}))
        ends = model.meta.get(LIMITS, {}).items()
        self.notes.update(
            (f"Axis {axis} is {_range_text(*pair)}, the module's own limits; a Session keeps to them.", None)
            for axis, pair in ends
        )
        return model


def _serialize(proto: onnx.ModelProto) -> bytes:
    """Return a model's bytes: what is verified, checked and written."""
    if proto.ByteSize() > MAX_BYTES:
        raise ExportError(too_large(proto.ByteSize()))
    return bytes(proto.SerializeToString(deterministic=True))


def _append_fact(proto: onnx.ModelProto, key: str, fact: Any) -> bytes:
    """Add a fact to a model's metadata; return the bytes that add it to the model's own, put behind them."""
    graph.note(proto, key, fact)
    return bytes(onnx.ModelProto(metadata_props=proto.metadata_props[-1:]).SerializeToString())


def _check_types(data: Any) -> None:
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"what was exported is no valid model: {error}") from error


def _verdict_of(module: torch.nn.Module, model: Any, inputs: GraphInputs, providers: Providers) -> Verdict:
    try:
        return _verify(module, model, inputs.args, providers)
    except SessionError as error:
        if "cannot load" in str(error):
            raise ExportError(f"what was exported is no valid model: {error}") from error
        raise ExportError(
            f"cannot be verified here: {error}. Or export it unverified: verify=False, --no-verify."
        ) from error


def _check(module: Any, opset: Any, inline: Any, optimize: Any) -> None:
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"export takes a torch.nn.Module; got {type(module).__name__}.")
    if why := unfit(module):
        raise ExportError(why)
    if not isinstance(opset, int) or isinstance(opset, bool) or opset not in OPSETS:
        raise ExportError(f"opset is {OPSETS.start} to {OPSETS.stop - 1}; got {opset!r}.")
    if inline not in ("none", "all"):
        raise ExportError(f'inline is "none" or "all"; got {inline!r}.')
    if optimize not in ("none", "algebra"):
        raise ExportError(f'optimize is "none" or "algebra"; got {optimize!r}.')


def _range_text(least: int, most: int | None) -> str:
    return f"{least} or more" if most is None else f"{least} to {most}" if least else f"at most {most}"


def _check_limits(run: EvalMode, inputs: GraphInputs, limits: Mapping[str, Limits]) -> None:
    """Raise ExportError where the module runs beyond the sizes for which it was traced: there it does something else.

    Where it runs no further, as beyond the last of its positions, the sizes are its own limit.
    """
    for axis, (least, most) in limits.items():
        for size in ([] if most is None else [most + 1]) + ([least - 1] if least else []):
            if sum(leaf.numel() for leaf in inputs.leaves()) / inputs.sizes()[axis] * size > LARGEST:
                continue  # too large to be tried: the file keeps to it, whatever the module does
            try:
                run.outputs(inputs.resize(axis, size))
            except Exception:  # whatever it is that the module says
                continue
            raise ExportError(
                f"the module does something else where axis {axis!r} is {'larger' if size > least else 'smaller'} than "
                f"{most if size > least else least}; an exported graph does one thing. Leave the axis static "
                "(dynamic=), or branch with torch.cond."
            )


def _facts(module: torch.nn.Module) -> Mapping[str, Any]:
    fusions = {}
    for path, part in module.named_modules():
        if isinstance(part, Fusion):
            try:
                fusions[path or part.name] = part.to_config()
            except FusionError as error:  # a callable without a name: the graph holds what it does
                fusions[path or part.name] = {"function_class": part.strategy(), "note": str(error)}
    return {VERSION: version(), TORCH: torch.__version__.split("+")[0], FUSIONS: fusions}
