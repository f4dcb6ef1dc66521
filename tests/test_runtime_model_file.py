"""The header is read in Python before ONNX Runtime sees the file, and what it cannot run is refused with the reason."""

import os
import random
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fusion_onnx.runtime import Session, SessionError, TensorInfo, _wire, read_header
from fusion_onnx.runtime._probe import tiny_model
from fusion_onnx.runtime._wire import Message, WireError, encode_varint

FLOAT = TensorProto.FLOAT


def make(nodes, inputs, outputs, functions=(), initializers=(), domains=()):
    infos = [[helper.make_tensor_value_info(n, *t) for n, t in each.items()] for each in (inputs, outputs)]
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    graph = helper.make_graph(nodes, "g", *infos, list(initializers))
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    model.producer_name, model.producer_version = "tests", "1"
    return model


def rich_model():
    """Functions, subgraphs, initializers that fill inputs, symbols, metadata."""
    body = [helper.make_node("Add", ["a", "b"], ["y"])]
    function = helper.make_function("fusion_onnx", "sum_k2", ["a", "b"], ["y"], body, [helper.make_opsetid("", 20)])
    branch = [
        helper.make_graph([helper.make_node(op, ["x"], [op])], op, [], [helper.make_tensor_value_info(op, FLOAT, None)])
        for op in ("Neg", "Abs")
    ]
    nodes = [
        helper.make_node("sum_k2", ["x", "w"], ["s"], domain="fusion_onnx"),
        helper.make_node("If", ["c"], ["t"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Add", ["s", "t"], ["y"]),
    ]
    inputs = {"x": (FLOAT, ["batch", 3]), "c": (TensorProto.BOOL, []), "w": (FLOAT, [3])}
    weight = helper.make_tensor("w", FLOAT, [3], np.ones(3, np.float32).tobytes(), raw=True)
    model = make(nodes, inputs, {"y": (FLOAT, [None, 3])}, [function], [weight], ["fusion_onnx"])
    helper.set_model_props(model, {"config": '{"k": 2}', "é": "ü"})
    return model


def test_the_header(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(rich_model(), path)
    header = read_header(path)
    assert header.path == str(path)
    assert header.size == path.stat().st_size
    assert header.ir_version == 10
    assert header.producer == "tests 1"
    assert header.opset_imports == {"": 20, "fusion_onnx": 1}
    assert header.metadata == {"config": '{"k": 2}', "é": "ü"}
    assert header.inputs == (TensorInfo("x", "float32", ("batch", 3)), TensorInfo("c", "bool", ()))
    assert header.outputs == (TensorInfo("y", "float32", (None, 3)),)
    assert header.functions == (("fusion_onnx", "sum_k2"),)
    assert header.ops == {("fusion_onnx", "sum_k2"): 1, ("", "If"): 1, ("", "Neg"): 1, ("", "Abs"): 1, ("", "Add"): 2}
    assert header.external_files == ()


def test_paths_bytes_and_protos_are_one(tmp_path):
    model = rich_model()
    path = tmp_path / "m.onnx"
    onnx.save(model, path)

    class Exported:
        def __init__(self):
            self.path = path

        def SerializeToString(self):
            raise AssertionError("the path goes first")

    x = np.ones((2, 3), np.float32)
    for source in (path, str(path), model, model.SerializeToString(), Exported()):
        assert Session(source, "cpu").run(x, np.array(True))[0].tolist() == [[1.0] * 3] * 2
    with pytest.raises(TypeError, match="model is a int; give a path"):
        Session(3)


def test_values_of_every_kind():
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))
    values = [helper.make_value_info(name, t) for name, t in (("o", optional), ("s", sequence))]
    values += [helper.make_tensor_value_info("r", TensorProto.BFLOAT16, None), onnx.ValueInfoProto(name="none")]
    graph = helper.make_graph([], "g", values, [helper.make_tensor_value_info("m", FLOAT, [-1, ""])])
    header = read_header(helper.make_model(graph).SerializeToString())
    assert [(i.dtype, i.shape) for i in header.inputs] == [
        ("optional", None),
        ("sequence", None),
        ("bfloat16", None),
        ("unknown", None),
    ]
    assert header.outputs[0].shape == (None, None)


def zip_file(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"x")


def lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


NOT_ONNX = [
    (lambda p: p.write_bytes(b""), "is not an ONNX model but empty"),
    (zip_file, "a zip file, as torch.save"),
    (lambda p: p.write_bytes(b"\x80\x04\x95abc"), "a Python pickle"),
    (lfs_pointer, "git lfs pull"),
    (lambda p: p.write_text("<html>\nnot found"), r"a text that begins with '<html>\\nnot found'"),
    (lambda p: p.write_bytes(b"\x18\0\0\0ORTM" + bytes(9)), "a model in ORT format"),
    (lambda p: p.write_bytes(bytes(100)), r"100 bytes that begin with 00 00 .*no field has number 0"),
    (lambda p: p.write_bytes(tiny_model()[:-1]), r"60 bytes that begin with 08 08 .*cut off"),
    (lambda p: p.write_bytes(b"\x08\x08"), "IR version 8, 0 graphs"),
    (lambda p: p.write_bytes(b"\x12\x01a" + b"\xff" * 20), "a number does not end"),
    (lambda p: p.mkdir(), "is a folder, not an ONNX model"),
    (lambda p: os.mkfifo(p), "is no regular file"),
]


@pytest.mark.parametrize(("write", "text"), NOT_ONNX)
def test_what_is_no_onnx_file_says_what_it_is(tmp_path, write, text):
    path = tmp_path / "m.onnx"
    write(path)
    with pytest.raises(SessionError, match=text) as caught:
        Session(path)
    assert str(path) in str(caught.value)


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Session(tmp_path / "nowhere.onnx")


def test_any_bytes_give_a_header_or_a_session_error():
    """Cut at every length, and 3000 mutants: no other error, no endless loop."""
    good = rich_model().SerializeToString()
    draw = random.Random(0)
    mutants = [good[:n] for n in range(len(good))]
    for _ in range(3000):
        mutant = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            mutant[draw.randrange(len(good))] = draw.randrange(256)
        mutants.append(bytes(mutant))
    refused = 0
    for mutant in mutants:
        try:
            read_header(mutant)
        except SessionError:
            refused += 1
    assert len(good) // 2 < refused < len(mutants)


def test_graphs_nested_too_deep_are_refused():
    graph = helper.make_graph([], "g", [], [])
    payload = graph.SerializeToString()
    for _ in range(150):
        attribute = b"\x32" + encode_varint(len(payload)) + payload
        node = b"\x2a" + encode_varint(len(attribute)) + attribute
        payload = b"\x0a" + encode_varint(len(node)) + node
    with pytest.raises(SessionError, match="nested deeper than 100"):
        read_header(b"\x08\x0a\x3a" + encode_varint(len(payload)) + payload)


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        (b"\x0a\x05abc", "field 1 wants 5 bytes, 3 are left"),
        (b"\x09abc", "field 1 wants 8 bytes, 3 are left"),
        (b"\x08\xff", "byte 1: a number does not end"),
        (b"\x0b", "wire type 3"),
        (b"\x08" + b"\x80" * 11 + b"\0", "a number does not end"),
    ],
)
def test_a_field_ends_inside_its_message(inner, text):
    """The bytes after the message's end would complete the field, and must not."""
    with pytest.raises(WireError, match=text):
        list(Message(inner + bytes(20), 0, len(inner)).fields())


