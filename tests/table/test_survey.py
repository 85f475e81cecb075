import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from learnit_r8 import SampleTable, events
from learnit_r8.engine.settings import text_of
from learnit_r8.schedules.schedule import sample_rates
from learnit_r8.table import survey
from learnit_r8.table.losses import EXACT
from learnit_r8.table.quantiles import loss_histogram, quarters_of, uses_histogram
from learnit_r8.table.survey import EPOCH_SECONDS, EVERY_SECONDS, Surveyor
from tests.drive import FakeClock, make, observe, sample_losses, steps

LOSSES = arrays.arrays(np.float32, st.integers(0, 60), elements=st.floats(0, 100, width=32) | st.just(math.nan))


class Listener:
    """A listener that wants surveys."""

    wants_surveys = True

    def __init__(self):
        self.heard = []

    def __call__(self, event):
        self.heard.append(event)

    @property
    def surveys(self):
        return [event for event in self.heard if isinstance(event, events.SamplesSurveyed)]


def learned(num_samples=400, seed=0):
    """A table with the exact loss of every sample."""
    table = SampleTable(num_samples, batch_size=10)
    table.storage.part_size = EXACT
    observe(table, 1.0, 1.0)
    learn(table, np.random.default_rng(seed).random(num_samples))
    return table


def learn(table, losses):
    table.learner.learn(np.arange(len(losses)), losses, None, np.full(len(losses), 1.0))


def surveyed(surveyor, **how):
    return surveyor.survey(1.0, **({"epoch": 0, "epoch_ended": False} | how))


@given(LOSSES)
def test_quarters_are_those_of_the_table(loss):
    """Bounds, means and uses of the quarters equal those of sorted losses, for any losses, equal ones too."""
    uses = np.arange(len(loss)).astype(np.uint16)
    seen = np.sort(loss[~np.isnan(loss)])
    rows = quarters_of(loss, uses)
    if len(seen) < 4:
        assert rows["low"] == ()
        return
    parts = np.array_split(seen, 4)

    assert rows["low"] == pytest.approx([part[0] for part in parts], rel=1e-4)
    assert rows["high"] == pytest.approx([part[-1] for part in parts], rel=1e-4)
    assert rows["mean"] == pytest.approx([part.mean() for part in parts], rel=1e-4)
    assert sum(rows["share"]) == pytest.approx(1, abs=1e-4)


@given(LOSSES, st.lists(st.integers(0, 65535), min_size=1, max_size=50))
def test_histograms_count_every_sample(loss, uses):
    """Every seen sample is in one bin of the losses, every one in one of at most 32 bins of the uses."""
    fields = uses_histogram(np.array(uses, np.uint16))

    assert sum(fields["uses_counts"]) == len(uses)
    assert len(fields["uses_counts"]) <= 32
    assert fields["uses_range"] == (min(uses), max(uses))
    assert sum(loss_histogram(loss)["loss_counts"]) == int((~np.isnan(loss)).sum())


def test_losses_of_many_sizes_have_bins_of_equal_ratio():
    """If losses differ by orders of magnitude, the bins of their histogram have equal ratio."""
    rng = np.random.default_rng(0)

    assert loss_histogram(rng.lognormal(0, 3, 1000).astype(np.float32))["loss_is_log"]
    assert not loss_histogram(rng.normal(0, 1, 1000).astype(np.float32))["loss_is_log"]


def test_survey_agrees_with_the_table():
    """Quartiles, hardest samples and uses of a survey equal those of the table."""
    table = learned()
    fields = surveyed(Surveyor(table))
    quartiles, hardest = table.quartiles(), table.hardest(50)

    assert fields["low"] == pytest.approx([q.low for q in quartiles], rel=1e-4)
    assert fields["mean"] == pytest.approx([q.mean for q in quartiles], rel=1e-4)
    assert fields["hardest"] == tuple(sample.index for sample in hardest)
    assert fields["hardest_loss"] == pytest.approx([sample.loss for sample in hardest], rel=1e-4)
    assert (fields["num_read"], fields["num_seen"], fields["source"]) == (400, 400, "exact")


def test_history_has_the_ends_of_epochs():
    """The history of a hard sample holds its loss at the end of every epoch, oldest first, twelve at most."""
    table = learned()
    surveyor = Surveyor(table)
    seen = []
    for epoch in range(15):
        learn(table, np.random.default_rng(epoch).random(400))
        fields = surveyed(surveyor, epoch=epoch, epoch_ended=True)
        seen.append(table.loss)
        surveyed(surveyor)
    expected = [loss[fields["hardest"][0]] for loss in seen[-12:]]

    assert fields["hardest_history"][0] == pytest.approx(expected, rel=2e-3)


