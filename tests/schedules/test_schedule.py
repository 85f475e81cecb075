import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import OneCycle, R8Scheduler, RateShape, Warmup
from learnit_r8.schedules.schedule import check_rate
from tests.drive import FakeClock, make, steps, train

SHARES = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
DECAY = {
    "linear": lambda q: 1 - q,
    "cosine": lambda q: (1 + math.cos(math.pi * q)) / 2,
    "constant": lambda q: 1.0,
}


def schedule_of(peak, mode, **shape):
    shape = RateShape(mode, **shape)
    return R8Scheduler(
        4, batch_size=2, num_steps=8, initial_lr=peak, scheduler_mode=shape, handle_signals=False
    ).schedule


@pytest.mark.parametrize("decay", DECAY)
@pytest.mark.parametrize("p", SHARES)
def test_decay_without_warmup_has_its_closed_form(decay, p):
    """Without warm-up the rate is floor + (peak - floor) * decay(p)."""
    assert Warmup(0.2, decay, warmup=0, floor=0.02)(p) == pytest.approx(0.02 + 0.18 * DECAY[decay](p), abs=1e-15)


@pytest.mark.parametrize("decay", DECAY)
@pytest.mark.parametrize("p", SHARES)
def test_warmup_then_decay_has_its_closed_form(decay, p):
    """Below w the rate rises linearly from start * peak; above it the decay runs over the rest of the budget."""
    rate = 0.2 * (0.1 + 0.9 * p / 0.25) if p < 0.25 else 0.2 * DECAY[decay]((p - 0.25) / 0.75)

    assert Warmup(0.2, decay, warmup=0.25)(p) == pytest.approx(rate, abs=1e-15)


@pytest.mark.parametrize(("p", "rate"), [(0.0, 0.05), (0.5, 0.075), (1.0, 0.1)])
def test_warmup_may_be_the_whole_budget(p, rate):
    """With a warm-up of 1 the rate rises to the end and reaches the peak there."""
    assert Warmup(0.1, warmup=1.0, start=0.5)(p) == pytest.approx(rate)


@pytest.mark.parametrize("p", SHARES)
def test_one_cycle_has_its_closed_form(p):
    """One cycle is half a cosine from peak / 25 up to the peak and half a cosine down to the floor."""
    if p < 0.5:
        rate = 0.004 + (0.1 - 0.004) * (1 - math.cos(math.pi * p / 0.5)) / 2
    else:
        rate = 0.01 + (0.1 - 0.01) * (1 + math.cos(math.pi * (p - 0.5) / 0.5)) / 2

    assert OneCycle(0.1, warmup=0.5, floor=0.01)(p) == pytest.approx(rate, abs=1e-15)


@pytest.mark.parametrize(("p", "rate"), [(0.0, 0.004), (0.5, 0.052), (1.0, 0.1)])
def test_one_cycle_may_rise_to_the_end(p, rate):
    """With a warm-up of 1 one cycle reaches its peak at the end."""
    assert OneCycle(0.1, warmup=1.0)(p) == pytest.approx(rate)


@given(
    st.sampled_from(["linear", "cosine", "constant", "one_cycle"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(1e-6, 10),
    st.floats(0, 1),
)
def test_rate_stays_between_zero_and_peak(mode, p, warmup, peak, floor_share):
    """No schedule leaves [0, peak], whatever the arguments."""
    schedule = schedule_of(peak, mode, warmup_proportion=warmup, min_lr=floor_share * peak)

    assert 0 <= schedule(p) <= peak * (1 + 1e-12)


@pytest.mark.parametrize(
    ("mode", "warmup"), [("cosine", 0.05), ("linear", 0.05), ("constant", 0.05), ("one_cycle", 0.3)]
)
def test_default_warmup_depends_on_the_mode(mode, warmup):
    """The default warm-up is 5 % of the budget, and 30 % for one cycle."""
    assert schedule_of(0.1, mode) == schedule_of(0.1, mode, warmup_proportion=warmup)


def test_callable_is_used_as_it_is():
    """A function of progress is the schedule, and no other argument touches it."""
    mode = lambda progress: 3 - progress  # noqa: E731

    assert schedule_of(0.1, mode, warmup_proportion=0.5) is mode


@pytest.mark.parametrize("mode", ["linear", "cosine", "constant"])
def test_rates_of_a_run_follow_the_closed_form(mode):
    """Step t of T trains at the schedule's rate for progress t / T."""
    rates = [
        lr for _, _, lr in train(make(40, batch_size=4, num_epochs=2, scheduler_mode=mode, warmup_proportion=0.25))
    ]
    expected = [
        0.01 * (0.1 + 0.9 * (t / 20) / 0.25) if t / 20 < 0.25 else 0.01 * DECAY[mode]((t / 20 - 0.25) / 0.75)
        for t in range(20)
    ]

    assert rates == pytest.approx(expected, rel=1e-12)


def test_rates_of_a_callable_are_its_own():
    """A run by a function of progress trains at exactly its values."""
    rates = [lr for _, _, lr in train(make(num_steps=4, scheduler_mode=lambda progress: 1 + progress))]

    assert rates == [1.0, 1.25, 1.5, 1.75]


def test_rate_of_a_time_budget_follows_the_time():
    """With a time budget the rate depends on elapsed over total seconds, however many steps that is."""
    clock = FakeClock()
    r8 = make(train_duration_seconds=10, scheduler_mode="linear", warmup_proportion=0, initial_lr=1.0, clock=clock)
    rates = []
    for _, _, lr in steps(r8):
        rates.append(lr)
        clock.advance(2.5)
        r8.update_with_loss(1.0)

    assert rates == [1.0, 0.75, 0.5, 0.25]


def test_outcome_carries_the_next_rate():
    """The rate of an outcome is the rate that the next batch is drawn with."""
    r8 = make(num_epochs=2)
    outcome_lr = []
    rates = []
    for _, _, lr in steps(r8):
        rates.append(lr)
        outcome_lr.append(r8.update_with_loss(1.0).lr)

    assert outcome_lr[:-1] == rates[1:]


# fmt: off
MISTAKES = [
    *[(lambda arguments=arguments: Warmup(**{"peak_lr": 0.1, **arguments}), ValueError, text)
      for arguments, text in (
          ({"decay": "cosin"}, r"decay must be one of \['constant', 'cosine', 'linear', 'sqrt'\], got 'cosin'"),
          ({"start": -0.1}, r"start must be in \[0, 1\], got -0\.1"),
          ({"start": 1.1}, r"start must be in \[0, 1\], got 1\.1"),
          ({"decay_share": 0}, r"decay_proportion must leave room for the warm-up, above 0 and at most 0\.95, got 0"),
          ({"floor": None}, r"min_lr must be in \[0, initial_lr=0\.1\], got None"))],
    *[(lambda arguments=arguments: OneCycle(**arguments), ValueError, "must be")
      for arguments in ({"peak_lr": -1}, {"peak_lr": 0.1, "warmup": 2}, {"peak_lr": 0.1, "floor": 1})],
    *[(lambda rate=rate: check_rate(rate, 0.5), ValueError,
       rf"scheduler_mode must return a learning rate >= 0 and finite, got {rate} at progress 0\.5")
      for rate in (-1e-9, math.nan, math.inf, -math.inf)],
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    """By the argument or call, with what was given."""
    with pytest.raises(error, match=text):
        act()
