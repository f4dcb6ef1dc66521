"""Whether a file can be run here, and how, by its header."""

import os
from collections.abc import Collection, Mapping, Sequence
from types import NoneType

from fusion_onnx.file_format import ENTRYWISE, LIMITS

from ._errors import SessionError
from ._model_file import ModelHeader
from ._probe import CPU
from ._types import TensorInfo

_STANDARD_DOMAINS = ("ai.onnx", "com.microsoft", "com.ms.internal")


def check_domains(header: ModelHeader, where: str, custom: Collection[str]) -> None:
    for domain, op_type in header.ops:
        if not domain or domain.startswith(_STANDARD_DOMAINS) or domain in custom:
            continue
        if (domain, op_type) not in header.functions:
            raise SessionError(
                f"{where}: operator {op_type} of domain {domain!r} has no body in the file, so ONNX Runtime cannot run "
                f"it; export with fusion_onnx.export, which attaches bodies, or with inline='all' (if a library of "
                f"custom operators brings it: custom_domains=[{domain!r}])"
            )


def check_external(header: ModelHeader, where: str, *, trust_options: bool) -> None:
    if not header.external_files:
        return
    if header.path is None:
        if not trust_options:  # options may name the folder
            raise SessionError(f"{where} has weights in {', '.join(header.external_files)}; give its path, not bytes")
        return
    folder = os.path.dirname(os.path.abspath(header.path))
    for name in header.external_files:
        if not os.path.isfile(os.path.join(folder, name)):
            raise SessionError(f"{where}: its weights file {name!r} is not beside it in {folder!r}; copy it there")


def check_bfloat16(header: ModelHeader, providers: list[str], where: str) -> None:
    names = [info.name for info in (*header.inputs, *header.outputs) if info.dtype == "bfloat16"]
    if names and providers == [CPU]:
        raise SessionError(
            f"{where}: {', '.join(names)}: bfloat16, for which the CPU provider has no kernels; "
            f'export in float32 or float16, or use providers="cuda"'
        )


def limits_in(metadata: Mapping[str, str], where: str) -> dict[str, tuple[int, int | None]]:
    """Return the least and the largest size of each axis, by name, for which the file was made; None for no end."""
    if LIMITS not in metadata:
        return {}
    import json  # for the few files that have limits

    try:
        pairs = {str(axis): (least, most) for axis, (least, most) in json.loads(metadata[LIMITS]).items()}
        if any(type(least) is not int or type(most) not in (int, NoneType) for least, most in pairs.values()):
            raise ValueError("sizes are whole numbers")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SessionError(f"{where}: {LIMITS} in its metadata is malformed: {error}") from error
    return pairs


def rows_apart(
    header: ModelHeader, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], providers: list[str]
) -> tuple[bool, ...]:
    """Return which inputs and outputs have rows that may be computed apart; () where none have, or not on the CPU.

    They do in a file that is one entrywise fusion, which the exporter marks: its output, and its inputs but w, have one
    shape.
    """
    infos = (*inputs, *outputs)
    if header.metadata.get(ENTRYWISE) != "true" or providers != [CPU] or len(outputs) != 1:
        return ()
    is_alike = [info.shape == outputs[0].shape and info.dtype == outputs[0].dtype for info in infos]
    return tuple(is_alike) if outputs[0].shape and isinstance(outputs[0].shape[0], str) and is_alike[0] else ()
