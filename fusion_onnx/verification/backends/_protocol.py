"""How arrays travel between processes: a length (4 bytes, little-endian), a JSON header, then the bytes it measures.

Nothing in it is executed by whoever reads it, as a pickle would be, and onnxruntime_web.cjs speaks it too.
"""

import json
import math
import struct
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from fusion_onnx.verification.backends._backend import Array

_LENGTH = struct.Struct("<I")


def send(pipe: IO[bytes], header: dict[str, Any], arrays: Sequence[Array] = (), blob: bytes = b"") -> None:
    """Write one frame: the header, `blob`, the arrays."""
    flat = [np.ascontiguousarray(a).reshape(np.shape(a)) for a in arrays]  # the first makes a scalar one-dimensional
    meta = {**header, "blob": len(blob), "arrays": [{"dtype": a.dtype.name, "shape": list(a.shape)} for a in flat]}
    text = json.dumps(meta).encode()
    pipe.write(_LENGTH.pack(len(text)) + text + blob)
    for a in flat:
        pipe.write(a.tobytes())
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], list[Array], bytes]:
    """Read one frame; an EOFError where the other side is gone."""
    (length,) = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))
    header = json.loads(_exactly(pipe, length))
    blob = _exactly(pipe, header["blob"])
    arrays = []
    for described in header["arrays"]:
        dtype = np.dtype(described["dtype"])
        data = bytearray(_exactly(pipe, math.prod(described["shape"]) * dtype.itemsize))  # writable, as arrays are
        arrays.append(np.frombuffer(data, dtype).reshape(described["shape"]))
    return header, arrays, blob


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
