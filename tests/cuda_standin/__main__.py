"""Run pytest on the stand-in: `python -m tests.cuda_standin tests/cuda_standin/bindings.py -k graph`."""

import sys

from tests.cuda_standin import run

sys.exit(run(*sys.argv[1:], captured=False).returncode)