def test_huge_table_is_sampled(monkeypatch):
    """Of a huge table a fixed part is read, whose bounds are close to those of all samples."""
    monkeypatch.setattr(survey, "MOST_SCANNED", 2000)
    table = learned(20_000)
    fields = surveyed(Surveyor(table))

    assert 1800 < fields["num_read"] <= 2000
    assert fields["mean"] == pytest.approx([q.mean for q in table.quartiles()], rel=0.1)


def test_hardest_of_a_huge_table_are_found_in_time(monkeypatch):
    """If each survey reads only a part, one round of surveys finds the hardest samples of all."""
    monkeypatch.setattr(survey, "MOST_SCANNED", 2000)
    table = learned(20_000)
    surveyor = Surveyor(table)
    for _ in range(10):
        fields = surveyed(surveyor, epoch_ended=True)

    assert fields["hardest"] == tuple(sample.index for sample in table.hardest(50))
    assert all(len(history) for history in fields["hardest_history"])


def test_mislabelled_samples_are_suspects():
    """Samples that stay worse than untrained are listed with their names; without exact losses there are none."""
    table = SampleTable(400, batch_size=10, sample_ids=[f"img{index}.png" for index in range(400)])
    table.storage.part_size = EXACT
    observe(table, 2.0, 2.0)
    observe(table, 2.0, 2.0)
    for _ in range(5):
        learn(table, np.where(np.arange(400) < 12, 5.0, 0.1))
    fields = surveyed(Surveyor(table), epoch_ended=True)
    table.storage.part_size = 10
    rough = surveyed(Surveyor(table), epoch_ended=True)

    assert sorted(fields["suspects"]) == list(range(12))
    assert fields["suspect_names"][0].startswith("img")
    assert fields["noise_rate"] == pytest.approx(0.03)
    assert rough["suspects"] == ()
    assert "per-sample losses are needed" in rough["no_suspects"]


