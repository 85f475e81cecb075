"""The live model: set aside, repaired and restored through the user's callbacks while backups are tested."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import events
from ..checkpoint import tree
from ..checkpoint.tree import clone, fill, growth, leave_out, leaves, map_leaves, not_finite
from ..events.bus import Announcer
from .backups import Backup
from .persistence import Persistence, Restorer

MOST_MENDED = 0.5
"""Largest share of the float arrays that is repaired; with more, the state counts as damaged."""

SWOLLEN, SWOLLEN_SHARE = 30.0, 0.1
"""How many times as large arrays are that a huge gradient was added to, and their least share of all. Adam's squares
stay so for thousands of steps, in which the weights hardly move: no loss shows it."""


class Saved(NamedTuple):
    """A state that a file has kept, which takes the form of the live one as it is put in.

    Attributes:
        parts: What `unpack` returned.
    """

    parts: Any

    @classmethod
    def of(cls, content: NDArray[np.uint8]) -> Saved:
        """What `saved_form` has made the content of."""
        return cls(tree.from_bytes(content))


def saved_form(state: Any) -> NDArray[np.uint8]:
    """A state as a file keeps it beside the model's own; what no file can hold stays as it is when it is loaded."""
    parts = state.parts if isinstance(state, Saved) else leave_out(state, {})
    return tree.to_bytes(parts)


class LiveModel:
    """Does to the model what an experiment asks for; the `Lab` of `investigate`.

    Args:
        persistence: Holds callbacks, backups and checkpoints.
        announcer: Receives events.

    Attributes:
        step: Steps reported in the present call.
        put_step: Steps reported when the state that was put last was taken; None since `begin_call`.
        current: The backup that is in the model; None for the present state.
        present: The state set aside, which must not be changed; None if there is none.
        of_trial: The state of the trial while another one is shown, which must not be changed; else None.
        mended: What `mend` has replaced in this experiment, in words; "" for nothing.
    """

    def __init__(self, persistence: Persistence, announcer: Announcer) -> None:
        self.persistence, self.announcer = persistence, announcer
        self.present: Any = None
        self.of_trial: Any = None
        self.step = 0
        self._restorer: Restorer | None = None
        self.put_step: int | None = None
        self.current: Backup | None = None
        self.mended = ""

    def begin_call(self, step: int) -> None:
        """Note the step of a report; nothing was put since."""
        self.put_step, self.step = None, step

    @property
    def can_restore(self) -> bool:
        """Whether there is anything that could be put back."""
        return self.persistence.callbacks.load is not None and self.persistence.has_something

    @property
    def failures(self) -> list[str]:
        """Why states could not be put back in this experiment."""
        return [] if self._restorer is None else self._restorer.failures

    def raise_failures(self) -> None:
        """Raise RestoreError if a state could not be put back in this experiment."""
        if self._restorer is not None:
            self._restorer.raise_failures()

    @property
    def guard(self) -> Any:
        """The guard's state of the checkpoint that was put back last; None for a backup."""
        return None if self._restorer is None else self._restorer.guard

    def begin(self) -> None:
        """Begin an experiment."""
        self.end()
        self._restorer, self.mended = self.persistence.make_restorer(), ""

    def is_damaged(self) -> bool:
        """Whether the live state is seen to hold numbers that are not finite."""
        return bool(self.persistence.backup_timer.damage_now(self.persistence.callbacks.state))

    def mend(self) -> bool | None:
        """Replace what is not finite with the newest backup's, if that is little; see `Lab`."""
        get = self.persistence.callbacks.state
        if get is None:
            return None
        if not self.is_damaged():
            return True
        newest = next((each for each in reversed(self.persistence.backup.backups) if each.witness), None)
        if self._restorer is None or newest is None or newest.state is None:
            return False
        live = get()
        try:
            mended, names = repair(live, newest.state, self.persistence.backup_timer.meant)
        except ValueError:
            # The backup does not fit.
            mended, names = live, []
        is_little = 0 < len(names) <= MOST_MENDED * sum(1 for _ in leaves(live))
        # Where some ranks hold no damage, mending the others would make their weights differ.
        if self.persistence.agreement.agree("" if is_little else "go back") or not self._restorer.put_state(
            mended, self.step
        ):
            return False
        named = f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        self.put_step = self.step
        text = f"not finite in the state of the model: {named}; taken from the backup of step {newest.step}."
        self.announcer.tell(events.Notice, text=text, is_warning=False)
        self.mended = f"{named} had numbers that are not finite, and came from the backup of step {newest.step}"
        return True

    def is_swollen(self) -> bool:
        """Whether many arrays are far larger than in the newest backup, as moments are after a huge gradient."""
        get, newest = self.persistence.callbacks.state, self.persistence.backup.newest
        if get is None or newest is None or newest.state is None:
            return False
        ratios = growth(get(), newest.state).values()
        is_swollen = sum(ratio > SWOLLEN for ratio in ratios) > SWOLLEN_SHARE * len(ratios)
        return bool(self.persistence.agreement.agree("swollen" if is_swollen else ""))

    def keep_present(self) -> bool:
        """Set the present state aside; False if it cannot be seen or is damaged, or without memory."""
        if self.persistence.callbacks.state is None or self.is_damaged():
            return False
        shortage = ""
        try:
            self.present = self.persistence.backup.copy(self.persistence.callbacks.state())
        except MemoryError:
            shortage = "no memory"
        if self.persistence.agreement.agree(shortage):
            self.present = None
            self.announcer.warn_once(
                "no present",
                "there was no memory to set the present weights aside: if no backup proves better, they are lost.",
            )
        return self.present is not None

    def put(self, backup: Backup) -> bool:
        """Put a backup back; False if it cannot be."""
        if self._restorer is None or not self._restorer.put(backup):
            return False
        self.current, self.put_step = backup, backup.step
        return True

    def put_present(self) -> bool:
        """Put back the state kept aside; False if there is none."""
        present = self.take_present()
        return present is not None and self.put_copy(present)

    def take_present(self) -> Any:
        """Hand over the state set aside, and drop it here; None if there is none."""
        present, self.present = self.present, None
        return present

    def put_copy(self, present: Any) -> bool:
        """Put back what `take_present` returned, or a `Saved` one, which is not used afterwards."""
        if self._restorer is None or not self._restorer.put_state(self._formed(present), self.step):
            return False
        self.current, self.put_step = None, self.step
        return True

    def name_of(self, backup: Backup) -> str:
        """ "backup", or the name of its checkpoint."""
        return "" if self._restorer is None else self._restorer.name_of(backup)

    @property
    def is_shown(self) -> bool:
        """Whether the state that counts as true is in the model for a while; see `show`."""
        return self.of_trial is not None

    def _formed(self, state: Any) -> Any:
        """A state that the load callback takes."""
        get = self.persistence.callbacks.state
        return fill(state.parts, None if get is None else get()) if isinstance(state, Saved) else state

    def show(self, state: Any) -> None:
        """Put a state in for the user's code between two epochs; `hide` puts back what was there, to the bit.

        Args:
            state: A backup, or a state set aside, of which a copy is put in.
        """
        get = self.persistence.callbacks.state
        # None of its own in a run that was resumed within the trial.
        restorer = self._restorer = self._restorer or self.persistence.make_restorer()
        if get is None or restorer is None or self.is_shown:
            return
        shortage, of_trial = "", None
        try:
            of_trial = clone(get())
            state = state if isinstance(state, Backup) else clone(self._formed(state))
        except MemoryError:
            shortage = "no memory"
        if self.persistence.agreement.agree(shortage):
            return
        self.of_trial = of_trial
        is_put = restorer.put(state) if isinstance(state, Backup) else restorer.put_state(state, self.step)
        if not is_put:
            self.hide()

    def hide(self) -> None:
        """Put the state of the trial back that `show` has set aside, if there is one."""
        of_trial, self.of_trial = self.of_trial, None
        if of_trial is None:
            return
        self._restorer = self._restorer or self.persistence.make_restorer()
        if self._restorer is not None:
            self._restorer.put_state(self._formed(of_trial), self.step)

    def end(self) -> None:
        """End an experiment: drop the state set aside."""
        self.present, self.current, self.of_trial = None, None, None


