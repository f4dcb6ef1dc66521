"""`start`: a runtime, ready to load one model after another."""

import abc
import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from fusion_onnx.verification.backends import _protocol, _worker
from fusion_onnx.verification.backends._backend import Array, Backend, BackendError, MissingBackend
from fusion_onnx.verification.backends._folder import get
from fusion_onnx.verification.backends._inlining import inlined
from fusion_onnx.verification.backends._messages import short_message

T = TypeVar("T")
LIMIT = 120.0
_START_LIMIT = 300.0  # imports alone; a busy machine may take its time over them


class Handle(abc.ABC):
    """One runtime, started; a context manager that closes it."""

    def __init__(self, name: str, backend: type[Backend]) -> None:
        self.name = name
        self.backend = backend

    @abc.abstractmethod
    def load(self, model: bytes, module: Any = None) -> None:
        """Load a model in place of the one before; BackendError where the runtime refuses it."""

    @abc.abstractmethod
    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Return the outputs, in the graph's order; BackendError where the runtime fails."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let the runtime go. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start(name: str, limit: float = LIMIT) -> Handle:
    """Start a runtime; one that is `isolated` waits for its first model before it starts its process.

    Args:
        name: one of `names()`.
        limit: seconds that an isolated runtime may take over one `load` or one `run`.

    Raises:
        MissingBackend: it cannot start here. ValueError: there is no such runtime.
    """
    backend = get(name)
    if reason := backend.missing():
        raise MissingBackend(f"{name}: {reason}")
    if backend.isolated and not backend.from_module:
        return _Isolated(name, backend, limit)
    return _Here(name, backend)


class _Here(Handle):
    """In this process."""

    _loaded: Backend | None = None

    def load(self, model: bytes, module: Any = None) -> None:
        self._loaded = None
        self._loaded = self._told(lambda: self.backend(inlined(model) if self.backend.inlined else model, module))

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        if self._loaded is None:
            raise BackendError("no model is loaded")
        loaded = self._loaded
        return self._told(lambda: loaded.run(arrays))

    def close(self) -> None:
        self._loaded = None

    def _told(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(short_message(error) or "it failed without a word") from error


class _Isolated(Handle):
    """In a child process, started with the first model, and again after it died."""

    def __init__(self, name: str, backend: type[Backend], limit: float) -> None:
        super().__init__(name, backend)
        self._limit = limit
        self._child: _Child | None = None

    def load(self, model: bytes, module: Any = None) -> None:
        if self._child is None:
            self._child = _Child(self.name)
            self._exchange(None, (), b"", _START_LIMIT)
        self._exchange({"do": "load"}, (), model, self._limit)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        if self._child is None:
            raise BackendError("no model is loaded")
        return self._exchange({"do": "run"}, arrays, b"", self._limit)

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _exchange(
        self, request: dict[str, Any] | None, arrays: Sequence[Array], blob: bytes, limit: float
    ) -> list[Array]:
        assert self._child is not None
        try:
            header, outputs = self._child.exchange(request, arrays, blob, limit)
        except BaseException:
            self.close()
            raise
        if header.get("error"):
            raise BackendError(header["error"])
        return outputs


class _Child:
    """The process, and the pipes to it."""

    def __init__(self, name: str) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        self._process = subprocess.Popen(
            _worker.command(name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            start_new_session=True,  # so that its own children end with it
        )
        self._finalizer = weakref.finalize(self, _end, self._process, self._stderr)

    def end(self) -> None:
        self._finalizer()

    def exchange(
        self, request: dict[str, Any] | None, arrays: Sequence[Array], blob: bytes, limit: float
    ) -> tuple[dict[str, Any], list[Array]]:
        """Send a request (None: wait for the greeting) and return the answer; BackendError where the child dies."""
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill(self._process)

        timer = threading.Timer(limit, stop)  # pipes cannot be waited for on every system; a kill ends a read on all
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                _protocol.send(self._process.stdin, request, arrays, blob)
            header, outputs, _ = _protocol.receive(self._process.stdout)
        except (EOFError, OSError):
            timer.cancel()
            raise BackendError(
                f"gave no answer within {limit:g} s" if late.is_set() else self._cause_of_death()
            ) from None
        finally:
            timer.cancel()
        return header, outputs

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"crashed with {signal.Signals(-code).name}"
        return f"ended with exit code {code}" + (f": {short_message(lines[-1])}" if lines else "")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _end(process: "subprocess.Popen[bytes]", stderr: Any) -> None:
    _kill(process)
    for pipe in filter(None, (process.stdin, process.stdout, stderr)):
        with contextlib.suppress(OSError):  # what was not yet sent goes nowhere
            pipe.close()
    process.wait()