class SlowHolder:
    """Holds back reports that take a while to learn."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def hand_over(self):
        self.clock.advance(self.seconds)


@pytest.mark.parametrize("cost", [0.001, 0.05, 0.3])
def test_surveys_keep_to_their_share_of_the_time(cost):
    """Surveys come every few seconds, and less often if one takes long: at most 0.5 % of the time."""
    clock, table = FakeClock(), learned()
    surveyor = Surveyor(table, clock=clock)
    table.learner.hold_back(SlowHolder(clock, cost / 2))
    count = 0
    for second in range(1000):
        if surveyor.is_due(second, epoch_ended=False):
            surveyor.survey(float(second), epoch=0, epoch_ended=False)
            count += 1

    assert clock.now <= 0.005 * 1000
    assert count >= 0.9 * min(1000 / EVERY_SECONDS, 0.005 * 1000 / cost - 1)


def test_end_of_an_epoch_comes_first():
    """At the end of an epoch there is a survey even if one was made just before."""
    surveyor = Surveyor(learned(), clock=lambda: 0.0)
    assert surveyor.is_due(0.0, epoch_ended=True)
    assert surveyor.is_due(EVERY_SECONDS, epoch_ended=False)
    surveyor.survey(EVERY_SECONDS, epoch=0, epoch_ended=False)

    assert surveyor.is_due(EVERY_SECONDS + EPOCH_SECONDS, epoch_ended=True)
    assert not surveyor.is_due(EVERY_SECONDS + EPOCH_SECONDS, epoch_ended=False)


def run(listeners, *, part_size=1, **more):
    """Batches and rates of a small run whose losses depend on the samples, ten seconds a step."""
    clock = FakeClock()
    r8 = make(100, batch_size=8, num_epochs=4, listeners=listeners, clock=clock, **more)
    seen = []
    for _, indices, lr in steps(r8):
        clock.advance(10)
        seen.append((indices.tolist(), lr))
        losses = sample_losses(indices) * 0.99**r8.global_step
        if part_size == 0:
            r8.update_with_loss(float(losses.mean()))
        elif part_size == 1:
            r8.update_with_loss(losses)
        else:
            means = [losses[start : start + part_size].mean() for start in range(0, len(losses), part_size)]
            r8.update_with_loss(np.array(means), part_size=part_size)
    r8.close()
    return seen, r8


@pytest.mark.parametrize("part_size", [0, 1, 4])
def test_surveys_change_nothing(part_size):
    """With a survey at every step, batches, rates and table are bit for bit the same as without."""
    listener = Listener()
    alone, quiet = run([], part_size=part_size)
    watched, loud = run([listener], part_size=part_size)

    assert len(listener.surveys) > 40
    assert watched == alone
    assert np.array_equal(quiet.table.loss, loud.table.loss, equal_nan=True)


def test_surveys_are_made_for_those_who_want_them():
    """A listener without a true wants_surveys hears none; one that has it hears one at every end of an epoch."""
    plain, listener = [], Listener()
    run([plain.append])
    run([listener])
    ends = [event.step for event in listener.surveys if event.epoch_ended]

    assert not any(isinstance(event, events.SamplesSurveyed) for event in plain)
    assert ends == [13, 26, 39, 52]


@pytest.mark.parametrize("seconds", [0.001, 10])
def test_last_survey_is_of_the_end(seconds):
    """However short a run was, its last survey is that of its last step, and made once."""
    listener, clock = Listener(), FakeClock()
    r8 = make(100, batch_size=8, num_epochs=4, listeners=[listener], clock=clock)
    for _, indices, _ in steps(r8):
        clock.advance(seconds)
        r8.update_with_loss(sample_losses(indices))
    r8.close()
    last = [survey for survey in listener.surveys if survey.step == r8.global_step]

    assert len(last) == 1
    assert last[0].epoch_ended
    assert set(last[0].hardest_uses) == {4}


def test_run_started_has_configuration_and_plan():
    """The event of the start has the arguments as texts, versions, and the rates of its schedule."""
    listener = Listener()
    run([listener], initial_lr=0.5, scheduler_mode="linear", warmup_proportion=0.0, groups=np.arange(100) % 3)
    started = listener.heard[0]

    assert started.settings["initial_lr"] == "0.5"
    assert started.settings["groups"] == "int64[100]"
    assert "numpy" in started.settings
    assert started.lr_plan[0] == 0.5
    assert started.lr_plan[64] == pytest.approx(0.25)
    assert started.lr_plan[-1] == 0.0


def test_schedule_that_raises_is_not_planned():
    """A schedule that raises outside of a run has no planned rates."""

    def touchy(progress):
        raise RuntimeError(progress)

    assert sample_rates(touchy) == ()


def test_long_settings_are_cut():
    """A setting of any kind is a short text."""
    texts = [text_of(value) for value in ("x" * 999, [1] * 10**6, len)]

    assert texts == ["x" * 197 + "...", "list of 1000000", "len"]


def test_own_time_is_told_with_the_steps():
    """The scheduler's own time between two steps is told with the later one, without the user's time."""

    class Clock(FakeClock):
        def __call__(self):
            self.now += 1.0
            return self.now

    listener = Listener()
    clock = Clock()
    r8 = make(100, batch_size=10, listeners=[listener])
    r8.host.clock = clock
    for _ in range(3):
        ticket = r8.draw()
        clock.advance(1000.0)
        r8.report(ticket, 1.0)
    steps_told = [event for event in listener.heard if isinstance(event, events.StepDone)]

    assert [event.own_seconds for event in steps_told[1:]] == [2.0, 2.0]


def test_found_rate_brings_a_new_plan():
    """After the learning-rate search the planned rates are told again."""
    listener = Listener()
    r8 = make(
        400, batch_size=4, num_epochs=4, auto_find_lr=True, listeners=[listener],
        state_callback=lambda: {"w": np.zeros(1)}, load_callback=lambda source, from_ram=False: None,
    )  # fmt: skip
    while r8.phase == "searching":
        ticket = r8.draw()
        r8.report(ticket, 1.0 + max(0.0, ticket.lr - 0.01))
    plans = [event.lr_plan for event in listener.heard if isinstance(event, events.LrPlanned)]
    found = [event.lr for event in listener.heard if isinstance(event, events.LrFound)]

    assert max(plans[-1]) == pytest.approx(found[0], rel=0.05)


def test_last_batch_is_a_full_one():
    """The three samples left over at the end of an epoch do not stand for how batches are made."""
    listener = Listener()
    r8 = make(43, batch_size=20, num_epochs=3, listeners=[listener])
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(1.0 + indices / 43)
    r8.close()

    shares = listener.surveys[-1].batch_share
    assert all(0.15 <= share <= 0.35 for share in shares), shares
