"""What the tests of the guards share: the verdicts on a whole course of losses."""

from learnit_r8 import SpikeGuard, Verdict


def judge_all(losses, guard=SpikeGuard(), state=None, **told):
    """All verdicts except GOOD, with their steps; ``told`` are sequences as long as the losses."""
    state = guard.begin() if state is None else state
    found = []
    for step, loss in enumerate(losses):
        state, verdict = guard.judge(state, float(loss), **{name: float(values[step]) for name, values in told.items()})
        if verdict is not Verdict.GOOD:
            found.append((step, verdict))
    return found
