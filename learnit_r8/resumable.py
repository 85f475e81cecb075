"""What a run remembers, as one state: to save, to take over, and to go back to with the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .checkpoint import Checkpoint
from .moment import Moment, go_back, moment_of
from .parts import Parts
from .requests import Requests
from .restoring import Restored
from .saves import Best
from .standing import Standing
from .tally import Tally

MOST_SUSPICION = 0.25
"""Of the guard's alarm, where backups are still taken and proved. Source: research/reliability.md 1.5."""

FORMAT = 1
"""Of `Engine.state_dict`; raised by one when old states can no longer be read."""

CHANGED_BY_RESUME = {"num_samples", "batch_size", "last_batch"}
"""What `R8Scheduler.resume_from_checkpoint` makes a state fit to."""

_PARTS = {"format", "data", "seed", "table", "plan", "pace", "rescue", "guard", "tally", "num_draws", "search"}


class Resumable(Standing):
    """A run whose state can be put away and taken up again, and which follows a model that was put back.

    Args:
        parts: What the run is put together from.

    Attributes:
        requests: What was asked of the run: to pause, to stop, to save.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        backup, recovery = parts.safekeeping.backup, parts.recovery
        backup.is_calm = self._is_calm
        backup.trial_steps, backup.older_steps = recovery.trial_steps, recovery.older_steps
        self.requests = Requests(parts.pace, parts.announcer, self._save_as_asked, handle_signals=parts.handle_signals)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the very same batches, rates and tables; at any step, with tickets out too.

        Batches that are out are drawn again, first in line. The model, the callbacks and the budget are not in it.

        Returns:
            Nested dicts and lists of arrays and plain values.
        """
        return {
            "format": FORMAT,
            "data": self._identity(),
            "seed": self.plan.seed,
            "table": self.table.state_dict(),
            "plan": self.plan.state_dict(),
            "pace": self.pace.state_dict(),
            "rescue": self.rescue.state_dict(),
            "quarantine": self.rescue.quarantine.state_dict(),
            "guard": self.sentry.state_dict(),
            "tally": self._tally.state_dict(),
            "num_draws": self._num_draws,
            "search": self.search.state_dict(),
        }

    def _identity(self) -> dict[str, Any]:
        """What a saved state must fit."""
        return {**self.table.identity(), "last_batch": self.plan.last_batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; the next batch is the one that would have come.

        Raises:
            ValueError: it is incomplete, or of another data set, batch size, estimator or last_batch. Nothing was
                changed.
        """
        missing = _PARTS - state.keys()
        if missing or state["format"] != FORMAT:
            raise ValueError(
                f"state must be what state_dict() of this version returned (format {FORMAT}), got format "
                f"{state.get('format')!r} without {sorted(missing)}."
            )
        for name, value in self._identity().items():
            if state["data"].get(name) != value:
                remedy = "; resume_from_checkpoint() changes it" if name in CHANGED_BY_RESUME else ""
                raise ValueError(
                    f"{name} must be that of the saved run ({state['data'].get(name)!r}), got {value!r}{remedy}."
                )
        before = self.state_dict()
        try:
            self._take_over(state)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            self._take_over(before)
            raise ValueError(f"state must be what state_dict() returned, got a damaged one ({error!r}).") from error
        self.taken_over()

    def _take_over(self, state: Mapping[str, Any]) -> None:
        self.plan.seed = state["seed"]
        self.table.load_state_dict(state["table"])
        self.plan.load_state_dict(state["plan"])
        self.pace.load_state_dict(state["pace"])
        self.rescue.load_state_dict(state["rescue"])
        self.rescue.quarantine.load_state_dict(state.get("quarantine"))
        self.sentry.load_state_dict(state["guard"])
        self._tally = Tally.from_state(state["tally"])
        self._num_draws = state["num_draws"]
        self.search.load_state_dict(state["search"])
        self._use_found_lr()
        self.telling.forget()
        self.safekeeping.count_from(self.pace.step, self.plan.samples_in(self.pace.step), self.pace.seconds)

    def save_checkpoint(self) -> Checkpoint:
        """Write a checkpoint now.

        Raises:
            RuntimeError: neither checkpoint_dir nor save_callback was given.
            OSError: the disk refused; the checkpoints before are untouched.
        """
        self.settle()
        return self.safekeeping.save(self.state_dict(), self.global_step)

    def _save_as_asked(self) -> None:
        self.safekeeping.save_as_asked(self._settled_state, self.pace.step)

    def _settled_state(self) -> dict[str, Any]:
        """The state once nothing is held back any more: the model has taken those steps already."""
        self.settle()
        return self.state_dict()

    def load_checkpoint(self, path: str | os.PathLike[str] | None = None) -> None:
        """Go on from a checkpoint: the scheduler's state, and the model through the load callback.

        Args:
            path: Its file; by default the newest valid one in ``checkpoint_dir``.

        Raises:
            NoValidCheckpoint: there is none that can be read.
            ValueError: it is damaged, or of another data set.
            OSError: there is no such file.
            RuntimeError: the load callback raised. The scheduler is as it was before in all these cases.
        """
        checkpoint = self.safekeeping.load(path)
        self._go_on_from(checkpoint, checkpoint.state)

    def _go_on_from(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Take over a checkpoint whole, or stay as it was."""
        before = self.state_dict()
        if self.safekeeping.is_built_otherwise(checkpoint, "guard") and "guard" in state:
            state = {**state, "guard": self.sentry.adapted(state["guard"])}
        self.load_state_dict(state)
        try:
            self.safekeeping.put_back(checkpoint)
        except BaseException:
            self.load_state_dict(before)
            raise
        if self.safekeeping.is_built_otherwise(checkpoint, "seed"):
            self.announcer.warn_once(
                "seed", f"the resumed run goes on with the seed of the saved one, {self.plan.seed}, whatever was given."
            )
        if self._has_started:
            self.safekeeping.tell_loaded()

    def _resume(self, resume: str | os.PathLike[str]) -> None:
        store = self.safekeeping.store
        if resume != "auto":
            self.load_checkpoint(resume)
        elif store is None:
            raise ValueError("resume='auto' needs a checkpoint_dir or a save_callback, got neither.")
        elif store.has_files:
            self.load_checkpoint()
        self._say_if_finished()

    def _say_if_finished(self) -> None:
        if self.pace.is_finished:
            self.announcer.warn_once(
                "finished",
                f"the resumed run is finished already, at step {self.global_step}: nothing is trained. For more, give "
                "a larger budget; to begin anew, another checkpoint_dir or resume=None.",
            )

    @property
    def best_checkpoint(self) -> Best | None:
        """The checkpoint with the best value of ``monitor`` so far; None before one."""
        return None if self.safekeeping.saves is None else self.safekeeping.saves.best

    def update_cpu_backup(self, state: Any) -> None:
        """Copy a model state to RAM, for the load callback to get back after a refused loss.

        Args:
            state: Anything `copy.deepcopy` copies: arrays, tensors, nests of them. While a learning rate is searched
                for it is not taken: the search goes back to the state of before. Nor is a state with NaN in it, or
                with infinities that the first one did not have: the model is then put back.
        """
        if self.search.is_on and self._has_started:
            return
        if self.safekeeping.is_restoring:
            raise RuntimeError(f"load_callback must not make backups, got one at step {self.global_step}.")
        damage = self.safekeeping.take_backup(state, self.global_step, self._num_draws, self._moment())
        if damage:
            self._damaged(damage)

    def _moment(self) -> Moment:
        return moment_of(self.sentry, self.table)

    def _is_calm(self) -> bool:
        return self.rescue.is_calm and not self._suspects()

    def _suspects(self) -> bool:
        return self.sentry.suspicion >= MOST_SUSPICION

    def _damaged(self, array: str) -> Restored | None:
        """Put back a model that has a number in it that is not finite, though its losses were."""
        if self.search.is_on:
            return None
        step = self.pace.step
        restored = self.rescue.damaged(
            array,
            step=step,
            scheduled_lr=self._scheduled_lr(self.pace.progress),
            most_steady=self._most_steady(self.pace.epoch),
            draws=self._num_draws,
        )
        return self._gone_back(restored)

    def _is_of_now(self, guard: Mapping[str, Any]) -> bool:
        """Whether what a checkpoint says of the guard is of losses that meant the same."""
        return bool(guard.get("baseline", 0) == self.sentry.baseline)

    def _most_steady(self, epoch: int) -> int:
        # The cataloguing pass is not cut short, and one incident costs at most a quarter of an epoch.
        return self.plan.steps_per_pass // 4 if epoch > 0 else 0

    def _gone_back(self, restored: Restored | None) -> Restored | None:
        """Let guard and plan follow a model that was put back."""
        if restored is not None and restored.moment is not None:
            go_back(restored.moment, self.sentry, self.table, forget=restored.forget)
        elif restored is not None and restored.guard is not None and self._is_of_now(restored.guard):
            self.sentry.go_back_to_saved(restored.guard, is_trial=restored.forget)
        return restored
