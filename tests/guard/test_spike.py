"""The spike guard tells spikes and drifts from noise, for losses of any kind."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import SpikeGuard, Verdict
from learnit_r8.guard.spike import corrected, median, spread, weights_of_evidence
from tests.guard.judging import judge_all

NAN, INF = math.nan, math.inf
ALARMS = (Verdict.SPIKE, Verdict.LASTING_DRIFT)


def state_after(losses, guard=SpikeGuard()):
    state = guard.begin()
    for loss in losses:
        state, _ = guard.judge(state, float(loss))
    return state


def falling(steps, seed=0, noise=0.2, start=2.3, end=0.3):
    """A healthy loss curve."""
    curve = end + (start - end) * np.exp(-np.arange(steps) / 150)
    return curve * np.exp(noise * np.random.default_rng(seed).standard_normal(steps))


@pytest.mark.parametrize("loss", [0.0, 1.0, -3.0, 1e-30, 1e30, -1e30, 5e-324])
def test_constant_losses(loss):
    """A loss that never changes raises neither alarm nor warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = judge_all([loss] * 1000)

    assert found == []


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_rounding_is_no_change(scale):
    """A loss that is constant but for float32's rounding raises no alarm."""
    jitter = 1 + 6e-8 * np.random.default_rng(0).integers(-2, 3, 2000)

    assert judge_all(scale * jitter) == []


@pytest.mark.parametrize("known", [8, 40, 100, 500])
@pytest.mark.parametrize("times", [1e3, 1e9])
@pytest.mark.parametrize("loss", [1.0, 2e-12, 7e20, -1.0, -1e-20])
def test_an_absurd_change_of_a_constant_loss(loss, times, known):
    """A loss that never changed is a scale of its own: what is a thousand times as far from 0 is refused at once."""
    assert judge_all([loss] * known + [abs(loss) * times]) == [(known, Verdict.SPIKE)]


@pytest.mark.parametrize("times", [1e3, 1e9])
def test_no_change_from_zero_is_absurd(times):
    """Of zero nothing is a multiple, so any finite loss may follow it."""
    assert judge_all([0.0] * 200 + [times] * 200) == []


@pytest.mark.parametrize(
    ("constant", "end"), [(1.0, 0.3), (math.log(1000), 1e-3), (1e-7, 0.3), (-1.0, 3.0), (-200.0, 30.0)]
)
@pytest.mark.parametrize("steps", [9, 40, 300])
def test_a_constant_loss_may_begin_to_move(constant, end, steps):
    """Clipped losses, hinges, plateaus and rewards may begin to fall, with noise that takes them above, or to rise."""
    moving = constant * falling(400, start=1.0, end=end)

    assert judge_all([constant] * steps + list(moving)) == []
    assert judge_all([constant] * steps + [constant * 1.5] * 200) == []
    assert judge_all([constant] * steps + [constant * (-0.5)] * 200) == []


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e38, -1e38])
@pytest.mark.parametrize("known", [0, 7, 200])
def test_not_finite_at_once(bad, known):
    """A loss that is not finite, or too large for the table, is refused from the start and not remembered."""
    state = state_after(falling(known))

    assert SpikeGuard().judge(state, bad) == (state, Verdict.NOT_FINITE)


@pytest.mark.parametrize(
    ("spikes", "found"),
    [([3.0], None), ([100.0], None), ([1e3], 400), ([1e30], 400), ([100.0, 100.0], 401)],
)
def test_single_spikes(spikes, found):
    """One high loss raises no alarm, unless it is a hundred times as far away as any before; nor two, unless ten."""
    losses = falling(600)
    losses[400 : 400 + len(spikes)] = spikes
    alarms = judge_all(losses)

    assert alarms[:1] == ([] if found is None else [(found, Verdict.SPIKE)])


