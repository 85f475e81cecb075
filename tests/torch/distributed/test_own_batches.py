"""Batches of one's own on two ranks: each has its part of the stream, and all decide together."""

import pytest

torch = pytest.importorskip("torch")

from learnit_r8.recovery.record import numbers_in
from learnit_r8.torch import load_incident
from tests import own_rank_jobs as jobs

pytestmark = pytest.mark.program


@pytest.mark.parametrize("lengths", [(6, 6), (9, 5), (4, None)])
def test_uneven_ends_hang_nowhere_and_nothing_else_is_changed(pair, lengths):
    """An epoch ends for all where the first stream does; up to there the training is to the bit that without R8."""
    one, other = pair.run(jobs.own_run, lengths, None)
    plain, _ = pair.run(jobs.plain_run, lengths)

    assert one["weights"] == other["weights"] == plain
    assert one["steps"] == other["steps"] == 3 * min(each for each in lengths if each)
    assert one["samples"] == other["samples"]
    assert one["refused"] == other["refused"] == 0


@pytest.mark.parametrize("fault", ["loss", "weights", "weights of one"])
def test_a_fault_is_answered_by_all_alike(pair, fault):
    """A loss that is not finite on one rank is refused by both; both put back weights spoilt on any."""
    one, other = pair.run(jobs.own_run, (20, 20), fault)

    assert one["weights"] == other["weights"]
    assert one["is_finite"]
    # A backup may find the weights before a loss shows them.
    assert one["refused"] == other["refused"] >= (fault == "loss")
    # Probes are steps, too.
    assert 60 <= one["steps"] == other["steps"] <= 64


def test_the_first_losses_are_exchanged_as_their_number_doubles(pair):
    """No bad batch of a young run undoes more than were trained on before it; later ones up to 16 steps."""
    known, other = pair.run(jobs.known_run, 64)

    assert known == other
    assert sorted({*known}) == [1, 2, 4, 8, 16, 32, 48, 64]


def test_a_bad_sample_undoes_steps_at_its_first_visit_alone(pair):
    """It comes in each epoch, and its batch is left out at the later visits without a restore."""
    found, other = pair.run(jobs.recurring_run, (20, 20), float("nan"))

    assert found == other
    assert found[:2] == (4, 1)


def test_a_gradient_of_nan_on_one_rank_undoes_steps_once(pair):
    """It comes in each epoch behind a finite loss; from the second visit on no rank takes its step."""
    found, other = pair.run(jobs.recurring_run, (20, 20), 1.0, True)

    assert found == other
    assert found[1] == 1


def test_a_test_of_weights_repeats_dropout(pair):
    """Though other batches begin before the loss of the first one after a backup is known: the newest comes back."""
    (probes, restores), other = pair.run(jobs.dropout_run)

    assert (probes, restores) == other
    loss, record = probes[0]
    assert loss == record
    assert restores[0] >= 24


@pytest.mark.parametrize("flip", ["gradient", "loss"])
def test_all_compute_a_step_once_more_or_none(pair, flip):
    """A fault of one rank that passes is found by all, and leaves no trace; one that stays is refused."""
    plain, _ = pair.run(jobs.flipped_run, None, 0)
    one, other = pair.run(jobs.flipped_run, flip, 1)

    assert one == other == (plain[0], 1, 0, 0, [])
    assert plain[1] == 0
    one, other = pair.run(jobs.flipped_run, flip, 2)
    assert one == other
    assert one[1:] == (0, 1, 0, [])


def test_all_go_back_and_clip_alike(pair):
    """Where updates were too large, both put the same state back, hold the same rate and clip at the same norm.

    It goes on for longer than 256 steps, from when what the ranks know is compared again. When losses arrive, and so at
    which step both go back, depends on how busy the machine is.
    """
    (weights, reasons, norms, limit), other = pair.run(jobs.exploding_run)

    assert (weights, reasons, norms, limit) == other
    assert reasons[0][1] == "above the untrained level"
    assert norms["is_on"]
    assert norms["norms"]


@pytest.mark.parametrize("takes_steps", [True, False])
@pytest.mark.parametrize("lr", [3.0, 30.0, 300.0])
def test_a_rate_that_is_too_high_from_the_start_is_lowered(pair, lr, takes_steps):
    """Where verdicts come late, the untrained model is not put back for ever: it ends at .02, untrained at .16.

    At a hundred times the rate that holds and more, weights have no finite number left by then.
    """
    (weights, end, lowered), other = pair.run(jobs.too_high_run, lr, takes_steps)

    assert (weights, end, lowered) == other
    assert end < 0.08
    assert lowered


@pytest.mark.parametrize("buggy", [[1], [0, 1]])
def test_a_run_batch_that_raises_hangs_nowhere(pair, buggy):
    """Where it does on one rank only, the others must not wait for its gradients; else nothing can be tested."""
    for _, transient, refused, _, said in pair.run(jobs.flipped_run, "gradient", 1, buggy):
        assert transient == 0
        assert refused == len(buggy) - 1
        assert len(said) == 2 - len(buggy)
        assert all("run_batch() raised on some processes only" in each for each in said)


