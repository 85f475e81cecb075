"""The outlook: the summary of all samples that policies get."""

import json
import math

import numpy as np
import pytest

from learnit_r8 import Outlook, SampleTable
from learnit_r8.sources.planner import from_plain, look_at, to_plain
from learnit_r8.table.label_noise import MarginLimit
from learnit_r8.table.labels.evidence import EVIDENCE
from learnit_r8.table.losses import EXACT, WHOLE_BATCH
from tests.common import generator
from tests.table.labels.test_mirror import margins_of


def known(num_samples=1000, part_size=EXACT, wrong=0.1):
    """A table of a run of six epochs: some wrong, the others learnt."""
    rng = np.random.default_rng(0)
    is_wrong = rng.random(num_samples) < wrong
    return table_of(np.where(is_wrong, 6.0, 0.2) * rng.uniform(0.95, 1.05, num_samples), part_size)


def table_of(mean_loss, part_size=EXACT):
    """A table with these mean losses; an untrained model's loss is 2."""
    table = SampleTable(len(mean_loss), batch_size=32)
    table.storage.part_size, table.storage.batch_trend.untrained.value = part_size, 2.0
    table.storage.records.whole["last"][:] = table.storage.records.whole["mean"][:] = mean_loss
    table.storage.records.whole["usage_count"][:] = 6
    return table


def look(table, **more):
    return look_at(table.storage, np.random.default_rng(0), **more)


def test_small_table_is_read_whole():
    """Shares are exact if the table has at most 16,384 samples."""
    mean_loss = np.random.default_rng(1).gamma(2, 0.5, 1000)
    outlook = look(table_of(mean_loss))

    assert outlook == Outlook(
        True, 6.0, pytest.approx((mean_loss > 2).mean()), pytest.approx(np.median(mean_loss)), None
    )


def test_suspects_are_not_hard():
    """Samples that are suspected do not count among the hard ones."""
    outlook = look(known())

    assert outlook.suspicion is not None
    assert outlook.hard_share == 0


def test_samples_being_learnt_are_not_suspect():
    """If most suspects are better than untrained by now, none is suspect: rare classes are learnt late."""
    table = known()
    wrong = np.flatnonzero(table.storage.records.whole["mean"] > 2)
    table.storage.records.whole["last"][wrong[: len(wrong) * 2 // 5]] = 1.0
    assert look(table).suspicion is not None

    table.storage.records.whole["last"][wrong[: len(wrong) * 3 // 5]] = 1.0
    assert look(table).suspicion is None
    assert look(table).hard_share == pytest.approx(len(wrong) / 1000)


def test_losses_of_those_left_out_are_no_hump():
    """Samples that margins left out keep the losses of a younger network; those say nothing of the others.

    Nor do those that weigh less, once margins have decided for a policy that weighs.
    """
    margin, is_wrong = margins_of(0, wrong=0.2)
    is_out = is_wrong & (margin > 2)
    table = table_of(np.where(is_out, 6.0, np.where(margin > 0, 2.2, 0.2)) * generator().uniform(0.8, 1.2, len(margin)))
    assert look(table).suspicion is not None

    evidence = np.zeros(len(margin), EVIDENCE)
    evidence["margin"], evidence["visits"] = margin, np.where(is_out, 4, 6)
    columns = {name: evidence[name] for name in EVIDENCE.names}
    table.storage.evidence.load_state_dict({**columns, "num_classes": 10})
    outlook = look(table)

    assert outlook.suspicion is None
    assert np.array_equal(outlook.limit.margins(evidence) == np.inf, is_out)

    assert look(table, weighed=Outlook()).suspicion is not None
    assert look(table, weighed=outlook).suspicion is None


def test_slightly_high_losses_are_not_suspect():
    """Samples hardly worse than untrained are shown as suspects, but policies do not get them as such."""
    mean = np.where(np.arange(1000) < 100, 2.3, 0.1)

    assert len(table_of(mean).suspects().indices) == 100
    assert look(table_of(mean)).suspicion is None


def test_large_table_is_read_in_part():
    """A random part of a large table gives the shares to within one per cent, and the components."""
    mean_loss = np.random.default_rng(1).gamma(2, 0.5, 200_000)

    assert look(table_of(mean_loss)).hard_share == pytest.approx((mean_loss > 2).mean(), abs=0.01)
    assert look(known(200_000)).suspicion.humps.high_share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("part_size", [None, WHOLE_BATCH, 4, 32])
def test_rough_estimates_tell_nothing(part_size):
    """With means of batches or parts, the outlook is empty."""
    assert look(known(part_size=part_size)) == Outlook()


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_plain_values_round_trip(wrong):
    """Saved as JSON and read again, it is bit for bit the same."""
    outlook = look(known(wrong=wrong))
    limit = MarginLimit(math.inf, "margin", 5, ((0.5, 1.25), (0.1, 0.75)))
    outlook = outlook if wrong else outlook._replace(limit=limit)
    plain = json.loads(json.dumps(to_plain(outlook)))

    assert from_plain(plain) == outlook
