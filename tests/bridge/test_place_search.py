"""Where an incident began, in a model that does not run by itself."""

import math

import numpy as np
import pytest

from learnit_r8.bridge.place_search import MAY_BE, PlaceSearch, Shown
from learnit_r8.recovery.cause import UNKNOWN, Refusal


class Subject:
    """A model that raises when it is run outside of its own step.

    Args:
        error: What it raises.
        bad: Arrays of its weights that are not finite.
    """

    is_exact, before, missing = False, None, ""

    def __init__(self, error, bad=()):
        self.batch, self.error, self.bad = {"x": np.ones((4, 2))}, error, dict(bad)

    def bad_weights(self):
        return self.bad

    def run(self, batch, weights):
        raise self.error


REFUSAL = Refusal(9, math.nan, 1.0, is_finite=False, is_gradient=False, backups=[(5, {"w": np.ones(2)})], lr=0.1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotImplementedError("no call()"), "the model does not run by itself (NotImplementedError: no call())"),
        (ValueError("not a simplex"), "the model raises as R8 runs the batch again (ValueError: not a simplex)"),
    ],
)
def test_a_model_without_a_forward_pass_of_its_own_raises_nothing(error, said):
    """An error of the kind that only a step of the user's own avoids is none of the batch."""
    assert PlaceSearch(REFUSAL, Subject(error)).solve().text == said


def test_weights_are_named_though_the_model_does_not_run():
    found = PlaceSearch(REFUSAL, Subject(AttributeError("no attribute"), {"dense/kernel": 1})).solve()

    assert found.where == "dense/kernel"
    assert found.rest == ("the model does not run by itself (AttributeError: no attribute)",)


class Overflowing(Subject):
    """A model whose outputs overflow with the present weights, which are finite, and with no others."""

    def __init__(self):
        super().__init__(None)

    def run(self, batch, weights):
        return Shown(math.nan, "dense", "Inf") if weights is None else Shown(1.0)

    def bad_labels(self):
        return (), ""


def test_of_finite_weights_with_which_alone_the_batch_is_bad_no_cause_is_called_certain():
    """Whether updates were too large, or a weight was damaged, no run of the batch can tell."""
    found = PlaceSearch(REFUSAL, Overflowing()).solve()

    assert (found.kind, found.is_certain) == (UNKNOWN, False)
    assert found.text == "the batch is good with the weights of step 5, and bad with the present ones"
    assert found.rest == ("it shows first in `dense`", MAY_BE)


class Poisoned(Subject):
    """A model whose weights are damaged by the batch before, whose loss was finite and whose gradient was not."""

    before = {"x": np.full((4, 2), 3.0)}, (10, 11, 12, 13)

    def run(self, batch, weights):
        is_before = batch["x"].max() == 3
        return Shown(1.0, rows=(2,), gradient="dense/kernel") if is_before and len(batch["x"]) > 3 else Shown(1.0)

    def bad_labels(self):
        return (), ""


def test_the_batch_before_is_looked_into_where_the_refused_one_is_good():
    """Its samples are its own, not those of the refused batch."""
    found = PlaceSearch(REFUSAL, Poisoned(None, {"dense/kernel": 4})).solve()

    assert found.samples == (12,)
    assert "its loss was finite, and its update has damaged the weights" in found.rest
