"""Whatever another process wrote is refused, or means what it says: no crash, no hang, nothing accepted by mistake.

`corpus.jsonl` holds the inputs that were once read wrongly; they are read first. ``-m slow`` reads 100,000.
"""

import base64
import json
import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, read_in_time

CORPUS = [json.loads(line) for line in Path(__file__).with_name("corpus.jsonl").read_text().splitlines()]
NUM_BRIEF = {"requests": 400, "journals": 150, "checkpoints": 150, "settings": 400, "generations": 150, "records": 150}
NUM_LONG = {
    "requests": 25_000, "journals": 15_000, "checkpoints": 15_000, "settings": 25_000, "generations": 10_000,
    "records": 10_000,
}  # fmt: skip


def fuzz(name, target, count, seed):
    """Read damaged inputs; the first bad one fails, in the form of a line of the corpus."""
    for number in range(count):
        content = target.damaged(random.Random(f"{seed} {number}"))
        try:
            read_in_time(target, content)
        except Exception as error:
            line = json.dumps([name, base64.b64encode(content).decode()])
            raise AssertionError(f"{name} {seed} {number}: {error!r}; for the corpus: {line[:20_000]}") from error


@pytest.fixture(params=TARGETS)
def named(request, tmp_path):
    """A name and its target, in a folder of its own."""
    return request.param, TARGETS[request.param](tmp_path)


def test_undamaged_input_is_read(named):
    """The inputs that are damaged below are good ones."""
    for content in named[1].seeds():
        read_in_time(named[1], content)


def test_corpus_is_read_rightly(named):
    """Inputs that have once been read wrongly."""
    for name, content in CORPUS:
        if name == named[0]:
            read_in_time(named[1], base64.b64decode(content))


def test_damaged_input_is_refused(named):
    """Some damaged inputs, other ones for each kind."""
    fuzz(*named, NUM_BRIEF[named[0]], "brief")


@pytest.mark.slow
def test_much_damaged_input_is_refused(named):
    """100,000 damaged inputs in all."""
    assert sum(NUM_LONG.values()) == 100_000
    fuzz(*named, NUM_LONG[named[0]], "long")
