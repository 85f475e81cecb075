"""The pace: the current step, the finished share of the budget, the time; and the learning rate of each step."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import events
from ..policies.registry import SHUFFLE
from ..schedules.budget import OPEN_WARMUP, Budget, CoolDown, CoolDownRule, counted, end_of, is_later
from ..schedules.range_test import RangeTest
from ..schedules.schedule import Kept, Schedule, Warmup, check_rate, sample_rates
from ..schedules.span import Span
from ..table.losses import read_number

if TYPE_CHECKING:
    from ..events.bus import Announcer
    from ..recovery.persistence import Persistence
    from ..recovery.recovery import RecoveryController
    from ..sources.chunk import Batch
    from ..sources.source import Source
    from .emitter import EventEmitter

OPEN_EPOCHS = 20
"""Epochs that policies assume for an open run, until a cool-down sets its end; they see at most half of its budget as
spent."""

ALMOST_DONE = math.nextafter(1.0, 0.0)
"""Progress of a run whose last pass is longer than was told."""

MOST_RESERVE = 0.5
"""Largest share of a budget in seconds that is kept for the break at the end."""


@dataclass
class Tally:
    """Counts since the epoch's first draw.

    Attributes:
        began: Training seconds at its first draw; NaN before it.
        num_good: Good losses.
        total: Their sum.
        samples: Samples trained on.
    """

    began: float = math.nan
    num_good: int = 0
    total: float = 0.0
    samples: int = 0

    @property
    def loss(self) -> float:
        """Mean good loss; NaN if there was none."""
        return self.total / self.num_good if self.num_good else math.nan


class Pace:
    """The position of a run.

    A budget in seconds ends early enough for one more break like the longest between two steps so far: validation or a
    checkpoint after the last step still ends in time.

    Args:
        budget: The budget of the run.
        steps_per_epoch: Steps in an epoch, >= 1.
        clock: Returns seconds, monotonic.
        rule: The rates of a cool-down.

    Attributes:
        budget: As given, or as a cool-down has set it.
        clock: As given.
        step: Batches trained or refused so far. A batch that only tests the weights, a probe, is none.
        probes: Probes so far.
        left_out: Of these, those that took the place of a batch: epochs and budget count them like steps.
        num_out: Batches drawn and not reported yet, that have a place.
        num_draws: Batches drawn so far, and begun.
        tally: Counts of the present epoch.
        has_left_epoch: Whether an epoch has ended since what is due between two steps was done last.
        is_stopped: Whether the run was asked to end before its budget is used up.
        is_closed: Whether the run was closed, be its budget used up or not.
        ended_early: Why the program itself has ended it early, which is a success; None if it has not.
        rule: As given.
        passes: Runs through the user's iterable before the present one; 0 if batches are planned.
        has_ended: Whether the present one has ended, and none has begun since.
        tokens: Tokens trained on, as far as they are known.
        epoch_follows: Whether a loop over epochs has given the number of one whose first batch was not asked for yet.
        is_counted: Whether something else counts the batches, too: a trainer that stops after so many.
        counts_epochs: Whether a loop over epochs asks for them, which ends with the budget.
        loop_of_epoch: The names of a loop that ends with an epoch, and of that over epochs which it belongs in; None as
            long as there was none.
        longest_break: Longest time between a report and the next draw so far, in seconds; known for budgets in seconds.
    """

    def __init__(
        self, budget: Budget, steps_per_epoch: int, clock: Callable[[], float] = time.monotonic, *,
        rule: CoolDownRule = CoolDownRule(),
    ) -> None:  # fmt: skip
        self.budget = self._given = budget
        self.steps_per_epoch = steps_per_epoch
        self.step = self.probes = self.left_out = 0
        self.num_out = self.num_draws = 0
        self.tally, self.has_left_epoch = Tally(), False
        # Steps and probes before the present epoch.
        self._before_epoch = 0, 0
        self.passes = self.tokens = 0
        self.has_ended = self.is_counted = self.epoch_follows = self.counts_epochs = False
        self.loop_of_epoch: tuple[str, str] | None = None
        self.is_stopped = self.is_closed = False
        self.ended_early: str | None = None
        self.clock = clock
        self.rule = rule
        self.longest_break = 0.0
        self._break = (0, 0.0)
        self._deadline = 0.0
        # Training seconds before it was last started, and since when it runs with the reading before: one tuple, for
        # threads that ask at once.
        self._spent = 0.0
        self._running: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"Pace(step {self.step} of {self.budget.steps or '?'}, epoch {self.epoch}, {self.seconds:.1f} s)"

    def start(self) -> None:
        """Start counting the time of the run and of its epoch, unless it is counted already."""
        if self._running is None:
            now = self.clock()
            self._running = now, now
            self._meet_deadline()
        if math.isnan(self.tally.began):
            self.tally = replace(self.tally, began=self.seconds)

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Read this clock from now on; the time counted so far stays."""
        seconds = self.seconds
        self.clock = clock
        self._count_from(seconds)
        self._set_deadline()

    def _count_from(self, seconds: float) -> None:
        """Have counted so many seconds by now; a time that is counted goes on."""
        self._spent, now = seconds, self.clock()
        self._running = None if self._running is None else (now, now)

    def wall(self) -> float:
        """Seconds since 1970; those of rank 0 where the clock is shared."""
        wall: Callable[[], float] = getattr(self.clock, "wall", time.time)
        return wall()

    @property
    def is_running(self) -> bool:
        """Whether its time is counted: from the first draw in this process."""
        return self._running is not None

    @property
    def seconds(self) -> float:
        """Training time so far: from the first draw, without pauses and downtime.

        A clock that was set back takes no time away: from there it goes on.
        """
        if self._running is None:
            return self._spent
        (since, last), now = self._running, self.clock()
        if now < last:
            # The beginning goes back with the clock.
            since -= last - now
        self._running = since, now
        return self._spent + (now - since)

    def where(self) -> tuple[int, float]:
        """The step, and the training time so far."""
        return self.step, self.seconds

    @property
    def next_step(self) -> int:
        """The step at which a batch drawn now will be reported."""
        return self.step + self.num_out

    @property
    def place(self) -> int:
        """Batches that epochs and budget count so far: steps, and the probes for which a batch is left out."""
        return self.step + self.left_out

    @property
    def next_place(self) -> int:
        """The place of a batch drawn now."""
        return self.step + self.left_out + self.num_out

    @property
    def turns(self) -> int:
        """Batches that were handed out and reported so far: steps and probes."""
        return self.step + self.probes

    @property
    def step_in_epoch(self) -> int:
        """Steps in the current epoch."""
        return 0 if self.epoch_follows else self.step - self._before_epoch[0]

    @property
    def probes_in_epoch(self) -> int:
        """Probes in the current epoch."""
        return 0 if self.epoch_follows else self.probes - self._before_epoch[1]

    @property
    def leaves_out(self) -> bool:
        """Whether an epoch has a batch less for each probe, so that it is no longer than its loader says.

        A number of steps is a goal that is reached in full, unless a trainer counts the batches.
        """
        budget = self.budget
        return self.is_counted or budget.steps is None or budget.is_in_epochs

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch or the run ends once this many steps are done, if no probe comes before."""
        place = step + self.left_out
        return not place % self.steps_per_epoch or place == self.budget.steps

    @property
    def epoch(self) -> int:
        """The current epoch, 0-based."""
        return (self.step + self.left_out) // self.steps_per_epoch + self.passes

    @property
    def is_between_epochs(self) -> bool:
        """Whether an epoch has ended, and none has begun since."""
        return self.has_ended or (self.place > 0 and not self.place % self.steps_per_epoch)

    def begin_pass(self) -> None:
        """Begin a run through the user's iterable, if the one before has ended."""
        self.passes += self.has_ended
        if self.has_ended:
            self.begin_epoch()
        self.has_ended = False

    def end_epoch(self) -> Tally:
        """Begin to count another epoch; returns the counts of the one that has ended."""
        ended, self.tally, self.has_left_epoch = self.tally, Tally(), True
        return ended

    def begin_epoch(self, steps: int = 0) -> None:
        """Count the steps and probes of another epoch, which has had so many steps."""
        self._before_epoch = self.step - steps, self.probes

    @property
    def progress(self) -> float:
        """Finished share of the budget, in [0, 1]; 0 as long as the end is not known."""
        return 0.0 if self.budget.is_open else self.progress_at(self.step)

    def progress_at(self, step: int) -> float:
        """Finished share of the budget now, if ``step`` steps are done; reads the clock only if it matters.

        Of an open budget it is the place on the schedule: half the share of the warm-up.
        """
        budget, step = self.budget, step + self.left_out
        if budget.steps is not None:
            return step / budget.steps if step < budget.steps else 1.0
        if budget.seconds is not None:
            return self._timed_progress(budget.seconds)
        if budget.tokens is not None:
            return min(1.0, self.tokens / budget.tokens)
        if budget.passes is None:
            return OPEN_WARMUP * step / budget.warmup_steps if step < budget.warmup_steps else OPEN_WARMUP
        passes = self.passes + self.has_ended
        if passes >= budget.passes or budget.steps_per_pass is None:
            return min(1.0, passes / budget.passes)
        # Passes may be of different lengths: only the end of the last one is the end.
        share, is_fraction = step / (budget.passes * budget.steps_per_pass), budget.passes != int(budget.passes)
        return min(share, 1.0 if is_fraction else ALMOST_DONE)

    def _timed_progress(self, budget: float) -> float:
        seconds = self.seconds
        step, began = self._break
        if step != self.step:
            self._break = self.step, seconds
        elif step > 1 and not self.num_out and seconds - began > self.longest_break:
            # Not after the first step, where frameworks compile.
            self.longest_break = seconds - began
        end = budget - min(self.longest_break, MOST_RESERVE * budget)
        return seconds / end if seconds < end else 1.0

    def begin_break(self) -> None:
        """Count the break after this step from here: the time of a restore is not validation."""
        if self.budget.seconds is not None:
            self._break = self.step, self.seconds

    def policy_progress(self, epoch: int, progress: float) -> float:
        """Finished share of the budget as a policy sees it; in an open run, epochs count. See `OPEN_EPOCHS`."""
        return min(0.5, epoch / OPEN_EPOCHS) if self.budget.is_open else progress

    def with_cool_down(self, span: Span, lr: float) -> Budget:
        """The budget that a cool-down from here would leave.

        Args:
            span: Its length.
            lr: The scheduled rate now.

        Raises:
            ValueError: it would end later than the run does anyway, or at a time that is past.
        """
        budget, step, seconds = self.budget, self.place, self.seconds
        if budget.tokens is not None or budget.passes is not None:
            # Where that ends in steps or seconds is not known.
            budget = Budget()
        is_share, span = span.unit == "share", counted(span, budget, step, seconds, self.steps_per_epoch)
        if span.unit == "steps":
            # Batches that are out belong to the run.
            ends = Budget(steps=step + max(1, self.num_out, int(span.amount)))
        else:
            left = span.amount - self.wall() if span.unit == "until" else span.amount
            if left <= 0:
                raise ValueError(f"a cool-down must end in the future, got {span}.")
            ends = Budget(seconds=seconds + left)
        if is_later(ends, budget, step, seconds):
            if not is_share:
                raise ValueError(
                    f"a cool-down must not be longer than what is left of the run, got {span} at step {step} of a run "
                    f"that ends {end_of(budget)}."
                )
            ends = Budget(steps=budget.steps, seconds=budget.seconds)
        done, whole = (seconds, ends.seconds) if ends.steps is None else (step, ends.steps)
        begin = min(1.0, done / whole) if whole else 1.0
        until = span.amount if span.unit == "until" else None
        cool_down = CoolDown(begin, lr, min(self.rule.floor, lr), self.rule.shape, step, until)
        return replace(ends, cool_down=cool_down)

    def end_at(self, budget: Budget) -> None:
        """Go on with the budget that `with_cool_down` returned."""
        self.budget = budget
        self._set_deadline()

    def _set_deadline(self) -> None:
        cool_down = self.budget.cool_down
        if cool_down is not None and cool_down.until is not None:
            self._deadline = self.clock() + (cool_down.until - self.wall())
            self._meet_deadline()

    def _meet_deadline(self) -> None:
        """Let a cool-down that ends at a wall time do so, whatever was not counted: pauses, and downtime."""
        cool_down = self.budget.cool_down
        if cool_down is not None and cool_down.until is not None:
            left = self._deadline - self.clock()
            self.budget = replace(self.budget, seconds=max(0.0, self.seconds + left))

    @property
    def is_finished(self) -> bool:
        """Whether the budget is used up."""
        return self.progress >= 1

    @property
    def is_over(self) -> bool:
        """Whether no more batches are drawn: the budget is used up, or the run was stopped."""
        return self.is_stopped or self.is_finished

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time spent inside."""
        was_running = self.is_running
        if was_running:
            self._spent, self._running = self.seconds, None
        try:
            yield
        finally:
            if was_running and self._running is None:
                now = self.clock()
                self._running = now, now
            if was_running:
                self._meet_deadline()

    def state_dict(self) -> dict[str, Any]:
        """Steps and seconds, and the end that a cool-down has set; batches not reported yet are drawn again."""
        budget, cool_down = self.budget, self.budget.cool_down
        ending = cool_down and {"steps": budget.steps, "seconds": budget.seconds, **asdict(cool_down)}
        return {
            "step": self.step,
            "probes": [self.probes, self.left_out, *self._before_epoch],
            "seconds": self.seconds,
            "longest_break": self.longest_break,
            "passes": [self.passes, self.has_ended],
            "tokens": self.tokens,
            "ending": ending,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.budget = self._given
        if state["ending"] is not None:
            ending = {**state["ending"]}
            self.budget = Budget(ending.pop("steps"), ending.pop("seconds"), cool_down=CoolDown(**ending))
        self.step, self.num_out = state["step"], 0
        self.probes, self.left_out, *before = state["probes"]
        self._before_epoch = before[0], before[1]
        self.longest_break = state["longest_break"]
        (self.passes, self.has_ended), self.tokens = state["passes"], state["tokens"]
        self._break = -1, 0.0
        self._count_from(state["seconds"])
        self._set_deadline()


class Rates:
    """The learning rate of each step.

    Args:
        make_schedule: Returns the schedule of a peak rate; None for the one that the user gave.
        pace: Knows the progress.
        search: Finds the peak rate before the run; None if that was not asked for. It ends with the state of the model
            from before it.
        source: Draws its batches.
        controller: May hold rates down, and puts the model back.
        emitter: Knows whether the run has started.
        announcer: Tells listeners of another schedule, and of a cool-down.
        persistence: Looks again at what is due, as a cool-down ends the run sooner.

    Attributes:
        schedule: The schedule now, a function from progress in [0, 1] to a rate.
        own: The user's own rate as far as it is told, NaN before; None where the rate is the schedule's.
        last: The progress that the schedule was asked for last, and its rate.
        search: The search for the peak rate; None once it is over.
        found_lr: The rate that it has found; None before.
    """

    def __init__(
        self, make_schedule: Callable[[float | None], Schedule], *, pace: Pace,
        search: RangeTest | None, source: Source, controller: RecoveryController, emitter: EventEmitter,
        announcer: Announcer, persistence: Persistence,
    ) -> None:  # fmt: skip
        self.schedule = make_schedule(None)
        self.own = math.nan if isinstance(self.schedule, Kept) else None
        self.last = math.nan, math.nan
        self._make_schedule = make_schedule
        self.search = search
        self.found_lr: float | None = None
        self._pace, self._source, self._controller, self._emitter = pace, source, controller, emitter
        self._announcer, self._persistence = announcer, persistence

    @property
    def now(self) -> float:
        """The rate to use now."""
        return self.at(self._pace.step) if self.search is None else self.search.lr

    def at(self, step: int) -> float:
        """The rate once this many steps are done: that of the schedule, unless recovery holds it down."""
        lr = self.scheduled(self._pace.progress_at(step))
        return lr if self._controller.is_quiet else self._controller.limit.lr(lr)

    def scheduled_at(self, step: int) -> float:
        """The rate of the schedule once this many steps are done."""
        return self.scheduled(self._pace.progress_at(step))

    def scheduled(self, progress: float) -> float:
        """The rate of the schedule at some progress."""
        if type(self.schedule) is Kept:
            return 1.0
        # Needed after a report and at the next draw; with a budget in steps both are the same.
        last, lr = self.last
        if progress != last:
            lr = self.schedule(progress)
            if not (type(lr) is float and 0 <= lr < math.inf):
                lr = check_rate(lr, progress)
            self.last = progress, lr
        return lr

    @property
    def are_own(self) -> bool:
        """Whether the rate is the user's own: ``scheduler_mode="keep"``."""
        return self.own is not None

    def tell(self, lr: Any) -> None:
        """Tell views and guard the rate that the user trains with, >= 0.

        Raises:
            ValueError: the scheduler sets the rate.
        """
        if self.own is None:
            raise ValueError(f"lr is the scheduler's own unless scheduler_mode='keep', got lr={lr!r}.")
        self.own = lr if type(lr) is float else read_number("lr", lr)

    def shown(self, lr: float) -> float:
        """A rate of the run as the user knows it: if the rate is the user's own, that of the run is a factor on it."""
        return lr if self.own is None else lr * self.own

    # The search for a rate.

    def draw(self) -> tuple[Batch, float]:
        """Draw a random batch for the search, and the rate to train on it with."""
        returned = bool(self._source.returned)
        batch = self._source.draw_outside(SHUFFLE)
        assert batch is not None
        assert self.search is not None
        rates = batch.chunk.rates
        if not returned:
            rates[batch.slot] = self.search.draw()
        return batch, rates[batch.slot]

    def take(self, batch: Batch, loss: float, lr: float, *, refused: bool) -> int | None:
        """Take the loss of a batch of the search; returns the restored state if the model was restored."""
        self._source.close(batch)
        # One drawn before the search ended was trained on since: the restored model has changed.
        if self.search is None or self.search.take(loss, lr, refused=refused):
            return self._restore()
        return self._end_if_done(self.search)

    def _restore(self) -> int | None:
        restored = self._controller.live.restore_newest()
        return None if restored is None else restored.step

    def skip(self, batch: Batch) -> None:
        """Count a batch of the search that will not be reported."""
        self._source.close(batch)
        if self.search is not None:
            self.search.skip()
            self._end_if_done(self.search)

    def _end_if_done(self, search: RangeTest) -> int | None:
        if not search.is_done:
            return None
        self.search = None
        self._source.forget_outside()
        restored = self._restore()
        if math.isnan(search.result):
            self._announcer.warn_once(
                "no rate found",
                f"auto_find_lr went up to {search.lr:.3g} in {search.num_steps} steps and the loss never turned up: "
                "initial_lr is used.",
            )
        else:
            self.found_lr = search.result
            self._announcer.tell(events.LrFound, lr=search.result, num_steps=search.num_steps)
            self.follow_schedule()
        return restored

    def state_dict(self) -> dict[str, Any]:
        """The state of the search."""
        return {"test": None if self.search is None else self.search.state_dict(), "found_lr": self.found_lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.search = None if state["test"] is None else RangeTest(**state["test"])
        self.found_lr = state["found_lr"]

    def follow_schedule(self) -> None:
        """Follow the schedule of the peak rate, found or given, or the cool-down once there is one."""
        before = self.schedule
        self.schedule = self._pace.budget.cool_down or self._make_schedule(self.found_lr)
        self.last = math.nan, math.nan
        # Shares of the user's own rate are no plan of it.
        is_new = self.schedule != before and self.own is None
        # Before the run has started, nothing: `RunStarted` will tell.
        if is_new and self._announcer.is_heard and self._emitter.has_started:
            self._announcer.tell(events.LrPlanned, lr_plan=sample_rates(self.schedule))

    # The cool-down that ends a run when it is asked for: the rate falls from there on.

    def check_cool_down(self, span: Span | None) -> Span:
        """The span of a cool-down that is about to be asked for; None stands for the rule's share of the whole run.

        Raises:
            ValueError: it would be longer than what is left.
            RuntimeError: the run is over.
        """
        pace = self._pace
        if pace.is_over:
            raise RuntimeError(f"cool_down() was called at step {pace.step} of a run that is over.")
        span = span or Span("share", pace.rule.share)
        pace.with_cool_down(span, self.scheduled_at(pace.step))
        return span

    def begin_branch(self, span: Span) -> None:
        """Let a run that was just resumed from a checkpoint of its stable part end with a cool-down.

        Raises:
            ValueError: the checkpoint is of the decay already, or the cool-down is longer than what is left.
        """
        pace = self._pace
        progress = pace.progress_at(pace.step)
        shape = self.schedule if isinstance(self.schedule, Warmup) else None
        is_decaying = shape is not None and shape.decay_share is not None and progress > shape.decays_from
        if pace.budget.cool_down is not None or is_decaying:
            raise ValueError(
                f"cool_down needs a checkpoint of the stable part, got one of step {pace.step}, where the rate already "
                "falls."
            )
        pace.end_at(pace.with_cool_down(span, self.scheduled(progress)))
        self.follow_schedule()
        self._persistence.wake()

    def begin_cool_down(self, span: Span, source: str) -> None:
        """Let the rate fall from here on, and the run end with it; a notice says so where that is not possible.

        Args:
            span: Length of the cool-down.
            source: Who asked for it; "" for the program itself.
        """
        pace, before = self._pace, self._pace.budget
        if pace.is_over:
            return
        try:
            budget = pace.with_cool_down(span, self.scheduled_at(pace.step))
        except ValueError as error:
            asked = f"the cool-down asked for {source} is ignored: {error}"
            self._announcer.tell(events.Notice, text=asked, is_warning=True)
            return
        is_same = before.cool_down is not None and (before.steps, before.seconds) == (budget.steps, budget.seconds)
        if not is_same:
            pace.end_at(budget)
        # If this is interrupted, it is done again: the end stays, as it is the same.
        self.follow_schedule()
        self._persistence.wake()
        ending = pace.budget
        assert ending.cool_down is not None
        if not is_same:
            self._announcer.tell(
                events.CoolDownBegan,
                total_steps=ending.steps,
                train_duration_seconds=ending.seconds,
                until=ending.cool_down.until,
                lr=ending.cool_down.lr,
                reason=source,
            )
