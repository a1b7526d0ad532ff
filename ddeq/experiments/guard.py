"""`ConvergenceGuard`: notices when solves begin to fail in training, says so, and holds the cell more firmly."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import lightning

from ddeq.nn import Head

__all__ = ["ConvergenceGuard"]

logger = logging.getLogger("ddeq")


class ConvergenceGuard(lightning.Callback):
    """Watches the share of training solves that converge, and raises the task's ``penalty`` where it falls.

    When the mean share over the last ``window`` steps is below ``share``, the penalty is multiplied by ``factor``, up to
    ``largest`` times its first value, a warning says so through ``logging.getLogger("ddeq")``, and the next look is after
    another ``window`` of steps. Once the share has been above for ``patience`` windows it is divided by ``factor`` again, down
    to its first value. Its state is part of a checkpoint.

    Parameters
    ----------
    share
        The smallest share that is let pass.
    window
        Number of steps over which it is taken.
    factor, largest
        As said above.
    patience
        Number of windows.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """

    def __init__(
        self, share: float = 0.9, window: int = 50, factor: float = 2.0, largest: float = 64.0, patience: int = 10
    ) -> None:
        if not 0.0 <= share <= 1.0 or window < 1 or factor <= 1.0 or largest < 1.0 or patience < 1:
            raise ValueError(
                "share, window, factor, largest, patience: expected 0 <= share <= 1, window >= 1, factor > 1, largest >= 1 and "
                f"patience >= 1, got {share}, {window}, {factor}, {largest} and {patience}"
            )
        self.share, self.window, self.factor, self.largest, self.patience = share, window, factor, largest, patience
        self.seen: deque[float] = deque(maxlen=window)
        self.level, self.good = 0, 0
        self.first: float | None = None

    def on_train_batch_end(self, trainer: lightning.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the share of the last solves of ``task`` that converged; at the end of a window change its penalty.

        It is taken over all processes of ``trainer``; ``outputs``, ``batch`` and ``batch_idx`` do not matter.
        """
        model = task.model
        if not isinstance(model, Head) or model.solution is None:
            return
        if self.first is None:
            self.first = float(task.penalty)
        share = model.solution.converged.float().mean().to(task.device)
        self.seen.append(float(trainer.strategy.reduce(share, reduce_op="mean")))
        if len(self.seen) < self.window:
            return
        mean = sum(self.seen) / self.window
        self.seen.clear()
        if mean < self.share:
            self.good = 0
            raised = self.factor ** (self.level + 1) <= self.largest
            self.level += raised
            logger.warning(
                "step %d: only %.1f %% of the last %d batches' solves converged (wanted: %.1f %%); %s",
                trainer.global_step,
                100 * mean,
                self.window,
                100 * self.share,
                f"the penalty on the cell's growth goes from {task.penalty:g} to {self.first * self.factor**self.level:g}"
                if raised
                else f"the penalty stays at its largest, {task.penalty:g}: lower the learning rate or the task's growth",
            )
        else:
            self.good += 1
            if self.good >= self.patience and self.level > 0:
                self.level, self.good = self.level - 1, 0
                logger.info("step %d: solves converge again; the penalty falls", trainer.global_step)
        task.penalty = self.first * self.factor**self.level

    def on_train_start(self, trainer: lightning.Trainer, task: Any) -> None:
        """Give ``task`` the penalty that it had when a checkpoint was written; ``trainer`` does not matter."""
        if self.first is not None:  # after a checkpoint was read
            task.penalty = self.first * self.factor**self.level

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"seen": list(self.seen), "level": self.level, "good": self.good, "first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        self.seen = deque(state_dict["seen"], maxlen=self.window)
        self.level, self.good, self.first = state_dict["level"], state_dict["good"], state_dict["first"]
