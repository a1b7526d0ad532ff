"""Turns of threads: compiled code runs in many at once, and one alone compiles.

PyTorch's tracing sets flags and changes functions of the whole process: compiled code that another thread runs meanwhile fails.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turns"]


class Turns:
    """A lock that many threads may share, or one may have alone; the one that has it alone may ask again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0
        self._owner: int | None = None
        self._depth = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """With other threads, once none is `alone`."""
        me = threading.get_ident()
        with self._changed:
            while self._owner not in (None, me):
                self._changed.wait()
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Once no other thread shares it; not from within `shared`."""
        me = threading.get_ident()
        with self._changed:
            if self._owner != me:
                while self._owner is not None or self._sharing:
                    self._changed.wait()
                self._owner = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                    self._changed.notify_all()
