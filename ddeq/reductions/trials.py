"""Trials of code that a compiler makes at first use: whether it works on a machine shows only when it is tried."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import ClassVar

import torch

__all__ = ["Trial"]

logger = logging.getLogger("ddeq")


class Trial:
    """A first small sum on each type of device, made once and remembered.

    Parameters
    ----------
    library
        What is tried, for the message.
    run
        Computes a small sum on a device, and raises if something is missing.
    """

    _told: ClassVar[bool] = False

    def __init__(self, library: str, run: Callable[[torch.device], None]) -> None:
        self._library, self._run = library, run
        self._lock = threading.RLock()
        self._failures: dict[str, str | None] = {}

    def failure(self, device: torch.device) -> str | None:
        """Why the sum failed on devices of this type; None if it did not."""
        kind = device.type
        if kind not in self._failures:
            with self._lock:
                if kind not in self._failures:
                    self._failures[kind] = self._try(torch.device(kind))
        return self._failures[kind]

    def _try(self, device: torch.device) -> str | None:
        reason = None
        for wait in (0.0, 2.0, 5.0):
            time.sleep(wait)
            try:
                self._run(device)
            except ModuleNotFoundError as error:
                reason = self._describe(error)
                break
            except ImportError as error:  # perhaps another process is writing the library just now: wait and try again
                reason = self._describe(error)
            except Exception as error:  # noqa: BLE001  compilers and drivers raise anything; the dense backend runs instead
                reason = self._describe(error)
                break
            else:
                return None
        # The first failure says it: without a compiler all of them fail.
        logger.log(
            logging.INFO if Trial._told else logging.WARNING,
            "%s; another backend runs instead (see ddeq.reductions.choose)",
            reason,
        )
        Trial._told = True
        return reason

    def _describe(self, error: Exception) -> str:
        return f"{self._library} failed at a first sum: {type(error).__name__}: {error}".splitlines()[0]
