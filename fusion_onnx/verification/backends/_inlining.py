"""For runtimes that know no model-local functions."""


def inlined(model: bytes) -> bytes:
    """Return the model with its functions inlined, and without what only these needed."""
    import onnx.inliner

    proto = onnx.load_from_string(model)
    if not proto.functions:
        return model
    domains = {function.domain for function in proto.functions}
    proto = onnx.inliner.inline_local_functions(proto)
    used = _domains(proto.graph)
    imports = [o for o in proto.opset_import if o.domain not in domains or o.domain in used]
    del proto.opset_import[:], proto.functions[:]
    proto.opset_import.extend(imports)
    del proto.graph.value_info[:]  # a name may now stand for another tensor; every runtime infers shapes itself
    return bytes(proto.SerializeToString())


def _domains(graph: object) -> set[str]:
    names: set[str] = set()
    for node in graph.node:  # type: ignore[attr-defined]
        names.add(node.domain)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names |= _domains(inner)
    return names
