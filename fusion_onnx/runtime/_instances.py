"""A few instances of a model with static shapes, for the sizes that are seen often.

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
_SEEN_KEPT = 256


def sizes_of(infos: Sequence[TensorInfo], shapes: Sequence[Any]) -> Sizes:
    """Return the sizes of the named axes, by name; none where an axis is empty or a shape is not known."""
    sizes: dict[str, int] = {}
    for info, shape in zip(infos, shapes, strict=True):
        if info.shape is None or shape is None:
            return ()
        sizes |= {axis: size for axis, size in zip(info.shape, shape, strict=True) if isinstance(axis, str)}
    return tuple(sorted(sizes.items())) if all(sizes.values()) else ()


class Instances:
    """Sessions by sizes: made when sizes are seen for the second time, the least recently used one dropped.

    Threads may ask at once: while one of them makes an instance, the others get the dynamic session.
    """

    def __init__(self, dynamic: Any, make: Callable[[Mapping[str, int]], Any], limit: int) -> None:
        self._dynamic, self._make, self.limit = dynamic, make, limit
        self._lock = threading.Lock()
        self._made: OrderedDict[Sizes, Any] = OrderedDict()
        self._seen: OrderedDict[Sizes, int] = OrderedDict()
        self._making: set[Sizes] = set()

    def of(self, sizes: Sizes, *, at_once: bool = False) -> Any:
        """Return the session for these sizes; `at_once`: they will be seen often, make one now."""
        if not sizes:
            return self._dynamic
        with self._lock:
            made = self._made.get(sizes)
            if made is not None:
                self._made.move_to_end(sizes)
                return made
            seen = self._seen.pop(sizes, 0) + 1
            self._seen[sizes] = seen
            if len(self._seen) > _SEEN_KEPT:
                self._seen.popitem(last=False)
            if (seen < 2 and not at_once) or sizes in self._making:
                return self._dynamic
            self._making.add(sizes)
        made = self._dynamic
        try:
            made = self._make(dict(sizes))
        except SessionError:
            pass  # what cannot be planned for these sizes is left to the session that takes any
        finally:
            with self._lock:
                self._making.discard(sizes)
                self._made[sizes] = made
                while len(self._made) > self.limit:
                    self._made.popitem(last=False)
        return made

    @property
    def held(self) -> list[dict[str, int]]:
        """The sizes that have an instance, the least recently used first."""
        with self._lock:
            return [dict(sizes) for sizes in self._made]


class Recording:
    """The lock of one graph's calls. A thread's first call records, and so is one at a time in the whole process."""

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
        self._made: OrderedDict[Sizes, tuple[Any, threading.Lock]] = OrderedDict()

    def of(self, sizes: Sizes) -> tuple[Any, Recording, int]:
        """Return a session for these sizes, and for one more of its graphs a lock and a number."""
        with self._lock:
            if sizes not in self._made:
                self._made[sizes] = self._make(dict(sizes)), threading.Lock()
            self._made.move_to_end(sizes)
            while len(self._made) > self._limit:
                self._made.popitem(last=False)
            session, lock = self._made[sizes]
            return session, Recording(lock), next(self._numbers)
