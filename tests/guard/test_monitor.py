"""The sentry judges losses, gradient norms and skipped steps, and its state goes back with the model."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import FiniteGuard, SpikeGuard, Verdict
from learnit_r8.guard import Sentry
from learnit_r8.guard.monitor import FAR_NORM, LEAST_NORMS, MOST_SKIPPED
from learnit_r8.state.codec import decode, encode

NAN, INF = math.nan, math.inf


def noisy(count, seed=0, level=1.0):
    return (level * np.exp(0.2 * np.random.default_rng(seed).standard_normal(count))).tolist()


def judged(sentry, *given, **more):
    """The verdict on a report, which the sentry keeps."""
    verdict, memory = sentry.judge(*given, **more)
    sentry.keep(verdict, memory)
    return verdict


def after(count, **norms):
    """A sentry that has seen so many healthy reports."""
    sentry = Sentry(SpikeGuard())
    for number, loss in enumerate(noisy(count)):
        assert judged(sentry, loss, **{name: values[number] for name, values in norms.items()}) is Verdict.GOOD
    return sentry


@pytest.mark.parametrize("norm", [NAN, INF, -INF])
def test_norm_is_finite(norm):
    """A gradient norm that is not finite refuses the batch, however good its loss is, from the first one on."""
    sentry = Sentry(SpikeGuard())

    assert judged(sentry, 1.0, grad_norm=norm) is Verdict.GRADIENT
    # Where both are bad, the verdict is that of the loss.
    assert judged(sentry, NAN, grad_norm=norm) is Verdict.NOT_FINITE
    assert sentry.num_refused == 2


@pytest.mark.parametrize(("factor", "verdict"), [(FAR_NORM * 0.99, Verdict.GOOD), (FAR_NORM * 1.01, Verdict.GRADIENT)])
def test_norm_far_beyond_all_before(factor, verdict):
    """A norm more than a hundred times as long as the longest before it refuses the batch; a shorter one never does.

    It counts as seen: the next one as long is good, so a new level costs one batch.
    """
    norms = noisy(LEAST_NORMS, seed=1, level=7.0)
    sentry = after(LEAST_NORMS, grad_norm=norms)

    assert judged(sentry, 1.0, grad_norm=factor * max(norms)) is verdict
    assert judged(sentry, 1.0, grad_norm=factor * max(norms)) is Verdict.GOOD


def test_norm_says_nothing_about_the_weights():
    """A refused norm leaves the guard's state of the losses as it was, and raises no suspicion."""
    sentry = after(300, grad_norm=noisy(300))
    memory, suspicion = sentry.present.losses, sentry.suspicion
    judged(sentry, 1.0, grad_norm=INF)

    assert sentry.present.losses is memory
    assert sentry.suspicion == suspicion


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=60))
def test_norms_that_rise_by_less_are_good(norms):
    """Norms are refused only beyond a hundred times all before, whatever their order."""
    sentry, highest = Sentry(SpikeGuard()), 0.0
    for number, norm in enumerate(norms):
        is_far = number >= LEAST_NORMS and norm > FAR_NORM * highest

        assert (judged(sentry, 1.0, grad_norm=norm) is Verdict.GRADIENT) == is_far
        highest = max(highest, norm)


def test_calm():
    """Calm drops the evidence of damage; a guard that cannot is left as it is."""
    sentry = after(300)
    judged(sentry, 30.0)
    assert sentry.suspicion > 0.4
    sentry.calm()
    finite = Sentry(FiniteGuard())
    memory = finite.present.losses
    finite.calm()

    assert sentry.suspicion == 0
    assert finite.present.losses is memory


@pytest.mark.parametrize("loss", [0.7, 1e6, -3.0])
def test_skipped_step_with_a_loss(loss):
    """A skipped optimizer step is no alarm; its norm does not count, and its loss is good if it is finite."""
    sentry = after(300)
    memory = sentry.present.losses

    assert [judged(sentry, loss, grad_norm=INF, skipped=True) for _ in range(3)] == [Verdict.GOOD] * 3
    assert sentry.present.losses == memory
    assert sentry.num_refused == 0


@pytest.mark.parametrize("loss", [NAN, INF, 1e38])
def test_skipped_step_without_a_loss(loss):
    """A non-finite loss raises no alarm if the step was skipped, as it has changed no weight."""
    sentry = after(10)

    assert judged(sentry, loss, skipped=True) is Verdict.SKIPPED
    assert sentry.num_refused == 0
    assert sentry.suspicion == 0


@pytest.mark.parametrize("loss", [1.0, NAN])
def test_too_many_skipped(loss):
    """More skipped steps in a row than a loss scale needs to settle are an incident; then the count starts again."""
    sentry = after(10)
    verdicts = [judged(sentry, loss, skipped=True) for _ in range(2 * MOST_SKIPPED + 2)]

    assert [step for step, verdict in enumerate(verdicts) if verdict is Verdict.OVERFLOW] == [20, 41]
    assert sentry.num_refused == 2
    # Only in a row.
    assert {judged(sentry, 1.0, skipped=step % 20 > 0) for step in range(200)} == {Verdict.GOOD}


def test_memory_goes_back():
    """After going back, the sentry judges as if later losses had never come, but keeps its count of refusals."""
    sentry = after(300)
    memory = sentry.present.losses
    before = [judged(sentry, loss) for loss in noisy(3, level=5.0)]
    sentry.go_back(memory)

    assert [judged(sentry, loss) for loss in noisy(3, level=5.0)] == before
    assert before.count(Verdict.SPIKE) == 1
    assert sentry.num_refused == 2


def test_memory_that_goes_back_is_moved_to_the_rate_of_now():
    """A state of a lower rate is judged by what the schedule gives now, or a rise of the rate would excuse damage."""
    sentry = Sentry(SpikeGuard())
    for loss in noisy(300):
        sentry.keep(*sentry.judge(loss, lr=0.1))
    memory = sentry.present.losses
    sentry.go_back(memory, lr=0.3)

    assert sentry.present.losses == sentry.guard.moved_to(memory, 0.3)
    assert sentry.present.losses != memory


@pytest.mark.parametrize("count", [0, 1, 16, 95, 200, 1000])
@pytest.mark.parametrize("way", [lambda state: json.loads(json.dumps(state)), lambda state: decode(encode(state))])
def test_state(count, way):
    """A state saved as plain values at any step is restored exactly."""
    sentry = after(count, grad_norm=noisy(count, seed=4))
    judged(sentry, NAN, skipped=True)
    other = Sentry(SpikeGuard())
    other.load_state_dict(way(sentry.state_dict()))

    assert repr(other.present.losses) == repr(sentry.present.losses)
    assert repr(other.state_dict()) == repr(sentry.state_dict())
    assert (other.num_refused, other.present.num_skipped) == (sentry.num_refused, 1)


@pytest.mark.parametrize("guards", [(SpikeGuard(), FiniteGuard()), (FiniteGuard(), SpikeGuard())])
def test_state_of_another_guard(guards):
    """The state of another kind of guard is refused, and nothing is changed."""
    saved, loading = map(Sentry, guards)
    memory = loading.present.losses

    with pytest.raises(ValueError, match="the guard's state must have the fields"):
        loading.load_state_dict(saved.state_dict())
    assert loading.present.losses == memory
