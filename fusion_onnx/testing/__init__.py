"""What a test needs: the contract as checks that any fusion can be run through, yours too, and `assert_parity`.

    >>> from fusion_onnx import testing
    >>> testing.check_fusion(MyFusion)                                  # every check at every one of MyFusion.cases

    >>> @pytest.mark.parametrize("check", testing.checks(), ids=lambda check: check.__name__)
    ... @pytest.mark.parametrize("case", MyFusion.cases, ids=repr)
    ... def test_contract(check, case):
    ...     check(MyFusion, case)

    >>> def test_mine():
    ...     testing.assert_parity(MyNetwork(), (torch.randn(4, 8),))

Needs torch, which comes in with the first of these names, and no test framework.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fusion_onnx.errors import explained

if TYPE_CHECKING:  # the same names as below, for type checkers and editors
    from fusion_onnx.testing.conformance import Check as Check
    from fusion_onnx.testing.conformance import check_fusion as check_fusion
    from fusion_onnx.testing.conformance import check_runtimes as check_runtimes
    from fusion_onnx.testing.conformance import checks as checks
    from fusion_onnx.testing.parity import ParityError as ParityError
    from fusion_onnx.testing.parity import assert_parity as assert_parity

__all__ = ["Check", "ParityError", "assert_parity", "check_fusion", "check_runtimes", "checks"]


def __getattr__(name: str) -> Any:
    """Return a public name, or one check by its name, such as `check_shape`."""
    if name in __all__ or name.startswith("check_"):
        home = "parity" if name in ("ParityError", "assert_parity") else "conformance"
        try:
            module = importlib.import_module(f"{__name__}.{home}")
        except ModuleNotFoundError as error:
            raise explained(error, f"fusion_onnx.testing.{name}") from error
        if name in __all__:
            return getattr(module, name)
        for check in module.checks():
            if check.__name__ == name:
                return check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
