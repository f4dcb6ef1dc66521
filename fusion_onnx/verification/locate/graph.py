"""The exported graph cut into fusions, each of which can be computed alone, and its values on the way."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fusion_onnx.file_format import DOMAIN
from fusion_onnx.runtime import InputError, Session, SessionError
from fusion_onnx.verification.tolerance import dtype_name

if TYPE_CHECKING:
    import onnx


class NodeError(RuntimeError):
    """onnx.reference cannot compute a node; `values` are those before it."""

    def __init__(self, node: str, reason: Exception, values: dict[str, Any]) -> None:
        super().__init__(f"{type(reason).__name__}: {str(reason).strip().splitlines()[0] if str(reason) else ''}")
        self.node, self.values = node, values


@dataclass(frozen=True, eq=False)
class Group:
    """A fusion in the graph: one node with a function, or the nodes `name/...` that took its place.

    nodes: the body. inputs and output: what the body calls them; graph_inputs and graph_output: what the graph does.
    first and last: where the nodes are in the graph. inlined: whether the body's nodes are the graph's own.
    """

    name: str
    nodes: "tuple[onnx.NodeProto, ...]"
    inputs: tuple[str, ...]
    output: str
    graph_inputs: tuple[str, ...]
    graph_output: str
    first: int
    last: int
    inlined: bool
    opset: int

    def inner(self, node: str) -> str:
        """Return the full name of one of the body's nodes."""
        return node if self.inlined or not node else f"{self.name}/{node}"


