"""From the providers that the user asks for to ONNX Runtime's, and the check that the session has them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from . import _openvino
from ._errors import SessionError
from ._openvino import OPENVINO
from ._probe import CPU, CUDA, alias_of, first_line, probe

ProviderOptions: TypeAlias = Mapping[str, object]
Providers: TypeAlias = str | Sequence[str | tuple[str, ProviderOptions]]

# torch multiplies matrices in full float32; so must we, where results are compared. ONNX Runtime doubles its pool of
# GPU memory each time it grows, with no limit, where torch and other sessions want some too
_DEFAULTS: dict[str, dict[str, object]] = {CUDA: {"use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}}
_FALLBACK_TEXT = "fallback to CPU EP has been explicitly disabled"


class Plan(NamedTuple):
    """The providers in order, each with its options.

    strict: the CPU must not take what the others cannot do. plugin: the first is a library beside ONNX Runtime, which
    takes its devices and not its name.
    """

    providers: list[tuple[str, dict[str, object]]]
    strict: bool
    plugin: bool = False

    @property
    def names(self) -> list[str]:
        """The providers' names, in order."""
        return [name for name, _ in self.providers]


def auto_providers() -> list[str]:
    """Return what "auto" means here: CUDA if it starts, else OpenVINO if it is installed and starts; then the CPU."""
    if probe(CUDA).starts:
        return [CUDA, CPU]
    return [OPENVINO, CPU] if _openvino.is_installed() and probe(OPENVINO).starts else [CPU]


def plan(ort: Any, request: Providers, threads: int | None = None) -> Plan:
    """Resolve what the user asks for; providers that have threads of their own get `threads` of them.

    Raises:
        SessionError: a name is not known, or a provider cannot start here; with the reason and the fix.
    """
    if request == "auto":
        request = auto_providers()
    entries = [request] if isinstance(request, str) else list(request)
    if not entries:
        raise SessionError('providers is empty; give "auto", "cpu", "cuda", or a list of names')
    providers: dict[str, dict[str, object]] = {}
    for entry in entries:
        alias, options = (entry, {}) if isinstance(entry, str) else _pair(entry)
        name = _full_name(ort, alias)
        if name in providers:
            raise SessionError(f"provider {name} is asked for twice")
        try:
            providers[name] = (
                _openvino.exact(options, threads) if name == OPENVINO else {**_DEFAULTS.get(name, {}), **options}
            )
        except ValueError as error:
            raise SessionError(f"provider {name}: {error}") from None
    for name in providers:
        _require(name)
    plugin = OPENVINO in providers and _openvino.is_plugin(ort)
    if plugin and list(providers) not in ([OPENVINO], [OPENVINO, CPU]):
        raise SessionError(f"{OPENVINO} is a plug-in here: it stands first, with the CPU alone; got {[*providers]}")
    return Plan(list(providers.items()), strict=CPU not in providers, plugin=plugin)


def hand_over(ort: Any, options: Any, plan: Plan) -> list[tuple[str, dict[str, object]]] | None:
    """Enter a plug-in into the session's options, and return the providers to name beside them."""
    if not plan.plugin:
        return plan.providers
    [(_, settings), *_] = plan.providers
    options.add_provider_for_devices(_openvino.devices(ort), {key: str(value) for key, value in settings.items()})
    return None


def _pair(entry: object) -> tuple[str, ProviderOptions]:
    match entry:
        case (str() as name, Mapping() as options):
            return name, options
    raise SessionError(f"provider {entry!r} is neither a name nor a pair (name, options)")


def _full_name(ort: Any, alias: str) -> str:
    names: dict[str, str] = {alias_of(name): name for name in ort.get_all_providers()}
    name = names.get(alias_of(alias))
    if name is not None:
        return name
    if alias == "auto":
        raise SessionError('"auto" stands alone; a list holds providers, such as ["cuda", "cpu"]')
    import difflib  # for the message alone

    candidates = [*names, *names.values(), "auto"]
    matches = ["cuda"] if alias.lower() == "gpu" else difflib.get_close_matches(alias, candidates, 1)
    hint = f"; did you mean {matches[0]!r}" if matches else ""
    aliases = [alias_of(name) for name in _openvino.provider_names(ort)]
    raise SessionError(
        f"provider {alias!r} is not known{hint}. The installed onnxruntime holds: {', '.join(aliases)} (or 'auto')"
    )


def _require(name: str) -> None:
    """Refuse a provider that cannot start; the CPU is not tried, it is always there."""
    if name == CPU:
        return
    status = probe(name)
    if not status.starts:
        raise SessionError(f"{name} cannot start here: {status.reason}. To fix it: {status.fix}")


def check(plan: Plan, providers: Sequence[str]) -> None:
    """Compare the providers of a new session with the plan; ONNX Runtime drops one that fails without a word.

    Raises:
        SessionError: the session lacks one of the plan's.
    """
    missing = [name for name in plan.names if name not in providers]
    if missing:
        raise SessionError(
            f"asked for {', '.join(plan.names)}, but ONNX Runtime started the session without {', '.join(missing)}; "
            f"look at its messages on stderr and at fusion_onnx.runtime.diagnose()"
        )


def explain(error: BaseException, plan: Plan | None, where: str) -> str:
    """Return the text of the error for a session that ONNX Runtime refused to build."""
    if plan is not None and _FALLBACK_TEXT in str(error):
        aliases = [alias_of(name) for name in plan.names]
        return (
            f"{where}: some nodes have no kernel on {', '.join(plan.names)}, and the CPU may not take them; "
            f"to allow that, ask for providers={[*aliases, 'cpu']}"
        )
    return f"{where}: ONNX Runtime cannot load it: {first_line(error)}"
