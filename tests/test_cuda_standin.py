"""CUDA without a card: ONNX Runtime's own provider on a stand-in for CUDA's libraries, in processes of their own."""

import pytest

from tests import cuda_standin

pytestmark = pytest.mark.skipif(bool(cuda_standin.why_not()), reason=cuda_standin.why_not())


@pytest.mark.parametrize(
    "arguments",
    [
        ("bindings.py",),
        ("placement.py",),
        pytest.param(("placement.py", "-m", "slow"), marks=pytest.mark.slow),
    ],
    ids=lambda arguments: " ".join(arguments).replace(".py", ""),
)
def test_on_the_stand_in(arguments):
    file, *more = arguments
    done = cuda_standin.run(f"tests/cuda_standin/{file}", "--tb=short", *more)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout.splitlines()[-1]