MESSAGES = {
    "MODEL": onnx.ModelProto,
    "GRAPH": onnx.GraphProto,
    "FUNCTION": onnx.FunctionProto,
    "NODE": onnx.NodeProto,
    "ATTRIBUTE": onnx.AttributeProto,
    "TENSOR": onnx.TensorProto,
    "SPARSE_TENSOR": onnx.SparseTensorProto,
    "VALUE_INFO": onnx.ValueInfoProto,
    "TYPE": onnx.TypeProto,
    "TENSOR_TYPE": onnx.TypeProto.Tensor,
    "SHAPE": onnx.TensorShapeProto,
    "DIMENSION": onnx.TensorShapeProto.Dimension,
    "OPERATOR_SET_ID": onnx.OperatorSetIdProto,
    "STRING_STRING_ENTRY": onnx.StringStringEntryProto,
}


def test_the_numbers_of_the_fields_are_those_of_onnx():
    expected = {
        f"{prefix}_{field.name.upper()}": field.number
        for prefix, message in MESSAGES.items()
        for field in message.DESCRIPTOR.fields
    }
    wire_types = {"VARINT", "FIXED64", "BYTES", "FIXED32"}
    numbers = {name: number for name, number in vars(_wire).items() if name.isupper() and name[0] != "_"}
    assert len(numbers) > 50
    assert {name: expected.get(name) for name in numbers.keys() - wire_types} == {
        name: number for name, number in numbers.items() if name not in wire_types
    }