def repair(state: Any, backup: Any, meant: Collection[str] = ()) -> tuple[Any, list[str]]:
    """Replace the arrays of a state that are not finite by those of a backup.

    Args:
        state: A live state.
        backup: An earlier one of the same structure, such as a backup.
        meant: Dotted keys of what is not finite on purpose.

    Returns:
        The state, whose other arrays are the live ones, with copies from the backup among them; and the dotted keys of
        those.

    Raises:
        ValueError: the backup has nothing in the place of one of them, or nothing that is finite and of its shape.

    >>> import numpy as np
    >>> repair({"w": np.array([np.nan]), "b": np.ones(1)}, {"w": np.zeros(1), "b": np.zeros(1)})
    ({'w': array([0.]), 'b': array([1.])}, ['w'])
    """
    broken = [key for key in not_finite(state) if key not in meant]
    whole = dict(leaves(backup)) if broken else {}

    def repaired(leaf: Any, *path: Any) -> Any:
        key = ".".join(map(str, path)) or "state"
        if key not in broken:
            return leaf
        other = whole.get(key)
        if getattr(other, "shape", None) != getattr(leaf, "shape", None) or other is None or not_finite(other):
            raise ValueError(f"backup must have a finite array like that of the state in {key!r}, got {type(other)}.")
        return clone(other)

    return (map_leaves(repaired, state) if broken else state), broken