class Graph:
    """An onnx.ModelProto: its fusions in order, who makes which value, and what runs of it give.

    names: what the module's fusions are called in the graph. home: the provider that computes values on the way.
    rewritten: fusions whose inputs are not eager's, and which are ordinary operators here for that reason.
    """

    def __init__(
        self, proto: "onnx.ModelProto", names: Sequence[str], home: Any = "cpu", rewritten: Collection[str] = ()
    ) -> None:
        from onnx import numpy_helper

        self.proto, self.home = proto, home
        self.nodes = list(proto.graph.node)
        self.constants = {t.name: numpy_helper.to_array(t).copy() for t in proto.graph.initializer}
        self.inputs = [v.name for v in proto.graph.input if v.name not in self.constants]
        self.outputs = [v.name for v in proto.graph.output]
        self.maker = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.groups = self._groups(set(names), rewritten)
        self.group_of = {
            i: g for g in self.groups for i in range(g.first, g.last + 1) if _group_name(self.nodes[i], {g.name})
        }
        self._sessions: dict[Any, Session] = {}

    def _groups(self, names: set[str], rewritten: Collection[str]) -> list[Group]:
        members: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            name = _group_name(node, names)
            if name and name not in rewritten:
                members.setdefault(name, []).append(i)
        groups = [self._group(name, indices) for name, indices in members.items()]
        return sorted(groups, key=lambda group: group.last)

    def _group(self, name: str, indices: list[int]) -> Group:
        node = self.nodes[indices[0]]
        place = (indices[0], indices[-1])
        if node.domain == DOMAIN:
            for body in self.proto.functions:
                if (body.domain, body.name) == (node.domain, node.op_type):
                    names, nodes = tuple(body.input), tuple(body.node)
                    inputs, opset = tuple(node.input), _opset(body.opset_import)
                    return Group(name, nodes, names, body.output[0], inputs, node.output[0], *place, False, opset)
            raise SessionError(f"{name}: the file holds no function {node.op_type}; export it anew.")
        nodes = tuple(self.nodes[i] for i in indices)
        inner = {value for n in nodes for value in n.output}
        inputs = tuple(dict.fromkeys(v for n in nodes for v in n.input if v and v not in inner))
        outside = {v for i, n in enumerate(self.nodes) if i not in set(indices) for v in n.input} | set(self.outputs)
        output = ([value for n in nodes for value in n.output if value in outside] or [nodes[-1].output[0]])[-1]
        opset = _opset(self.proto.opset_import)
        return Group(name, nodes, inputs, output, inputs, output, *place, True, opset)

    def maker_name(self, value: str) -> str:
        """Return the name of the node, the input or the constant that a value comes from."""
        if value in self.maker:
            node = self.nodes[self.maker[value]]
            return node.name or f"{node.op_type} → {value}"
        return value

    def owner(self, value: str) -> Group | None:
        """Return the fusion that makes a value, None where an ordinary operator does or nothing."""
        return self.group_of.get(self.maker.get(value, -1))

    def is_constant(self, value: str) -> bool:
        """Whether no input of the graph decides the value."""
        if value in self.inputs:
            return False
        node = self.nodes[self.maker[value]] if value in self.maker else None
        return node is None or all(self.is_constant(v) for v in node.input if v)

    def after(self, values: Collection[str]) -> set[str]:
        """Return the values that these reach, and these."""
        reached = set(values)
        for node in self.nodes:
            if reached.intersection(node.input):
                reached.update(node.output)
        return reached

    def first_group_after(self, value: str) -> Group | None:
        """Return the first fusion that a value reaches."""
        reached = {value}
        for i, node in enumerate(self.nodes):
            if reached.intersection(node.input):
                if i in self.group_of:
                    return self.group_of[i]
                reached.update(node.output)
        return None

    # --- runs -----------------------------------------------------------------------------------------------------

    def run(self, tensors: Sequence[Tensor], providers: Any) -> list[Any]:
        """Run the file as it is. Raises InputError, SessionError."""
        return self._session("whole", self.proto, providers).run(*tensors)

    def values(self, tensors: Sequence[Tensor]) -> tuple[dict[str, Any], int | None, str]:
        """Return all values, and the first node that fails with the reason (None where none does)."""
        try:
            return self._watched(len(self.nodes), tensors), None, ""
        except InputError:
            raise
        except Exception as error:
            reason = str(error)
        good, bad = 0, len(self.nodes)
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                self._watched(middle, tensors)
                good = middle
            except Exception as error:
                bad, reason = middle, str(error)
        return self._watched(good, tensors), good, reason

    def _watched(self, count: int, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """Run the first nodes with every value of theirs as an output."""
        values = {**dict(zip(self.inputs, tensors, strict=True)), **self.constants}
        names = [name for node in self.nodes[:count] for name in node.output if name]
        if not names:
            return values
        key = ("watched", count)
        if key not in self._sessions:
            import onnx

            part = onnx.ModelProto()
            part.CopyFrom(self.proto)
            del part.graph.node[count:], part.graph.output[:], part.graph.initializer[:]
            used = {name for node in self.nodes[:count] for name in node.input}
            whole = count == len(self.nodes)
            part.graph.initializer.extend(t for t in self.proto.graph.initializer if whole or t.name in used)
            part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
            self._session(key, part, self.home)
        session = self._sessions[key]
        return {**values, **dict(zip(names, session.run(*tensors), strict=True))}

    def values_of(self, names: Sequence[str], tensors: Sequence[Any]) -> dict[str, Any]:
        """Return some of the values by their names, those that the model makes for these inputs."""
        values = {**dict(zip(self.inputs, tensors, strict=True)), **self.constants}
        missing = [name for name in dict.fromkeys(names) if name not in values]
        if not missing:
            return values
        import onnx

        part = onnx.ModelProto()
        part.CopyFrom(self.proto)
        del part.graph.output[:]
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
        return {
            **values,
            **dict(zip(missing, self._session(("values", *missing), part, self.home).run(*tensors), strict=True)),
        }

    def run_isolated(
        self, group: Group, feeds: Mapping[str, Tensor], providers: Any, *, all_values: bool = False
    ) -> Any:
        """Run a fusion's body in ONNX Runtime; return its output, or all values by name. Raises SessionError."""
        names = [name for node in group.nodes for name in node.output if name] if all_values else [group.output]
        key = (group.name, str(providers), all_values)
        if key not in self._sessions:
            self._session(key, self._part(group, feeds, names), providers)
        outputs = self._sessions[key].run(*feeds.values())
        return dict(zip(names, outputs, strict=True)) if all_values else outputs[0]

    def _part(self, group: Group, feeds: Mapping[str, Tensor], names: Sequence[str]) -> "onnx.ModelProto":
        import onnx

        kinds = {name: _elem_type(tensor) for name, tensor in feeds.items()}
        inputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in names]
        constants = [t for t in self.proto.graph.initializer if t.name in group.inputs and t.name not in feeds]
        graph = onnx.helper.make_graph(group.nodes, "part", inputs, outputs, constants)
        return onnx.helper.make_model(
            graph, opset_imports=_imports(self.proto, group.opset), ir_version=self.proto.ir_version
        )

    def _session(self, key: Any, proto: "onnx.ModelProto", providers: Any) -> Session:
        key = key if isinstance(key, tuple) else (key, str(providers))
        if key not in self._sessions:
            self._sessions[key] = Session(proto, providers, threads=1, fuse=False)
        return self._sessions[key]

    def reference(self, group: Group, feeds: Mapping[str, Tensor]) -> dict[str, Any]:
        """Compute a fusion's body with onnx.reference; return all its values. Raises NodeError."""
        values: dict[str, Any] = {**self.constants} if group.inlined else {}
        values.update({name: tensor.numpy() for name, tensor in feeds.items()})
        for node in group.nodes:
            try:
                outputs = computed(node, [values[name] if name else None for name in node.input], group.opset)
            except Exception as error:
                raise NodeError(group.inner(node.name), error, values) from error
            values.update(zip(node.output, outputs, strict=True))
        return values