def test_wire_errors_do_not_leak():
    assert not issubclass(SessionError, WireError)


@pytest.mark.parametrize("known", [(), ("elsewhere",)])
def test_an_operator_without_a_body_is_refused_by_name(known):
    node = helper.make_node("median_k3", ["x"], ["y"], domain="fusion_onnx")
    model = make([node], {"x": (FLOAT, ["n"])}, {"y": (FLOAT, ["n"])}, domains=["fusion_onnx"])
    with pytest.raises(SessionError, match=r"operator median_k3 of domain 'fusion_onnx'.*inline='all'"):
        Session(model, "cpu", custom_domains=known)
    with pytest.raises(SessionError, match=r"ONNX Runtime cannot load it: .*median_k3"):
        Session(model, "cpu", custom_domains=["fusion_onnx"])


def test_the_domains_of_onnx_runtime_pass():
    node = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    model = make([node], {"x": (FLOAT, ["n"])}, {"y": (FLOAT, ["n"])}, domains=["com.microsoft"])
    assert Session(model, "cpu").run(np.zeros(2, np.float32))[0].tolist() == [0, 0]


@pytest.mark.parametrize("side", ["x", "y"])
def test_bfloat16_on_the_cpu_is_refused(side):
    kinds = {name: (TensorProto.BFLOAT16 if name == side else FLOAT, ["n"]) for name in "xy"}
    cast = helper.make_node("Cast", ["x"], ["y"], to=kinds["y"][0])
    with pytest.raises(SessionError, match=f"{side}: bfloat16, for which the CPU provider has no kernels"):
        Session(make([cast], {"x": kinds["x"]}, {"y": kinds["y"]}), "cpu")


def test_weights_beside_the_model(tmp_path):
    weight = helper.make_tensor("w", FLOAT, [1024], np.arange(1024, dtype=np.float32).tobytes(), raw=True)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    model = make([add], {"x": (FLOAT, [1024])}, {"y": (FLOAT, [1024])}, initializers=[weight])
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert read_header(path).external_files == ("w.bin",)
    assert Session(path, "cpu").run(np.ones(1024, np.float32))[0][-1] == 1024
    with pytest.raises(SessionError, match=r"weights in w\.bin; give its path, not bytes"):
        Session(path.read_bytes(), "cpu")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(SessionError, match=r"weights file 'w\.bin' is not beside it"):
        Session(path, "cpu")


def test_weights_are_not_read(tmp_path):
    """A file with a gigabyte of weights, none of them written: only a reader that steps over them is quick."""
    size = 1 << 30
    tensor_head = b"\x42\x01w\x4a" + encode_varint(size)  # name, raw_data
    graph = b"\x2a" + encode_varint(len(tensor_head) + size) + tensor_head
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.write(b"\x08\x0a\x3a" + encode_varint(len(graph) + size) + graph)
        file.seek(size, os.SEEK_CUR)
        file.truncate()
    assert read_header(path).ir_version == 10