@pytest.mark.parametrize("seed", range(5))
def test_lost_progress(seed):
    """A loss that jumps back to where it began is refused within four steps."""
    losses = falling(600, seed)
    losses[400:] = falling(200, seed + 100, start=2.3, end=2.3)

    step, verdict = judge_all(losses)[0]

    assert verdict is Verdict.SPIKE
    assert 402 <= step < 404


def test_first_losses_need_a_far_spike():
    """Before 80 losses are known, from the ninth on, only a loss far beyond all others is refused."""
    losses = [1.0, 2.0] * 40 + [9.0] * 40

    assert judge_all([1.0, 2.0] * 4 + [150.0] + [1.0, 2.0] * 30) == []
    assert judge_all([1.0, 2.0] * 4 + [250.0])[0] == (8, Verdict.SPIKE)
    assert judge_all([1.0, 2.0] * 4 + [7.0, 2.0, 7.0, 7.0])[0] == (11, Verdict.SPIKE)
    assert judge_all([1.0, 2.0] * 4 + [5.0] * 40) == []
    assert judge_all(losses)[0][1] is Verdict.SPIKE


@pytest.mark.parametrize("sign", [1, -1])
@given(exponent=st.integers(-60, 60), seed=st.integers(0, 50))
def test_unit_of_the_loss(sign, exponent, seed):
    """Losses in another unit get the same verdicts at the same steps."""
    losses = falling(400, seed)
    losses[300:320] += 3
    losses = losses if sign > 0 else losses - 10

    assert judge_all(losses) == judge_all(losses * 2.0**exponent)


def test_a_state_stays_valid():
    """A stored state is not changed by later losses, so the guard can go back with the model."""
    guard, kept = SpikeGuard(), state_after(falling(300))
    before = repr(kept)
    ahead = falling(200, seed=1) + 2
    first = judge_all(ahead, guard, kept)

    assert repr(kept) == before
    assert judge_all(ahead, guard, kept) == first
    assert first


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.5])
def test_no_livelock(noise):
    """Restoring after every alarm ends: noise of any width raises no alarm in 20,000 steps."""
    random = np.random.default_rng(3)

    assert judge_all(np.exp(noise * random.standard_normal(20_000))) == []


def test_unanswered_alarm():
    """If nothing is restored, a loss in another unit is one incident; then the new level is usual."""
    losses = falling(900)
    losses[400:] *= 1000

    found = judge_all(losses)

    assert [verdict for _, verdict in found] == [Verdict.SPIKE]


def creeping(steps):
    """A loss that falls to 0.3 and then rises to 2.3, too slowly for a spike."""
    up = np.clip((np.arange(steps) - 600) / 1500, 0, 1) * 2
    return falling(steps, noise=0.05) + up


def test_lasting_drift():
    """A loss that creeps up is refused once its median has been higher for 192 losses, and not before."""
    found = judge_all(creeping(2000))

    assert found[0][1] is Verdict.LASTING_DRIFT
    assert judge_all(creeping(2000), guard=SpikeGuard(lasting_steps=64))[0][0] == found[0][0] - 128


def test_falling_rate_explains_a_drift():
    """While the scheduled rate is below 0.8 of that at the best median, a slowly rising loss is no drift."""
    losses, rate = creeping(2000), np.where(np.arange(2000) < 700, 1.0, 0.79)

    assert judge_all(losses, lr=rate) == []
    assert judge_all(losses, lr=np.where(rate == 1, 1.0, 0.81))


def test_rising_rate_explains_a_bump():
    """After a jump of the scheduled rate, a loss is refused only if it loses all of the progress, not half of it."""
    losses, rate = falling(800, noise=0.1), np.ones(800)
    losses[500:560] = 1.6 * falling(60, 7, noise=0.05, start=1, end=1)
    rate[500:] = 10.0

    assert judge_all(losses, lr=rate) == []
    assert judge_all(losses)[0][1] is Verdict.SPIKE
    losses[500:560] += 2
    assert judge_all(losses, lr=rate)[0][1] is Verdict.SPIKE