def computed(node: "onnx.NodeProto", inputs: Sequence[Any], opset: int) -> list[Any]:
    """Return a node's outputs for these arrays, by onnx.reference."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    del plain.input[:]
    plain.input.extend("" if value is None else f"i{i}" for i, value in enumerate(inputs))
    feeds = {f"i{i}": value for i, value in enumerate(inputs) if value is not None}
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in feeds]
    outputs = [onnx.ValueInfoProto(name=name) for name in plain.output if name]
    graph = onnx.helper.make_graph([plain], "one", infos, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):
        return [np.array(value) for value in ReferenceEvaluator(model).run(None, feeds)]


def _elem_type(tensor: Tensor) -> int:
    from onnx import TensorProto

    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    name = dtype_name(tensor)
    return int(TensorProto.DataType.Value(names.get(name, name.upper())))


def _group_name(node: "onnx.NodeProto", names: set[str]) -> str:
    """Return the fusion that a node is or is part of: the exporter writes a body's operators in lower case."""
    if node.domain == DOMAIN:
        return str(node.name)
    path, _, inner = node.name.rpartition("/")
    return path if path in names and inner[:1].islower() else ""


def _opset(imports: Any) -> int:
    return next((int(entry.version) for entry in imports if not entry.domain), 18)


def _imports(proto: "onnx.ModelProto", opset: int) -> Any:
    from onnx import helper

    others = [helper.make_opsetid(e.domain, e.version) for e in proto.opset_import if e.domain not in ("", DOMAIN)]
    return [helper.make_opsetid("", opset), *others]


def loaded(model: Any) -> "onnx.ModelProto":
    """Return the onnx.ModelProto of a path, bytes, a ModelProto, or the result of `export`."""
    import os

    import onnx

    if getattr(model, "path", None) is not None:  # weights beside it are found from there
        model = model.path
    model = getattr(model, "model", model)
    if isinstance(model, str | os.PathLike):
        return onnx.load(os.fspath(model))
    if isinstance(model, bytes | bytearray | memoryview):
        return onnx.load_model_from_string(bytes(model))
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin
