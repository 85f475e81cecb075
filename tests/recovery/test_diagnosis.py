"""The sentence that says what was at fault in an incident."""

import pytest
from learnit_r8.recovery.diagnosis import Attempt, conclusion


def attempt(step, to_step, *, reason="spike", next_lr=0.1, accepted=0, source="backup"):
    return Attempt(step, 9.0, reason, 0.1, (), source, to_step, next_lr=next_lr, accepted=accepted)


@pytest.mark.parametrize(
    ("attempts", "text"),
    [
        ([attempt(100, 90, reason="not finite", accepted=40)], "its batch or a passing fault, not of earlier weights"),
        (
            [attempt(100, 30, accepted=200)],
            "because of the rate, a batch or a passing fault, which a single restore cannot",
        ),
        (
            [attempt(100, 30, next_lr=0.05), attempt(110, 30, next_lr=0.01, accepted=200)],
            "the rate was too high: with the state of step 30 and a rate of 0.01, 200 losses were good, but not at 0.0",
        ),
        (
            [attempt(100, 80, next_lr=0.05), attempt(110, 30, next_lr=0.05, accepted=200)],
            "the weights have been damaged since a step between 30 and 80",
        ),
        (
            [attempt(100, 80, next_lr=0.05), attempt(110, 30, next_lr=0.01, accepted=200)],
            "the weights have been damaged since before step 80, or the rate was too high",
        ),
        ([attempt(100, -1, source="")], "nothing was restored, and the losses became good by themselves"),
        ([], "the attempts before the resume are no longer known"),
    ],
)
def test_conclusion_says_no_more_than_was_seen(attempts, text):
    """The conclusion says what was at fault, as far as the attempts show."""
    assert text in conclusion(attempts)