@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_hard_batches_are_no_spikes(shift):
    """Hard batches whose loss was expected are no spikes; without the expectation they would be."""
    random, steps = np.random.default_rng(0), 1000
    composition = np.where(np.arange(steps) % 250 > 220, 4.0, 1.0)
    level = falling(steps, noise=0)
    losses = level * composition * np.exp(0.1 * random.standard_normal(steps)) + shift
    expected = level * composition + shift

    assert judge_all(losses, expected=expected, typical=level + shift) == []
    assert judge_all(losses)


def test_easy_batches_do_not_hide_damage():
    """Damage shows on batches of easy samples too: their loss is far above the expected one."""
    losses = falling(600)
    expected, typical = np.full(600, 0.3), np.full(600, 0.3)
    expected[400:], losses[400:] = 0.001, falling(200, 5, start=2.3, end=2.3)

    assert judge_all(losses, expected=expected, typical=typical)[0][0] < 405


def test_hard_batches_do_not_hide_damage():
    """Damage shows on batches of hard samples too: the part above twice the expected loss counts in full."""
    losses = falling(600)
    expected, typical = np.full(600, 0.01), np.full(600, 0.01)
    expected[400:], losses[400:] = 0.3, falling(200, 5, start=2.3, end=2.3)

    assert judge_all(losses, expected=expected, typical=typical)[0][0] < 405


def test_losses_that_spread_early_are_no_damage():
    """As a network begins to learn, losses of single samples drift apart; damage is what raises them on average."""
    losses = 0.69 - 0.0005 * np.arange(144) + 0.01 * np.random.default_rng(2).standard_normal(144)
    losses[80:] += np.tile([-0.11, 0.15, -0.12, 0.12], 16)

    assert judge_all(losses) == []
    far = losses.copy()
    far[120] = 3.0
    assert judge_all(far)[0] == (120, Verdict.SPIKE)
    losses[100:] += 0.3
    assert 100 < judge_all(losses)[0][0] < 116


def test_damaged_losses_in_the_table_lift_no_others():
    """A table with a few losses of damaged weights expects too much of a typical batch, which is not used."""
    losses = 0.1 + 0.01 * np.random.default_rng(0).standard_normal(600)
    expected, typical = np.full(600, 0.1), np.full(600, 0.1)
    typical[400:] = 3.7

    assert judge_all(losses, expected=expected, typical=typical) == []
    losses[450:455] = 5.0
    assert judge_all(losses, expected=expected, typical=typical)[0][0] in (450, 451)


