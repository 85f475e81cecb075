"""The sentry judges losses, gradient norms and skipped steps, and its state goes back with the model."""

import json
import math

import numpy as np
import pytest

from learnit_r8 import FiniteGuard, SpikeGuard, Verdict
from learnit_r8.checkpoint.codec import decode, encode
from learnit_r8.guard import Sentry
from learnit_r8.guard.monitor import MOST_SKIPPED

NAN, INF = math.nan, math.inf


def noisy(count, seed=0, level=1.0):
    return (level * np.exp(0.2 * np.random.default_rng(seed).standard_normal(count))).tolist()


def judged(sentry, *given, **more):
    """The verdict on a report, which the sentry keeps."""
    judgement = sentry.judge(*given, **more)
    sentry.keep(judgement)
    return judgement.verdict


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

    assert judged(sentry, 1.0, grad_norm=norm) is Verdict.NOT_FINITE
    assert sentry.num_refused == 1


def test_norms_spike():
    """Gradient norms are judged like losses: two that are far from all before are a spike."""
    sentry = after(300, grad_norm=noisy(300, seed=1, level=7.0))
    verdicts = [judged(sentry, 1.0, grad_norm=200.0) for _ in range(2)]

    assert verdicts == [Verdict.GOOD, Verdict.SPIKE]


def test_losses_and_norms_are_kept_apart():
    """Losses and norms have separate thresholds."""
    sentry = after(300, grad_norm=noisy(300, seed=1, level=1000.0))

    assert [judged(sentry, loss, grad_norm=1000.0) for loss in noisy(50, seed=2)] == [Verdict.GOOD] * 50
    assert [judged(sentry, 30.0, grad_norm=1000.0) for _ in range(2)][-1] is Verdict.SPIKE


def test_norms_may_grow():
    """Norms that grow slowly through a healthy training are neither drift nor spike."""
    sentry = Sentry(SpikeGuard())
    fall, rise = np.exp(-np.arange(3000) / 200), np.linspace(0, 5, 3000)
    norms = (0.5 + 3 * fall + rise) * np.array(noisy(3000))

    assert {judged(sentry, 1.0, grad_norm=norm) for norm in norms.tolist()} == {Verdict.GOOD}


def test_norms_may_be_missing():
    """A step without a norm does not change the state for norms."""
    sentry = after(300, grad_norm=noisy(300))
    _, norms = sentry.memory
    judged(sentry, 1.0)

    assert sentry.memory[1] is norms


@pytest.mark.parametrize("loss", [0.7, 1e6, -3.0])
def test_skipped_step_with_a_loss(loss):
    """A skipped optimizer step is no alarm; its norm does not count, and its loss is good if it is finite."""
    sentry = after(300)
    memory = sentry.memory

    assert [judged(sentry, loss, grad_norm=INF, skipped=True) for _ in range(3)] == [Verdict.GOOD] * 3
    assert sentry.memory == memory
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


def test_a_step_between_skipped_ones():
    """Skipped steps count only in a row."""
    sentry = after(10)
    verdicts = {judged(sentry, 1.0, skipped=step % 20 > 0) for step in range(200)}

    assert verdicts == {Verdict.GOOD}


def test_memory_goes_back():
    """After going back, the sentry judges as if later losses had never come, but keeps its count of refusals."""
    sentry = after(300)
    memory = sentry.memory
    before = [judged(sentry, loss) for loss in noisy(60, level=5.0)]
    sentry.go_back(memory)

    assert [judged(sentry, loss) for loss in noisy(60, level=5.0)] == before
    assert before.count(Verdict.SPIKE) == 1
    assert sentry.num_refused == 2


def test_suspicion_of_either():
    """Suspicion is the larger of those of losses and norms."""
    sentry = after(300, grad_norm=noisy(300))
    judged(sentry, 1.0, grad_norm=30.0)

    assert 0.4 < sentry.suspicion < 1


@pytest.mark.parametrize("count", [0, 1, 16, 95, 200, 1000])
@pytest.mark.parametrize("way", [lambda state: state, lambda state: json.loads(json.dumps(state))])
def test_state(count, way):
    """A state saved as plain values at any step is restored exactly."""
    sentry = after(count, grad_norm=noisy(count, seed=4))
    judged(sentry, NAN, skipped=True)
    other = Sentry(SpikeGuard())
    other.load_state_dict(way(sentry.state_dict()))

    assert repr(other.memory) == repr(sentry.memory)
    assert (other.num_refused, other.num_skipped) == (sentry.num_refused, 1)


def test_state_through_a_checkpoint():
    """The checkpoint's format keeps the state bit for bit."""
    sentry = after(500)
    other = Sentry(SpikeGuard())
    other.load_state_dict(decode(encode(sentry.state_dict())))

    assert repr(other.memory) == repr(sentry.memory)


@pytest.mark.parametrize("guards", [(SpikeGuard(), FiniteGuard()), (FiniteGuard(), SpikeGuard())])
def test_state_of_another_guard(guards):
    """The state of another kind of guard is refused, and nothing is changed."""
    saved, loading = map(Sentry, guards)
    memory = loading.memory

    with pytest.raises(ValueError, match="the guard's state must have the fields"):
        loading.load_state_dict(saved.state_dict())
    assert loading.memory == memory
