"""Ctrl-C ends a command within a second, also where Python cannot see it: in ONNX Runtime, or while a library loads.

Python's own handler raises KeyboardInterrupt when the interpreter has its turn again, which a long call in C++ keeps
from it; and in the middle of an import it leaves a library half loaded. The signal's number is written to a pipe at
once, whatever runs, and a thread that reads it ends the process if nothing else has.
"""

import os
import signal
import threading
import time
from types import FrameType

CODE = 130
GRACE = 0.8
"""Seconds for Python's own way out, which cleans up."""
_happened = threading.Event()


def happened() -> bool:
    """Return whether Ctrl-C was pressed."""
    return _happened.is_set()


def watch() -> None:
    """Begin to watch for Ctrl-C; in the main thread alone, as Python has it."""
    signal.signal(signal.SIGINT, _interrupt)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end, args=(reading,), daemon=True, name="fusion-onnx interruption").start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _happened.set()
    signal.default_int_handler(number, frame)


def _end(reading: int) -> None:
    while signal.SIGINT not in os.read(reading, 64):
        pass
    time.sleep(GRACE)
    os._exit(CODE)
