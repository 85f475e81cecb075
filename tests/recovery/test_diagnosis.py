"""What an incident was, in a sentence."""

import pytest

from learnit_r8.recovery.diagnosis import Attempt, conclusion


def attempt(step, to_step, *, reason="spike", next_lr=0.1, accepted=0, source="backup"):
    return Attempt(step, 9.0, reason, 0.1, (), source, to_step, next_lr=next_lr, accepted=accepted)


@pytest.mark.parametrize(
    ("attempts", "text"),
    [
        ([attempt(100, 90, reason="not finite", accepted=40)], "its batch or a passing fault, and not the weights"),
        ([attempt(100, 30, accepted=200)], "through the rate, a batch or a passing fault, which one restore cannot"),
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
        ([], "what was refused before the resume is not known any more"),
    ],
)
def test_conclusion_says_no_more_than_was_seen(attempts, text):
    """An incident that ends says what was at fault, as far as what was tried can tell it."""
    assert text in conclusion(attempts)
