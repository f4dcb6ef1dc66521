"""What a test needs: the contract as checks, and `assert_parity`."""

from fusion_onnx.testing.eager_checks import *  # noqa: F403
