"""A few instances of a model with static shapes, for the sizes that many calls have.

Some providers plan more when they know every size: OpenVINO fuses a chain of entrywise operators only then.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._errors import SessionError
from ._probe import TURNS
from ._types import TensorInfo

Sizes = tuple[tuple[str, int], ...]
_MOST_COUNTS = 256


def sizes_of(infos: Sequence[TensorInfo], shapes: Sequence[Any]) -> Sizes:
    """Return the sizes of the named axes, by name; () where an axis is empty or a shape is unknown."""
    sizes: dict[str, int] = {}
    for info, shape in zip(infos, shapes, strict=True):
        if info.shape is None or shape is None:
            return ()
        sizes |= {axis: size for axis, size in zip(info.shape, shape, strict=True) if isinstance(axis, str)}
    return tuple(sorted(sizes.items())) if all(sizes.values()) else ()


class Instances:
    """Sessions by sizes, the least recently used one dropped; the second call with some sizes makes theirs.

    Threads may ask at once: while one of them makes an instance, the others get the dynamic session.
    """

    def __init__(self, dynamic: Any, make: Callable[[Mapping[str, int]], Any], limit: int) -> None:
        self._dynamic, self._make, self.limit = dynamic, make, limit
        self._lock = threading.Lock()
        self._sessions: OrderedDict[Sizes, Any] = OrderedDict()
        self._counts: OrderedDict[Sizes, int] = OrderedDict()  # of calls
        self._in_progress: set[Sizes] = set()

    def of(self, sizes: Sizes, *, at_once: bool = False) -> Any:
        """Return the session for these sizes; `at_once`: many calls will have them, make one now."""
        if not sizes:
            return self._dynamic
        with self._lock:
            session = self._sessions.get(sizes)
            if session is not None:
                self._sessions.move_to_end(sizes)
                return session
            count = self._counts.pop(sizes, 0) + 1
            self._counts[sizes] = count
            if len(self._counts) > _MOST_COUNTS:
                self._counts.popitem(last=False)
            if (count < 2 and not at_once) or sizes in self._in_progress:
                return self._dynamic
            self._in_progress.add(sizes)
        session = self._dynamic
        try:
            session = self._make(dict(sizes))
        except SessionError:
            pass  # the session for any sizes takes what has no plan for these
        finally:
            with self._lock:
                self._in_progress.discard(sizes)
                self._sessions[sizes] = session
                while len(self._sessions) > self.limit:
                    self._sessions.popitem(last=False)
        return session

    @property
    def sizes(self) -> list[dict[str, int]]:
        """The sizes that have an instance, the least recently used first."""
        with self._lock:
            return [dict(sizes) for sizes in self._sessions]


class Recording:
    """The lock of one graph's calls. A thread's first call records the graph, for which it takes `TURNS` too."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock, self._thread = lock, threading.local()

    def __enter__(self) -> None:
        if not hasattr(self._thread, "recorded"):
            TURNS.acquire()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        if not hasattr(self._thread, "recorded"):
            self._thread.recorded = True
            TURNS.release()


class Graphs:
    """Sessions that record CUDA graphs, by sizes, the least recently used one dropped.

    A session records one graph for each number that a run brings with it. Graphs of one session compute in the same
    memory, and so take turns.
    """

    def __init__(self, make: Callable[[Mapping[str, int]], Any], limit: int) -> None:
        self._make, self._limit = make, limit
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._sessions: OrderedDict[Sizes, tuple[Any, threading.Lock]] = OrderedDict()

    def of(self, sizes: Sizes) -> tuple[Any, Recording, int]:
        """Return a session for these sizes, and for one more of its graphs a lock and a number."""
        with self._lock:
            if sizes not in self._sessions:
                self._sessions[sizes] = self._make(dict(sizes)), threading.Lock()
            self._sessions.move_to_end(sizes)
            while len(self._sessions) > self._limit:
                self._sessions.popitem(last=False)
            session, lock = self._sessions[sizes]
            return session, Recording(lock), next(self._numbers)
