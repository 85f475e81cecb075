"""The break between two steps: the start of a run, what was asked for, and the backups and checkpoints that are due."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

from ..guard.monitor import MOST_SUSPICION
from . import refusal, run_state
from .rates.cool_down import begin_cool_down

if TYPE_CHECKING:
    from .engine import Engine

STATE_ALONE = (
    "state_callback was given without load_callback, so backups are taken and nothing can be put back; pass "
    "load_callback=, which takes what state_callback returned."
)
NO_SAVE = (
    "checkpoints hold the scheduler and no model, as there is no save_callback, and only backups in memory can put the "
    "model back; give save_callback=, which writes it."
)
LEFT = (
    "one of several processes has left the run at step {}, before its end: {}. Nothing was put back or saved, as the "
    "others may be elsewhere. To end a run early use stop(), which all follow, or call save_checkpoint() on all."
)
NO_MODEL = (
    "the run goes on at step {} with the model as the script has made it: its checkpoints hold none, as there is "
    "neither save_callback nor load_callback. Give both, unless the script saves and loads the model itself."
)


def start(run: Engine) -> None:
    """Tell listeners that the run has started."""
    budget, table = run.pace.budget, run.table
    run.search.check_ready()
    run.emitter.run_started(
        settings=run.settings,
        schedule=run.rates.schedule,
        name=run.name,
        num_samples=table.num_samples,
        batch_size=table.batch_size if run.feed is None else 0,
        steps_per_epoch=run.plan.steps_per_pass if run.feed is None else budget.steps_per_pass or 0,
        total_steps=budget.expected_steps,
        train_duration_seconds=budget.seconds,
        policy=run.plan.policy.name,
        grows=run.feed is not None and run.feed.has_ids,
    )
    folder = None if run.saver is None else run.saver.store.folder
    if folder is not None:
        # So that a later process can tell a folder that was deleted from one without a checkpoint yet; where it cannot
        # be made, the first checkpoint says so.
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    callbacks = run.persistence.callbacks
    if callbacks.state is not None and callbacks.load is None and run.saver is None:
        run.announcer.warn_once("state alone", STATE_ALONE)
    run_state.tell_loaded(run)
    if run.saver is not None and callbacks.save is None:
        if callbacks.load is None and run.pace.step:
            run.announcer.warn_once("no model", NO_MODEL.format(run.pace.step))
        elif callbacks.load is not None and callbacks.state is not None and "resume" in run.settings:
            run.announcer.warn_once("no save", NO_SAVE)
    # Last, so that an interrupted start is repeated.
    run.emitter.has_started = True


def leave(run: Engine) -> None:
    """Leave a run by an exception, or one of several ranks before its end: nothing is saved, and no rank is called.

    Where the run is alone, the weights that count for true are put in, and what is not finite is put back; of several
    ranks the others may be anywhere.
    """
    inquiry, persistence, step = run.controller.inquiry, run.persistence, run.pace.step
    if run.agreement.ranks is None:
        try:
            refusal.check_weights(run)
            if run.controller.is_open:
                with run.turns.take("close", step, is_changing=True):
                    inquiry.settle_open(step=step)
        except Exception as error:
            # What has ended the run is the one to see.
            run.announcer.warn_once("left", f"the run was left at step {step}, and its weights as they were: {error!r}")
        return
    damage = persistence.backup_timer.damage_of(persistence.callbacks.state)
    seen = [f"{damage!r} in the model's state is not finite"] * bool(damage)
    seen += ["the model holds weights that are only on trial"] * inquiry.is_on_trial
    seen += ["it has no checkpoint of this step"] * (run.saver is not None and not run.saver.has_saved(step))
    if seen:
        run.announcer.warn_once("left", LEFT.format(step, "; ".join(seen)))


def answer_requests(run: Engine) -> None:
    """Carry out what other threads, signals and files have asked for."""
    run.requests.answer(
        functools.partial(run_state.save_as_asked, run),
        cool_down=functools.partial(begin_cool_down, run),
        waited=run.emitter.leave_out,
    )


def do_what_is_due(run: Engine, *, closing: bool) -> None:
    """Take backups and write checkpoints that are due; with ``closing``, end what is under way."""
    persistence, pace, controller = run.persistence, run.pace, run.controller
    # No probe follows the last batch of a number of epochs.
    is_last = closing or (pace.is_finished and pace.leaves_out and not pace.num_out)
    if refusal.look_last(run, may_probe=not is_last, closing=closing) and not is_last:
        return
    # Without an experiment it is a trial of a rate, which ends with the run.
    if controller.is_open and (is_last or (pace.is_finished and not (pace.num_out or controller.experiment.is_open))):
        # End what is under way, as the run is left.
        with run.turns.take("close", pace.step, is_changing=True):
            controller.inquiry.settle_open(step=pace.step)
    elif not controller.may_save:
        return
    with run._saving:
        step, epoch_ended = pace.step, run._epoch_ended
        try:
            damage = persistence.between_steps(
                step,
                run.plan.samples_in(pace.place),
                pace.seconds,
                run._num_draws,
                epoch_ended=epoch_ended,
                run_ended=closing or pace.is_finished,
                budget=pace.budget,
                get_state=lambda: run_state.settled_state_of(run),
                get_moment=lambda: run_state.moment_of(run, "draw"),
                is_calm=controller.is_calm and run.sentry.suspicion < MOST_SUSPICION,
                may_back_up=not controller.is_open,
                saved=controller.note_checkpoint,
            )
            if damage:
                refusal.answer_damage(run, damage)
        except Exception:
            run._epoch_ended = False
            raise
        # Last: if any of this is interrupted, it is due again.
        if epoch_ended:
            run._epoch_ended = False
