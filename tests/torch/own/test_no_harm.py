import functools

import pytest
import torch
from wild_scripts import SCRIPTS, Epochs, Workers, seed_all


def flat(value, path=""):
    """The leaves of a state by their path."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from flat(each, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for place, each in enumerate(value):
            yield from flat(each, f"{path}.{place}")
    else:
        yield path, value


def differences(one, two):
    """The paths in which two states are not equal to the bit."""
    one, two = dict(flat(one)), dict(flat(two))
    assert one.keys() == two.keys()
    return [
        path
        for path in one
        if not (torch.equal(one[path], two[path]) if isinstance(one[path], torch.Tensor) else one[path] == two[path])
    ]


def trained(kind, **settings):
    seed_all()
    script = kind(**settings)
    seed_all(1)
    return script.run()


@functools.cache
def plain_epochs():
    """The script of epochs without R8, at its end."""
    return trained(Epochs, with_r8=False).state()


@pytest.mark.parametrize(
    "kind",
    # The table of a loader with workers is looked at in test_observed, where the script is compared, too.
    [pytest.param(kind, marks=pytest.mark.program) if kind is Workers else kind for kind in SCRIPTS],
    ids=lambda kind: kind.__name__,
)
def test_a_script_with_r8_is_the_script_without_it_to_the_bit(kind):
    """Weights, optimizer state, random generators, order of the data and losses are equal; nothing is refused."""
    plain, watched = trained(kind, with_r8=False), trained(kind)

    assert not differences(plain.state(), watched.state())
    assert watched.r8.scheduler.sentry.num_refused == 0
    assert watched.r8.scheduler.global_step == len(plain.losses)


@pytest.mark.parametrize("settings", [{"keep_witness": False}, {"listeners": [lambda event: None]}])
def test_settings_of_views_and_witnesses_change_nothing(settings):
    """Neither listeners nor kept batches touch a run."""
    assert not differences(plain_epochs(), trained(Epochs, **settings).state())


def test_files_change_nothing(tmp_path):
    """Nor do checkpoints and a run folder."""
    watched = trained(Epochs, checkpoint_dir=tmp_path / "kept", run_dir=tmp_path / "run", checkpoint_every=5)

    assert not differences(plain_epochs(), watched.state())
    assert list((tmp_path / "kept").iterdir())


@pytest.mark.slow
def test_a_compiled_model_is_as_it_was():
    """`torch.compile` compiles what it would have compiled.

    Each run begins with nothing compiled: a second one in a process differs from the first in its last bits, with R8 or
    without.
    """

    class Compiled(Epochs):
        def build(self):
            super().build()
            torch._dynamo.reset()
            self.model = torch.compile(self.model)

    assert not differences(trained(Compiled, with_r8=False).state(), trained(Compiled).state())
