"""Ordinary Keras scripts: the table holds the losses of a forward pass apart from Keras, or the script is refused."""

from __future__ import annotations

import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

from tests.keras.loss_scripts import outcome
from tests.programs import ROOT, printed_by

QUICK = {
    "equal": (
        "outputs with weights",
        "outputs in a list",
        "masked, two outputs",
        "masked, an output without a loss",
        "compute_loss with a penalty",
        "a subclass, two inputs",
    ),
    "refused": ("other data", "shuffled", "other steps"),
}  # fmt: skip


@pytest.mark.program
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "expected"), [(name, found) for found, names in QUICK.items() for name in names])
def test_the_table_holds_the_losses_of_a_forward_pass(name, expected):
    """Some of the forty, where losses are put together of several, or the batches are not those of the scheduler."""
    assert outcome(name) == expected


@pytest.mark.slow
@pytest.mark.parametrize("back_end", ["tensorflow", "jax", "torch"])
def test_every_script_is_right_or_refused(back_end):
    """All forty on each back end."""
    printed_by(ROOT, "-m", "tests.keras.loss_scripts", KERAS_BACKEND=back_end)
