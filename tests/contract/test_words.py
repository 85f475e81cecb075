"""Row 11: summary, phase, warnings and events say what happened, in the same words."""

import re

from learnit_r8 import events

from .cells import rule
from .run import Case, run
from .test_data import NAN


@rule()
def test_words_of_a_healthy_run(column):
    """A run that went well says that it is finished, at a rate that is a number, and nothing else."""
    found = run(column)
    summary = found.r8.summary()
    wrong = [text for text in ("lr nan", "training,") if text in summary]
    wrong += [f"phase {found.r8.phase}"] * (found.r8.phase != "finished")
    wrong += [each for each in found.said if "r8" in each.lower() or "restored" in each]

    assert wrong == []


@rule()
def test_words_of_a_refusal(column):
    """A refused batch is counted in the summary, and heard of."""
    found = run(column, Case(batch_faults={24: NAN}))
    wrong = [] if "losses refused: 1" in found.r8.summary() else [found.r8.summary().splitlines()[1]]
    wrong += ["no BatchRefused"] * (not found.heard(events.BatchRefused))

    assert wrong == []


@rule()
def test_words_of_a_heal(column):
    """Weights that were put back are said in the summary, and in a warning and an event with the step they are of."""
    found = run(column, Case(weight_faults={40: NAN}))
    summary, told = found.r8.summary(), " ".join(str(each) for each in found.events)
    steps = re.findall(r"(?:backup of step |restored to step |to_step=)(\d+)", told)
    wrong = [] if steps else ["no event says it"]
    if not re.search(r"healed|restored|put back|came from", summary):
        wrong.append(summary.splitlines()[1])
    if not any(f"step {step}" in each for each in found.said for step in steps):
        wrong.append("no warning says it")

    assert wrong == []
