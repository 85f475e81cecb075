"""Run state: begins a run, and saves and loads its whole state, also with checkpoints."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import events
from .._validation import did_you_mean
from ..events.incident import Incident
from ..events.versions import versions
from ..recovery.backups import SchedulerState
from ..recovery.persistence import HAD_CHECKPOINT
from ..recovery.rate_limit import RateLimit
from ..recovery.state import SAVED_OF_INCIDENT, Lineage, RateTrial, of_01c0f9e2
from ..schedules.budget import BUDGETS
from ..schedules.range_test import RangeTest
from ..schedules.schedule import sample_rates
from ..state.callbacks import call_load
from ..state.durable_io import numbered, remove
from ..state.kinds import ANYTHING, check_kinds
from ..state.store import Checkpoint, CheckpointStore, NoValidCheckpoint
from ..state.tree import clone
from .pace import Tally
from .run import RankGroup, Run

COMPARED_PROGRESS = (0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0)
"""Progress at which the schedules of ranks are compared."""

STATE_ALONE = (
    "state_callback was given without load_callback, so backups are taken and nothing can be put back; pass "
    "load_callback=, which takes what state_callback returned."
)
NO_MODEL = (
    "the run goes on at step {} with the model as the script has made it: its checkpoints hold none, as there is "
    "neither save_callback nor load_callback. Give both, unless the script saves and loads the model itself."
)

OF_PAIRS = (
    "batch_iterator() gives pairs of indices and a rate, in this order: write `for batch, lr in r8.batch_iterator()`, "
    "and index with batch."
)
OF_ITEMS = (
    "batches() gives the items of your loader as they are, without a rate: unpack what the loader gives, no more."
)

MOST_REFUSED_LAST = 16
REFUSED_LAST = (
    "the last {} batches of the run (or more) were refused, up to step {}: nothing was learned from them. See "
    "r8.summary() and docs/incidents.md for what it was."
)
MOST_IN_VAIN = 10_000
"""Loops after the budget was spent, none of which trains, from which the program is taken for an endless one."""

IN_VAIN = (
    "the budget was spent at step {}, and {:,} loops since then have trained nothing: this program waits for a number "
    "of its own to grow, such as one that leaves refused batches out. Count with scheduler.global_step, or end the "
    "loop once scheduler.is_over."
)

DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError)
"""What reading a state of the wrong values raises."""

FORMAT, OF_01C0F9E2 = 3, 1
"""Format of the whole state, and what 01c0f9e2 saved. A change of a part adds one to the former, and the part must
still read the formats before it, down to that of the files in ``tests/runs/saved``."""

_INDICES, _NUMBERS, _LOSSES, _MAYBE = np.empty(0, np.int64), np.empty(0), [0.0], (0.0,)
_CHUNK = {
    "handed": _INDICES, "members": _INDICES, "weights": (_NUMBERS,), "sizes": _INDICES, "expected": _NUMBERS,
    "typical": 0.0, "pass_number": 0, "sweep": 0, "states": np.empty(0, np.uint8), "drawn": 0, "rates": _NUMBERS,
}  # fmt: skip
_ENDING = {
    "steps": (0,), "seconds": _MAYBE, "begin": 0.0, "lr": 0.0, "floor": 0.0, "shape": "", "step": 0, "until": _MAYBE,
}  # fmt: skip
_GENERATORS = {
    "global": {
        "torch": [np.empty(0, np.uint8)], "numpy": [_INDICES, 0, 0, 0.0], "python": [0, _INDICES, _MAYBE],
    },
    "own": [ANYTHING], "order": [{}],
}  # fmt: skip
_INCIDENT = {name: getattr(Incident(0, ""), name) for name in SAVED_OF_INCIDENT} | {"findings": [""]}
_WITNESS = {"step": 0, "updates": 0, "recent": _LOSSES, "witness": [_INDICES], "losses": _LOSSES, "is_proven": False}
_BYTES, _LIMIT = np.empty(0, np.uint8), RateLimit.example()
_TRIAL = {**RateTrial.example(), "present": _BYTES, "own": (_BYTES,), "memory": ANYTHING, "limit": _LIMIT}
_KINDS: dict[str, Any] = {
    "data.sample_ids": ("",),
    "table.numbers.part_size": (0,), "table.evidence": ANYTHING, "table.first.4": _LOSSES,
    "table.untrained.losses": _LOSSES, "table.ids.kind": ("",), "table.ids.names": _INDICES,
    "table.ids.lengths": _INDICES,
    "plan.context.4.4": ([0.0] * 6,), "plan.context.4.5": ([ANYTHING],), "plan.context.4.5.0": 0.0,
    "plan.context.4.5.1": "", "plan.context.4.5.2": 0, "plan.context.4.5.3": [_LOSSES],
    "plan.sweep.weights": (_NUMBERS,), "plan.sweep.order": (_INDICES,), "plan.chunks": [_CHUNK],
    "plan.returned": [[0, 0]], "plan.waiting": [[0, 0]], "plan.loader": ({},), "plan.start": (_GENERATORS,),
    "plan.now": _GENERATORS, "plan.before": (_GENERATORS["global"],), "plan.head": (_GENERATORS["global"],),
    "pace.ending": (_ENDING,),
    "recovery.limit": _LIMIT, "recovery.norms.norms": _LOSSES,
    "recovery.lineage": Lineage.example(), "recovery.refusals.outcomes": [False],
    "recovery.incidents.kinds": [["", 0, ""]], "recovery.incidents.current": (_INCIDENT,),
    "recovery.witnesses": [_WITNESS], "recovery.early.trial": (_TRIAL,),
    "recovery.early.dead.found": [[0, 0]], "recovery.early.dead.shares": _LOSSES,
    "recovery.early.changes": [[0.0, 0.0]], "recovery.early.compared": _MAYBE, "recovery.early.last": (_WITNESS,),
    "recovery.early.first": ({**_WITNESS, "is_closed": False, "beside": (_BYTES,)},),
    "guard.losses.recent": _LOSSES, "guard.losses.first.recent": _LOSSES, "guard.losses.past.losses": _LOSSES,
    "guard.losses.past.lrs": _LOSSES,
    "search.test": ({**RangeTest(9).state_dict(), "_losses": _LOSSES},), "search.found_lr": _MAYBE,
    "early_stop": {"best": _MAYBE, "waited": 0, "reason": ("",), "is_by_rule": False},
}  # fmt: skip
_KINDS = {f"state.{place}": example for place, example in _KINDS.items()}
"""What may stand where a state is not the same at all times; see `check_kinds`."""

CHANGED_BY_RESUME = {"num_samples", "batch_size", "last_batch"}
"""Arguments that `R8Scheduler.resume_from_checkpoint` can change by adapting the state."""

_PARTS = {
    "data", "seed", "num_draws", "table", "plan", "pace", "recovery", "quarantine", "guard", "tally", "search",
    "early_stop",
}  # fmt: skip
"""What a state must have."""


def start(run: Run) -> None:
    """Tell listeners that the run has started."""
    saver, callbacks, budget = run.persistence.saver, run.persistence.callbacks, run.pace.budget
    if run.rates.search is not None and callbacks.state is None and run.persistence.backup.is_empty:
        raise RuntimeError(
            "auto_find_lr needs a model state to go back to, got none: pass state_callback or call "
            "update_cpu_backup() before the first batch is drawn."
        )
    if run.announcer.is_heard:
        here = {**versions(), "machine": platform.node(), "process": str(os.getpid())}
        run.announcer.tell(
            events.RunStarted,
            settings={**run.settings, **here},
            lr_plan=sample_rates(run.rates.schedule),
            name=run.name,
            num_samples=run.source.table.num_samples,
            total_steps=budget.expected_steps,
            train_duration_seconds=budget.seconds,
            **run.source.facts(),
        )
    folder = None if saver is None else saver.store.folder
    if folder is not None:
        # So that a later process can tell a folder that was deleted from one without a checkpoint yet; where it cannot
        # be made, the first checkpoint says so.
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    if callbacks.state is not None and callbacks.load is None and saver is None:
        run.announcer.warn_once("state alone", STATE_ALONE)
    run.persistence.tell_loaded()
    if saver is not None and callbacks.save is None and callbacks.load is None and run.pace.step:
        run.announcer.warn_once("no model", NO_MODEL.format(run.pace.step))
    # Last, so that an interrupted start is repeated.
    run.emitter.has_started = True


def share(run: Run, group: RankGroup, resume: str | os.PathLike[str] | None = None) -> None:
    """Make the scheduler act as one with those of other ranks, before the first draw.

    Args:
        run: The run of this rank.
        group: Compares the arguments that determine batches, rates and intervals; then provides a shared clock and a
            shared checkpoint store in place of the scheduler's own, and an agreement of all ranks.
        resume: As for `R8Scheduler`, for ranks that choose together what they continue from.

    Raises:
        RuntimeError: the scheduler of another rank has other arguments.
    """
    callbacks, timer, saver = run.persistence.callbacks, run.persistence.backup_timer, run.persistence.saver
    group.check_same_run(
        {
            **run.source.identity(),
            "alpha": run.source.table.learner.alpha,
            "groups": run.source.table.storage.records.whole["group"],
            "policy": run.source.policy,
            "seed": run.source.seed,
            "budget": run.pace.budget,
            "learning rates": [float(run.rates.schedule(progress)) for progress in COMPARED_PROGRESS],
            "guard": run.sentry.guard,
            "recovery": run.controller.recovery,
            "load_callback": callbacks.load is not None,
            "state_callback": callbacks.state is not None,
            "backup_every": timer.when,
            # Only the default takes early backups, though others may be as far apart later.
            "whether backup_every is given": not timer.is_usual,
            "checkpoint_dir": saver is not None,
            "global_step": run.pace.step,
        }
    )
    pace = run.pace
    pace.use_clock(group.shared_clock(pace.clock))
    run.agreement.join(group.channel, pace.clock, lambda: pace.is_stopped)
    run.requests.share()
    if saver is not None:
        saver.share(group.shared_store(saver.store))
    if resume is not None:
        resume_from(run, resume)
        group.check_same_run({"global_step": run.pace.step, "seed": run.source.seed})


def position_of(run: Run, random: dict[str, Any] | None = None, *, has_models: bool = False) -> dict[str, Any]:
    """The state but for the table, as it will be once that has learned every report so far; see the controller's."""
    return {
        "seed": run.source.seed,
        "plan": run.source.state(random),
        "pace": run.pace.state_dict(),
        "recovery": run.controller.state_dict(has_models=has_models, has_batches=run.source.names_samples),
        "quarantine": run.controller.quarantine.state_dict(),
        "guard": run.sentry.state_dict(),
        "tally": {**vars(run.pace.tally)},
        "num_draws": run.pace.num_draws,
        "search": run.rates.state_dict(),
        "early_stop": {**run.early_stop.state_dict(), "reason": run.pace.ended_early},
    }


