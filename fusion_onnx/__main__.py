"""`python -m fusion_onnx`: the command line."""

from fusion_onnx.cli import main

main()
