import collections

import numpy as np
import pytest
import torch

from learnit_r8 import OwnBatches, R8Scheduler
from learnit_r8.engine.feed.batch_size import BatchMeasure, read_size
from learnit_r8.events import Notice
from learnit_r8.state.tree import size_of

FOUR = np.zeros((4, 3))


@pytest.mark.parametrize(
    "item",
    [
        FOUR,
        (FOUR, np.zeros(4)),
        [FOUR, 7],
        {"x": FOUR, "y": 1},
        (None, {"deep": [FOUR]}),
        collections.UserDict(x=FOUR),
        ["four", "texts", "in a", "list"],
        [object(), object(), object(), object()],
    ],
)
def test_size_is_read_from_the_first_array(item):
    """Of arrays and nests of them it is the first dimension; of a list of other things their number."""
    assert read_size(item) == 4


@pytest.mark.parametrize("item", [None, 5, "text", np.array(3.0), (1, 2), {}, []])
def test_what_has_no_size_is_not_guessed(item):
    """Numbers, texts and what is empty have none."""
    assert read_size(item) is None


def test_unknown_size_is_said_once():
    """Each batch counts as one sample then, and a notice says how to tell."""
    heard = []
    r8 = R8Scheduler(num_epochs=1, scheduler_mode="keep", handle_signals=False, listeners=[heard.append])
    for _ in r8.batches([1, 2, 3]):
        r8.update_with_loss(1.0)

    said = [event.text for event in heard if isinstance(event, Notice)]
    assert [text for text in said if "the size of a batch could not be read from a int" in text and "size=" in text]
    assert len(said) == 1


def test_sizes_are_told():
    """A number, or a function of a batch, for samples and tokens."""
    measure = BatchMeasure(lambda batch: len(batch), 7, tell_unknown=pytest.fail)
    assert measure.of("abc") == (3, 7)


def test_tokens_must_be_known_for_a_budget_of_them():
    """The first batch says so, before anything is trained on."""
    r8 = R8Scheduler(batch_size=OwnBatches(num_tokens=10), scheduler_mode="keep", handle_signals=False)
    with pytest.raises(ValueError, match="tokens must be given where the budget is num_tokens"):
        next(iter(r8.batches([(FOUR, FOUR)])))
    assert r8.pace.num_out == 0


@pytest.mark.parametrize("value", ["4", 0, 2.5, True])
def test_what_is_told_must_be_a_number_or_a_function(value):
    """Anything else is named when batches() is called."""
    r8 = R8Scheduler(num_steps=3, handle_signals=False)
    for name in ("size", "tokens"):
        with pytest.raises(TypeError, match=f"{name} must be a whole number >= 1, a function of a batch, or None"):
            r8.batches([1], **{name: value})


@pytest.mark.parametrize("value", ["4", -1, 2.5, None])
def test_a_function_must_return_a_number(value):
    """Its result is named."""
    r8 = R8Scheduler(num_steps=3, handle_signals=False)
    with pytest.raises(ValueError, match="size must give a whole number >= 0, got"):
        next(iter(r8.batches([1], size=lambda batch: value)))


def test_bytes_are_those_of_all_arrays():
    """Of what is no array, none are counted."""
    assert size_of({"x": FOUR, "y": [FOUR, "text"]}) == 2 * FOUR.nbytes


def test_large_batches_are_not_kept(monkeypatch):
    """They would stay in memory with each backup; the losses alone decide then, and a notice says so once."""
    monkeypatch.setattr("learnit_r8.engine.feed.feed.MOST_KEPT_BYTES", 10)
    heard = []
    state = {"w": np.zeros(2)}
    r8 = R8Scheduler(
        num_steps=30, scheduler_mode="keep", handle_signals=False, listeners=[heard.append], backup_every=10,
        state_callback=lambda: state, load_callback=lambda source, from_ram: None,
    )  # fmt: skip
    for _ in r8.batches([FOUR] * 30):
        r8.update_with_loss(1.0)

    assert [event for event in heard if isinstance(event, Notice) and "are not kept" in event.text]
    assert all(batch is None for backup in r8.host.backup.backups for batch in backup.witness)


def test_bytes_of_a_sparse_tensor_are_those_of_its_parts():
    """Four values, and two indices for each; torch itself knows no bytes of such an adjacency of a graph."""
    assert size_of((FOUR, torch.eye(4).to_sparse())) == FOUR.nbytes + 4 * (4 + 2 * 8)
