"""Batches of similar lengths within a budget of tokens."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, TokenBatches
from learnit_r8.engine.settings import grouped
from learnit_r8.sources.lengths import Buckets

RNG = np.random.default_rng(0)
LENGTHS = np.clip(RNG.lognormal(4.5, 1, 500), 3, 1500).astype(int)


def made(**settings):
    given = {"lengths": LENGTHS, "max_tokens": 2000, "num_epochs": 4, "handle_signals": False, **settings}
    return R8Scheduler(len(given["lengths"]), **grouped(given))


def epochs_of(r8, loss=lambda rows: np.ones(len(rows))):
    """The batches of each epoch."""
    return [
        [rows.copy() for rows, _ in r8.batch_iterator() if r8.update_with_loss(loss(rows)) or True]
        for _ in r8.epoch_iterator()
    ]


def tokens_of(batches, lengths=LENGTHS):
    return np.array([len(rows) * lengths[rows].max() for rows in batches])


@pytest.mark.parametrize("policy", ["balanced", "shuffle", "quartile"])
def test_each_pass_takes_every_sample_once_within_the_budget(policy):
    """Whatever the policy; passes have equally many batches, of other samples each."""
    r8 = made(policy=policy)
    epochs = epochs_of(r8, loss=lambda rows: RNG.gamma(2, size=len(rows)))

    assert len(epochs) == 4
    assert {len(batches) for batches in epochs} == {r8.steps_per_epoch}
    for batches in epochs:
        assert sorted(np.concatenate(batches).tolist()) == list(range(500))
        assert tokens_of(batches).max() <= 2000
    assert r8.table.usage_count.tolist() == [4] * 500
    first, second = ({frozenset(rows.tolist()) for rows in batches if len(rows) > 1} for batches in epochs[:2])
    assert len(first & second) < len(first) / 4


def test_padding_is_a_small_part_of_what_a_plain_shuffle_pads():
    """At most three quarters of the tokens, with as many batches."""
    batches = epochs_of(made(num_epochs=1))[0]
    plain = np.array_split(np.random.default_rng(1).permutation(500), len(batches))

    assert tokens_of(batches).sum() < 0.75 * tokens_of(plain).sum()
    assert tokens_of(batches).sum() < 1.3 * LENGTHS.sum()


def test_long_and_short_batches_come_in_random_order():
    """The length of the next batch says nothing: neither do epochs begin with the short ones."""
    longest = np.array([LENGTHS[rows].max() for rows in epochs_of(made(num_epochs=1))[0]], float)

    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.5
    assert np.corrcoef(longest[1:], longest[:-1])[0, 1] < 0.5


def test_batches_of_a_length_are_balanced_by_loss():
    """Among batches of similar length, hard samples are shared out."""
    lengths = np.full(256, 100)
    hard = np.arange(256) % 4 == 0
    r8 = R8Scheduler(256, batch_size=TokenBatches(lengths, max_tokens=1600), num_epochs=2, handle_signals=False)
    _, batches = epochs_of(r8, loss=lambda rows: 1.0 + 2 * hard[rows])

    assert [int(hard[rows].sum()) for rows in batches] == [4] * 16


def test_the_table_learns_batches_of_every_size():
    """Losses of single samples are theirs, and means go to the samples of their batch."""
    # None is twice another, so that none of the first ones is clipped.
    losses = RNG.uniform(1, 2, size=500)
    exact, means = made(), made(num_epochs=40)
    epochs_of(exact, loss=lambda rows: losses[rows])
    epochs_of(means, loss=lambda rows: float(losses[rows].mean()))

    assert np.allclose(exact.table.loss, losses, rtol=1e-5)
    assert np.corrcoef(means.table.loss, losses)[0, 1] > 0.3


@pytest.mark.parametrize("at", [1, 13, 40])
def test_a_resumed_run_draws_the_same_batches(at):
    """Also with batches out, in the middle of an epoch."""
    whole, broken, resumed = made(), made(), made()
    order = [rows.tolist() for batches in epochs_of(whole) for rows in batches]
    for _ in range(at):
        broken.report(broken.draw(), 1.0)
    broken.draw()
    resumed.load_state_dict(broken.state_dict())

    rest = []
    while (ticket := resumed.draw_if_any()) is not None:
        rest.append(ticket.indices.tolist())
        resumed.report(ticket, 1.0)
    assert rest == order[at:]


def test_samples_in_quarantine_are_left_out_and_passes_keep_their_length():
    """Also where a batch held nothing else: the longest sample."""
    r8 = made(num_epochs=3)
    gone = np.array([int(LENGTHS.argmax()), 7, 8])
    batches = [rows for rows, _ in _first_epoch(r8)]
    r8.table.storage.exclusions.quarantine(gone)
    second, third = epochs_of(r8)

    assert len(batches) == len(second) == len(third)
    assert not np.isin(np.concatenate([*second, *third]), gone).any()
    assert max(tokens_of([*second, *third])) <= 2000


def _first_epoch(r8):
    for rows, lr in r8.batch_iterator():
        yield rows.copy(), lr
        r8.update_with_loss(np.ones(len(rows)))


def test_batches_after_an_incident_are_within_the_budget():
    """Steady ones of low-loss samples are cut to what fits."""
    from learnit_r8.policies.registry import STEADY

    r8 = made()
    list(_first_epoch(r8))
    rows = [r8.host.source.draw_outside(STEADY).indices for _ in range(20)]

    assert tokens_of(rows).max() <= 2000
    assert max(map(len, rows)) > 1


def test_batch_size_is_the_most_samples_of_a_batch():
    """Short samples do not make batches of hundreds then."""
    sizes = [len(rows) for rows in epochs_of(made(batch_size=16, num_epochs=1))[0]]

    assert max(sizes) == 16
    assert Buckets(LENGTHS, 2000, num_samples=500).largest > 16


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"lengths": [*LENGTHS[:-1].tolist(), 0]}, ValueError, r"lengths must be in \[1, max_tokens=2000\], got 0 for"),
        ({"max_tokens": 900}, ValueError, r"max_tokens=900\], got \d+ for sample \d+; cut such samples"),
        ({"max_tokens": None}, ValueError, "lengths need max_tokens"),
        ({"lengths": LENGTHS / 2}, TypeError, "lengths must be whole numbers, .*got float64"),
        ({"last_batch": "drop"}, ValueError, "last_batch must be 'short' with lengths, got 'drop'"),
        ({"policy": "focus"}, ValueError, "policy must take every sample once a pass with lengths, got 'focus'"),
    ],
)
def test_wrong_arguments_are_named(settings, error, text):
    """Before anything is drawn."""
    with pytest.raises(error, match=text):
        made(**settings)


def test_lengths_must_be_of_the_samples():
    """One for each; and they are needed for a budget of tokens."""
    with pytest.raises(ValueError, match=r"lengths must have shape \(400,\), one for each sample, got \(500,\)"):
        R8Scheduler(400, batch_size=TokenBatches(LENGTHS, max_tokens=2000), num_epochs=1)
    with pytest.raises(ValueError, match="max_tokens needs lengths"):
        R8Scheduler(400, batch_size=TokenBatches(max_tokens=2000, batch_size=4), num_epochs=1)
    with pytest.raises(ValueError, match="lengths must be that of the saved run"):
        made(lengths=LENGTHS[::-1].copy()).load_state_dict(made().state_dict())