def _state_of(run: Run) -> dict[str, Any]:
    """Everything needed to continue with exactly the same batches, rates and tables; this thread has the run's turn."""
    table = run.source.table.state_dict()
    position = position_of(run, has_models=True)
    return {"format": FORMAT, "data": run.source.identity(), "table": table, **position}


def whole_state_of(run: Run, *, call: str = "state_dict") -> dict[str, Any]:
    """The state, which no other call changes meanwhile; ``call`` asks for it."""
    with run.turns.take(call, run.pace.step):
        return _state_of(run)


def _check(run: Run, state: Mapping[str, Any]) -> None:
    """Raise ValueError unless a state is readable and fits the run."""
    missing, number = _PARTS - state.keys(), state.get("format")
    if missing or type(number) is not int or number < OF_01C0F9E2:
        raise ValueError(
            f"state must be what state_dict() returned (format {FORMAT}), got format {number!r} without "
            f"{sorted(missing)}."
        )
    if number > FORMAT:
        raise ValueError(
            f"state must be of format {FORMAT} or older, got format {number}: a newer learnit_r8 has saved it. Load it "
            "with that version."
        )
    if number == OF_01C0F9E2 and "incident" not in state["recovery"]:
        raise ValueError(
            f"state must be of format {FORMAT}, or what 01c0f9e2 saved, got one of a version in between: begin a new "
            "run (resume=None, another checkpoint_dir)."
        )
    check_kinds({"data": state["data"]}, {"data": run.source.identity()}, _KINDS)
    for name, value in run.source.identity().items():
        if state["data"].get(name) != value:
            remedy = "; R8Scheduler.resume_from_checkpoint() changes it" if name in CHANGED_BY_RESUME else ""
            raise ValueError(
                f"{name} must be that of the saved run ({state['data'].get(name)!r}), got {value!r}{remedy}, "
                "and another checkpoint_dir begins a new run."
            )


