"""Which margins may be judged: those of a cross entropy without weights, or what is known from before."""

import numpy as np
import pytest

from learnit_r8 import Predictions, R8Scheduler, predictions_of
from learnit_r8.state.codec import decode, encode
from learnit_r8.table.labels.trust import BOUNDED, EARLY, PLAIN, WEIGHED, least_trust, trust_in

RNG = np.random.default_rng(4)
COUNT, CLASSES = 4000, 10
GIVEN = RNG.integers(0, CLASSES, COUNT)
LOGITS = RNG.normal(size=(COUNT, CLASSES)) * RNG.exponential(2.0, (COUNT, 1))
CHANCE = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
OWN = CHANCE[np.arange(COUNT), GIVEN]
MARGIN = predictions_of(LOGITS, GIVEN).margin
SMOOTHED = -0.9 * np.log(OWN) - 0.1 * np.log(CHANCE).mean(1)


@pytest.mark.parametrize(
    ("losses", "trust"),
    [
        (-np.log(OWN), PLAIN),
        (-np.log(OWN).astype(np.float16), PLAIN),
        (-0.01 * np.log(OWN), PLAIN),
        (-np.log(OWN) * np.where(GIVEN < 5, 0.2, 3), PLAIN),
        (SMOOTHED, PLAIN),
        ((1 - OWN**0.7) / 0.7, BOUNDED),
        (1 - OWN, BOUNDED),
        (-np.log(OWN) + 3 * np.log(1 - 0.9 * CHANCE.max(1)), EARLY),
    ],
    ids=["cross entropy", "of half precision", "in another unit", "class weights", "smoothing", "GCE", "MAE", "ELR"],
)
def test_losses_tell_what_they_are(losses, trust):
    """By how they grow with the margin, in any unit."""
    assert trust_in(losses.astype(np.float32), MARGIN) == trust


def test_nothing_is_known_of_no_losses():
    """Where no other class was ever preferred, or none by much, margins are trusted."""
    assert trust_in(np.ones(3, np.float32), np.float32([-1, -2, 0])) == PLAIN
    assert trust_in(np.float32([np.nan, 0.9]), np.float32([0, 0.4])) == PLAIN


def test_of_several_runs_the_least_trusted_counts():
    """Their margins are averaged."""
    assert least_trust([PLAIN, EARLY, PLAIN]) == EARLY
    assert least_trust([EARLY, WEIGHED]) == WEIGHED
    assert least_trust([BOUNDED, WEIGHED]) == BOUNDED


def reported(losses, **settings):
    """A run of six epochs whose losses and predictions are always these."""
    r8 = R8Scheduler(COUNT, batch_size=100, num_epochs=6, policy="shuffle", guard="finite", **settings)
    while (ticket := r8.draw_if_any()) is not None:
        some = ticket.indices
        said = Predictions(MARGIN[some], LOGITS[some].argmax(1), GIVEN[some], CLASSES)
        r8.report(ticket, losses[some].astype(np.float32), predictions=said)
    r8.close()
    return r8


def test_a_bounded_loss_has_no_list_but_an_order(tmp_path):
    """The verdict says why, and so does one of a run that was resumed, or of a file."""
    r8 = reported((1 - OWN**0.7) / 0.7)
    other = R8Scheduler(COUNT, batch_size=100, num_epochs=6, policy="shuffle", guard="finite")
    other.load_state_dict(decode(encode(r8.state_dict())))

    assert "not those of a cross entropy" in r8.table.suspects().reason
    assert other.table.suspects().reason == r8.table.suspects().reason
    assert len(r8.table.ranking(10)) == 10
    assert "not those of a cross entropy" in reported(-np.log(OWN)).table.suspects(runs=[r8]).reason


def test_a_state_of_before_weights_were_told_is_trusted_as_it_was():
    """The early margins of a checkpoint from before are those of the first visits: no precision is promised."""
    r8 = reported(-np.log(OWN))
    state = r8.state_dict()
    del state["table"]["evidence"]["is_frozen"]
    r8.load_state_dict(state)

    assert r8.table.storage.trust == PLAIN
    state["table"]["numbers"]["is_weighed"] = True
    r8.load_state_dict(state)
    assert r8.table.storage.trust == WEIGHED
