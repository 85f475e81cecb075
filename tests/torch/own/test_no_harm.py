import functools

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import mse_loss
from wild_scripts import SCRIPTS, Epochs, Workers, seed_all

from learnit_r8.torch import attach


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


class Codebook(torch.nn.Module):
    """An autoencoder whose codes are the nearest rows of a codebook (van den Oord et al., arXiv 1711.00937)."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16))
        self.decoder = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        self.book = torch.nn.Embedding(64, 16)
        self.book.weight.data.uniform_(-1 / 64, 1 / 64)

    def forward(self, x):
        code = self.encoder(x)
        nearest = self.book(torch.cdist(code, self.book.weight).argmin(1))
        rebuilt = self.decoder(code + (nearest - code).detach())
        return mse_loss(nearest, code.detach()) + 0.25 * mse_loss(code, nearest.detach()) + mse_loss(rebuilt, x)


def codebook_losses(seed, lr, num_epochs, with_r8):
    torch.manual_seed(seed)
    model = Codebook()
    pixels = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    loader = torch.utils.data.DataLoader(pixels, batch_size=32, shuffle=True)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=lr), []
    adapter = attach(model, optimizer, loader, num_epochs=num_epochs) if with_r8 else None
    for _ in range(num_epochs):
        for x in loader if adapter is None else adapter.batches():
            loss = model(x)
            losses.append(loss.item())
            if adapter is None or adapter.report(loss):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return losses


@pytest.mark.parametrize(("seed", "lr", "num_epochs"), [(0, 3e-4, 10), (1, 1e-3, 3), (3, 1e-3, 3), (0, 3e-3, 2)])
def test_losses_that_rise_to_several_times_those_of_the_start_before_they_fall(seed, lr, num_epochs):
    """Those of a codebook do, over tens or hundreds of steps: nothing is refused, put back or probed."""
    plain, watched = (codebook_losses(seed, lr, num_epochs, with_r8=with_r8) for with_r8 in (False, True))

    assert watched == plain
    assert max(plain) > 1.5 * plain[0] > 2 * plain[-1]


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
