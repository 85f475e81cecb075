"""Losses of half precision, and with nothing to learn from."""

import pytest

torch = pytest.importorskip("torch")

from learnit_r8.torch.losses import cross_entropies, read_losses

HALVES = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", HALVES)
def test_padding_alone_is_a_zero_in_half_precision(dtype):
    """A row of nothing but padding has the loss 0, not 0 / 0."""
    losses, mask = torch.ones(2, 3, dtype=dtype), torch.tensor([[True] * 3, [False] * 3])
    read = read_losses(losses, 2, mask=mask)

    assert read.values.tolist() == [1.0, 0.0]
    assert read.loss == 1.0


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("length", [257, 2049, 70_000])
def test_tokens_of_half_precision_are_counted_exactly(dtype, length):
    """Numbers that the kind cannot hold do not change the mean."""
    losses = torch.full((2, length), 3.0, dtype=dtype)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1] = torch.arange(length) % 2 == 0
    read = read_losses(losses, 2, mask=mask)

    assert read.values.tolist() == [3.0, 3.0]
    assert read.loss == 3.0


def test_weighted_sum_of_half_precision_does_not_overflow():
    """The weighted mean of many samples is finite where their sum is beyond float16."""
    read = read_losses(torch.full((4096,), 100.0, dtype=torch.float16), 4096, weights=torch.ones(4096).half())

    assert read.loss == 100.0


def test_weights_of_zero_leave_nothing_to_learn():
    """A batch whose samples all weigh nothing trains on 0: a NaN would spoil the weights behind finite losses."""
    losses = torch.ones(3, requires_grad=True)
    loss = read_losses(losses, 3, weights=torch.zeros(3)).loss
    loss.backward()

    assert loss == 0
    assert losses.grad.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("logits", "targets", "said"),
    [
        (torch.zeros(4, 1, 10), torch.zeros(4, 1).long(), "with tokens or pixels, no single class is predicted"),
        (torch.zeros(4, 10), torch.zeros(4, 2).long(), "several labels a sample"),
        (torch.zeros(4, 10), torch.zeros(4), "whole numbers"),
    ],
)
def test_cross_entropy_has_one_label_a_sample(logits, targets, said):
    """The message says what was given."""
    with pytest.raises(ValueError, match=said):
        cross_entropies(logits, targets, class_weights=None, label_smoothing=0.0)
