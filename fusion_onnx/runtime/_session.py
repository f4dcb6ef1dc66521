"""Session: load a model, run it, and say what really ran."""

import functools
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _ort, _providers, _torch, fused
from ._bound import Bound, destinations, in_blocks, in_place
from ._empty_batch import session_for_empty
from ._errors import InputError, SessionError
from ._file_checks import check_bfloat16, check_domains, check_external, limits_in, rows_apart
from ._inputs import Reader, arrange, check_shapes
from ._instances import Graphs, Instances, sizes_of
from ._model_file import read_header
from ._openvino import OPENVINO
from ._placement import NodePlacement, placement
from ._probe import CPU, CUDA, TURNS, first_line
from ._recipe import Recipe, fused_programs
from ._types import TensorInfo, dtype_of_ort

if TYPE_CHECKING:
    from ._model_like import ModelLike

_MOST_SHAPES = 256
_MOST_INSTANCES = 4
_NO_SHAPE = object()
_MUCH = 2**24


class Session:
    """A model, ready to run in ONNX Runtime. One session may be used by many threads at once.

        >>> session = Session("median.onnx", providers="cpu")
        >>> [y] = session.run(x1, x2, x3)              # by position, or by name: run(x1=..., x2=..., x3=...)

    Args:
        model: a path, the file's bytes, an ``onnx.ModelProto``, or the result of ``fusion_onnx.export``. A path is
            needed for a model whose weights lie in a file beside it.
        providers: what computes. "auto" is CUDA if it starts here, else OpenVINO if it is installed and starts, with
            the CPU for the nodes that they have no kernels for. "cuda" is CUDA alone, and an error where it does not
            start or a node has no kernel for it (the arithmetic of shapes stays on the CPU, where ONNX Runtime wants
            it); ["cuda", "cpu"] lets the CPU take such nodes. A list holds aliases, names, and pairs (name, options).
            CUDA and OpenVINO compute in full float32 unless their options ``use_tf32`` or ``load_config`` say
            otherwise. CUDA starts in this process then: a process forked from it afterwards cannot use CUDA.
        threads: how many threads share the work of one operator on the CPU; None leaves it to ONNX Runtime.
        spin: whether the threads go on spinning for some 20 ms after a call, as ONNX Runtime's own do, so that the next
            call finds them awake. False lets them sleep when a call ends. It is for loops that do other work between
            calls, such as PyTorch's or another session's: that work would share the cores with spinning threads, and
            may take twice as long. An entry of session_options stays as it is unless this is False.
        static_shapes: for how many sets of input sizes to keep an instance of the model that is planned for them alone.
            A second call with the same sizes, or a binding, makes one; each holds weights of its own. None is 4 where
            OpenVINO computes, which fuses entrywise operators only then, and otherwise 0.
        fuse: whether one kernel of this package runs each entrywise fusion in place of its body, in one pass over
            memory and with the same bits. None is True wherever that can be: on the CPU provider alone, where the
            package was built with a C compiler, and without session_options. A call with shapes that a kernel is not
            for, such as those of a broadcast, takes the session back to ONNX Runtime's operators. False is these alone.
        session_options: an ``onnxruntime.SessionOptions`` to start from; this class adds entries to it. If it has
            providers and ``providers`` is "auto", those are the session's. Load CUDA's libraries from pip's wheels
            before you add CUDA to it: ``onnxruntime.preload_dlls()``.
        custom_domains: domains whose operators come from a library registered in ``session_options``.

    Raises:
        FileNotFoundError: there is no such file.
        SessionError: the model cannot be loaded, or a provider cannot be had.
        ImportError: onnxruntime is not installed.
    """

    def __init__(
        self,
        model: "ModelLike",
        providers: _providers.Providers = "auto",
        *,
        threads: int | None = None,
        spin: bool = True,
        static_shapes: int | None = None,
        fuse: bool | None = None,
        session_options: Any = None,
        custom_domains: Collection[str] = (),
    ) -> None:
        source = _source(model)
        header = read_header(source)
        self._where = f"{header.path!r}" if header.path is not None else "the model"
        check_domains(header, self._where, custom_domains)
        check_external(header, self._where, trust_options=session_options is not None)
        ort = _ort.load()
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; give at least 1, or None for ONNX Runtime's choice")
        if static_shapes is not None and (not isinstance(static_shapes, int) or static_shapes < 0):
            raise ValueError(f"static_shapes is {static_shapes!r}; give 0 or more, or None for the default")
        if static_shapes and session_options is not None:
            raise ValueError("static_shapes makes sessions with options of their own; leave out session_options")
        options = ort.SessionOptions() if session_options is None else session_options
        plan = None
        if session_options is None or providers != "auto" or not _has_providers(options):
            plan = _providers.plan(ort, providers, threads)
            check_bfloat16(header, plan.names, self._where)
        programs = fused_programs(source, header, plan, fuse, free=session_options is None)
        recipe = Recipe(ort, source, plan, self._where, threads, spin, programs)
        try:
            self._ort_session = recipe.make(options)
        except SessionError:
            if fuse or not programs:
                raise
            recipe, programs = recipe._replace(programs=()), ()  # a function may be called as its kernel cannot be
            self._ort_session = recipe.make(ort.SessionOptions())
        self._ort = ort
        self._header = header
        self.providers: list[str] = list(self._ort_session.get_providers())
        self.inputs: tuple[TensorInfo, ...] = _describe(self._ort_session.get_inputs(), header.inputs)
        self.outputs: tuple[TensorInfo, ...] = _describe(self._ort_session.get_outputs(), header.outputs)
        self.limits: dict[str, tuple[int, int | None]] = limits_in(header.metadata, self._where)
        readers = [Reader(info) for info in self.inputs]
        self._slots = tuple((reader.info.name, reader.dtype, reader) for reader in readers)
        self._output_names = [info.name for info in self.outputs]
        self._needs_binding = any(info.dtype == "bfloat16" for info in (*self.inputs, *self.outputs))
        self._untyped = any("(" in info.dtype for info in self.inputs)  # sequences, which ONNX Runtime's run looks into
        self._devices = _devices(self._ort_session)
        self._largest = 0
        self._good_shapes: set[tuple[Any, ...]] = set()
        self._last: tuple[tuple[Any, ...], Any] = ((_NO_SHAPE,) * len(self._slots), None)
        self.fused: tuple[str, ...] = tuple(program.name for program in programs)
        self._plain = None if fuse or not programs else recipe._replace(programs=())
        self._unfusing = threading.Lock()
        self._rows = () if programs else rows_apart(header, self.inputs, self.outputs, self.providers)
        if static_shapes is None:
            static_shapes = _MOST_INSTANCES if OPENVINO in self.providers and session_options is None else 0
        self._instances = Instances(self._ort_session, recipe.static, static_shapes) if static_shapes else None
        with_graphs = functools.partial(recipe.static, enable_cuda_graph="1")
        records = CUDA in self.providers and session_options is None
        self._graphs = Graphs(with_graphs, _MOST_INSTANCES) if records else None
        of_empty = functools.cache(functools.partial(session_for_empty, recipe, session_options))
        self._of_empty = of_empty if CUDA in self.providers else None

    @property
    def metadata(self) -> dict[str, str]:
        """The model's metadata, a copy."""
        return dict(self._header.metadata)

    def __repr__(self) -> str:
        source = self._header.path or f"{self._header.size} bytes"
        inputs, outputs = (", ".join(map(str, infos)) for infos in (self.inputs, self.outputs))
        return f"Session({source!r}, providers={self.providers}, inputs=({inputs}), outputs=({outputs}))"

    def placement(self) -> list[NodePlacement]:
        """Return which provider runs which node of the optimised graph."""
        return placement(self._ort_session, self._header.functions)

    def run(self, /, *args: Any, **kwargs: Any) -> list[Any]:
        """Run the model on inputs given by position or by name; return its outputs in order.

        It reads numpy arrays, torch tensors and anything with ``__dlpack__`` in place where their memory allows, and
        copies others; it casts nothing. Python's numbers and lists of them take the model's dtype. A single list or
        tuple is the list of inputs, a single mapping is inputs by name. With a torch tensor among the inputs the
        outputs are torch tensors on its device (without gradient), otherwise numpy arrays.

        Raises:
            InputError: an input is missing, unknown, of another dtype or shape, or on a device out of reach.
            SessionError: ONNX Runtime failed while it ran the model.
        """
        slots = self._slots
        values: Any = args
        if (
            kwargs
            or len(args) != len(slots)
            or (len(args) == 1 and isinstance(args[0], list | tuple | dict))
            or (len(args) == 2 and isinstance(args[1], dict))
        ):
            values = arrange(self.inputs, args, kwargs)
        feeds: dict[str, Any] = {}
        needs_binding, has_tensors = self._needs_binding, False
        last, engine = self._last  # one tuple: another thread may replace it meanwhile
        is_same = engine is not None
        for (name, dtype, reader), shape, value in zip(slots, last, values, strict=True):
            # numpy takes None, for types that it lacks, for float64
            if type(value) is np.ndarray and dtype is not None and value.dtype == dtype and value.flags.carray:
                feeds[name] = value
                if value.shape != shape:
                    is_same = False
                continue
            has_tensors = has_tensors or _torch.is_tensor(value)
            feeds[name] = source = reader.read(value)
            needs_binding = needs_binding or _torch.is_tensor(source)
            is_same = is_same and getattr(source, "shape", None) == shape
        if not is_same:
            engine = self._engine_for(feeds)
        while True:
            try:
                if needs_binding:
                    return self._run_bound(engine.session, feeds, has_tensors)
                if engine.blocks:
                    sources = list(feeds.values())
                    outputs = [*self._bound(engine.session, sources, [np.empty_like(sources[0])], sources)()]
                else:
                    outputs = engine.run(self._output_names, feeds, None)
                return _torch.from_arrays(outputs) if has_tensors else outputs
            except (InputError, SessionError):
                raise
            except Exception as error:  # ONNX Runtime's errors share no base class but this
                if self._plain is None or not engine.kernels or fused.REFUSAL not in str(error):
                    raise SessionError(f"{self._where}: ONNX Runtime failed in run: {first_line(error)}") from error
            self._unfuse(self._plain)
            engine = self._engine_for(feeds)

    def bind(self, /, *args: Any, outputs: Any = None, cuda_graph: bool = False, **kwargs: Any) -> Bound:
        """Prepare a call that is repeated on the same memory: `call = session.bind(x1, x2)`, then `[y] = call()`.

        Between calls, write new values into these arrays or tensors; shapes and layouts stay. If one of them gets other
        memory (`x.data = ...`, `module.double()`), bind again: until then a call is an InputError. On CUDA, each call
        copies the inputs that lie on the host. This method runs the model once, to learn the outputs' shapes.

        Args:
            args, kwargs: the inputs, as `run` takes them, but contiguous arrays or tensors of the model's dtypes, which
                each call reads in place.
            outputs: what to write into: a list in the model's order, a mapping by name, or the array itself where there
                is one; allocated if None, as tensors where an input is one.
            cuda_graph: record the kernels once and launch them as one CUDA graph, for models of many small kernels. It
                takes an instance planned for these sizes, which calls of the same sizes share, and tensors that lie on
                the GPU. This method records the graph, and so does the first call of each other thread. While a thread
                records, CUDA gives no GPU memory to other threads, and fails both if they ask: sessions and graphs are
                made in turns for that, but this cannot hold up a run that needs more memory, or a new tensor.

        Raises:
            InputError: as `run`; an input would need a copy; an output does not fit, or shares memory with an input or
                another output.
            SessionError: ONNX Runtime failed while it ran the model; cuda_graph is True where CUDA does not run.
        """
        if cuda_graph and self._graphs is None:
            raise SessionError(f"{self._where}: a CUDA graph needs providers='cuda', and no session_options")
        values = arrange(self.inputs, args, kwargs)
        for info in (*self.inputs, *self.outputs):
            if info.dtype == "string" or "(" in info.dtype:
                raise InputError(f"{info}: only tensors of numbers can be bound")
        slots = zip(self.inputs, self._slots, values, strict=True)
        sources = [in_place(info, value, reader.read(_torch.alias(value))) for info, (_, _, reader), value in slots]
        if not cuda_graph:
            return self._bind(values, sources, outputs)
        with TURNS:
            return self._bind_graph(values, sources, outputs)

    def _bind(self, values: Sequence[Any], sources: list[Any], outputs: Any) -> Bound:
        results = self._results(values, sources, outputs)
        if self._rows and in_blocks([*sources, *results]):
            return self._bound(self._ort_session, sources, results, values)
        session = self._session_for([tuple(value.shape) for value in sources])
        return self._bound(session, sources, results, values)

    def _bind_graph(self, values: Sequence[Any], sources: list[Any], outputs: Any) -> Bound:
        results = self._results(values, sources, outputs)
        for info, value in zip((*self.inputs, *self.outputs), (*sources, *results), strict=True):
            if not _torch.is_tensor(value) or value.device.type != "cuda":
                raise InputError(f"{info.name}: a CUDA graph reads and writes tensors on the GPU")
        shapes = [tuple(value.shape) for value in sources]
        if _any_empty(shapes):  # nothing may be launched, and so nothing recorded
            return self._bound(self._session_for(shapes), sources, results, values)
        assert self._graphs is not None
        session, lock, number = self._graphs.of(sizes_of(self.inputs, shapes))
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        call = self._bound(session, sources, results, values, options=options, lock=lock)
        call()  # ONNX Runtime runs it once as ever, records it, and launches what it recorded
        return call

    def _results(self, values: Sequence[Any], sources: list[Any], outputs: Any) -> list[Any]:
        """Return what a bound call writes into: the outputs of a first run, or the caller's, where these fit."""
        first = self.run(*values)
        return first if outputs is None else destinations(self.outputs, outputs, first, sources)

    def _unfuse(self, plain: "Recipe") -> None:
        """Leave all to ONNX Runtime's operators from now on: shapes came that no kernel is for."""
        with self._unfusing:
            if not self.fused:  # another thread was here
                return
            session = plain.make(self._ort.SessionOptions())
            if self._instances is not None:
                self._instances = Instances(session, plain.static, self._instances.limit)
            self._ort_session = session
            self.fused = ()  # last: who reads this sees the new session too

    def _engine_for(self, feeds: Mapping[str, Any]) -> "_Engine":
        """Check the shapes, and return what computes them; remember both where the next call can use them."""
        shapes = tuple([getattr(value, "shape", None) for value in feeds.values()])
        is_checked = shapes in self._good_shapes
        if not is_checked:
            check_shapes(self.inputs, shapes, self.limits)
        kernels = bool(self.fused)  # first: see _unfuse
        if is_checked or self._of_empty is None or not _any_empty(shapes):
            session = self._planned_for(shapes)
            if not is_checked:
                self._remember(shapes)
        else:
            session = self._of_empty()
        blocks = bool(self._rows) and in_blocks(list(feeds.values()))
        engine = _Engine(session, session.run if self._untyped else _ort.runner(session), kernels, blocks)
        if kernels and self._is_much_less(feeds):
            options = self._ort.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            run = engine.run
            engine.run = lambda names, feeds, _: run(names, feeds, options)
            return engine
        if self._instances is None:
            self._last = shapes, engine
        return engine

    def _is_much_less(self, feeds: Mapping[str, Any]) -> bool:
        """Return whether a call is much smaller than the largest so far: ONNX Runtime keeps memory for that one."""
        size = sum(getattr(value, "nbytes", 0) for value in feeds.values())
        is_less = self._largest > _MUCH and size < self._largest // 4
        self._largest = size if is_less else max(self._largest, size)
        return is_less

    def _session_for(self, shapes: Sequence[Any]) -> Any:
        if self._of_empty is not None and _any_empty(shapes):
            return self._of_empty()
        return self._planned_for(shapes, at_once=True)

    def _planned_for(self, shapes: Sequence[Any], at_once: bool = False) -> Any:
        if self._instances is None:
            return self._ort_session
        return self._instances.of(sizes_of(self.inputs, shapes), at_once=at_once)

    def _bound(self, session: Any, sources: list[Any], results: list[Any], values: Sequence[Any], **more: Any) -> Bound:
        names = [info.name for info in (*self.inputs, *self.outputs)]
        copies = {*self.providers} != {CPU}  # OpenVINO, too, copies an input when it is bound
        return Bound(
            self._ort, session, names, sources, results, values, self._where, self._rows, copies=copies, **more
        )

    def _run_bound(self, session: Any, feeds: dict[str, Any], has_tensors: bool) -> list[Any]:
        if not has_tensors:
            raise InputError(f"numpy has no bfloat16, which {self._where} uses; give at least one torch tensor")
        for name, value in feeds.items():
            if _torch.is_tensor(value) and str(value.device) not in self._devices:
                raise InputError(
                    f"{name} is on {value.device}, the session runs on {', '.join(self._devices)}; move the tensor, or "
                    f'make the session with providers="cuda" or [("cuda", {{"device_id": ...}})]'
                )
        return _torch.run_bound(self._ort, session, feeds, self._output_names)

    def _remember(self, shapes: tuple[Any, ...]) -> None:
        if len(self._good_shapes) >= _MOST_SHAPES:
            self._good_shapes.clear()
        self._good_shapes.add(shapes)


