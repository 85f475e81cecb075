"""An incident: from the first refused loss, or the first doubt about the weights, until what was at fault is settled.

There is one record of it. Recovery keeps that of the incident under way; screen, report, commands and loggers fold the
same record from the events. All of them say it in the words that stand here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import trouble
from .event import Event, describe
from .text import clock, few, number

MOST_INCIDENTS = 32
MOST_TRIED = 64
MOST_FINDINGS = 64

MEASURES = ("wild", "exploded")
"""Reasons of the probes that measure what updates change, or what weights did to a loss; they are no incident."""

NOT_FINITE = ("not finite", "gradient")
"""Reasons that a transient fault may have, too."""

BAD_INPUT = ("whose input holds NaN", "whose input holds Inf")
"""What causes say of rows with such values, see `state.batch_rows.Odd.about`."""

RESTORED = "restored to step"
"""What the finding of a restore says."""

MENDED = "came from the backup of step"
"""What a finding says where single arrays were put back."""

HEALTHY = "the weights are healthy"
"""What causes say where every number of the weights is finite, see `bridge.place_search`."""

LASTING = "computed once more from the same weights, it was not finite either"

MEANT = (
    "If losses are expected to be higher from here on, as with new data or another scale, call reset_baseline() at the "
    'change; if the loss is no measure of progress, give guard="finite", which refuses only losses that are not finite.'
)

NEVER_FINITE = "Look at the data, at the loss function, and at whatever R8 was not given, such as a second network."

ADVICE = {
    "input": "Look at the samples that are named, or at the batch, and at how they are read and scaled.",
    "label": "Look at the labels of the samples that are named: they are out of range, or not numbers.",
    "loss": "Look at the loss function: a logarithm, a root or a division needs a bound.",
    "forward": "Look at the operation that is named: it overflows, so bound what goes into it.",
    "backward": "Clip the gradient, or change the operation that is named: its derivative has no bound there.",
    "batch size": "Take batches of at least two samples: a norm over a batch cannot use one.",
    "update": "Lower the rate, lengthen the warm-up, or clip the gradient: an update was too large.",
    "weight": "Look for what wrote into that weight: no update explains its value.",
    "optimizer": "Look for what wrote into the optimizer's averages; a fresh optimizer has none of it.",
    "scale": "Let the scaler of half precision lower its scale, or train in bfloat16.",
    "nothing": "Test the memory of the device if this comes again: run once more, the same step was fine.",
}
"""What to do, by the fault that was found, see `recovery.cause.KINDS`."""


@dataclass(frozen=True)
class Incident:
    """A refused loss, damage or doubt about the weights, and what followed until it was settled.

    Attributes:
        step, seconds, epoch: When it began; the epoch is 0-based.
        reason: The first verdict of the guard, or why weights were tested.
        loss, lr: The first refused loss, and its learning rate; NaN where none was refused.
        samples: Positions of samples that were to blame, as far as it is known.
        num_refused, num_probes, num_restored: Losses refused, batches drawn again and states restored in it.
        cause: One sentence on where it began; "" if that was not looked for.
        fault: What was at fault, one of `recovery.cause.KINDS`; "" as long as that is not known.
        state: "open", "over" or "gave up".
        diagnosis: What was found and done; "" while it is not known.
        last_step, last_seconds: Step and training seconds of its newest event.
        tried: Step and text of what was done, oldest first.
        kind: What the summary of a run counts it as; by default the first verdict.
        num_left_out: Batches at the end of an epoch that are left out for tests of the weights.
        findings: What experiments have found, oldest first.
        is_lasting: Whether a step that is not finite was not finite either when it was computed once more.
        held_from_start: Where the first steps had failed, the rate to which it was lowered; else 0.
    """

    step: int
    reason: str
    seconds: float = 0.0
    epoch: int = 0
    loss: float = math.nan
    lr: float = math.nan
    samples: tuple[int, ...] = ()
    num_refused: int = 0
    num_probes: int = 0
    num_restored: int = 0
    cause: str = ""
    fault: str = ""
    state: str = "open"
    diagnosis: str = ""
    last_step: int = 0
    last_seconds: float = 0.0
    tried: tuple[tuple[int, str], ...] = ()
    kind: str = ""
    num_left_out: int = 0
    findings: tuple[str, ...] = ()
    is_lasting: bool = False
    held_from_start: float = 0.0

    @property
    def what(self) -> str:
        """What was refused, or that the weights were in doubt, and why."""
        text = f"loss {number(self.loss)}" if self.num_refused else "the weights"
        return f"{text}: {self.reason}" + (f"; samples {few(self.samples, 5)}" if self.samples else "")

    @property
    def began(self) -> str:
        """Where it began."""
        return self.cause or "not looked for: the model was not given, or the loss was finite"

    @property
    def done(self) -> str:
        """How many losses were refused, witnesses drawn again, and states restored."""
        counts = (self.num_refused, "refused"), (self.num_probes, "tested"), (self.num_restored, "restored")
        return ", ".join(f"{count:,} {word}" for count, word in counts if count) or "nothing yet"

    @property
    def found(self) -> str:
        """What it was found to be."""
        lines = (line.strip().rstrip(".") for line in self.diagnosis.replace(self.meant, "").splitlines())
        said = "; ".join(filter(None, lines)) if "\n" in self.diagnosis else self.diagnosis
        return said or {"open": "not settled yet", "over": "nothing", "gave up": "gave up"}[self.state]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What every view says of it, each with its label."""
        what = f"{self.what} (epoch {self.epoch + 1}, {clock(self.seconds)})"
        rows = ("what", what), ("found", self.found), ("to do", self.advice), ("done", self.done)
        return [(label, said) for label, said in rows if said]

    @property
    def advice(self) -> str:
        """What the user can do; "" where nothing is left to do."""
        said = ADVICE.get(self.fault, "")
        return said or (self.meant if self.state == "gave up" else "")

    @property
    def meant(self) -> str:
        """What the user can do where nothing helped."""
        return NEVER_FINITE if self.reason in NOT_FINITE else MEANT

    @property
    def headline(self) -> str:
        """The incident in one sentence: where it began, if that is known, else what was refused."""
        return self.cause or f"step {self.step:,}: {self.what}"

    @property
    def label(self) -> str:
        """The few words that stand beside its mark in a chart."""
        return f"step {self.step:,}: " + (f"loss {number(self.loss)}" if self.num_refused else self.reason)

    @property
    def place(self) -> str:
        """Its step, or its first one and that of its last finding, if that came later."""
        last = int(self.findings[-1].partition(":")[0].removeprefix("step ")) if self.findings else self.step
        return f"steps {self.step:,} to {last:,}" if last > self.step else f"step {self.step:,}"

    @property
    def conclusion(self) -> str:
        """What was at fault, as far as the experiments tell."""
        if self.findings:
            text = self.findings[-1].partition(": ")[2] + "."
        else:
            may_be_transient = self.reason in NOT_FINITE and not (self.num_refused == 1 and self._is_input)
            or_else = ", or a transient fault (not tested)" * (may_be_transient and not self.is_lasting)
            lasting = f"; {LASTING}" * (self.is_lasting and self.reason in NOT_FINITE)
            text = f"{self._to_blame}{or_else}, not the weights: the next one was good{lasting}."
        if not self.num_left_out:
            return text
        if self.num_left_out == 1:
            return f"{text} A test of the weights took the place of one batch."
        return f"{text} Tests of the weights took the places of {self.num_left_out} batches."

    @property
    def _is_input(self) -> bool:
        """Whether the search for the cause has found values in the input that are not finite."""
        return any(each in self.cause for each in BAD_INPUT) and "probably " not in self.cause

    @property
    def _to_blame(self) -> str:
        are = "the refused batch was" if self.num_refused == 1 else f"the {self.num_refused} refused batches were"
        return f"{are} to blame"

    @property
    def conclusion_at_end(self) -> str:
        """What is known of it where the run has ended meanwhile, without a full stop."""
        if self.findings and RESTORED in self.findings[-1]:
            return f"{self.place}: {self.conclusion[:-1]}; the run ended before enough good losses had proven that"
        if self.findings and MENDED in self.findings[-1]:
            return f"{self.place}: {self.conclusion[:-1]}"
        if self._is_input and HEALTHY in self.cause:
            return f"step {self.step:,}: {self._to_blame}, not the weights; the run ended with it"
        return f"not settled as the run ended, since step {self.step:,}"

    def refusal_text(self, found: str) -> str:
        """A sentence on what was refused, what was found, and where it began."""
        count, step = self.num_refused, f"step {self.step:,}"
        what = f"a loss was refused at {step}" if count == 1 else f"{count} losses were refused from {step} on"
        return self.with_cause(f"{what} ({self.reason}): {found}")

    def with_cause(self, text: str) -> str:
        """A sentence on the incident, and where it began."""
        lasting = f"; {LASTING}" * (self.is_lasting and LASTING not in text)
        return f"{text}. It began at {self.cause}{lasting}." if self.cause else f"{text}{lasting}."

    def after(self, event: Event) -> Incident:
        """The incident with one more of its events."""
        now = replace(self, last_step=event.step, last_seconds=event.seconds)
        match event:
            case trouble.BatchRefused():
                changed = replace(now, num_refused=self.num_refused + 1, samples=self.samples or event.samples)
                if not self.num_refused:
                    changed = replace(changed, loss=event.loss, lr=event.lr)
            case trouble.CauseFound():
                # What is known first counts; a test of the weights may tell more than the search before it.
                is_known = self.cause and (self.fault != "unknown" or event.fault == "unknown")
                cause, fault = (self.cause, self.fault) if is_known else (event.text, event.fault)
                changed = replace(now, cause=cause, fault=fault, samples=self.samples or event.samples)
            case trouble.Probed():
                changed = replace(now, num_probes=self.num_probes + 1)
            case trouble.RolledBack():
                changed = replace(now, num_restored=self.num_restored + 1)
            case trouble.SamplesQuarantined():
                changed = replace(now, samples=event.samples)
            case trouble.IncidentEnded():
                return replace(now, state="over", diagnosis=event.text or "recovered")
            case trouble.GaveUp():
                return replace(now, state="gave up", diagnosis=event.text)
            case _:
                changed = now
        said = describe(event)
        tried = (*self.tried, (event.step, said.text)) if said and len(self.tried) < MOST_TRIED else self.tried
        return replace(changed, tried=tried)


