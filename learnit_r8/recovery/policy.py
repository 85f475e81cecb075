"""The settings of recovery, and the error that ends a run that cannot be healed."""

from __future__ import annotations

from dataclasses import dataclass

from .._validation import check_share, whole_number

DEAD_EVERY = 5
"""Updates between two looks at the gradient; a number that a cycle of batches seldom has."""

NOTHING_TO_RESTORE = (
    "a loss was refused, and there is nothing to restore the model from if its weights are damaged. Pass load_callback "
    "with state_callback, or call update_cpu_backup()."
)


class TrainingDiverged(RuntimeError):
    """Losses are still refused after recovery has tried everything; the message says what was found, and where."""


class RestoreError(RuntimeError):
    """The load callback raised for every available state; the model may be partly restored."""


@dataclass(frozen=True)
class Recovery:
    """What recovery may use: copies of the model, steps, and how long it goes on.

    Attributes:
        keep_backups: Copies of the model in RAM, >= 2; one more while backups are tested.
        trust_steps: Calm losses after a backup that make its witness a reference, >= 1.
        factor: Factor of the learning rate in the first steps after a restore, in (0, 1].
        gentle_steps: Number of those steps.
        steady_steps: Batches of low-loss samples (Q1) among the first steps after a restore, at most a quarter of an
            epoch; none in the first epoch, which must see every sample.
        most_quarantined: Largest share of the samples in quarantine, in [0, 1].
        max_refused: Refused batches, probes included, that end the run: in a row, or while the weights are damaged
            again and again before they have got 64 updates further.

    Raises:
        ValueError: an attribute outside its range.

    Source: measured in benchmarks/incidents.py.
    """

    keep_backups: int = 7
    trust_steps: int = 32
    factor: float = 0.5
    gentle_steps: int = 16
    steady_steps: int = 8
    most_quarantined: float = 0.2
    max_refused: int = 400

    def __post_init__(self) -> None:
        whole_number("keep_backups", self.keep_backups, least=2)
        for name in ("trust_steps", "max_refused"):
            whole_number(name, getattr(self, name), least=1)
        for name in ("gentle_steps", "steady_steps"):
            whole_number(name, getattr(self, name), least=0)
        check_share("factor", self.factor, has_zero=False)
        check_share("most_quarantined", self.most_quarantined)
