"""What a stage, a sink or a stream cannot do is refused, at the call where it can be seen there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.streams import (
    augment,
    best,
    early_stop,
    ema,
    epoch_stream,
    iter_batches,
    pipe,
    print_keys,
    step_stream,
    take,
    tap,
    tick,
    validation_loss,
)
from learnit_r8.triggers import every
from tests.stream_common import line, losses

torch = pytest.importorskip("torch")
nn = torch.nn
MSE, ONES = nn.MSELoss(), torch.ones(8, 1)


def stream(**changes):
    """Of eight samples in batches of four."""
    data, model, optimizer = line(8)
    given = {"data": data, "model": model, "optimizer": optimizer, "loss_fn": MSE, "batch_size": 4, **changes}
    return epoch_stream(**given)


def scheduled(num_samples=8, **changes):
    """The same, drawn by a scheduler."""
    r8 = R8Scheduler(num_samples, batch_size=4, num_epochs=1)
    return stream(**{"batch_size": None, "scheduler": r8, **changes})


# fmt: off
MISTAKES = [
    (lambda: pipe([], take(1), 5), TypeError, "stages must be callable, got 5"),
    (lambda: pipe(5, take(1)), TypeError, "not iterable"),
    *[(lambda n=n: take(n), ValueError, "n must be a whole number >= 0, got") for n in (-1, 2.5, None, True, math.nan)],
    (lambda: augment(...), TypeError, "fn must be callable, got Ellipsis"),
    (lambda: list(augment(lambda _: 5)(losses(1.0))), TypeError,
     r"fn of augment\(\) must return a dictionary or None, got 5 from"),
    (lambda: tick(3), TypeError, "fn must be callable, got 3"),
    (lambda: tap(None), TypeError, "fn must be callable, got None"),
    *[(lambda bad=bad: tap(print, every=bad), ValueError, "every must be a whole number >= 1, got")
      for bad in (0, -1, 2.5, True, "3")],
    (lambda: tap(print, start=0), ValueError, "start must be a whole number >= 1, got 0"),
    (lambda: tap(print, every=every(3), start=2), ValueError, "start must come with a number for every, got 2"),
    *[(lambda bad=bad: early_stop("loss", patience=bad), ValueError, "patience must be a whole number >= 1, got")
      for bad in (0, -1, 2.5, None)],
    (lambda: early_stop("loss", patience=1, mode="lowest"), ValueError, 'mode must be "min" or "max", got \'lowest\''),
    *[(lambda bad=bad: early_stop("loss", patience=1, min_delta=bad), ValueError,
       "min_delta must be finite and >= 0, got") for bad in (-0.1, math.nan, math.inf, "0")],
    (lambda: list(early_stop("lose", patience=1)(losses(1.0))), KeyError,
     r"key must be one of the event's keys \['loss'\], got 'lose'"),
    *[(lambda bad=bad: list(early_stop("loss", patience=1)(losses(bad))), TypeError,
       r"event\['loss'\] must be a real number") for bad in ("1.0", None, [1.0], np.ones(3))],
    *[(lambda how=how: ema("loss", **how), ValueError, "exactly one of decay and half_life must be given, got")
      for how in ({}, {"decay": 0.5, "half_life": 3})],
    *[(lambda bad=bad: ema("loss", decay=bad), ValueError, r"decay must be in \[0, 1\), got")
      for bad in (1.0, -0.1, math.nan, "0.5")],
    *[(lambda bad=bad: ema("loss", half_life=bad), ValueError, "half_life must be finite and > 0 events, got")
      for bad in (0, -1, math.nan, math.inf, "3")],
    (lambda: list(ema("val", decay=0.5)(losses(1.0))), KeyError, "got 'val'"),
    (lambda: best("loss", mode="mini"), ValueError, "mode must be"),
    (lambda: list(best("loss")(losses(1.0))), TypeError,
     r"event\['model'\] must have a state_dict\(\) for best\(\) to keep, got None"),
    (lambda: print_keys("a", precision=-1), ValueError, "precision must be a whole number >= 0, got -1"),
    (lambda: print_keys(include_step=False), ValueError,
     r"keys must name something to print where include_step is False, got \(\)"),
    (lambda: iter_batches(), ValueError, r"tensors must have the same number of rows, at least 1, got \[\]"),
    (lambda: iter_batches(torch.ones(3), torch.ones(4)), ValueError, r"got \[3, 4\]"),
    (lambda: iter_batches(torch.ones(0, 2)), ValueError, r"got \[0\]"),
    (lambda: iter_batches([1, 2]), TypeError, "tensors must be torch tensors, got list"),
    (lambda: iter_batches(ONES, batch_size=0), ValueError, "batch_size must be a whole number >= 1, got 0"),
    (lambda: validation_loss((ONES, ONES[:3]), MSE), ValueError,
     r"data must have the same number of rows, at least 1, got \[8, 3\]"),
    (lambda: validation_loss((ONES, ONES), MSE, batch_size=0), ValueError,
     "batch_size must be a whole number >= 1, got 0"),
    (lambda: validation_loss((ONES, ONES), "mse"), TypeError, "loss_fn must be callable, got 'mse'"),
    (lambda: validation_loss((ONES, ONES), MSE)({"step": 1}), TypeError, "model must be a torch.nn.Module, got None"),
    # Streams.
    *[(lambda changes=changes: stream(**changes), error, text) for changes, error, text in (
        ({"data": (ONES,)}, ValueError, "data must be inputs and a label last, got 1 tensors"),
        ({"data": (ONES, ONES[:1])}, ValueError, r"same number of rows, at least 1, got \[8, 1\]"),
        ({"data": (ONES[:0], ONES[:0])}, ValueError, r"at least 1, got \[0, 0\]"),
        ({"data": (ONES, torch.tensor(1.0))}, ValueError, r"at least 1, got \[8, 0\]"),
        ({"data": (), "last_label": False}, ValueError, r"at least 1, got \[\]"),
        ({"data": ONES}, TypeError, "data must be a tuple of tensors, got Tensor"),
        ({"data": (np.ones((8, 1)), np.ones(8))}, TypeError, "data must be torch tensors, got ndarray"),
        ({"model": print}, TypeError, "model must be a torch.nn.Module, got <built-in function print>"),
        ({"optimizer": None}, TypeError, "optimizer must be a torch.optim.Optimizer, got None"),
        ({"loss_fn": None}, TypeError, "loss_fn must be callable, got None"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number >= 1, got 0"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be a whole number >= 1, got 2.5"),
        ({"extra": 5}, TypeError, "extra must be a dictionary or None, got 5"),
        ({"scheduler": print}, TypeError, "scheduler must be an R8Scheduler, got <built-in function print>"),
        *[({"extra": {key: 1, "fine": 2}}, ValueError, rf"extra must not have the reserved keys .*, got \['{key}'\]")
          for key in ("step", "train_loss", "train_time_sec", "model")])],
    (lambda: scheduled(6), ValueError, "data must have the scheduler's 6 samples, got 8"),
    (lambda: scheduled(batch_size=32), ValueError, "batch_size must be the scheduler's 4 or left out, got 32"),
    (lambda: scheduled(shuffle=False), ValueError,
     "shuffle and generator must be left out where a scheduler draws, got False"),
    (lambda: scheduled(generator=torch.Generator()), ValueError, "shuffle and generator must be left out"),
    (lambda: list(scheduled(loss_fn=lambda p, y: p[:3, 0])), ValueError,
     r"loss_fn must give one loss for each of the 4 samples, got shape \(3,\)"),
    (lambda: step_stream(R8Scheduler(40, batch_size=10, num_epochs=1), None), TypeError,
     "train_step must be callable, got None"),
    (lambda: step_stream(5, print), TypeError, "r8 must be an R8Scheduler, got 5"),
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    with pytest.raises(error, match=text):
        act()


def test_a_scheduler_s_own_batch_size_may_be_given():
    assert scheduled(batch_size=4)
