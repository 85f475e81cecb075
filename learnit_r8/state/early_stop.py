"""Early stop: ends a run on purpose before its budget is used up, which is a success, and keeps its best model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .._validation import did_you_mean
from ..events import launcher
from ..events.bus import Announcer
from ..events.steps import mode_in_name
from ..triggers.patience import Patience
from .tree import clone

NEAR = 0.8
"""Likeness from which a logged name is taken for the monitored one, mistyped."""

NOT_LOGGED = "monitor must be a metric given to log(), got {!r}; logged were {} so far."

ELSEWHERE = "monitor= and mode= are arguments of R8Scheduler and attach(), and load_best() restores the best model."


@dataclass(frozen=True)
class EarlyStopping:
    """When to end a run that no longer improves; for ``early_stopping=`` of `R8Scheduler`.

    Args:
        patience: Values of ``monitor`` without improvement to accept, >= 1.
        min_delta: Least difference that counts as better, >= 0, in the unit of the metric.
    """

    patience: int
    min_delta: float = 0.0

    if not TYPE_CHECKING:

        def __new__(cls, *args: Any, **settings: Any) -> EarlyStopping:
            for name in settings.keys() - {"patience", "min_delta"}:
                raise TypeError(f"EarlyStopping takes patience and min_delta, got {name!r}. {ELSEWHERE}")
            return super().__new__(cls)


class BestModel(NamedTuple):
    """A copy of the best model in RAM, for runs without checkpoints.

    Attributes:
        value: The value of the metric; None before there is one.
        state: What the state callback returned then.
    """

    value: float | None = None
    state: Any = None


def warn_not_logged(announcer: Announcer, monitor: str, logged: Collection[str]) -> None:
    """Warn that the monitored metric was not among those logged: once, and once more if there are others by then.

    Args:
        announcer: Tells it.
        monitor: Name of the metric.
        logged: Names of those that were logged.
    """
    text = NOT_LOGGED.format(monitor, sorted(logged) or "none")
    near = did_you_mean(monitor, sorted(logged), least=NEAR)
    text += f"{near} Until it is, there is no best model and no early stopping."
    announcer.warn_once("monitor" if logged else "no metrics", text)


class EarlyStop:
    """Watches the monitored metric, and says when to end the run.

    Args:
        rule: When to end it; None if only the loop does.
        monitor: Name of the metric; None for none.
        mode: "min" if lower is better, "max" if higher is.
        announcer: Receives warnings.

    Raises:
        ValueError: the metric is not a name, there is a rule without one, or one of its numbers is out of its range.
        TypeError: the rule is not a number or `EarlyStopping`.

    Attributes:
        reason: Why the run has ended early; None as long as it has not.
        best: The best model, where there are no checkpoints.
        is_hasty: Whether the values that ended the run came step after step.
    """

    def __init__(self, rule: EarlyStopping | int | None, monitor: str | None, mode: str, announcer: Announcer) -> None:
        if monitor is not None and not (isinstance(monitor, str) and monitor):
            raise ValueError(f"monitor must be the name of a metric, got {monitor!r}.")
        if isinstance(rule, int) and not isinstance(rule, bool):
            rule = EarlyStopping(rule)
        if rule is not None and not isinstance(rule, EarlyStopping):
            raise TypeError(
                f"early_stopping must be a number of values to wait for, or EarlyStopping(patience, min_delta), got "
                f"{rule!r}."
            )
        # Ranks but the first have no metric: only the first one knows the values.
        if rule is not None and monitor is None and not launcher.rank_of():
            raise ValueError(
                f'early_stopping needs the name of a metric given to log(), monitor="val_loss", got only {rule!r}.'
            )
        if monitor is not None and mode_in_name(monitor) not in (None, mode):
            better = "lower" if mode == "max" else "higher"
            announcer.warn_once(
                "mode",
                f"mode={mode!r} was given for {monitor!r}, of which {better} is better by its name; leave mode out if "
                "so.",
            )
        self.reason: str | None = None
        self.best = BestModel()
        self._monitor, self._mode, self._announcer = monitor, mode, announcer
        self._ends = rule is not None
        # Without a rule it only knows the best value.
        self._patience = Patience(rule.patience, mode, rule.min_delta) if rule is not None else Patience(1, mode)
        self._logged: dict[str, tuple[int, float]] = {}
        self._is_checked = monitor is None
        self._is_by_rule = self.is_hasty = False
        self._best_at: int | None = None

    def news_of(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Those of the metrics that were not logged with this value at this step, as by a trainer and its user.

        Args:
            metrics: Values by name.
            step: The step they belong to.
        """
        return {name: value for name, value in metrics.items() if self._logged.get(name) != (step, value)}

    def note(self, metrics: Mapping[str, float], step: int, get_state: Callable[[], Any] | None) -> str:
        """Take logged metrics; keep the model if they are the best.

        Args:
            metrics: Values by name.
            step: The step they belong to.
            get_state: Returns the model state; None where checkpoints keep it, or where there is none.

        Returns:
            Why the run must end now; "" to go on.
        """
        self._logged |= {name: (step, value) for name, value in metrics.items()}
        if self._monitor is None or self._monitor not in metrics:
            return ""
        value = metrics[self._monitor]
        if self._patience.improves(value):
            self._best_at = step
            if get_state is not None:
                self.best = BestModel(value, clone(get_state()))
            return ""
        if not self._ends or not self._patience.is_over or self.reason is not None:
            return ""
        self._is_by_rule = True
        waited, best = self._patience.waited, self._patience.best
        self.is_hasty = self._best_at is not None and step - self._best_at <= waited
        better = "lower" if self._mode == "min" else "higher"
        since = "no finite value" if best is None else f"no value {better} than {best:.6g}"
        return f"{self._monitor}: {since} in {waited} {'values' if waited > 1 else 'value'}"

    def check_name(self, epoch: int) -> None:
        """Say that the monitored metric was not logged, once an epoch is over; once more if others come meanwhile.

        Args:
            epoch: The epoch that begins now, 0-based.

        Raises:
            ValueError: in the first epoch, and one of the others has nearly the same name.
        """
        if self._is_checked or epoch < 1:
            return
        self._is_checked = bool(self._logged)
        if self._monitor is None or self._monitor in self._logged:
            return
        near = did_you_mean(self._monitor, sorted(self._logged), least=NEAR)
        if near and epoch == 1:
            raise ValueError(NOT_LOGGED.format(self._monitor, sorted(self._logged)) + near)
        warn_not_logged(self._announcer, self._monitor, self._logged)

    def state_dict(self) -> dict[str, Any]:
        """The best value, the values since, and whether the run has ended."""
        rule = self._patience
        return {"best": rule.best, "waited": rule.waited, "reason": self.reason, "is_by_rule": self._is_by_rule}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        A run that its rule has ended goes on if the present rule would not have ended it yet.
        """
        self._patience.best, self._patience.waited = state["best"], state["waited"]
        # It may have been logged before.
        self._is_checked = True
        self._is_by_rule = bool(state["is_by_rule"])
        goes_on = self._is_by_rule and not (self._ends and self._patience.is_over)
        self.reason = None if goes_on else state["reason"]
