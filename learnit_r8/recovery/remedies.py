"""Remedies: what follows from the finding of an experiment.

healthy     go on; the refused batches were to blame, and their samples are suspects
restored    go on from the newest state that repeats its record, gently for some steps
relapse     and at a lower rate, as a healthy state was damaged again by training on from it
level       nothing is restored; the losses mean something else from here on
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .. import events
from ..events.incident import Incident
from ..guard.monitor import Sentry
from ..table.table import SampleTable
from .backups import Backup, median_of
from .cause import BAD_NOW, INPUT, UNSEEN, UPDATE, WEIGHT
from .experiment import Alarm, Case, Finding
from .model import LiveModel, Witnesses
from .progress import CALM, EARLY_UPDATES
from .state import DIVISOR, EARLY_DIVISOR, LASTING_DIVISOR, LEAST_FUSE, LEAST_TRIAL, RecoveryState

LOWEST_SHARE = 2**-12
"""Least share of the scheduled rate that a ceiling leaves after the first steps."""

UNTESTED = (
    "the run ended before the weights were tested, so they may be damaged: restore_backup() puts those of the newest "
    "backup back"
)

_REASONS = {
    Alarm.NOT_FINITE: "losses or weights were not finite",
    Alarm.SPIKE: "losses were far too high",
    Alarm.RAISED: "losses stayed higher",
    Alarm.FELL: "losses rose towards those of the untrained model",
    Alarm.EARLY: "a loss in the first steps was too high",
    Alarm.REGRESS: "much of the progress was lost",
    Alarm.ABOVE: "losses rose far above those of the untrained model",
    Alarm.END: "the last losses were unusual",
    Alarm.FIRST: "the first steps went wrong",
    Alarm.CHANGED: "weights changed at once",
    Alarm.UNPROVEN: "the run ended before the state restored last had proved healthy",
    Alarm.MOVED: "the last losses are high, and weights have moved farther than between any two backups before",
}


TOO_LARGE_SINCE = "the updates since step {:,} were too large, as the weights were damaged"
PROBABLY_UPDATES = "probably the updates since"
"""How a sentence goes on that takes single weights, by how far they have moved, for updates that were too large."""

TOO_LARGE = "step {step:,}: {why}. What may help, and was not tested here: {advice}."


CALM_SHARE, CALM_HITS = 0.25, 5
"""Least share of the user's rate that explosions leave; and the `RateLimit.hits` with which it comes back, after 1,024
good steps: a quarter of those mostly was too soon; measured in benchmarks/explosions.py."""

CLEAR_SHARE = 0.9
"""Share of the rise that is gone with weights from before, from which the first explosion halves the rate, too. Where
trainings explode by themselves it is .9 to 1; in healthy ones that are taken for such it was .68, .75, .84 and 1."""

NUM_LOWERED_AGAIN = 2
"""Further explosions due to the weights that halve a rate again which was lowered before."""

CALMED = (
    "a loss has exploded, and most of that is gone where its batch is drawn again with weights from before, so the "
    "updates are probably too large: {}"
)

CALMED_IN_VAIN = (
    "losses have exploded again, and most of that comes back where their batches are drawn again with weights from "
    "before, so it is the batches: the gradient is not clipped any more, and the rate is yours again"
)


SEE = "See docs/recovery.md"


NO_MEASURE = '; where the loss is no measure of progress, as in reinforcement learning or a GAN, give guard="finite"'


IN_VAIN = f" or tested weights that never got {LEAST_TRIAL} updates further, as training damaged them again and again"


STANDS_STILL = (
    "after {:,} updates, {:,} of them since your rate reached its highest ({:.3g}), the losses are less than 3 % below "
    "that of the untrained model: unless that is expected, the rate may be too high or too low, or units may be dead. "
    "Nothing was tested, and nothing changed."
)

ALONE_TEXT = (
    "step {:,}: the loss ({:.4g}) is more than 30 times as high as each of the eight before it, and back at that of "
    "the first steps. Nothing was refused, as that may be a hard batch: if it was a bad one, the optimizer's averages "
    "hold its gradient, and restore_backup() goes back."
)

SAVED_ON_TRIAL = (
    "the run goes on from weights that were only on trial when they were saved. Those that counted are missing, "
    "as one of several processes has saved it, or backups were being tested; an earlier checkpoint has them."
)

NAN_SKIPPED = (
    "the loss of step {:,} is NaN while the weights are finite, and the loss scaler has left its step out: no lower "
    "scale heals that. Samples that such batches have in common are quarantined."
)

BROKEN_DATA = (
    "more than half of the last 100 batches before step {} were refused: the data, the loss function or the code is "
    "broken, or something that R8 was not given, such as a second network and its optimizer.{}"
)


class Remedies:
    """Acts on what experiments have found.

    Args:
        state: What recovery remembers.
        live: The model.
        witnesses: The witnesses of backups and checkpoints.
        sentry: Judges losses; goes back with the model.
        table: So does its trend.
    """

    def __init__(
        self, state: RecoveryState, live: LiveModel, witnesses: Witnesses, sentry: Sentry, table: SampleTable
    ) -> None:
        self._state, self._live, self._witnesses, self._sentry, self._table = state, live, witnesses, sentry, table
        self._announcer = live.announcer

    def tell_noise(self, tested: Sequence[Backup]) -> None:
        """Say once that a batch does not have the same loss twice with the same weights, and by how much."""
        noisy = max((each for each in tested if each.noise > 0), key=lambda each: each.noise, default=None)
        if noisy is not None:
            self._announcer.note_once(
                "noisy probes",
                f"probes are noisy: with the same weights, the loss of a batch that was drawn again differed by "
                f"{noisy.noise:.3g} from the time before, while losses usually spread by {noisy.spread:.3g}, as with "
                "dropout or augmentation; smaller damage may not be found.",
            )

    def go_on(self, case: Case, finding: Finding) -> None:
        """Go on with the weights as they are; raises RestoreError if none could be put back."""
        step, incidents = self._live.step, self._state.incidents
        if case.alarm is Alarm.FIRST:
            # No loss has raised an alarm.
            self._live.raise_failures()
        elif finding.verdict in ("healthy", "data"):
            if case.alarm is Alarm.SPIKE and not self._live.mended:
                self._name_cause("the batch itself, as the weights are healthy", INPUT)
            lineage = self._state.lineage
            is_costly = not case.is_exact or any(len(each.witness) > 1 for each in case.known)
            self._state.refusals.weights_are_healthy(is_costly=is_costly and case.alarm is Alarm.NOT_FINITE)
            lineage.progress.note_healthy(lineage.updates)
            if case.alarm is not Alarm.NOT_FINITE:
                self._sentry.calm()
                if lineage.is_looping(step):
                    # Several high losses in a row are the loss itself.
                    self._sentry.forget()
                lineage.healthy_at.append(step)
        elif finding.verdict == "level":
            self._accept_level(case, finding)
        else:
            self._live.raise_failures()
        # Else a record whose cause is a NaN in the weights would end with nothing but healthy weights.
        mended = self._live.mended
        incidents.note(step, f"{mended}; since then {finding.text}" if mended else finding.text)
        self._tell_found({"healthy": "refused", "level": ""}.get(finding.verdict, "not the weights"), finding.text)
        if finding.verdict in ("healthy", "level") and not self._state.lineage.is_proving:
            incidents.end()

    def _tell_found(self, topic: str, found: str) -> None:
        """Say what came from a backup, as nothing else was restored; or what was found of refused batches.

        Args:
            topic: That of the warning; "" for none.
            found: What was found, in words.
        """
        incidents, incident, mended = self._state.incidents, self._state.incidents.current, self._live.mended
        if incident is not None and mended:
            incidents.change(num_restored=max(1, incident.num_restored))
            text = f"{_REASONS[Alarm.NOT_FINITE]} at step {incident.step:,}: {mended}"
            self._announcer.warn_unseen("restored", incident.with_cause(text))
        elif incident is not None and incident.num_refused and topic:
            self._announcer.warn_unseen(topic, incident.refusal_text(found))

    def leave_open(self) -> None:
        """Say what an experiment that the end of the run cuts short leaves behind."""
        if self._live.mended:
            self._state.incidents.note(self._live.step, self._live.mended)
        self._tell_found("refused", UNTESTED)

    def _name_cause(self, cause: str, fault: str) -> None:
        """Say what is probable by the test of the weights, where the search for the cause of a high loss found none."""
        known = "" if self._state.incidents.current is None else self._state.incidents.current.cause
        if fault == INPUT and BAD_NOW in known:
            return
        text, (head, updates, seen) = known.replace(UNSEEN, f"probably {cause}; "), known.partition(PROBABLY_UPDATES)
        if updates and fault == WEIGHT:
            text = f"{head}probably {cause}; {seen.partition('; ')[2]}"
        if text != known:
            self._state.incidents.change(cause=text)
            self._announcer.tell(events.CauseFound, text=text, fault=fault, where="", samples=(), is_certain=False)

    def _accept_level(self, case: Case, finding: Finding) -> None:
        """Take the new level of the losses as the usual one."""
        step, lineage = self._live.step, self._state.lineage
        self._sentry.forget()
        lineage.progress.begin_anew()
        lineage.rises = lineage.rises or (case.rises and not case.is_sudden)
        lineage.relapses = 0
        self._state.limit.forget()
        self._witnesses.begin_anew(each for each in finding.tested if math.isfinite(each.replayed))
        self._live.persistence.look_at_weights()
        self._announcer.warn_once(
            f"level {step}",
            f"the losses stay higher from step {step} on: {finding.text}. Nothing was restored, and the new level "
            "counts as normal.",
        )

    def go_on_from(self, backup: Backup, alarm: Alarm, *, is_sudden: bool, lr: float, is_tested: bool = True) -> bool:
        """Go on from a restored state; returns whether the first steps must be gentle.

        Args:
            backup: The state.
            alarm: Why it was put back.
            is_sudden: Whether most of the rise came within one step.
            lr: The scheduled learning rate.
            is_tested: Whether anything has shown that the weights were damaged.
        """
        lineage, limit, step = self._state.lineage, self._state.limit, self._live.step
        undone = lineage.updates - backup.updates
        lineage.note_restore(is_sudden=is_sudden)
        is_early = backup.updates <= EARLY_UPDATES or alarm is Alarm.REGRESS
        is_relapse = lineage.is_on_trial and alarm is not Alarm.UNPROVEN
        # Where no trained state is better than the untrained one, no update at this rate was any good.
        is_rate = (alarm is Alarm.REGRESS and not is_sudden) or (alarm is Alarm.ABOVE and not backup.updates)
        # A sample of NaN damages healthy weights in each epoch again where its step is taken before its loss is
        # reported, or where the loss does not show it. Another one may follow the first at once; at a rate that is too
        # high from the start no state is old.
        is_first = lineage.num_restores == 1 and lineage.since >= LEAST_FUSE and lineage.since_restore > 0
        since = CALM if is_first else lineage.since_restore
        is_calm = alarm is Alarm.NOT_FINITE and lineage.progress.is_calm(since)
        why = ""
        if (is_relapse and not (is_calm or (limit.is_share and lineage.was_calm)) and not lineage.num_older) or is_rate:
            again = "training on has damaged healthy weights again, so the updates are probably too large"
            first = "the updates are probably too large from the start on, as the losses rose"
            # Of weights that are damaged before any update is made, the updates are not the cause.
            why = first if is_rate else again if undone else ""
            lineage.level_before, lineage.num_lowered = backup.usual, lineage.num_lowered + 1
            by = DIVISOR if lineage.num_lowered <= 2 else LASTING_DIVISOR
            how = {"by": by, "least": LOWEST_SHARE * lr, "goal": backup.usual}
            if is_early:
                # In the first steps there is hardly a level to wait for.
                how = {"by": EARLY_DIVISOR}
            self._state.lower_rate(max(lineage.rates, default=lr), step=step, reason=alarm.value, **how)
            if is_early:
                self._state.incidents.change(held_from_start=limit.ceiling)
        elif not (is_early or (is_relapse and is_calm and limit.is_share)):
            lineage.num_lowered = 0
            limit.restored()
        is_too_large = is_tested and alarm not in (Alarm.NOT_FINITE, Alarm.FIRST) and not self._live.jump
        if is_too_large or why:
            self._state.norms.begin(step)
        if self._live.jump:
            self._name_cause(self._live.jump, WEIGHT)
        elif is_too_large and undone:
            self._name_cause(TOO_LARGE_SINCE.format(backup.step), UPDATE)
        self._tell_restored(backup, alarm, undone, why, is_tested=is_tested)
        incident = self._state.incidents.current
        if not (why or self._live.jump or incident is None) and "were too large" in incident.cause:
            why = "an update was probably too large"
        if why:
            advice = self._live.persistence.callbacks.advice
            self._announcer.warn_once("too large", TOO_LARGE.format(step=step, why=why, advice=advice))
        self._put_record_back(backup, lr)
        # A bad batch among the first ones says nothing of the weights before it, nor of the rate.
        lineage.begin(backup, 0 if alarm is Alarm.FIRST else max(LEAST_TRIAL, 2 * undone), was_calm=is_calm)
        return not (is_relapse or is_early)

    def _put_record_back(self, backup: Backup, lr: float) -> None:
        """Put back what the losses before a backup tell, and forget the states of the weights that were given up."""
        self._witnesses.went_back(backup)
        self._live.persistence.backup_timer.forget_look()
        if self._live.persistence.store is not None:
            self._live.persistence.store.mark_abandoned(backup.step, self._live.step)
        if backup.moment is not None:
            # Unless losses had another meaning then.
            if backup.moment.baseline == self._sentry.baseline:
                self._sentry.go_back(backup.moment.memory, lr)
                self._table.learner.go_back_to(backup.moment.trend)
        elif self._live.guard is not None:
            self._sentry.go_back_to_saved(self._live.guard, lr)
        elif backup.is_of_file:
            # The initial state: nothing was known of its losses.
            self._sentry.forget()
        self._state.lineage.progress.went_back(backup.recent, backup.updates)

    def _tell_restored(self, backup: Backup, alarm: Alarm, undone: int, why: str, *, is_tested: bool) -> None:
        limit, incidents, norms = self._state.limit, self._state.incidents, self._state.norms
        self._announcer.tell(events.RolledBack, to_step=backup.step, source=self._live.persistence.name_of(backup))
        found = "the weights were damaged" if is_tested else "no test of the weights could be made"
        if alarm is Alarm.FIRST:
            found = "a batch has a far lower loss with the weights from before"
        back = f"{undone} batch{'es' * (undone != 1)} back" if undone else "with no good update since then"
        what = f"{_REASONS[alarm]}: {found}, restored to step {backup.step}, {back}"
        what += f"; {why}" if why else ""
        if limit.ceiling < math.inf:
            what += f"; the learning rate stays at or below {limit.ceiling_text} {limit.until_text()}"
        what += f"; {norms.text}" if norms.text else ""
        incidents.note(self._live.step, what)
        incidents.note_restore()
        incident = incidents.current
        text = f"{what}." if incident is None else incident.with_cause(what)
        # What is not finite is refused by any guard.
        other = "" if alarm is Alarm.NOT_FINITE else NO_MEASURE
        self._announcer.warn_unseen("restored", f"{text} {SEE}{other}.")

    def calm(self, batch: Backup, lr: float) -> None:
        """Clip the gradient, and halve the rate, where losses explode because of the weights; nothing is put back.

        The first time the rate is halved only where next to all of the rise is gone with weights from before. Most of
        these explosions pass without a trace that a test of the weights would see. Where they prove to be due to their
        batches, what was done once is undone.

        Args:
            batch: The batch of an explosion, drawn again with weights from before.
            lr: The scheduled learning rate.
        """
        lineage, limit, norms, step = self._state.lineage, self._state.limit, self._state.norms, self._live.step
        explosions, usual = lineage.explosions, median_of(batch.recent)
        share = (batch.record - batch.replayed) / (batch.record - usual)
        share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
        # Its noise is known only where it was drawn twice.
        explosions.take(share, lineage.updates, is_twice=not math.isnan(batch.noise))
        if explosions.are_of_batches and explosions.num_calmed == 1 and not self._state.incidents.num_restored:
            explosions.num_calmed = 0
            norms.forget()
            if limit.ceiling < math.inf:
                self._announcer.tell(events.LrRestored)
            limit.forget()
            self._announcer.note_once(f"calmed {step}", f"step {step:,}: {CALMED_IN_VAIN}.")
        is_new = explosions.num_new >= (NUM_LOWERED_AGAIN if limit.was_lowered else 1)
        if not (is_new and explosions.are_of_weights) or limit.ceiling <= CALM_SHARE * lr:
            return
        explosions.num_new, explosions.num_calmed = 0, explosions.num_calmed + 1
        is_first, parts = not norms.is_on, []
        if is_first:
            norms.begin(step)
            parts.append(norms.text)
        if not is_first or explosions.shares[-1] >= CLEAR_SHARE:
            self._state.lower_rate(
                max(lineage.rates, default=lr), by=DIVISOR, least=CALM_SHARE * lr, goal=lineage.progress.level,
                step=step, hits=CALM_HITS, reason="explosions",
            )  # fmt: skip
            parts.append(f"the learning rate stays at or below {limit.ceiling_text} {limit.until_text()}")
        why = CALMED.format(", and ".join(parts))
        if is_first:
            advice = self._live.persistence.callbacks.advice
            self._announcer.warn_once("too large", TOO_LARGE.format(step=step, why=why, advice=advice))
        else:
            self._announcer.warn_once(f"calmed {step}", f"step {step:,}: {why}.")

    def confirm_rate(self, level: float) -> None:
        """Forget the relapses, if a lowered rate has led to a better level than that of the last one."""
        lineage, before = self._state.lineage, self._state.lineage.level_before
        if before is None or not self._state.limit.ceiling < math.inf:
            return
        if level < before - 0.1 * abs(lineage.progress.start - level):
            lineage.level_before, lineage.relapses = None, 0


def diverged_text(
    incident: Incident, *, refused: int, step: int, loss: float, lr: float, samples: str, failures: Sequence[str],
    can_restore: bool = False, is_row: bool = True,
) -> str:  # fmt: skip
    """The message of `TrainingDiverged`.

    Args:
        incident: What is known of it.
        refused: Batches refused, probes included.
        step: Steps reported.
        loss: The last refused loss.
        lr: Its learning rate; NaN if it is the user's own and was never told.
        samples: The suspects, named; "" for none.
        failures: Why states could not be restored.
        can_restore: Whether there is a state to restore, and a callback that does it.
        is_row: Whether no batch between them was good; else the model was put back again and again.
    """
    restored = (
        "The model was restored in between, and losses were refused again."
        if incident.num_restored
        else "Nothing was restored: no state was found to be better."
        if incident.findings or incident.num_probes or can_restore
        else "The model was never restored: pass load_callback with state_callback, or call update_cpu_backup()."
    )
    rate = f" with lr={lr:.3g}" if math.isfinite(lr) else ""
    lines = [
        f"It began at {incident.cause}." if incident.cause else "",
        f"{refused} batches {'in a row ' * is_row}were refused{IN_VAIN * (not is_row)}, the last loss ({loss:.6g}) at "
        f"step {step}{rate}, {incident.reason}. {restored}",
        f"Suspected: {samples}." if samples else "",
        *(f"  {line}" for line in incident.findings[-8:]),
        *(f"  not restored: {line}" for line in failures),
        incident.meant,
    ]
    return "\n".join(line for line in lines if line)