def _renewed(run: Run, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state that 01c0f9e2 saved, in the form of today: it has counted probes as steps."""
    step, plan = state["pace"]["step"], state["plan"]
    begun = step - plan.get("taken", step % run.source.steps_per_pass)
    pace = {**state["pace"], "probes": [0, 0, begun, 0]}
    return {**state, "pace": pace, "recovery": of_01c0f9e2(state["recovery"])}


def load_state(run: Run, state: Mapping[str, Any], call: str = "load_state_dict") -> None:
    """Load a saved state, or leave the run unchanged; see `R8Scheduler.load_state_dict`."""
    try:
        _check(run, state)
        if not run.source.names_samples:
            # Older files hold batches that were arrays, as if they were indices.
            state = {**state, "recovery": {**state["recovery"], "witnesses": []}}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"state must be what state_dict() returned, got a damaged one ({error!r}).") from error
    with run.turns.take(call, run.pace.step, mends=True) as turn:
        before = None if turn.was_cut else _state_of(run)
        if before is not None:
            # What a guard of the user's own remembers is its own.
            is_ours = type(run.sentry.guard).__module__.startswith("learnit_r8.")
            known = _KINDS if is_ours else {**_KINDS, "state.guard.losses": ANYTHING}
            if state["format"] == FORMAT:
                # Older ones had other forms.
                check_kinds(state, before, known)
        turn.is_changing = True
        try:
            _take_over(run, _renewed(run, state) if state["format"] == OF_01C0F9E2 else state)
        except Exception as error:
            if before is not None:
                _take_over(run, before)
                turn.is_changing = False
            if not isinstance(error, DAMAGE):
                raise
            raise ValueError(f"state must be what state_dict() returned, got a damaged one ({error!r}).") from error
    run.member.forget()


def _take_over(run: Run, state: Mapping[str, Any]) -> None:
    run.source.seed = state["seed"]
    if "table" in state:
        run.source.table.load_state_dict(state["table"])
    run.source.load(state["plan"])
    # The clock may stand still yet.
    run.source.check_again()
    run.pace.load_state_dict(state["pace"])
    run.controller.load_state_dict(state["recovery"])
    run.controller.quarantine.load_state_dict(state["quarantine"])
    run.sentry.load_state_dict(state["guard"])
    run.pace.tally, run.pace.num_draws = Tally(**state["tally"]), state["num_draws"]
    run.rates.load_state_dict(state["search"])
    run.early_stop.load_state_dict(state["early_stop"])
    before, run.pace.ended_early = run.pace.ended_early, run.early_stop.reason
    if run.pace.ended_early is not None or before is not None:
        run.pace.is_stopped = run.pace.ended_early is not None
    run.rates.follow_schedule()
    run.emitter.drop_surveys()
    run.persistence.count_from(run.pace.step, run.source.samples_in(run.pace.place), run.pace.seconds)


def settled_state_of(run: Run) -> dict[str, Any]:
    """The state after all losses held back are reported, as the model has taken those steps already."""
    run.member.settle()
    return whole_state_of(run)


def go_on_from(run: Run, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    """Continue from a checkpoint, or leave the run unchanged."""
    if run.persistence.saver is not None:
        run.persistence.saver.store.claim(checkpoint.run_id)
    before = None if run.turns.is_cut else whole_state_of(run, call="load_checkpoint")
    if run.persistence.config.differences(checkpoint.config, ["guard"]) and "guard" in state:
        state = {**state, "guard": run.sentry.adapted(state["guard"])}
    if run.persistence.config.differences(checkpoint.config, BUDGETS):
        # Who gives another budget wants that end, not the one of an earlier cool-down or early stop.
        state = {**state, "pace": {**state["pace"], "ending": None}}
        state["early_stop"] = {**state["early_stop"], "reason": None, "waited": 0}
    load_state(run, state, "load_checkpoint")
    try:
        run.persistence.put_back(checkpoint)
    except BaseException as error:
        # Not while an interrupt ends the program: the model may be half loaded in any case.
        if before is not None and isinstance(error, Exception):
            load_state(run, before, "load_checkpoint")
        else:
            run.turns.mark_cut("load_checkpoint", run.pace.step)
        raise
    if run.persistence.config.differences(checkpoint.config, ["seed"]):
        run.announcer.warn_once(
            "seed", f"the resumed run keeps the seed of the saved one, {run.source.seed}, whatever seed= says."
        )
    if run.emitter.has_started:
        run.persistence.tell_loaded()


def moment_of(run: Run, call: str, model: Any = None) -> SchedulerState:
    """What is kept with a backup that ``call`` makes now of what the state callback has just returned, if it was asked.

    An adapter that sets the random generators has read them for the model a moment before.
    """
    is_read = isinstance(model, dict) and run.persistence.callbacks.generators is not None
    random = model.get("random") if is_read else None
    sentry, lineage, learner = run.sentry, run.controller.lineage, run.source.table.learner
    with run.turns.take(call, run.pace.step):
        recent, position = tuple(lineage.progress.recent), position_of(run, random)
        memory = sentry.present.losses
        return SchedulerState(memory, learner.trend_mark, sentry.baseline, lineage.updates, recent, position)


def load_checkpoint(run: Run, path: str | os.PathLike[str] | None) -> None:
    """Continue from a checkpoint, by default the newest valid one."""
    store = run.persistence.store
    if store is None:
        if path is None:
            raise RuntimeError(f"path must be given if there is no checkpoint_dir, got {path!r}.")
        store = CheckpointStore(Path(path).parent, keep=1, run_id="")
    checkpoint = store.load(path)
    go_on_from(run, checkpoint, checkpoint.state)


def check_resume(run: Run, resume: str | os.PathLike[str]) -> None:
    """Raise OSError, TypeError or ValueError unless there can be something to ``resume`` from."""
    if not isinstance(resume, (str, os.PathLike)):
        raise TypeError(
            f"resume must be 'auto', the file of a checkpoint, a folder of checkpoints or None, got {resume!r}."
            + (" Did you mean 'auto'?" if resume else " Did you mean None?")
        )
    if resume == "auto" and run.persistence.saver is None:
        raise ValueError("resume='auto' needs a checkpoint_dir or a save_callback, got neither.")
    if resume != "auto" and not os.path.exists(resume):
        near = did_you_mean(os.fspath(resume), ["auto"])
        raise FileNotFoundError(
            f"resume must be 'auto', the file of a checkpoint or a folder of checkpoints, got {resume!r}, which does "
            f"not exist.{near}"
        )


def resume_from(run: Run, resume: str | os.PathLike[str]) -> None:
    """Carry out the argument ``resume`` of `R8Scheduler`."""
    check_resume(run, resume)
    if resume == "auto":
        _resume_from_newest(run)
    elif os.path.isdir(resume):
        try:
            checkpoint = CheckpointStore(resume, keep=1, run_id="").load()
        except NoValidCheckpoint as error:
            raise NoValidCheckpoint(str(error).replace("checkpoint_dir", "resume", 1)) from None
        go_on_from(run, checkpoint, checkpoint.state)
    else:
        load_checkpoint(run, resume)
    say_if_finished(run)


def _resume_from_newest(run: Run) -> None:
    """Continue from the newest state of an earlier process, if there is one: a checkpoint or a generation in memory."""
    found, has_other = run.persistence.find_newest()
    if found is None or found.model_state is None:
        if found is not None:
            go_on_from(run, found, found.state)
        return
    store = run.persistence.store
    folder = None if store is None else store.folder
    is_gone = folder is not None and not folder.exists()
    is_emptied = store is not None and found.config.get(HAD_CHECKPOINT) and not store.names()
    if not has_other and (is_gone or is_emptied):
        # Whoever deletes the checkpoints wants to start over, and does not know of the memory; many scripts make the
        # folder anew before R8 sees that it is gone.
        remove(found.path.parent)
        where, step = str(folder), found.state["pace"]["step"]
        what = f"the folder of its checkpoints, {where!r}, was" if is_gone else f"the checkpoints in {where!r} were"
        run.announcer.warn_once(
            "generation",
            f"the run starts over, as {what} deleted; so is the backup in shared memory, of step {step}.",
        )
        return
    if run.persistence.saver is not None:
        # Here, as a run that is in use must not start over.
        run.persistence.saver.store.claim(found.run_id)
    own = ""
    try:
        go_on_from(run, found, found.state)
    except (ValueError, RuntimeError) as error:
        own = str(error)
    trouble = run.persistence.agreement.agree(own)
    if not trouble:
        return
    if not (own or has_other):
        # This rank's model has been replaced: it cannot start over with the others.
        raise RuntimeError(f"the backup in shared memory, {str(found.path)!r}, cannot be used: {trouble}; delete it.")
    other = "the newest checkpoint is used" if has_other else "the run starts over"
    run.announcer.warn_once(
        "generation", f"the backup in shared memory, {str(found.path)!r}, cannot be used, so {other}: {trouble}"
    )
    if has_other:
        load_checkpoint(run, None)


def restore_backup(run: Run) -> int:
    """Go on from the newest backup in RAM; see `R8Scheduler.restore_backup`."""
    if not run.source.table.storage.is_whole:
        raise RuntimeError(
            "restore_backup() needs a whole table, but the call was cut short while the table was storing what it had "
            "learned; use load_checkpoint()."
        )
    with run.turns.take("restore_backup", run.pace.step, mends=True) as turn:
        has_one = any(each.moment is not None for each in run.persistence.backup.backups)
        if run.persistence.callbacks.load is None or not has_one:
            raise RuntimeError(
                "restore_backup() needs a load_callback and a backup of this run in RAM, got none; use "
                "load_checkpoint(), or build another R8Scheduler around the model as it is."
            )
        turn.is_changing = True
        run.source.hand_over()
        restored = run.controller.live.restore_newest(is_of_run=True)
        assert restored is not None
        assert restored.moment is not None
        run.persistence.backup.forget_after(restored.updates)
        state = restored.moment.state
        # Time that was used is used.
        _take_over(run, {**state, "pace": {**state["pace"], "seconds": run.pace.seconds}})
        run.source.table.learner.go_back_to(restored.moment.trend)
        run.announcer.tell(events.RolledBack, to_step=restored.step, source="backup")
    run.member.forget()
    return restored.step


def folder_of_branch(folder: Path, checkpoint: Checkpoint, new: Mapping[str, Any]) -> Path:
    """A new folder for the checkpoints of a branch, so that those of the run itself stay the newest ones in theirs.

    Raises:
        ValueError: a budget is given too.
    """
    budgets = sorted(new.keys() & set(BUDGETS))
    if budgets:
        raise ValueError(
            f"at most one of cool_down and {', '.join(BUDGETS)} must be given, got cool_down and {budgets}."
        )
    name = f"cool-down-{checkpoint.state['pace']['step']}"
    return next(free for free in numbered(folder / name) if not free.exists())


def say_if_finished(run: Run) -> None:
    """Warn if the budget is used up already, or the run has ended early."""
    if run.pace.ended_early is not None:
        why = f" ({run.pace.ended_early})" if run.pace.ended_early else ""
        run.announcer.warn_once(
            "finished",
            f"finished, nothing to do: the resumed run has finished early, at step {run.pace.step}{why}. To train on, "
            "give more patience or another budget; to start over, another checkpoint_dir or resume=None.",
        )
    elif run.pace.is_finished:
        run.announcer.warn_once(
            "finished",
            f"finished, nothing to do: the resumed run has ended at step {run.pace.step}. To train more, give a "
            "larger budget; to start over, give another checkpoint_dir or resume=None.",
        )


def say_if_spent(run: Run) -> None:
    """Warn that a loop which begins now trains nothing, as when a notebook's cell is run again.

    Raises:
        RuntimeError: so many loops have trained nothing that the program would never end.
    """
    if run.pace.is_finished and not run.pace.is_stopped:
        run.num_in_vain += 1
        if run.num_in_vain > MOST_IN_VAIN:
            raise RuntimeError(IN_VAIN.format(run.pace.step, MOST_IN_VAIN))
        run.announcer.warn_once(
            "finished",
            f"the budget was spent at step {run.pace.step}, so this loop trains nothing. To train from the start, "
            "build another R8Scheduler (and model); to train on, resume_from_checkpoint() with a larger budget.",
        )


def say_if_one_epoch(run: Run) -> None:
    """Warn if the loop was over batches alone, which ends with the epoch; as the run is closed, or the program ends."""
    pace, loop = run.pace, run.pace.loop_of_epoch
    if loop and pace.place == pace.steps_per_epoch and not (pace.counts_epochs or pace.is_over):
        run.announcer.warn_once(
            "one epoch",
            f"the run was closed at step {pace.step} of {pace.budget.steps or '?'}: {loop[0]} ends with the epoch. "
            f"To train all epochs, loop over it within: for epoch in {loop[1]}.",
        )


def say_if_refused_last(run: Run) -> None:
    """Warn, as the run is closed, if nothing was learned from its last batches."""
    refused = run.controller.state.refusals.num_last
    if refused >= MOST_REFUSED_LAST:
        run.announcer.warn_once("refused last", REFUSED_LAST.format(refused, run.pace.step))


def say_how_to_unpack(run: Run, error: BaseException, *, is_own: bool) -> None:
    """Warn if the error that ended the program is of what the first batch was taken for; ``is_own``: of the user's."""
    if not is_own and str(error).startswith("only integers, slices"):
        run.announcer.warn_once("unpacked", OF_PAIRS)
    elif is_own and str(error).startswith("too many values to unpack"):
        run.announcer.warn_once("unpacked", OF_ITEMS)


def load_best(run: Run) -> float:
    """Put the best model back; see `R8Scheduler.load_best`."""
    load, saver, kept = run.persistence.callbacks.load, run.persistence.saver, run.early_stop.best
    if load is None:
        raise RuntimeError(
            "load_best() needs a state_callback, which gives it the best model, and a load_callback; got "
            f"{'no load_callback' if run.persistence.callbacks.state else 'neither'}."
        )
    if saver is not None:
        saver.wait()
        best = saver.best
        if best is not None and best.model_path is not None:
            call_load(load, str(best.model_path), from_ram=False)
            return best.value
        if best is not None:
            raise RuntimeError(
                f"load_best() needs a model in the best checkpoint, got none in {str(best.path)!r}: give a "
                "state_callback, and a save_callback that writes the file."
            )
    elif kept.value is not None:
        call_load(load, clone(kept.state), from_ram=True)
        return kept.value
    raise RuntimeError(
        "load_best() needs a best model, got none so far: name a metric with monitor=, give its values to log(), and "
        "have a state_callback."
    )