_KINDS = tuple(kind for kind in Event.__subclasses__() if kind.__module__ == trouble.__name__)


def begun_by(event: Event, epoch: int = 0) -> Incident | None:
    """The incident that an event begins, before it is folded in; None where it begins none.

    Args:
        event: The event.
        epoch: The epoch of it, 0-based, where the event does not say it.
    """
    if isinstance(event, trouble.BatchRefused):
        return Incident(event.step, event.reason, event.seconds, event.epoch)
    if isinstance(event, trouble.DamageFound):
        return Incident(event.step, f"not finite: {event.array}", event.seconds, epoch)
    if isinstance(event, trouble.Probed) and event.reason not in MEASURES:
        return Incident(event.step, event.reason, event.seconds, epoch)
    return None


def fold(incidents: Sequence[Incident], event: Event, epoch: int) -> tuple[Incident, ...]:
    """The newest incidents of a run after one more event, oldest first; at most 32."""
    known = tuple(incidents)
    if not isinstance(event, _KINDS):
        return known
    if known and (known[-1].state == "open" or isinstance(event, (trouble.LrRestored, trouble.SamplesReleased))):
        # The last two come when an incident is over, and belong to it.
        return (*known[:-1], known[-1].after(event))
    begun = begun_by(event, epoch)
    return known if begun is None else (*known, begun.after(event))[-MOST_INCIDENTS:]


def describe_error(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
