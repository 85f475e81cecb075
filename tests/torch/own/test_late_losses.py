"""Losses that come some steps after their batch, as from a GPU."""

import warnings

import pytest
import torch
from wild_scripts import Gan, OneCycle, seed_all

from learnit_r8.torch.readback import Readback

from .test_healing import Fault
from .test_no_harm import differences


class Late:
    """A copy that has come when three others were begun after it."""

    begun = 0

    def __init__(self, values):
        type(self).begun += 1
        self.number, self.values = self.begun, values.clone()

    def is_done(self):
        return self.begun >= self.number + 3

    def wait(self):
        pass

    def read(self):
        return self.values.numpy()


def trained(kind, **settings):
    seed_all()
    script = kind(**settings)
    if script.with_r8:
        script.r8._losses.readback = Readback(Late)
    seed_all(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return script.run()


@pytest.mark.parametrize("kind", [Gan, OneCycle])
def test_late_losses_change_nothing(kind):
    """The run is that of the script to the bit, and has as many steps."""
    plain, watched = trained(kind, with_r8=False), trained(kind)

    assert not differences(plain.state(), watched.state())
    assert watched.r8.scheduler.global_step == len(plain.losses)
    assert watched.r8.scheduler.is_over


@pytest.mark.parametrize("kind", [Gan, OneCycle])
def test_a_nan_is_healed_though_it_is_heard_of_late(kind):
    """The batches that were trained on with damaged weights meanwhile count as refused, and the weights are healthy."""
    healed = trained(kind, hook=Fault(12))

    for part in healed.parts():
        if isinstance(part, torch.nn.Module):
            assert all(bool(each.isfinite().all()) for each in part.parameters())
    assert healed.r8.scheduler.pace.num_out == 0