def test_a_budget_in_tokens_is_that_of_all_ranks(pair):
    """Both end at the same step, though one has longer batches."""
    one, other = pair.run(jobs.token_run, 300)

    assert one == other
    assert one[1] >= 300


@pytest.mark.parametrize("where", ["batches", "report"])
def test_ids_are_said_to_have_no_effect(pair, where):
    """Once, on each rank, and there is no table."""
    for said, size in pair.run(jobs.named_run, where):
        assert size == 0
        assert len(said) == 1
        assert "each process knows only its own, so ids= and skip= have no effect" in said[0]


def test_each_rank_goes_on_with_its_own_next_batch(pair, tmp_path):
    """A run that was broken off goes on to the bit, with the order and the random numbers of each rank."""
    whole = pair.run(jobs.resumed_run, str(tmp_path / "whole"), None)
    pair.run(jobs.resumed_run, str(tmp_path / "cut"), 14)
    resumed = pair.run(jobs.resumed_run, str(tmp_path / "cut"), None)

    assert [each["weights"] for each in resumed] == [each["weights"] for each in whole]
    for one, two in zip(whole, resumed, strict=True):
        assert 0 < len(two["seen"]) < len(one["seen"])
        assert two["seen"] == one["seen"][-len(two["seen"]) :]
    assert whole[0]["seen"] != whole[1]["seen"]


def test_the_sample_is_named_whichever_rank_has_it(pair):
    """Each rank runs its own part, under DDP with BatchNorm, and all tell what any has found; twice in the run."""
    one, other = pair.run(jobs.placed_run, "")

    assert one["weights"] == other["weights"]
    assert one["told"] == other["told"]
    assert {each[1] for each in one["told"]} == {(5,), (41,)}
    for fault, _, is_certain, text in one["told"]:
        assert (fault, is_certain) == ("input", True)
        assert "whose input holds NaN at [1]" in text
        assert "seen on rank" in text


def test_the_part_that_is_to_blame_is_recorded_and_replayed(pair, tmp_path):
    """Though it is not that of the rank that writes; in one process, with dropout and BatchNorm, to the bit."""
    one, other = pair.run(jobs.placed_run, "far off", str(tmp_path))
    assert one["weights"] == other["weights"]
    incidents = [load_incident(tmp_path / "incidents" / str(number)) for number in numbers_in(tmp_path)]
    incidents = [each for each in incidents if "whose input holds 3e+04" in each.cause]

    assert any("seen on rank 1" in each.cause for each in incidents)
    for incident in incidents:
        layers = [torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1)]
        again = incident.replay(torch.nn.Sequential(*layers), lambda model, batch: jobs.loss_of(model, batch[0]))
        assert incident.batch[0].max() == 3e4
        assert again.item() == incident.loss


def test_a_batch_that_asks_the_other_ranks_hangs_nowhere(pair):
    """A collective call in run_batch raises in the search, which says then that the cause is unknown."""
    one, other = pair.run(jobs.placed_run, "asks others")

    assert one["weights"] == other["weights"]
    assert one["steps"] == other["steps"] == 40
    assert {each[0] for each in one["told"]} == {"unknown"}


def test_a_loader_that_accelerate_has_prepared_is_watched_on_both(pair):
    """Each rank has its part of it: to the bit what the script does alone, and two faults are healed on both alike."""
    pytest.importorskip("accelerate")
    plain, _ = pair.run(jobs.accelerated_run, False, [])
    one, other = pair.run(jobs.accelerated_run, True, [])
    assert (one["weights"], one["generator"]) == (plain["weights"], plain["generator"])
    assert one["weights"] == other["weights"]
    assert (one["size"], one["steps"], other["steps"]) == (2, 39, 39)

    one, other = pair.run(jobs.accelerated_run, True, [15, 30])
    assert one["weights"] == other["weights"]
    assert one["loss"] < 1


def test_a_run_under_accelerate_is_resumed_by_both_and_backed_up_early_again(pair, tmp_path):
    """To the bit what the whole run is; a fault soon after the resume goes back to a backup of after it."""
    pytest.importorskip("accelerate")
    whole, _ = pair.run(jobs.accelerated_run, True, [])
    results = []
    for name, faults in (("healthy", []), ("hurt", [4])):
        pair.run(jobs.accelerated_run, True, [], str(tmp_path / name), 25)
        results.append(pair.run(jobs.accelerated_run, True, faults, str(tmp_path / name)))
    (healthy, _), (hurt, other) = results

    # Losses are exchanged some steps late, and checkpoints saved with them.
    assert all(0 < each["begun"] < 25 for each in (healthy, hurt))
    assert (healthy["weights"], healthy["generator"]) == (whole["weights"], whole["generator"])
    assert hurt["weights"] == other["weights"]
    assert hurt["loss"] < 1
    assert hurt["backups"] == other["backups"]
    assert hurt["backups"][0] == hurt["begun"] == other["begun"]
