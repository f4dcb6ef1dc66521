"""The contract's conformance suite: every check, at every case of a class, and the class in every runtime."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusion_onnx.contract import Case, Fusion
from fusion_onnx.testing import eager_checks, export_checks  # noqa: F401 - they register their checks
from fusion_onnx.testing.check import CHECKS, Check, demand

if TYPE_CHECKING:
    from fusion_onnx.testing.matrix import Matrix

__all__ = ["Check", "check_fusion", "check_runtimes", "checks"]


def checks() -> list[Check]:
    """Return every check of the contract, in order; `check.__name__` names it, its docstring is the rule."""
    return list(CHECKS)


def check_fusion(cls: type[Fusion], cases: Sequence[Case] | None = None) -> None:
    """Run every check on the class at every case, by default `cls.cases`.

    Raises:
        AssertionError: one rule or more is broken; the message lists them all, each with the case and what was seen.
    """
    cases = cls.cases if cases is None else cases
    demand(cases, f"{cls.__name__} has no cases to be checked at: give it `cases`, or pass them: [Case(dims=(4, 4))].")
    failures: list[AssertionError] = []
    for case in cases:
        for check in CHECKS:
            try:
                check(cls, case)
            except AssertionError as failure:
                failures.append(failure)
    if failures:
        count = len(cases) * len(CHECKS)
        text = "\n".join(f"- {failure}" for failure in failures)
        raise AssertionError(f"{len(failures)} of {count} checks of {cls.__name__} failed:\n{text}") from failures[0]


def check_runtimes(
    cls: type[Fusion], runtimes: Sequence[str] | None = None, dtypes: Sequence[str] = ("float32",)
) -> "Matrix":
    """Run the class at its first case in every runtime that is here, on the battery's values; return the matrix.

    Raises:
        AssertionError: a runtime that is here differs from eager, or cannot run it; the message names them all.
    """
    from fusion_onnx.testing.matrix import matrix

    result = matrix([cls], runtimes, dtypes, cases=1)
    demand(result.passed, f"{cls.__name__} differs: " + "\n".join(result.notes()))
    return result
