"""The samples of the user's batches: which ones a batch holds, and how those in quarantine are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..._validation import shortened
from ...table.names import Members
from . import observed

if TYPE_CHECKING:
    from ...sampling.ticket import Ticket
    from ..engine import Engine

Ids = Callable[[Any], Any] | str | int | None
Skip = Callable[[list[Any]], object] | None

OF_ONE_PROCESS = (
    "on several processes there is no table of the samples in your own batches, as each process knows only its own, so "
    "ids= and skip= have no effect; for a table let R8 draw the batches: attach(..., batch_size=)."
)


class BatchSamples:
    """Finds out which samples batches hold: from ``ids``, or by observing the loader if it is a `DataLoader`.

    Args:
        run: The engine.
        ids: A function of a batch, or the key under which a batch has them; None to observe them.
        skip: Called with the ids of the samples in quarantine, whenever they change.

    Raises:
        TypeError: ``ids`` or ``skip`` is something else.

    Attributes:
        is_known: Whether batches say which samples they hold.
    """

    def __init__(self, run: Engine, ids: Ids = None, skip: Skip = None) -> None:
        if not (ids is None or callable(ids) or (isinstance(ids, (str, int)) and not isinstance(ids, bool))):
            raise TypeError(f"ids must be a function of a batch, the key of its ids, or None, got {shortened(ids)}.")
        if not (skip is None or callable(skip)):
            raise TypeError(f"skip must be a function of a list of ids, or None, got {skip!r}.")
        self._run, self._ids, self._skip = run, ids, skip
        self._storage = run.table.storage
        known = self._storage.ids
        assert known is not None
        self._known = known
        self._observes = False
        self._told = self._storage.exclusions.quarantined[:0]

    @property
    def is_known(self) -> bool:
        """Whether batches say which samples they hold."""
        return (self._ids is not None or self._observes) and self._run.agreement.ranks is None

    def prepare(self, source: Any) -> None:
        """Prepare for an iteration over a loader."""
        if self._run.agreement.ranks is not None and not (self._ids is None and self._skip is None):
            self._run.announcer.warn_once("of one process", OF_ONE_PROCESS)
        self._observes = self._ids is None and self._can_observe(source)
        if self._observes:
            self._storage.expect(observed.size_of(source))
        self._storage.exclusions.are_left_out = self._observes or self._skip is not None
        self.tell_quarantined()

    def follow(self, before: BatchSamples) -> None:
        """Note what the iteration before has told, so that a release of the last sample is told, too."""
        if before is not self:
            self._told = before._told.copy()

    def _can_observe(self, source: Any) -> bool:
        if not observed.is_observable(source):
            return False
        known = self._known
        if self._run.agreement.ranks is not None:
            return False
        size = observed.size_of(source)
        if known.kind not in (None, "indices"):
            self._run.announcer.warn_once(
                "other ids",
                f"the table knows its samples by ids that are {known.kind}, so those of this DataLoader, which gives "
                "none, are not in it; give batches(..., ids=).",
            )
            return False
        if known.kind is not None and 0 < size < known.size:
            self._run.announcer.warn_once(
                "other data",
                f"the table is of {known.size} samples, and the data set of this DataLoader has {size}: it must be "
                "another one, so that its samples are not in the table; give batches(..., ids=).",
            )
            return False
        return True

    def open(self, source: Any, num_whole: int = 0) -> Iterator[Any]:
        """Begin to iterate over a loader.

        Args:
            source: The loader, or a copy of it.
            num_whole: Batches at its beginning that were drawn before any sample was in quarantine.
        """
        if not self._observes:
            return iter(source)
        return observed.ObservedBatches(source, self._storage.exclusions, num_whole)

    def of(self, item: Any, batches: Iterator[Any]) -> Members | None:
        """The samples of the batch that an iterator of `open` has just given; None if they are not known.

        Raises:
            TypeError, ValueError: ids are invalid, or of another kind than those before.
        """
        if self._observes:
            indices, num_before = batches.drawn  # type: ignore[attr-defined]
            if num_before:
                self._run.plan.left_out += num_before  # type: ignore[attr-defined]
            try:
                rows = indices if type(indices) is list else list(indices) if type(indices) is tuple else [indices]
                members = self._storage.find(rows, are_indices=True)
            except (TypeError, ValueError, OverflowError):
                self._run.announcer.warn_once(
                    "no indices",
                    f"the sampler of the DataLoader must draw whole numbers, got {indices!r:.60}, so there is no table "
                    "of these samples; give batches(..., ids=).",
                )
                return None
            if self._known.num_beyond:
                tell_beyond(self._run)
            return members
        if not self.is_known:
            return None
        ids = self._ids(item) if callable(self._ids) else self._told_under(self._ids, item)
        return None if ids is None else find(self._run, ids)

    @staticmethod
    def _told_under(key: Any, item: Any) -> Any:
        try:
            return item[key]
        except (LookupError, TypeError):
            raise ValueError(
                f"ids must be a key that every batch has, or a function of a batch, got {key!r} for a "
                f"{type(item).__name__} without it."
            ) from None

    def tell_quarantined(self) -> None:
        """Tell ``skip`` which samples are in quarantine, if that has changed."""
        now = self._storage.exclusions.quarantined
        if now is self._told:
            return
        before, self._told = self._told, now
        if self._skip is not None and (len(now) or len(before)):
            self._skip([self._storage.name_of(index) for index in now.tolist()])


def find(run: Engine, ids: Any) -> Members:
    """The samples with these ids; see `SampleStorage.find`."""
    storage = run.table.storage
    members = storage.find(ids, are_indices=False)
    if storage.ids is not None and storage.ids.num_beyond:
        tell_beyond(run)
    return members


def tell_beyond(run: Engine) -> None:
    """Say once that the table is full."""
    known = run.table.storage.ids
    assert known is not None
    run.announcer.note_once(
        "beyond",
        f"the table is full, at {known.most:,} samples; visits of others are only counted, {known.num_beyond:,} so "
        "far. max_ids=, which takes 16 bytes a sample, says how many it holds.",
    )


def tell_ids(run: Engine, ticket: Ticket, ids: Any) -> Ticket:
    """A batch in hand, now that its samples are told; None for those it was taken with.

    Raises:
        TypeError, ValueError: they are not ids, or the samples were told before.
    """
    if ids is None:
        return ticket
    if run.agreement.ranks is not None:
        run.announcer.warn_once("of one process", OF_ONE_PROCESS)
        return ticket
    chunk: Any = ticket.chunk
    if chunk.members is not None:
        raise ValueError(
            "ids must be given to batches() or with the loss, not both, got them with the loss of step "
            f"{ticket.step}, whose samples batches() knows; leave them out there."
        )
    members = find(run, ids)
    run.plan.tell_members(chunk, members)  # type: ignore[attr-defined]
    return ticket._replace(indices=members.indices)


def note_rows(run: Engine, ticket: Ticket, loss: Any) -> None:
    """Say once that a loss has another number of rows than the ids of its batch, as its mean is all that counts."""
    chunk: Any = ticket.chunk
    members = chunk.members
    if members is None or type(loss) is float:
        return
    shape = getattr(loss, "shape", None)
    given = len(loss) if shape is None and hasattr(loss, "__len__") else shape[0] if shape else members.num_rows
    if given != members.num_rows:
        run.announcer.warn_once(
            "uneven rows",
            f"a loss with {given} rows was reported for a batch with {members.num_rows} rows of samples, "
            "so only its mean counts, divided among them; to learn from each, report one or several values for "
            "each row of ids.",
        )