@given(loss=st.floats(0, 1e6), expected=st.floats(1e-6, 1e6), typical=st.floats(1e-6, 1e6))
def test_correction(loss, expected, typical):
    """An average batch is not corrected; the corrected loss rises with the loss, and is exact for the expected one."""
    assert corrected(loss, typical, typical, 1.0) == loss
    assert corrected(loss, NAN, typical, 1.0) == loss
    assert corrected(loss, expected, NAN, 1.0) == loss
    assert corrected(loss + 1, expected, typical, typical) > corrected(loss, expected, typical, typical)
    assert corrected(expected, expected, typical, typical) == pytest.approx(typical)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_spread(values):
    """The spread is 1.4826 times the least distance within which half of the losses lie."""
    ordered = sorted(values)
    middle = median(ordered)
    slow = 1.4826 * sorted(abs(value - middle) for value in values)[(len(values) + 1) // 2 - 1]

    assert ordered == sorted(values)
    assert middle == pytest.approx(np.median(values))
    assert spread(ordered, middle) == pytest.approx(slow)


def test_evidence_depends_on_what_is_usual():
    """A high loss adds more evidence the rarer such losses are, and always some."""
    rare, common = weights_of_evidence(0.01), weights_of_evidence(0.5)

    assert rare[0] > common[0] > 0 > rare[1]
    assert weights_of_evidence(0.99)[0] > 0


def test_suspicion():
    """Suspicion starts at 0, rises with high losses and falls with others; it is 0 after an alarm."""
    guard, state = SpikeGuard(), state_after(falling(320))
    seen = [guard.suspicion(state)]
    for loss in (2.3, 2.3, 0.3, 2.3, 2.3):
        state, verdict = guard.judge(state, loss)
        seen.append(guard.suspicion(state))

    assert seen[0] == 0
    assert 0 < seen[1] < seen[2] < 1
    assert seen[3] < seen[2] < seen[4]
    assert verdict is Verdict.SPIKE
    assert seen[5] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alarm": 0}, r"alarm must be > 0 and finite, got 0\."),
        ({"alarm": INF}, r"alarm must be > 0 and finite, got inf\."),
        ({"spread": -1}, r"spread must be > 0 and finite, got -1\."),
        ({"far": 1}, r"far must be > 1 and finite, got 1\."),
        ({"far": "ten"}, r"far must be > 1 and finite, got 'ten'\."),
        ({"gate": 1.5}, r"gate must be in \[0, 1\], got 1.5\."),
        ({"gate": NAN}, r"gate must be in \[0, 1\], got nan\."),
        ({"window": 31}, r"window must be a whole number >= 32, got 31"),
        ({"lag": -1}, r"lag must be a whole number >= 0, got -1"),
        ({"lasting_steps": 8}, r"lasting_steps must be a whole number >= 16, got 8"),
    ],
)
def test_ranges(wrong, message):
    """A setting outside its range is refused; the error names it."""
    with pytest.raises(ValueError, match=message):
        SpikeGuard(**wrong)


@pytest.mark.parametrize("settings", [{"lag": 0}, {"lag": 5}, {"window": 33}, {"window": 500, "lag": 200}, {"gate": 0}])
def test_any_settings_work(settings):
    """A divergence is refused, and healthy losses are not, with any window and lag."""
    losses = falling(1200)
    losses[1100:] = 50.0

    steps = [step for step, verdict in judge_all(losses, SpikeGuard(**settings)) if verdict in ALARMS]

    assert 1100 <= steps[0] < 1110


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e3])
def test_losses_that_need_not_fall_are_refused_if_they_are_absurd(scale):
    """Rises that the usual guard takes for a drift, a raised level or a spike say nothing; one far beyond all does."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(1000)
    base = np.where(scale < 0, -20.0, 0.0)
    losses = abs(scale) * (base + np.concatenate([falling(300), np.linspace(0.3, 3.0, 500), np.full(200, 6.0)]) + noise)
    guard = SpikeGuard(expects_progress=False)

    assert judge_all(losses)
    assert not judge_all(losses, guard)
    state = state_after(losses, guard)
    assert guard.suspicion(state) == 0
    assert judge_all([math.inf, 1e4 * abs(scale)], guard, state) == [(0, Verdict.NOT_FINITE), (1, Verdict.SPIKE)]


RISES = np.linspace(0.25, 0.6, 40)


@pytest.mark.parametrize(
    ("losses", "own_rates", "is_refused"),
    [
        ([0.25] * 90 + [*RISES] + [0.6] * 60, True, False),
        ([0.25] * 90 + [*RISES] + [0.6] * 60, False, True),
        ([0.25] * 90 + [0.6] * 60, True, True),
        ([0.25] * 30 + [0.1] * 90 + [*np.linspace(0.1, 0.6, 40)] + [0.6] * 60, True, True),
    ],
    ids=["slow", "rates of R8", "step", "learned before"],
)
def test_a_slow_rise_before_anything_was_learned(losses, own_rates, is_refused):
    """Losses of a codebook rise before they fall; at rates of the user's own no probe could tell that."""
    noisy = np.array(losses) * (1 + 0.03 * np.random.default_rng(0).standard_normal(len(losses)))

    assert bool(judge_all(noisy, SpikeGuard(tests_progress=not own_rates))) is is_refused
