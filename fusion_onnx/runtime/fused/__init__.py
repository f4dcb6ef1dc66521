"""Fused kernels: a fusion that works entry by entry as one pass over memory, in place of one pass for each operator.

ONNX Runtime's CPU provider does not fuse operators. This package compiles the body of an entrywise function into a
program (program.py) for an operator of its own (operator.c, loops.c), and ONNX Runtime runs that operator instead of
the body, on its threads. The results are the body's, bit for bit: NaN's payload and the sign of a zero aside.
README.md is the plan.
"""

from .kernels import (
    PATH,
    REFUSAL,
    has_kernel,
    instructions,
    programs,
    register,
    why_no_kernel,
    why_not_fused,
)
from .program import Program

__all__ = [
    "PATH",
    "REFUSAL",
    "Program",
    "has_kernel",
    "instructions",
    "programs",
    "register",
    "why_no_kernel",
    "why_not_fused",
]