def _source(model: Any) -> str | bytes:
    """Return the model as ONNX Runtime takes it: a path as a path, for the weights beside it; else bytes."""
    for path in (model, getattr(model, "path", None)):
        if isinstance(path, str | os.PathLike):
            return os.fsdecode(path)
    if isinstance(model, bytes | bytearray | memoryview):
        return bytes(model)
    if hasattr(getattr(model, "model", None), "SerializeToString"):  # an export kept in memory
        model = model.model
    if hasattr(model, "SerializeToString"):
        return bytes(model.SerializeToString())
    raise TypeError(
        f"model is a {type(model).__name__}; give a path, bytes, an onnx.ModelProto or the result of fusion_onnx.export"
    )


def _any_empty(shapes: Sequence[Any]) -> bool:
    return any(0 in shape for shape in shapes if shape)


class _Engine:
    """What computes inputs of certain shapes. blocks: in blocks of rows; kernels: with kernels, which may refuse."""

    __slots__ = ("blocks", "kernels", "run", "session")

    def __init__(
        self, session: Any, run: Callable[[list[str], dict[str, Any], None], list[Any]], kernels: bool, blocks: bool
    ) -> None:
        self.session, self.run, self.kernels, self.blocks = session, run, kernels, blocks


def _devices(session: Any) -> list[str]:
    """Return the devices on which input tensors may lie, by torch's names."""
    cuda = session.get_provider_options().get(CUDA)
    return ["cpu"] if cuda is None else ["cpu", f"cuda:{cuda.get('device_id', 0)}"]


def _has_providers(options: Any) -> bool:
    return bool(getattr(options, "has_providers", lambda: False)())


def _describe(args: Any, header: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
    unranked = {info.name for info in header if info.shape is None}  # ONNX Runtime says [] for these and for scalars
    return tuple(
        TensorInfo(a.name, dtype_of_ort(a.type), None if a.name in unranked and not a.shape else tuple(a.shape))
        for a in args
    )
