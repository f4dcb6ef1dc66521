"""The words of an exported file: the domain of its fusions, and the facts in its metadata.

Each entry of the metadata has a key `fusion_onnx.<name>` (one of the constants below) and holds text, or JSON.
"""

import functools
from collections.abc import Mapping
from typing import Any

DOMAIN = "fusion_onnx"
"""Of the fusions' nodes, of the functions that are their bodies, and of the torch ops that they come from."""

VERSION, TORCH = f"{DOMAIN}.version", f"{DOMAIN}.torch"
VERIFICATION = f"{DOMAIN}.verification"
"""The verdict at export, summed up: `Verdict.summary`."""
FUSIONS = f"{DOMAIN}.fusions"
"""The config of each fusion, by its path in the module."""
FORMS = f"{DOMAIN}.forms"
"""In which form each fusion is written and why, by its node's name; see `facts_of_forms`."""
ALGEBRA = f"{DOMAIN}.algebra"
"""What `export(optimize="algebra")` did not do, and why."""
ENTRYWISE = f"{DOMAIN}.entrywise"
"""Whether the model is one entrywise fusion: a session may compute it in blocks of rows."""
LIMITS = f"{DOMAIN}.limits"
"""Between which sizes each dynamic axis may be: {axis: [least, most or null]}."""


@functools.cache
def version() -> str:
    """Return the version of this package, which each of its files names; "0+unknown" where it is not installed."""
    from importlib.metadata import PackageNotFoundError  # with its parsers of mail it takes longer than we do
    from importlib.metadata import version as installed

    try:
        return installed("fusion-onnx")
    except PackageNotFoundError:
        return "0+unknown"


def text(fact: Any) -> str:
    """Return a fact as an entry holds it: text as it is, all else as JSON."""
    import json  # which the first session of a process can do without

    return fact if isinstance(fact, str) else json.dumps(fact, sort_keys=True)


def forms_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the form of each fusion, by its node's name; nothing where the file does not say."""
    return _facts(metadata, "form")


def algebra_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what `export(optimize="algebra")` did to which fusions, by their nodes' names."""
    return _facts(metadata, "algebra")


def facts_in(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return all that a file says of each fusion's form, by its node's name: see `Choice.facts` of the exporter."""
    import json

    try:
        facts = json.loads(metadata.get(FORMS, "{}"))
    except json.JSONDecodeError:
        return {}
    return {node: fact for node, fact in facts.items() if isinstance(fact, dict)} if isinstance(facts, dict) else {}


def _facts(metadata: Mapping[str, str], name: str) -> dict[str, str]:
    return {node: str(fact[name]) for node, fact in facts_in(metadata).items() if name in fact}
