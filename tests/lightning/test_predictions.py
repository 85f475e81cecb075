"""What a step under Lightning says of labels reaches the table, in one call."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from torch.nn.functional import cross_entropy as plain_cross_entropy

from learnit_r8 import predictions_of
from learnit_r8.lightning import cross_entropy
from learnit_r8.torch.predictions import predictions_of as tensors_of
from tests.drive import evidence_of
from tests.lightning.common import DATA, Digits, fit

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]
X, Y = DATA.tensors


class Returning(Digits):
    """A linear classifier whose step returns what a function makes of logits and labels, at next to no rate."""

    def __init__(self, make):
        super().__init__()
        self.net, self.make = torch.nn.Linear(64, 10), make

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-12)

    def training_step(self, batch, _):
        x, y = batch
        return self.make(self.net(x), y)


def by_hand(logits, targets):
    losses = plain_cross_entropy(logits, targets, reduction="none")
    return {"loss": losses.mean(), "losses": losses.detach(), "predictions": tensors_of(logits, targets)}


@pytest.mark.parametrize("make", [cross_entropy, by_hand])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_visit_is_that_of_the_logits(make, accumulate):
    """The margins are those of each sample's own logits, with accumulated gradients and a short last batch."""
    module, r8, _ = fit(module=Returning(make), epochs=2, accumulate_grad_batches=accumulate)
    expected = predictions_of(module.net(X).detach().numpy(), Y.numpy())
    found = evidence_of(r8)

    np.testing.assert_allclose(found["margin"], expected.margin, atol=1e-4)
    np.testing.assert_array_equal(found["given"], Y.numpy())
    assert set(found["visits"]) == {2}


def test_class_weights_go_by_class_whatever_the_dtype():
    """A uint8 is no mask, and its 255 and 156 are neither -1 nor -100."""
    logits, class_weights = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(1.0, 9)
    targets = torch.tensor([7, 7, 7, 7, 7, 7, 7, 1])
    found = cross_entropy(logits, targets.to(torch.uint8), class_weights=class_weights)

    torch.testing.assert_close(found["loss"], plain_cross_entropy(logits, targets, weight=class_weights))
    with pytest.raises(ValueError, match=r"^targets must be in \[0, 8\), got values from 156 to 255\.$"):
        cross_entropy(logits[:2], torch.tensor([255, 156], dtype=torch.uint8))


@pytest.mark.parametrize("num_logits", [1, 3])
@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"targets": torch.tensor([0, 7])}, ValueError, r"^targets must be in \[0, \d\), got values from 0 to 7[.;]"),
        ({"targets": torch.tensor([0, -2])}, ValueError, r"^targets must be in \[0, \d\), got values from -2 to 0[.;]"),
        ({"label_smoothing": -5.0}, ValueError, r"^label_smoothing must be in \[0, 1\], got -5\.0\.$"),
        ({"label_smoothing": 2.0}, ValueError, r"^label_smoothing must be in \[0, 1\], got 2\.0\.$"),
        ({"class_weights": torch.ones(4)}, ValueError, r"^class_weights must have shape \(\d,\), .* got \(4,\)\.$"),
        ({"class_weights": [1.0, 2.0]}, TypeError, r"^class_weights must be a tensor, got a list"),
    ],
)
def test_settings_that_do_not_fit_are_refused(num_logits, given, error, said):
    """With one logit as with several."""
    with pytest.raises(error, match=said):
        cross_entropy(torch.zeros(2, num_logits), **{"targets": torch.tensor([0, 1]), **given})


def test_entry_of_the_users_own_is_left_alone():
    """Steps that return tensors of that name train as before."""
    module = Returning(lambda z, y: {"loss": plain_cross_entropy(z, y), "predictions": z.argmax(1)})
    _, r8, _ = fit(module=module, epochs=1)

    assert r8.table.source == "batch means of 32"
    assert evidence_of(r8) is None


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (
            lambda z, y: {"loss": plain_cross_entropy(z, y), "predictions": tensors_of(z, y)},
            ValueError,
            r"logits need one loss for each sample, got the mean of a batch",
        ),
        (
            lambda z, y: {**cross_entropy(z, y), "predictions": tensors_of(z[:5], y[:5])},
            ValueError,
            r"predictions\.margin must have shape \(32,\), as the losses, got \(5,\)",
        ),
    ],
    ids=["a mean", "too few"],
)
def test_predictions_that_do_not_fit_the_losses_are_refused(make, error, said):
    """As those of a mean, and of a part of the batch."""
    with pytest.raises(error, match=said):
        fit(module=Returning(make), epochs=1)
