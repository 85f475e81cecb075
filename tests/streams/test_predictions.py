"""What a model says of labels in streams: from torch's own losses by itself, or as the last of what a step returns."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, predictions_of
from learnit_r8.streams import epoch_stream, pipe, step_stream, take

torch = pytest.importorskip("torch")
nn = torch.nn
functional = nn.functional
pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 3


def trained(loss_fn, y=Y, *, outputs=3, lr=1e-12, epochs=2, **more):
    """The evidence after a training of a linear model, by default at next to no rate; and the model."""
    torch.manual_seed(0)
    model = nn.Linear(4, outputs)
    r8 = R8Scheduler(50, batch_size=16, num_epochs=epochs, initial_lr=lr, **more)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    events = list(pipe(epoch_stream((X, y), model, optimizer, loss_fn, scheduler=r8), take(epochs)))
    r8.table.learner.hand_over()
    assert events[-1]["step"] == epochs
    return r8.table.storage.evidence.whole, model


@pytest.mark.parametrize(
    "loss_fn", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none"), functional.cross_entropy]
)
def test_cross_entropy_is_known(loss_fn):
    """Every sample has the margin of its own logits; nothing is added to the script."""
    found, model = trained(loss_fn)

    np.testing.assert_allclose(found["margin"], predictions_of(model(X).detach().numpy(), Y.numpy()).margin, atol=1e-4)
    np.testing.assert_array_equal(found["given"], Y.numpy())
    assert set(found["visits"]) == {2}


def test_one_logit_is_of_two_classes():
    """A binary loss has labels of 0 and 1; one in between is none."""
    y = (Y % 2).float()[:, None]
    y[7] = 0.5
    found, _ = trained(nn.BCEWithLogitsLoss(), y, outputs=1)

    assert np.flatnonzero(found["visits"] == 0).tolist() == [7]
    np.testing.assert_array_equal(np.delete(found["given"], 7), np.delete(y[:, 0].numpy(), 7))


def test_ignored_labels_are_none():
    """A label that torch's loss leaves out is not judged."""
    y = torch.where(torch.arange(50) < 5, torch.tensor(-100), Y)
    found, _ = trained(nn.CrossEntropyLoss(), y)

    np.testing.assert_array_equal(found["visits"] > 0, np.arange(50) >= 5)


@pytest.mark.parametrize(
    ("loss_fn", "y"),
    [
        (nn.MSELoss(), torch.randn(50, 3)),
        (nn.CrossEntropyLoss(), torch.softmax(torch.randn(50, 3), 1)),
        (nn.BCEWithLogitsLoss(), torch.randint(0, 2, (50, 3)).float()),
        (lambda z, y: functional.cross_entropy(z, y), Y),
    ],
    ids=["regression", "mixed labels", "several labels", "a function of the user's"],
)
def test_others_report_losses_alone(loss_fn, y):
    """Where there is no single label, or the loss is not known, the training is as ever."""
    assert trained(loss_fn, y)[0] is None


@pytest.mark.parametrize("has_state", [False, True])
def test_steps_return_predictions_last(has_state):
    """A step of any framework returns its losses and what is predicted; with a state, that comes first."""
    logits, labels = X.numpy() @ np.ones((4, 3), "f4"), Y.numpy()
    r8 = R8Scheduler(50, batch_size=16, num_epochs=2)

    def step(indices, lr):
        return np.ones(len(indices), "f4"), predictions_of(logits[indices], labels[indices])

    def step_of_state(state, indices, lr):
        return {"w": state["w"] + 1}, *step(indices, lr)

    if has_state:
        events = list(step_stream(r8, step_of_state, state={"w": np.zeros(1)}))
        assert events[-1]["state"]["w"] == 8
    else:
        events = list(step_stream(r8, step))
    r8.table.learner.hand_over()

    assert len(events) == 8
    np.testing.assert_array_equal(r8.table.storage.evidence.whole["given"], labels)
    assert set(r8.table.storage.evidence.whole["visits"]) == {2}
