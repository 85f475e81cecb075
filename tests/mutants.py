"""Planted defects: each must be found by the tests that are named for it.

Each line of `MUTANTS` is a mistake that somebody could make in one line of the package. The program copies the package
and its tests to a temporary folder, makes one mistake at a time and runs its tests. A mistake that no test finds is a
hole in the suite: write the test, and do not take the line out.

    python tests/mutants.py                     all of them, about a quarter of an hour
    python tests/mutants.py --only recovery     those whose file, or what they would do to a user, has this text
    python tests/mutants.py --check             only whether each old text is there once
    python tests/mutants.py --healthy           the named tests without a mistake: all must pass
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 180


class Mutant(NamedTuple):
    """One planted defect.

    Attributes:
        file: In the package.
        old: A text that is in it once.
        new: What stands there with the defect.
        tests: Arguments of pytest, in the folder of the tests.
        harm: What the defect does to a user.
    """

    file: str
    old: str
    new: str
    tests: str
    harm: str


# fmt: off
MUTANTS = [Mutant(*each) for each in (
    # recovery/
    ("recovery/progress.py", "return not may_fall or updates >= self.slow_until", "return True",
     "recovery/test_progress.py -k rise_slowly", "healthy weights of a VQ-VAE are put back as its losses rise"),
    ("recovery/progress.py", "max(before[-APART:]) and not rises_slowly(self.recent)", "max(before[-APART:])",
     "recovery/test_progress.py -k explode", "a slow rise counts as an explosion, and the rate falls"),
    ("recovery/remedies.py", "if fault == INPUT and BAD_NOW in known:", "if False:",
     "recovery/test_remedies.py -k good_with_older", "a batch is called to blame that is good with older weights"),
    ("recovery/progress.py", "if compared is None or rises_slowly(self.recent):", "if True:",
     "recovery/test_progress.py -k as_the_run_ends", "damage of the last steps ends the run without a word"),
    ("recovery/persistence.py", "elif not self._has_adapter and self.callbacks.state is not None", "elif False",
     "runs/test_outliving.py -k goes_on_from_its_newest", "a killed run of optax cannot go on from shared memory"),
    ("loops/scheduled_data.py", "in place.\n        self._driven.keep()", "in place.",
     "flax/test_own_batches.py -k cost_a_loop -m program", "each NaN costs a loop over NNX a restore, and its rate"),
    ("streams/sources.py", "            self._driven.keep()\n", "            pass\n",
     "flax/test_own_batches.py -k cost_a_loop -m program", "each NaN costs a stream over NNX a restore"),
    ("state/tree.py", 'array if hasattr(array, "max") else np.asarray(array)', "array",
     "runs/test_faults.py -k live_references -m program", "a loop of one's own with variables of TensorFlow raises"),
    ("recovery/persistence.py", "        self.backup_timer.is_weight = callbacks.is_weight\n", "",
     "bridge/test_driven_state.py -k bare_schedulers", "a layer of zeros in a loop of one's own stays, without a word"),
    ("state/callbacks.py", "opt(im|ax|_|s?", "opt(",
     "bridge/test_driven_state.py -k names_of_the_users", "moments of optax are looked at like weights"),
    ("recovery/recovery.py", "elif can_probe and self._may_fall and", "elif False and",
     "torch/own/test_healing.py -k lost_for_good", "a run ends with far more loss than it had, without a word"),
    ("recovery/progress.py", "LAST_LOST if count == LEVEL else LOST if is_clear", "LOST if is_clear",
     "recovery/test_progress.py -k fifth_of", "a level that a recurrent network has lost stays"),
    ("recovery/progress.py", "LOST if is_clear else MOST_LOST", "MOST_LOST",
     "recovery/test_progress.py -k half_of_the_progress", "a last layer of zeros stays, as losses are not all lost"),
    ("recovery/progress.py", "not rises_slowly(self.recent, by_chance=1.0)", "True",
     "recovery/test_progress.py -k have_not_fallen_back", "a slow rise counts as lost weights"),
    ("recovery/experiment.py", "if newest.replayed >= loss and model.put_present()", "if False and model.put_present()",
     "recovery/test_experiment.py -k harder", "a loop over `steps()` goes back far where its text changes"),
    ("guard/spike.py", "if self.tests_progress or not (", "if True or not (",
     "guard/test_spike.py -k slow_rise", "the guard refuses the losses of a VQ-VAE as they rise"),
    ("recovery/recovery.py", "if self.live.mended:\n", "if False:\n",
     "contract/test_data.py -k recurring_hidden_nan", "each gradient of NaN behind a finite loss costs a restore"),
    ("recovery/recovery.py", "if alarm is Alarm.NOT_FINITE:\n            self", "if False:\n            self",
     "torch/own/test_bad_batches.py -k their_steps", "each of them does where weights were put back for one"),
    ("recovery/persistence.py", "before, least=BEYOND)", "before, least=FAR_GROWN)",
     "recovery/test_model.py -k stray_write", "a row that was trained at a high rate is put back"),
    ("recovery/model.py", "whole[place] = before[place].item()", "whole[...] = before",
     "torch/own/test_healing.py -k no_loss_shows", "a stray write undoes what the other weights have learned"),
    ("recovery/model.py", "count(stray.key) < MOST_SINGLES", "count(stray.key) < 9",
     "torch/own/test_healing.py -k again_and_again", "a weight that somebody sets is put back for ever"),
    ("torch/stepper.py", "            each.grad = gradient\n", "            pass\n",
     "torch/own/test_bad_batches.py -k kept_from", "a loop that reads its gradients after a step finds none"),
    ("torch/stepper.py", "move_to_end(handle.id, last=False)", "move_to_end(handle.id)",
     "torch/own/test_bad_batches.py -k hooks_of_the_user", "a hook that looks at gradients raises"),
    ("torch/stepper.py", "and _passes_over(kind)):", "and True):",
     "torch/own/test_bad_batches.py -k needs_all_gradients", "an optimizer of the user's own raises at its first NaN"),
    ("state/tree.py", "bool(np.quantile(trained, FEW_ROWS) > ROW_SHARE)", "True",
     "recovery/test_model.py -k stray_write", "what a table of values has just learned is put back"),
    ("keras/state.py", "        if by_layer:\n", "        if False:\n",
     "keras/test_own_batches.py -k each_layer", "after layers are unfrozen a file puts weights into others"),
    ("recovery/persistence.py", "tree.shapes_of(read()) != tree.shapes_of(kept)", "False",
     "keras/test_own_batches.py -k unfrozen", "backups of an earlier fit's optimizer end a restore with an error"),
    ("keras/own_batches.py", " and data.cardinality() >= 0", "",
     "keras/test_own_batches.py -m slow -k 'mid_epoch and known'", "a resumed fit shuffles as a later epoch does"),
    ("keras/own_batches.py", "self._loss_to_report(recorder.read(logs))", "recorder.read(logs)",
     "contract/test_data.py -m program -k 'recurring_hidden_nan and keras'", "each costs a restore in Keras"),
    ("engine/engine.py", "quarantine.counts and quarantine.holds_any(ticket.indices)", "False",
     "recovery/test_quarantine.py -k suspected_twice", "a bad sample is trained on, and the rate blamed"),
    ("recovery/recovery.py", "if self.quarantine.counts and not progress.stands_alone:", "if self.quarantine.counts:",
     "recovery/test_quarantine.py -k suspected_twice", "a bad sample that is taken for a hard one is cleared"),
    ("recovery/experiment.py", "loss < later.record or loss < (yield from _draw(case, later, model.put_present))",
     "loss < later.record", "recovery/test_experiment.py -k data_have_changed",
     "a collapsed model is declared normal, as older states are compared with one that was healthy"),
    ("recovery/model.py", "self.put_copy(self.persistence.backup.clone(self.present))", "self.put_copy(self.present)",
     "recovery/test_model.py -k present_state", "a test of the present weights trains the copy that was kept"),
    ("recovery/quarantine.py", ">= OWN_LOSSES]", "> OWN_LOSSES]",
     "recovery/test_quarantine.py -k own_loss", "a bad sample costs one batch more"),
    ("recovery/quarantine.py", "self._num_clean_refused += bool(self.counts)", "pass",
     "recovery/test_quarantine.py", "good samples are convicted where batches fail at random"),
    ("recovery/quarantine.py", "np.array(list(self.counts.values()), np.int64)",
     "np.ones(len(self.counts), np.int64)",
     "recovery/test_quarantine.py -k state", "a resumed run forgets how often samples were suspected"),
    ("recovery/quarantine.py", "num_samples) - len(self._storage.exclusions.quarantined)",
     "num_samples)",
     "recovery/test_quarantine.py -k never_exceeds", "more samples are left out than the user allows"),
    ("recovery/quarantine.py", "del self.counts[sample]", "self.counts[sample] = 1",
     "recovery/test_quarantine.py", "a good batch clears nobody"),
    ("recovery/state.py", "self.in_a_row = self.bad_in_a_row = 0\n", "self.in_a_row = 0\n",
     "recovery/test_state.py", "two bad batches far apart restore the model"),
    ("recovery/recovery.py", "= self._refusals.bad_in_a_row >= self", "= self._refusals.bad_in_a_row > self",
     "recovery/test_recovery.py", "damaged weights train on for one batch more"),
    ("recovery/state.py", "min(MOST_BAD, 2 * self.bad_limit)", "2 * self.bad_limit",
     "recovery/test_state.py", "after many bad batches damaged weights are no longer looked for"),
    ("recovery/state.py", "in_vain: int = 0", "in_vain: int = field(default=0, metadata=NOT_SAVED)",
     "recovery/test_state.py -k in_vain",
     "a run that is killed again and again never gives up"),
    ("recovery/rate_limit.py", "falls = scheduled_lr / self.top if scheduled_lr < self.top else 1.0", "falls = 1.0",
     "recovery/test_rate_limit.py", "the rate does not fall at the end of a run with a ceiling"),
    ("recovery/rate_limit.py", "gentle_left: int = 0", "gentle_left: int = field(default=0, metadata=NOT_SAVED)",
     "recovery/test_state.py -k state", "a run resumed after a restore goes on at the full rate"),
    ("recovery/rate_limit.py", "TRIAL_AFTER * later and self.may_rise", "TRIAL_AFTER * later",
     "recovery/test_rate_limit.py", "a rate rises although the losses get worse"),
    ("recovery/rate_limit.py", "self.hits + 2, 0", "self.hits, 0",
     "recovery/test_rate_limit.py -k confirmed", "a rate that has proved too high comes back as soon as any other"),
    ("recovery/state.py", "= trial, trial > 0", "= trial, False",
     "recovery/test_state.py", "damage that comes back after a restore never lowers the rate"),
    ("recovery/state.py", "self.updates = self.since = backup.updates", "self.since = backup.updates",
     "recovery/test_state.py", "updates that were undone count"),
    ("recovery/state.py", "failed_at: int = -1", "failed_at: int = field(default=-1, metadata=NOT_SAVED)",
     "recovery/test_state.py -k state", "a resumed run goes back to the same bad state again and again"),
    ("recovery/model.py", "not each.is_closed and ticket.draw >= each.draws:", "not each.is_closed:",
     "recovery/test_witnesses.py -k drawn_before", "healthy weights look damaged where batches are fetched ahead"),
    ("recovery/model.py", "self.calm_run + 4 if is_calm else 0", "self.calm_run + 4",
     "recovery/test_witnesses.py -k trust", "states are trusted in the middle of trouble"),
    ("engine/feed/feed.py", "engine.controller.is_open and not pace.is_stopped and engine", "False and engine",
     "recovery/test_recovery.py -k loop_over_steps_ends", "weights under test are read as those of the run"),
    ("recovery/recovery.py", "ALONE_TEXT.format(self._announcer.where()[0], loss)",
     "ALONE_TEXT.format(self._announcer.where()[0] + 1, loss)",
     "recovery/test_recovery.py -k far_above_the_last", "a warning names the step after the one that it is about"),
    ("recovery/backups.py", "|\\.(batch|ema)_state_index\\.1$", "",
     "flax/test_healing.py -m program -k of_equinox", "a bad batch ruins the statistics of Equinox without a word"),
    ("recovery/backups.py", "return [*self.last, *means, *counts]", "return [*self.last, *means]",
     "flax/test_healing.py -m program -k of_equinox", "statistics of Equinox go back without their count"),
    ("recovery/backups.py", "total > MOST_VARIANCE * self.untrained > 0", "total > MOST_VARIANCE * self.untrained",
     "recovery/test_state.py -k begins_at_zero", "healthy statistics of Equinox count as ruined as they fall"),
    ("state/tree.py", '"mean", "var", "state_index"', '"mean", "var"',
     "flax/test_healing.py -m program -k of_equinox", "ruined statistics of Equinox count as weights that have grown"),
    ("state/tree.py", "was_counted = names ==", "was_counted = False and names ==",
     "state/test_state_form.py -k of_equinox", "a checkpoint of Equinox from a former version does not load"),
    ("state/tree.py", "and not parts.keys() & names", "",
     "state/test_state_form.py -k of_equinox", "numbered parts in another order load in each other's place"),
    ("recovery/backups.py", "and backup.state is not self._lent and", "and",
     "recovery/test_backups.py -k lent", "a backup is written to the disk while another one overwrites it"),
    ("recovery/model.py", "None, persistence.backup.clone(backup.state)", "None, backup.state",
     "recovery/test_restore.py -k fresh_copy", "training on changes the backup itself"),
    ("recovery/backups.py", "if each.updates <= updates]", "if each.updates < updates]",
     "recovery/test_backups.py -k going_back", "a restore forgets the state that it went back to"),
    ("recovery/backups.py", "del backups[1 + min(range(", "del backups[min(range(",
     "recovery/test_backups.py -k thinning", "the initial state is forgotten"),
    ("recovery/persistence.py", "and step != self._step and is_calm and not waits",
     "and step != self._step and not waits",
     "recovery/test_backup_timer.py", "backups are taken of weights under suspicion"),
    ("recovery/persistence.py", 'is_first and fault != "NaN"', "is_first",
     "recovery/test_backup_timer.py", "NaN in the weights at the start is taken as intended"),
    ("recovery/persistence.py", "self._took.append(1e-6 * took)", "pass",
     "recovery/test_backup_timer.py -k costly", "backups of large models take much of the time"),
    ("recovery/model.py", "trouble = persistence.agreement.agree(trouble)", "trouble = trouble",
     "recovery/test_restore.py", "ranks go on with different weights where one could not be restored"),
    ("recovery/model.py",
     'damaged = "" if trouble else self.damage(is_shared=False)', 'damaged = ""',
     "runs/test_faults.py -k does_nothing", "a load_callback that does nothing counts as a restore"),
    ("recovery/progress.py", "del self.first[updates // NOTED_EVERY :]", "pass",
     "recovery/test_progress.py", "losses of weights that were given up count as those of the start"),
    ("recovery/early.py", "suspicion = min(suspicion, before)", "pass",
     "recovery/test_early.py", "a trainer loses healthy small batches of the first steps for good"),
    ("recovery/progress.py", "self.gap *= 2", "pass",
     "recovery/test_progress.py", "a noisy start is looked into again and again"),
    ("recovery/progress.py", "wait_until: int = 0", 'wait_until: int = field(default=0, metadata={"is_saved": False})',
     "recovery/test_state.py -k state", "a resumed run looks into its first losses again"),
    ("recovery/persistence.py", "self.backup.witness_size = witness_size", "self.backup.witness_size = 1",
     "torch/test_adapter.py -k witness",
     "with accumulated gradients weights are tested with a part of the batches of an update"),
    ("recovery/persistence.py", "        self.backup.clear()\n        self.wake()\n", "        self.wake()\n",
     "recovery/test_persistence.py -k loaded", "after load_checkpoint() a later run's weights are restored"),
    ("recovery/experiment.py", "if has_bad or rises:", "if has_bad:",
     "recovery/test_experiment.py", "weights that give NaN on some batches count as healthy"),
    ("recovery/experiment.py", "if not loss - record <= tolerance:", "if loss - record > tolerance:",
     "recovery/test_experiment.py", "a state whose losses are NaN counts as healthy"),
    ("recovery/experiment.py", "if backup.is_proven or reference is None or not case.is_exact:", "if True:",
     "recovery/test_experiment.py -k unproven", "a backup of damaged weights is restored"),
    ("recovery/experiment.py", "older.sort(key=case.rise_of_present, reverse=True)", "pass",
     "recovery/test_experiment.py -k that_tells", "a hard batch clears a backup of damaged weights"),
    ("recovery/experiment.py", "return math.inf if loss < later.record", "return math.inf if True",
     "recovery/test_experiment.py -k data_have_changed", "a model goes back as the data have changed"),
    ("recovery/progress.py", "3 * trend, highest)", "3 * trend)",
     "recovery/test_progress.py -k as_high_before", "classes that come later are taken for damage"),
    ("recovery/progress.py", "if last > max(usual + chance", "if last < max(usual + chance",
     "recovery/test_progress.py -k fall_back", "a model that has lost all it learned trains on"),
    ("recovery/recovery.py", "self._fell_back = is_due and", "self._fell_back = False and",
     "torch/own/test_healing.py -k lost_all", "a model of zeros trains on where losses have hardly fallen"),
    ("engine/engine.py", "if verdict is Verdict.SPIKE and controller.is_of_a_kind(", "if False and (",
     "torch/own/test_other_data.py -k rare", "the batches of a rare class are left out to the end"),
    ("recovery/state.py", "return is_kind and not is_absurd and", "return is_kind and",
     "torch/own/test_bad_batches.py -k no_absurd", "bad batches are learned from once there were three of them"),
    ("recovery/experiment.py", "return sum(excess for excess, *_ in found)", "return 1.0",
     "recovery/test_experiment.py -k usual_level", "a model that follows its data is put back"),
    ("recovery/experiment.py", "            found = others\n", "            pass\n",
     "recovery/test_experiment.py -k hard_one", "one hard batch keeps damaged weights"),
    ("recovery/experiment.py", "if each.record > state.usual]", "if True]",
     "recovery/test_experiment.py -k before_the_rise", "the batch from before the damage keeps damaged weights"),
    ("recovery/experiment.py", "*older[:NUM_OLDER]", "",
     "recovery/test_experiment.py -k older_state", "a state that was damaged already keeps damaged weights"),
    ("recovery/experiment.py", "loss > MOST_UNTRAINED * case.start and model.put_present()", "False",
     "recovery/test_experiment.py -k become_bad", "a sample that becomes bad undoes healthy training"),
    ("recovery/persistence.py", "or must_look or self.is_look_due):",
     "or must_look or (self.is_look_due and is_calm)):",
     "recovery/test_backup_timer.py -k wait", "a layer of zeros is learned anew before anybody looks"),
    ("recovery/progress.py", "(is_due or updates <= EARLY_UPDATES)", "is_due",
     "recovery/test_progress.py -k next_look", "a rate far too high costs the first 64 steps"),
    ("recovery/experiment.py", "    if not most < state.replayed:\n", "    if True:\n",
     "recovery/test_experiment.py -k far_above", "states far above the untrained one are gone on from"),
    ("recovery/experiment.py", "not model.put_present() or (yield from _has_lost_last(case, newest))",
     "not model.put_present()", "recovery/test_experiment.py -k lost_the_last", "weights that have exploded stay"),
    ("recovery/state.py", "batch.updates >= self.wait_until and may_cost", "batch.updates >= self.wait_until",
     "recovery/test_state.py -k cost_few", "healthy losses that explode cost one batch in sixty"),
    ("engine/run_state.py", "found.config.get(HAD_CHECKPOINT) and", "False and",
     "runs/test_outliving.py -k emptied", "a run that was to begin anew goes on from a deleted one"),
    ("bridge/driven_state.py", "if key.startswith(self._weights) else", "if False else",
     "bridge/test_driven_state.py -k torch", "nobody looks at the weights of NNX, Equinox and loops of one's own"),
    ("recovery/recovery.py", "can_restore and (progress.is_high or (since and has_jumped))", "False",
     "torch/own/test_healing.py -k last_steps", "a rate that is too high again in the last steps ruins the model"),
    ("recovery/recovery.py", "if self._sentry.reads_losses else None", "if True else None",
     "torch/own/test_healing.py -k mean_nothing", "a loss that means nothing puts an agent back as its run ends"),
    ("recovery/recovery.py", "is_tested=is_known", "is_tested=True",
     "torch/own/test_healing.py -k last_steps", "weights are called damaged though nothing was tested"),
    ("recovery/backups.py", "if far > times * max(before[key]) and", "if",
     "torch/own/test_healing.py -k hard_batch_in", "a hard batch at the end undoes the last steps"),
    ("recovery/backups.py", "and min(before[key]) > 0)", ")",
     "recovery/test_model.py -k moved_far", "weights that are no longer frozen are put back"),
    ("recovery/persistence.py", "self._moved_in(state) if is_asked", "self._moved_in(state) if False",
     "torch/own/test_healing.py -k begun_anew", "a network that was begun anew in the middle of a run is trained on"),
    ("recovery/persistence.py", "self.has_moved = bool(self.changed)", "pass",
     "torch/own/test_healing.py -k begun_anew", "weights that have moved far are given up untested"),
    ("recovery/model.py", "each.state is not None and each.updates <= updates]", "each.state is not None]",
     "recovery/test_model.py -k taken_since", "the backup of damaged weights is put back as the run ends"),
    ("recovery/experiment.py", "may_follow = self.may_drift and self.alarm is not Alarm.CHANGED",
     "may_follow = self.may_drift", "torch/own/test_healing.py -k last_steps",
     "weights that changed at once stay, as the run ends while they are tested"),
    ("recovery/persistence.py", "if size != earlier.get(each)]", "]",
     "recovery/test_backup_timer.py -k most_matrices", "noise in the adapters of a frozen model stays"),
    ("recovery/experiment.py", "if not total <= limit and 2 * num_worse > number:", "if not total <= limit:",
     "recovery/test_experiment.py -k outliers_makes", "heavy tails put a healthy model back to the untrained one"),
    ("torch/stepper.py", "if r8.pace.is_closed or (r8.is_over and", "if False and (r8.is_over and",
     "torch/own/test_healing.py -k users_again", "a rate that was lowered stays so after the run"),
    ("state/tree.py", "> limit / 2).sum()", "> limit).sum()",
     "recovery/test_model.py -k outgrown", "an update that was far too large is called a stray write"),
    ("recovery/recovery.py", "is_worth_it &= not (timer.has_grown and", "is_worth_it &= not (False and",
     "torch/own/test_healing.py -k other_data", "a model that learns other data is put back, as its weights grow"),
    ("engine/engine.py", "kept.\n            self._look_last()\n", "kept.\n            pass\n",
     "keras/test_callback.py -k validated", "the last validation of Keras is of weights that are thrown away"),
    ("recovery/experiment.py", "tells = self.may_drift and self.alarm is not Alarm.CHANGED", "tells = self.may_drift",
     "recovery/test_experiment.py -k changed_at_once", "a classifier of zeros stays, as batches from before tell so"),
    ("recovery/persistence.py", "or 2 * newest.updates < EARLY_UPDATES:", "or newest.updates < EARLY_UPDATES:",
     "recovery/test_backup_timer.py -k just_after", "a layer of zeros at step 90 stays without a word"),
    ("engine/feed/feed.py", "                self.source.note_head()\n", "",
     "torch/own/test_resume.py -k before_the_batches", "a resumed recommender has other negatives"),
    ("recovery/state.py", "not self.shares or num_probes < max", "num_probes < max",
     "recovery/test_state.py -k cost_few", "after a restore no explosion is ever tested"),
    ("recovery/experiment.py", "(1, latest[::-1]) if", "(FEW_LATEST, latest) if",
     "recovery/test_experiment.py -k last_batch_is_enough", "swollen weights cost three batches more"),
    ("recovery/experiment.py", "excess > 0 and rise > high for", "excess > 0 for",
     "recovery/test_experiment.py -k two_last", "two batches that have hardly risen put a healthy model back"),
    ("recovery/recovery.py", "-math.inf if explosions.repeats else half", "half",
     "torch/test_remedies.py -k asks_for_more", "each explosion is drawn twice"),
    ("recovery/remedies.py", "explosions.num_calmed == 1 and", "explosions.num_calmed and",
     "torch/test_remedies.py -k undone", "a rate that is too high comes back"),
    ("recovery/remedies.py", "explosions.shares[-1] >= CLEAR_SHARE", "True",
     "torch/test_remedies.py -k less_clear", "the rate of healthy training is halved for a hard batch"),
    ("recovery/persistence.py", "        self._tell_swollen(sums)\n", "",
     "torch/own/test_healing.py -k swell", "an optimizer that hardly moves any more is not told of"),
    ("recovery/remedies.py", "        self._live.persistence.backup_timer.forget_look()\n", "",
     "torch/own/test_healing.py -k lost_all", "weights that were put back count as a stray write"),
    ("recovery/experiment.py", "is_known &= not (may_follow", "is_known &= not (False",
     "recovery/test_experiment.py -k old_data", "as a run ends, a model that has followed its data is put back"),
    ("recovery/persistence.py", "and len(shaken) >= max(2, MOST_MATRICES * len(moving))", "and False",
     "recovery/test_backup_timer.py -k most_matrices", "noise of the weights' own size stays, as losses are low"),
    ("recovery/persistence.py", "= not key and is_at_once and", "= not key and",
     "recovery/test_backup_timer.py -k most_matrices", "weights that have grown in many steps are tested"),
    ("recovery/persistence.py", "peaks[each] < NEAR_ZERO * before.get(each, 0.0)", "False",
     "torch/own/test_healing.py -k at_once", "a last layer of zeros stays to the end of the run"),
    ("recovery/experiment.py", "case.is_sudden or model.find_jump() is not None", "False",
     "torch/own/test_healing.py -k at_once", "weights that change in the last steps stay, as nothing can be tested"),
    ("recovery/persistence.py", "step < EARLY_UPDATES or", "",
     "torch/own/test_healing.py -k changed_in_the_first", "weights that grow in the first steps are put back"),
    ("recovery/recovery.py", "Alarm.REGRESS: progress.is_split", "Alarm.REGRESS: False",
     "recovery/test_recovery.py -k fall_back", "weights hurt in the first steps are blamed on the rate"),
    ("recovery/progress.py", "for count in splits)", "for count in splits) or len(losses) > LEVEL",
     "recovery/test_recovery.py -k fall_back", "a rate that is too high from the start is kept"),
    ("recovery/experiment.py", "model.before_swollen([each for each in case.known if each.can_be_put])",
     "[each for each in case.known if each.can_be_put]", "torch/own/test_healing.py -k moments",
     "moments damaged before a backup are put back with it, and the rate is lowered"),
    ("recovery/model.py", "before.updates >= EARLY_UPDATES and not", "not",
     "recovery/test_model.py -k far_larger", "moments that have grown in the first steps bar all later backups"),
    ("guard/spike.py", "LEAST_SHARE if self.tests_progress else LEAST_OF_OWN", "LEAST_SHARE",
     "guard/test_level_shift.py -k users_own", "the rise within each pass over data learned by heart is refused"),
    ("guard/spike.py", "progress >= CLEAR_TO_BLOCKS * block_deviation", "False",
     "guard/test_level_shift.py -k blocks_alone", "a raised level is not seen where losses are noisy"),
    ("recovery/experiment.py", "or [each for each in compared if each.is_resumed]", "",
     "contract/test_weights.py -k 'after_a_resume and numpy'",
     "weights damaged soon after a resume are put back whole"),
    ("recovery/experiment.py", "[-1 if any(math.isfinite(", "[0 if any(math.isfinite(",
     "recovery/test_experiment.py", "the worst state is kept where none repeats its record"),
    ("recovery/experiment.py", 'finding.verdict != "restored"', 'finding.verdict == "restored"',
     "recovery/test_recovery.py -k generators", "a test of weights changes the dropout of the run after it"),
    ("recovery/experiment.py", "if len(losses) < count and num_bad <= most_bad:", "if False:",
     "recovery/test_recovery.py torch/test_recovery.py -k 'without_probes or accumulation'",
     "weights are judged by a part of the batches of an update"),
    ("recovery/recovery.py", "if comes_back or (is_again", "if (is_again",
     "recovery/test_recovery.py -k 'shows_later or state_by_state or older_state'",
     "damage that shows late is restored to itself for ever"),
    ("recovery/recovery.py",
     'damage = self.live.look() if can_restore else ""', 'damage = ""',
     "runs/test_experiments.py -k last_update", "a run ends with NaN weights that its last update has made"),
    ("recovery/state.py", "older[: max(1, len(older) - skipped)]", "older",
     "recovery/test_recovery.py -k older_states", "going back past much damage takes a restore for each backup"),
    ("recovery/remedies.py",
     "if (is_relapse and not (is_calm or (limit.is_share and lineage.was_calm)) and not lineage.num_older) or is_rate:",
     "if is_rate:",
     "recovery/test_recovery.py -k relapse", "a rate that damages the weights is used again and again"),
    ("recovery/remedies.py", "self._live.persistence.store.mark_abandoned(backup.step, self._live.step)", "pass",
     "recovery/test_recovery.py -k given_up",
     "checkpoints of damaged weights push good ones out and are restored later"),
    ("recovery/remedies.py", "self._state.lineage.progress.went_back(backup.recent, backup.updates)", "pass",
     "recovery/test_recovery.py -k given_up", "losses of weights that were given up count"),
    ("recovery/remedies.py", "lineage.healthy_at.append(step)", "pass",
     "recovery/test_recovery.py -k again_and_again", "a loss that alarms for ever is looked into for ever"),
    ("recovery/experiment.py", "batch.replayed * WORSE <= high and model.put(before)", "False",
     "recovery/test_early.py -k undone", "a bad first batch ruins the run"),
    ("recovery/experiment.py", "batch.replayed * WORSE <= high and model.put(before)", "model.put(before)",
     "recovery/test_early.py -k by_right", "the first steps of a healthy run are undone"),
    ("recovery/progress.py", "return sorted(others)[:2][-1] > (", "return False and 1 > (",
     "recovery/test_early.py -k undone", "weights that a first batch has ruined suit that, and pass as healthy"),
    ("recovery/experiment.py", "is_later or not rise", "False",
     "recovery/test_restore.py -k no_witness", "a weight that no witness shows stays damaged"),
    ("recovery/early.py", "math.sqrt(USUAL_BATCH / size)", "math.sqrt(size / USUAL_BATCH)",
     "recovery/test_early.py", "a rate that is too high is not noticed with small batches"),
    ("recovery/experiment.py", "bool(rises) and min(rises) > 0", "False",
     "torch/own/test_other_data.py -k change_late", "data that change put the untrained model in"),
    ("recovery/experiment.py", "if state is first and good and is_whole:", "if False:",
     "recovery/test_experiment.py -k on_other_data", "labels that change put the untrained model in"),
    ("recovery/experiment.py", "gain <= (1 - SHARE_OF_GAIN) * rise < math.inf", "gain <= rise < math.inf",
     "recovery/test_experiment.py -k few_other", "damaged weights stay, as data may have changed"),
    ("recovery/experiment.py", "len(tested) == FEW_STAND_INS", "False",
     "recovery/test_experiment.py -k few_other", "data that change cost seven tests of eight batches"),
    ("recovery/early.py", "FUTILE_STEPS * progress <=", "True or FUTILE_STEPS * progress <=",
     "torch/test_remedies.py -k short_run", "short runs on hard data try a rate that learns nothing"),
    ("recovery/early.py", "trial.is_fading and lineage.since_restore >= FUTILE_STEPS", "False",
     "torch/test_remedies.py -k no_better", "a rate that learns nothing is tried twice as long"),
    ("recovery/early.py", "is_lower and initial.replayed <= initial.record, live",
     "False, live",
     "runs/test_short_runs.py", "a short run ends with the untrained weights of a trial"),
    ("recovery/model.py", "0 < len(names) <= MOST_MENDED * ", "0 < len(names) <= ",
     "recovery/test_model.py", "a model of which most is ruined is patched together"),
    ("recovery/model.py", "num_float_arrays(live) if self._keeps_rates else ", "",
     "recovery/test_model.py", "a model that is lost as a whole is patched together, as counters beside it are fine"),
    ("recovery/record.py", "max(numbers_in(self.folder.parent), default=0) + 1", "len(numbers_in(self.folder.parent))",
     "recovery/test_record.py -k 'every_incident or bounded'",
     "the record of an incident overwrites an earlier one"),
    ("recovery/state.py", ", num_left_out=now.num_left_out + leaves_out",
     ", num_left_out=now.num_left_out + 1",
     "recovery/test_remedies.py", "the summary names batches as left out that were trained on"),
    # engine/
    ("engine/engine.py", "predicted, is_usual = typical, chunk.sweep >= 0", "is_usual = chunk.sweep >= 0",
     "engine/test_engine.py -k guard", "batches of easy samples raise false alarms"),
    ("engine/engine.py", "lr = rates.scheduled_at(ticket.step)", "pass",
     "engine/test_engine.py -k guard", "the guard takes a lowered rate for the schedule's"),
    ("engine/engine.py", "reading = reading._replace(mean=math.nan)", "pass",
     "recovery/test_recovery.py -k gradient", "weights with a NaN gradient are taken for healthy"),
    ("engine/engine.py", "        pace.num_out -= not chunk.is_extra", "        pace.num_out -= 1",
     "recovery/test_recovery.py -k budget", "a test of the weights ends the run a step early"),
    ("sources/planned.py", "return self.steps_per_pass // 4 if epoch > 0 else 0", "return self.steps_per_pass // 4",
     "recovery/test_recovery.py -k first_epoch", "samples are not seen in the first epoch after an incident"),
    ("engine/pace.py", "else self.step - self._before_epoch[0]", "else self.step",
     "engine/test_pace.py", "keys and counts of later epochs are wrong"),
    ("engine/pace.py", "self.longest_break = seconds - began", "pass",
     "engine/test_pace.py runs/test_endings.py -k 'deadline or time'",
     "a run with a time budget ends late by a validation"),
    ("engine/engine.py", "lr = batch.chunk.rates[batch.slot]\n", "pass\n",
     "runs/test_exact_resume.py -k 'tickets or search'", "a resumed run trains batches that were out at another rate"),
    ("engine/engine.py", "self.controller.state.steady_left = 0", "pass",
     "bridge/test_prefetch.py", "easy batches are drawn long after the incident that asked for them"),
    # resume
    ("engine/run_state.py", 'run.pace.tally, run.pace.num_draws = Tally(**state["tally"]), state["num_draws"]',
     'run.pace.num_draws = state["num_draws"]',
     "engine/test_run_state.py", "the mean loss of a resumed epoch is that of its rest"),
    ("engine/run_state.py", 'run.early_stop.load_state_dict(state["early_stop"])', "pass",
     "state/test_early_stop.py -k resume", "early stopping begins anew after each resume"),
    ("engine/run_state.py", '{**state, "pace": {**state["pace"], "seconds": run.pace.seconds}}', "state",
     "engine/test_pace.py", "restore_backup() gives time back that was used"),
    ("engine/run_state.py", '"reason": None, "waited": 0}', '"waited": 0}',
     "state/test_early_stop.py -k budget", "a larger budget does not go on with a run that ended early"),
    ("engine/run_state.py", "run.source.table.learner.go_back_to(restored.moment.trend)", "pass",
     "runs/test_interrupts.py -k restore_backup",
     "the first losses after restore_backup() are judged by a later trend"),
    ("engine/run_state.py", 'run.source.load(state["plan"])', "pass",
     "engine/feed/test_replay.py -k killed", "a resumed run does not find its place in the loader"),
    ("engine/pace.py", '"longest_break": self.longest_break', '"longest_break": 0.0',
     "engine/test_pace.py runs/test_endings.py -k 'pace or deadline_holds_after'",
     "a resumed run with a time budget ends late"),
    ("engine/pace.py", '"probes": [self.probes, self.left_out, *self._before_epoch]',
     '"probes": [self.probes, 0, *self._before_epoch]',
     "engine/test_pace.py", "after an incident and a resume an epoch has a batch too many"),
    # engine/feed/
    ("engine/engine.py", "self.pace.tokens -= ticket.chunk.tokens", "pass",
     "engine/feed/test_feed.py -k left_out", "tokens of batches that were not trained on use up the budget"),
    ("engine/engine.py", "self.pace.num_out -= 1\n                self.pace.tokens", "self.pace.tokens",
     "engine/feed/test_feed.py -k left_out", "a batch that is left out ends the run a step early"),
    ("engine/feed/feed.py", "if num_undone > 0 and", "if",
     "engine/feed/test_feed.py", "a restore is told without an incident"),
    ("engine/feed/feed.py", "engine.backup.end_update()\n        self.between_steps()", "self.between_steps()",
     "engine/feed/test_feed.py -k update",
     "with accumulated gradients the last batches of an epoch are a witness of other weights"),
    ("engine/feed/followed.py", "return self.taken - len(self._out)", "return self.taken",
     "engine/feed/test_replay.py -k taken_within", "a resumed run leaves out the batch in which it was killed"),
    ("engine/feed/followed.py", '"before": self._before if type(self._before) is not tuple else state_of(self._before)',
     '"before": None',
     "torch/own/test_ahead.py", "a resumed run under accelerate has other augmentation"),
    ("engine/feed/followed.py", "            self.taken = self.left_out = 0", "            self.taken = 0",
     "torch/own/test_observed.py", "a resumed later epoch skips batches"),
    ("engine/feed/followed.py", "self.first_turn, self.length = pace.turns - (self.taken > 0),",
     "self.first_turn, self.length = pace.turns,",
     "engine/feed/test_replay.py -k last_step", "a run resumed behind the last batch of an epoch repeats it"),
    ("engine/feed/replay.py", 'set_generators(source, saved["now"])', "pass",
     "engine/feed/test_replay.py torch/own/test_resume.py", "a resumed run has other augmentation and dropout"),
    ("engine/feed/replay.py", "if number == count - 1 and before is not None:",
     "if number == count and before is not None:",
     "torch/own/test_ahead.py", "a resumed run under accelerate has other augmentation in one batch"),
    ("engine/feed/replay.py", 'set_order(source, saved, "start")', "pass",
     "engine/feed/test_replay.py torch/own/test_resume.py",
     "a sampler that shuffles in place gives a resumed run other batches"),
    ("engine/feed/replay.py", "if name in counts and other.get(name, value) == value:", "if name in counts:",
     "engine/feed/test_replay.py torch/own/test_resume.py",
     "a data set that counts what it has given gives a resumed run other samples"),
    ("engine/feed/feed.py", "self._is_interrupted = source.iteration is this", "pass",
     "engine/feed/test_feed.py -k ctrl_c", "the rest of an epoch is lost after Ctrl-C"),
    ("engine/feed/followed.py", "each._iterator = None", "pass",
     "torch/own/test_resume.py -k ctrl_c", "a loop that is run again gets batches of other samples"),
    ("engine/feed/replay.py", "generator.setstate((version, tuple(words), spare))",
     "generator.setstate((version, tuple(words), None))",
     "engine/feed/test_replay.py -k spare", "gauss() of a loader's own generator differs after a resume"),
    ("engine/feed/samples.py", "if self._skip is not None and (len(now) or len(before)):",
     "if self._skip is not None and len(now):",
     "engine/feed/test_samples.py", "a sample that was released is left out for ever"),
    ("engine/feed/samples.py", "return ObservedBatches(source, self._storage.exclusions, num_whole)",
     "return ObservedBatches(source, self._storage.exclusions)",
     "torch/own/test_observed.py -k resumed", "a resumed run with a sample in quarantine draws other batches"),
    ("engine/feed/samples.py", "object.__setattr__(inner, name, sampler)", "pass",
     "torch/own/test_observed.py", "the user's DataLoader stays changed"),
    ("engine/feed/samples.py", "self._left_out = frozenset(self._known.tolist())\n            indices = given",
     "indices = given",
     "torch/own/test_observed.py", "a bad sample that is found in an epoch is drawn until its end"),
    ("engine/feed/feed.py", "<= MOST_KEPT_BYTES:\n            return copied(item)",
     "<= MOST_KEPT_BYTES:\n            return item",
     "torch/own/test_healing.py -k changed", "a loop that changes its batches in place is tested with other data"),
    ("engine/feed/feed.py", "            pace.passes = number", "            pass",
     "engine/feed/test_feed.py -k trainer", "a resumed trainer counts its epochs twice"),
    # sources/, table/
    ("sources/planner.py", "draft.select(part[~storage.exclusions.holds(part)])", "draft.select(part)",
     "sources/test_planner.py -k quarantine", "samples in quarantine are drawn after an incident"),
    ("sources/planned.py", "            self.hand_over()\n        chunk.reports",
     "            pass\n        chunk.reports",
     "sources/test_planned.py", "a loss that comes late counts before those that came first"),
    ("sources/chunk.py", "part_sizes[np.cumsum(counts) - 1] = sizes - (counts - 1) * part_size", "pass",
     "sources/test_planned.py -k part", "the last part of a batch counts as a full one"),
    ("table/label_noise.py", "is_sure=not is_weighed", "is_sure=False",
     "table/labels/test_margin_limit.py", "clean labels get weights, and right ones are named"),
    ("table/learner.py", '(observed - records["mean"]) / count', '(observed - records["mean"]) / (count + 1)',
     "table/test_table.py -k by_hand", "mean losses of samples are wrong"),
    ("table/learner.py", "return expected + trend if storage.are_offsets else expected * trend",
     "return expected * trend",
     "sources/test_planned.py -k negative", "losses below zero are expected with the wrong sign"),
    ("table/learner.py", "if offsets == self.storage.are_offsets and not", "if not",
     "table/test_table.py -k trend",
     "a restore to a backup before the first loss below zero makes expected losses wrong"),
    ("table/learner.py", "first = np.where(count == 1, np.float32(0), estimate)", "first = estimate",
     "table/test_learner.py -k moving", "the first loss of a sample is mixed with nothing"),
    ("table/learner.py", "moved = estimate + np.repeat((alpha * (means - expected))",
     "moved = estimate - np.repeat((alpha * (means - expected))",
     "table/test_learner.py -k additive", "losses of samples move away from what is seen"),
    ("table/losses.py", "last = batch_size - (parts - 1) * size", "last = size",
     "table/test_losses.py -k parts", "a short last part counts as a full one"),
    ("table/losses.py", "means = values.reshape(rows, -1).mean(axis=1)", "means = values.reshape(rows, -1).sum(axis=1)",
     "engine/feed/test_samples.py -k losses", "samples with several losses seem harder than they are"),
    ("table/exclusions.py", "np.setdiff1d(self.quarantined, indices)", "np.setdiff1d(indices, self.quarantined)",
     "recovery/test_quarantine.py -k release", "release() releases nobody"),
    ("table/trend.py", "return mean, means * factor, lowest * factor", "return mean, means, lowest",
     "table/test_table.py -k outlier", "one early outlier makes samples look hard for long"),
    ("table/quantiles.py", "np.concatenate([best, found + start])", "np.concatenate([best, found])",
     "table/test_large.py -k highest", "the hardest samples of a large table are the wrong ones"),
    ("table/trend.py", "(*self.recent, loss), self.highest, self.second", "(loss,), self.highest, self.second",
     "guard/test_spike.py -k first", "the first losses are judged by one of them"),
    # guard/
    ("guard/verdict.py", "if -LARGEST_LOSS <= loss <= LARGEST_LOSS:", "if loss <= LARGEST_LOSS:",
     "guard/test_verdict.py", "a loss of -inf is trained on"),
    ("guard/monitor.py", "grad_norm > FAR_NORM * highest", "grad_norm > highest",
     "guard/test_monitor.py", "healthy gradients are refused as their norm rises"),
    ("guard/monitor.py", "if num_skipped >= MOST_SKIPPED:", "if num_skipped > MOST_SKIPPED:",
     "guard/test_monitor.py -k skipped", "one more overflow passes unseen"),
    ("guard/monitor.py", "max(highest, grad_norm), count + 1", "grad_norm, count + 1",
     "guard/test_monitor.py", "a small gradient makes the next usual one far too large"),
    ("guard/monitor.py", "memory if moved_to is None else moved_to(memory, lr)", "memory",
     "guard/test_monitor.py -k moved", "a rate that rises after a restore hides damage"),
    ("guard/spike.py", "if loss > far or not self._is_spreading(", "if not self._is_spreading(",
     "guard/test_spike.py", "far losses pass where losses spread early"),
    ("guard/spike.py", "past=state.past._replace(raised=0.0, drifted=0)", "past=state.past._replace(drifted=0)",
     "guard/test_level_shift.py -k dropped", "weights found healthy are looked into again at once"),
    ("guard/spike.py", "score = min(MOST, up / deviation)", "score = (up / deviation)",
     "guard/test_level_shift.py", "one block of hard batches restores the model"),
    ("guard/spike.py", "2 * typical + (loss - 2 * expected)", "loss * typical / expected",
     "guard/test_spike.py -k 'hard or correction'", "damage hides in batches that were expected to be hard"),
    ("guard/spike.py", "if not is_up or lr < FALLEN * past.best_lr:", "if not is_up:",
     "guard/test_spike.py -k drift", "a toy loss that rises as the rate falls is refused"),
    # schedules/, triggers/
    ("engine/builder.py", "Budget(steps=math.ceil(amount * steps_per_epoch)",
     "Budget(steps=int(amount * steps_per_epoch)",
     "schedules/test_budget.py", "a run of 1.5 epochs ends a step early"),
    ("schedules/budget.py", "-(-num_batches // accumulate)", "num_batches // accumulate",
     "schedules/test_budget.py", "max_steps with accumulated gradients plans too many batches"),
    ("engine/pace.py", "since -= last - now", "since += last - now",
     "engine/test_pace.py -k clock", "a clock that is set back gives a run more time"),
    ("engine/pace.py", "return min(share, 1.0 if is_fraction else ALMOST_DONE)", "return min(share, 1.0)",
     "engine/feed/test_feed.py schedules", "a longer last epoch is cut off"),
    ("engine/pace.py", "min(self.rule.floor, lr), self.rule.shape", "self.rule.floor, self.rule.shape",
     "schedules/test_cool_down.py", "a cool-down raises a rate that is below its floor"),
    ("engine/pace.py", "step + max(1, self.num_out, int(span.amount))", "step + int(span.amount)",
     "schedules/test_cool_down.py", "batches that are out are cut off by a short cool-down"),
    ("schedules/schedule.py", "self.peak_lr / 25, 1 - progress / self.warmup",
     "self.peak_lr / 25, progress / self.warmup",
     "schedules/test_schedule.py", "one_cycle falls where it should rise"),
    ("schedules/range_test.py", "self._smooth, self._lowest = math.nan, math.inf\n            return True",
     "return True",
     "schedules/test_range_test.py", "a search that starts over after a refused loss finds a rate too soon"),
    # state/
    ("state/store.py", "if own not in kept and own.path != self._pinned]", "if own not in kept]",
     "state/test_saver.py -k best", "the best checkpoint is deleted"),
    ("state/store.py", "if run_id == self.run_id and (", "if (",
     "state/test_store.py -k others", "a resumed run deletes the checkpoints of another one"),
    ("state/store.py", "if own.model is not None and own.path not in self._given_up", "if own.model is not None",
     "recovery/test_recovery.py -k given_up", "a checkpoint of weights that were given up is restored"),
    ("state/store.py", "key=lambda own: own.path not in self._given_up", "key=lambda own: 0",
     "state/test_store.py -k given_up", "checkpoints of damaged weights push good ones out"),
    ("state/store.py", "if self.names()[:1] == names[:1]:", "if True:",
     "runs/test_run_in_use.py -k newer", "a run resumes from an old checkpoint where another process has just ended"),
    ("state/saver.py", "min(2**self._num_failed_in_a_row, MOST_SKIPPED) - 1",
     "min(2**self._num_failed_in_a_row, MOST_SKIPPED)",
     "state/test_saver.py -k rarer", "after one failure the next checkpoint is not tried"),
    ("state/saver.py", "self._sign * value >= self._sign * self.best.value",
     "self._sign * value > self._sign * self.best.value",
     "state/test_saver.py -k worse", "a value that is no better replaces the best"),
    ("state/saver.py",
     '(about["run_id"], about["monitor"], about["mode"]) == (self.store.run_id, self._monitor, self._mode)',
     'about["run_id"] == self.store.run_id',
     "state/test_saver.py -k metric", "a resumed run compares a metric with the best of another one"),
    ("state/early_stop.py", "clone(get_state())", "get_state()",
     "state/test_early_stop.py", "load_best() gives the last model"),
    ("state/early_stop.py", 'waited = state["best"], state["waited"]', 'waited = state["best"], 0',
     "state/test_early_stop.py -k resume", "patience begins anew after each resume"),
    ("state/codec.py", "if digest.hexdigest().encode() != written:", "if False:",
     "state/test_store.py -k flipped", "a damaged checkpoint is loaded"),
    ("state/codec.py", "arrays.pop(value[place])", "arrays[value[place]]",
     "state/test_codec.py -k referenced", "a received file makes its reader use 300 times its size"),
    ("state/durable_io.py", "_write(path, content, link_new)", "_write(path, content, rename)",
     "state/test_durable_io.py -k 'new_file'", "a checkpoint of another run is overwritten"),
    ("state/tree.py", "for name, part in copy.deepcopy(about).items():", "for name, part in {}.items():",
     "state/test_state_tree.py", "a restored state_dict loses its version numbers"),
    ("state/tree.py", "buffer = None if id(buffer) in self._used else buffer", "pass",
     "state/test_state_tree.py", "weights that are no longer tied share their backup"),
    ("state/tree.py", "self._copies[place] = copied", "pass",
     "state/test_state_tree.py -k tied", "tied weights come apart in a backup"),
    ("state/store.py", "next save removes the model.\n                    self._is_tidy = False",
     "next save removes the model.\n                    pass",
     "state/test_store.py -k interrupted", "an interrupted checkpoint leaves its model file for good"),
    ("recovery/persistence.py", "checkpoint, self._pending = self._pending, None", "checkpoint = self._pending",
     "state/test_callbacks.py runs/test_resuming.py -k 'model or adapter'",
     "a resumed model is loaded again over the trained one"),
    # journal/
    ("journal/run.py", "lines[0] = self._part + lines[0]", "pass",
     "journal/test_reader.py", "events are lost where a line was half written"),
    ("journal/run.py", "or found.st_size < self.offset:", ":",
     "journal/test_run.py journal/test_reader.py", "a journal that begins anew is no longer followed"),
    ("dashboard/state/run_state.py", "max(usual, WAITING_FACTOR * view.longest_pause)", "usual",
     "journal/test_run.py -k stall", "a run with long steps is called stalled"),
    ("dashboard/state/view.py", "self.gave_up, self.died, self._early = event, None, None, \"\", None",
     "self.died, self._early = event, None, \"\", None",
     "journal/test_run.py", "a run that is started again after it diverged is called diverged for ever"),
    ("journal/requests.py", 'or about.get("session") != self._session:', ":",
     "journal/test_requests.py -k earlier", "a request to stop an earlier run stops this one"),
    ("journal/run.py", 'process.get("boot_id") != here["boot_id"]', "False",
     "journal/test_run_info.py journal/test_run.py", "a run that ended with a reboot is called running"),
    ("journal/samples.py", "if epoch <= max(newest)]", "]",
     "journal/test_samples.py -k earlier", "samples of an earlier run are shown with those of this one"),
    ("journal/writer.py", "self._retry = now + SECONDS_BETWEEN_TRIES", "pass",
     "journal/test_writer.py", "a full disk is tried at every step"),
    ("journal/writer.py", "self.num_lost += len(lines)", "pass",
     "journal/test_writer.py journal/test_run_folders.py -k 'disk or full or memory'", "lost events are not counted"),
    # torch/
    ("torch/stepper.py", "self._num_added >= self.accumulate", "self._num_added > self.accumulate",
     "torch/test_adapter.py -k accumulated", "gradients of one batch too many are added up"),
    ("torch/stepper.py", "loss = loss / self.accumulate if self.accumulate > 1 else loss", "pass",
     "torch/test_adapter.py -k accumulated", "accumulated gradients are summed and not averaged"),
    ("torch/stepper.py", "parameter.grad.zero_()", "pass",
     "torch/test_adapter.py -k refused_part", "with a GradScaler a refused batch is trained on with the next"),
    ("torch/stepper.py", "self._scaler.unscale_(self._optimizer)", "pass",
     "torch/test_adapter.py -k 'clipping or scaler or half'", "scaled gradients are clipped to nothing"),
    ("recovery/state.py", "if refusals.withheld >= most:", "if False:",
     "torch/own/test_bad_batches.py -k all_nan", "a run whose gradients are all NaN goes on to its end"),
    ("torch/stepper.py", "refusals.withheld = 0", "withheld",
     "torch/own/test_bad_batches.py -k all_nan", "steps left out now and then end a run as if they were in a row"),
    ("torch/state.py", 'if name == "ema" and not hasattr(also[name], "load_state_dict"):', "if False:",
     "torch/own/test_healing.py -k ema", "an average with a pair of functions is sent to ema=, which refuses it"),
    ("torch/adapter.py", "pipeline.judge_with(loss)", "pass",
     "torch/test_adapter.py -k ones_own", "a NaN in a term of the user's own is trained on by step()"),
    ("torch/readback.py", " and np.isfinite(losses).all()", "",
     "torch/test_adapter.py -k hides_no_sample", "a loss of NaN hides which of the samples is to blame"),
    ("transformers/trainer.py", "adapter.judge_with(loss)", "pass",
     "transformers/test_recovery.py -m program -k ones_own", "a NaN in the loss of a Trainer's own is trained on"),
    ("lightning/callback.py", "adapter.judge_with(returned[\"loss\"])", "pass",
     "lightning/test_incidents.py -m program -k ones_own", "a NaN in the loss that training_step returns counts"),
    ("torch/stepper.py", "parameter.grad = parameter.grad.coalesce()", "pass",
     "torch/test_remedies.py -k sparse", "sparse gradients are clipped by the values of rows that are drawn twice"),
    ("torch/state.py", "group.update(own)", "pass",
     "torch/test_state.py -k rates", "a heal sets back the rates of the user's schedule"),
    ("torch/state.py", "return of_ranks[self.rank]", "return of_ranks[0]",
     "torch/test_state.py -k rank", "ranks draw the same dropout after a resume"),
    ("torch/state.py", "plain_optimizer(optimizer).zero_grad()", "pass",
     "torch/test_state.py -k gradients", "gradients of damaged weights are added to those of the restored ones"),
    ("torch/loss_pipeline.py", "elif not (self._stepper.adds_later and self.readback is None):", "else:",
     "contract/test_ways.py -m program -k 'nan_batches and accumulation'",
     "good batches of an update go with a bad one"),
    ("torch/loss_pipeline.py", "self._discard([later for later, _ in here[number + 1 :]])", "pass",
     "torch/test_readback.py -k together", "batches of weights that were given up stay out for ever"),
    ("torch/readback.py", 'bool(extras.get("skipped", 0))', "False",
     "torch/test_adapter.py -k overflow", "an overflow of half precision is called a NaN"),
    ("torch/losses.py", "whole.masked_fill(whole == 0, 1)", "whole",
     "torch/test_losses.py", "a batch whose weights are all 0 makes the model NaN"),
    ("torch/losses.py", ".masked_fill(counts == 0, 0.0)", "",
     "torch/test_losses.py torch/test_adapter.py -k 'padding or sequence or mask'",
     "a NaN in the padding refuses the batch"),
    ("torch/losses.py", "(1 - label_smoothing) + label_smoothing / 2", "(1 - label_smoothing) + label_smoothing",
     "torch/test_predictions.py -k smoothing", "label smoothing of two classes is wrong"),
    ("torch/stepper.py", "if self._saved is not None or self._withheld:\n            # A step has raised.", "if False:",
     "torch/own/test_healing.py -k raises", "a step that raises after a restore lowers the rate for good"),
    ("torch/stepper.py", "rate.clone() if hasattr(rate, \"clone\") else rate", "rate",
     "torch/own/test_healing.py -k factor", "a rate in a tensor falls at every step after a restore"),
    ("torch/loss_pipeline.py", "values.reshape(count, -1).mean(1, dtype=torch.float32)",
     "values.reshape(count, -1).sum(1, dtype=torch.float32)",
     "torch/own/test_observed.py -k losses", "samples with several losses seem harder than they are"),
    ("torch/state.py", 'when == "heal" if when else _is_trained(holder)', 'when != "resume"',
     "torch/own/test_healing.py -k belongs", "a heal gives the data again that were drawn since"),
    # lightning/, transformers/, keras/, flax/
    ("lightning/callback.py", "        self._is_told = False\n        if self", "        if self",
     "lightning/test_own_batches.py -m program -k nothing_changes", "only the first loss is watched"),
    ("lightning/callback.py", "not self._has_raised and (self._is_learned or not self._is_told)",
     "not self._has_raised",
     "contract/test_data.py -k 'nan_batch and lightning'", "a refused batch is trained on"),
    ("lightning/loader.py", 'if self._settings.get("last_batch") == "drop" else -(-count // size)',
     "if False else -(-count // size)",
     "lightning/test_lightning.py -m program -k length", "Lightning waits for a batch that is dropped"),
    ("lightning/callback.py", "for each in manual]).sum()", "for each in manual[:1]]).sum()",
     "lightning/test_own_batches.py -m program -k losses", "the second loss of a GAN is not watched"),
    ("lightning/callback.py", "iter(fetcher)", "pass",
     "lightning/test_own_batches.py -m program -k resumes_at", "a resumed OneCycleLR trains on other batches"),
    ("transformers/trainer.py", "return loss * accumulated if is_part else loss", "return loss",
     "transformers/test_own_batches.py -m program -k accumulated_batches",
     "losses are told divided by the batches of a step"),
    ("transformers/trainer.py", "args.max_steps * args.gradient_accumulation_steps}", "args.max_steps}",
     "transformers/test_own_batches.py -m program -k accumulated_batches",
     "the run is over, and not watched, half-way"),
    ("transformers/trainer.py", "of_batch = self._r8_of_batch(loss, self._r8_how)", "of_batch = loss",
     "transformers/test_own_batches.py -m program -k accumulated_batches",
     "losses are told divided by the batches of a step"),
    ("transformers/losses.py", "logits, labels = logits[:, :-1], labels[:, 1:]",
     "logits, labels = logits[:, 1:], labels[:, 1:]",
     "transformers/test_transformers.py -m program -k 'tokens or language'",
     "losses of a language model's samples are those of other tokens"),
    ("keras/callback.py", "with self._own_weights(epoch):", "if True:",
     "keras/test_callback.py -k averages", "a backup at an epoch's end holds averages in the place of the weights"),
    ("keras/callback.py", "self._take_weights_back(epoch)", "pass",
     "keras/test_callback.py -k averages", "what is due as an epoch is drawn meets averages of the weights"),
    ("keras/own_batches.py", "with self._own_weights(epoch):", "if True:",
     "keras/test_own_batches.py -m program -k 'mid_epoch and averages'", "a run resumed between epochs has averages"),
    ("keras/live_values.py", "self._live.set(rate, value)\n        return True", "pass\n        return True",
     "keras/test_own_batches.py -k lowers", "a rate stays lowered for good after a restore"),
)]
# fmt: on


def check() -> list[str]:
    """What is wrong with the table: old texts that are not in their file exactly once."""
    paths = {each.file: ROOT / "learnit_r8" / each.file for each in MUTANTS}
    texts = {name: path.read_text(encoding="utf-8") if path.exists() else "" for name, path in paths.items()}
    counts = [(each, texts[each.file].count(each.old)) for each in MUTANTS]
    return [f"{each.file}: {count} times: {each.old}" for each, count in counts if count != 1]


class Copy:
    """A copy of the repository that is changed in one place at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._times = itertools.count(int(time.time()) + 10)
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for name in filter(None, names.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        # A compiled file counts as current where the source has its size and second.
        now = next(self._times)
        os.utime(path, (now, now))

    def run(self, tests: str) -> tuple[int, str]:
        """The exit status of pytest, and the last lines that it prints."""
        files = [
            each if each.startswith("-") or before in ("-k", "-m") else f"tests/{each}"
            for before, each in itertools.pairwise(["", *shlex.split(tests)])
        ]
        environment = {**os.environ, "PYTHONPATH": str(self._folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        try:
            done = subprocess.run(
                command, cwd=self._folder, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS
            )
        except subprocess.TimeoutExpired:
            return 1, f"no end after {MOST_SECONDS} s"
        return done.returncode, (done.stdout + done.stderr).strip()[-2000:]

    def plant(self, mutant: Mutant) -> tuple[int, str]:
        """What `run` gives with the defect."""
        path = self._folder / "learnit_r8" / mutant.file
        text = path.read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, mutant
        try:
            self._write(path, text.replace(mutant.old, mutant.new))
            return self.run(mutant.tests)
        finally:
            self._write(path, text)


def main() -> int:
    """Run the program; the exit status is 1 if a defect was not found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="those with this text in their file or their harm")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--check", action="store_true", help="only look whether each old text is there once")
    parser.add_argument("--healthy", action="store_true", help="run the tests without a defect")
    given = parser.parse_args()
    wrong = check()
    if wrong or given.check:
        print("\n".join([*wrong, f"{len(MUTANTS)} defects, {len(wrong)} that do not fit the code"]))
        return bool(wrong)
    chosen = [each for each in MUTANTS if given.only in f"{each.file}: {each.harm}"]
    if given.healthy:
        chosen = list({each.tests: each for each in chosen}.values())
    expected, failed, began = 0 if given.healthy else 1, [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(given.jobs):
            copies.put(Copy(Path(folder) / str(number)))

        def judge(mutant: Mutant) -> tuple[Mutant, int, str, float]:
            copy, start = copies.get(), time.monotonic()
            try:
                status, text = copy.run(mutant.tests) if given.healthy else copy.plant(mutant)
            finally:
                copies.put(copy)
            return mutant, status, text, time.monotonic() - start

        for mutant, status, text, seconds in pool.map(judge, chosen):
            is_right = status == expected
            word = ("passed" if given.healthy else "found") if is_right else f"NOT (pytest {status})"
            print(f"{word:8} {seconds:5.1f} s  {mutant.file}: {mutant.harm}", flush=True)
            if not is_right:
                failed.append(mutant)
                print(
                    f"         {mutant.old} -> {mutant.new}\n         {mutant.tests}",
                    text[-600:] * bool(status),
                    sep="\n",
                )
    print(f"{len(chosen) - len(failed)} of {len(chosen)}, {time.monotonic() - began:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
