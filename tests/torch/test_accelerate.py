"""accelerate prepares the adapter's loader and saves its state, on one process and on two."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

import torch
from accelerate import skip_first_batches
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.nn.functional import cross_entropy

from learnit_r8.torch import attach
from tests.programs import ROOT, printed_by
from tests.rank_common import run_on_two_ranks
from tests.torch.accelerate_common import DATA, Training


@pytest.fixture(autouse=True)
def _no_accelerator_left():
    """Other tests of this process begin without one."""
    yield
    for each in (AcceleratorState, GradientState, PartialState):
        each._reset_state()


EXAMPLE = ROOT / "examples" / "accelerate_digits.py"


def run(folder, *command):
    """The lines that it ends with."""
    printed = printed_by(folder, *command, ACCELERATE_USE_CPU="true")
    return [line for line in printed.splitlines() if "steps, weights" in line]


@pytest.mark.program
def test_example(tmp_path):
    """The example of the guide, saved by save_state in mid-epoch, is the same after load_state in another process."""
    whole, resumed = run(tmp_path, EXAMPLE, tmp_path / "saved"), run(tmp_path, EXAMPLE, tmp_path / "saved", "load")

    assert whole == resumed
    assert whole[0].startswith("87 steps")


PROGRAM = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from tests.torch.accelerate_common import Training
folder, rank = sys.argv[1], os.environ["RANK"]
whole = Training(accumulate=3, prepare_first=False).run(folder, [19]).digest()
resumed = Training(accumulate=3).resume(f"{folder}/19").run().digest()
healed = Training(accumulate=3, bad=[7]).run()
refused = healed.adapter.scheduler.sentry.num_refused
done = {"whole": whole, "resumed": resumed, "healed": (healed.digest(), refused)}
open(f"{folder}/{rank}.json", "w").write(json.dumps(done))
"""


@pytest.mark.program
def test_two_processes(tmp_path, monkeypatch):
    """On two processes, prepared before attach or after: the same on both, resumed exactly, and a NaN of one healed."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    first, second = run_on_two_ranks(PROGRAM, tmp_path)

    assert first == second
    assert first["resumed"] == first["whole"]
    # The batches of one update are left out for the probe.
    assert (first["whole"][1], first["healed"][0][1], first["healed"][1]) == (39, 36, 1)


def test_old_release(monkeypatch):
    """An old release of accelerate is named before training begins, with what will do."""
    Training()
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.2.1")

    with pytest.raises(ImportError, match=r"accelerate must be release 1.11 or newer, got 1.2.1; pip install -U"):
        Training()


def test_resumes_twice_with_incidents_before_and_after(tmp_path):
    """Twice in mid-epoch, within accumulated gradients: a NaN before the first resume, between both and after."""

    def run(folder, path=None, seen=0):
        training = Training(accumulate=3, bad=(5, 20, 33), backup_every=1)
        if path is not None:
            training.resume(path)
        training.seen = seen
        training.run(folder, (9, 22))
        return training.digest(), training.adapter.scheduler.sentry.num_refused

    whole = run(tmp_path)
    once = run(tmp_path / "again", tmp_path / "9", 9)
    twice = run(tmp_path / "again", tmp_path / "again/22", 22)

    assert whole[-1] == 3
    assert once == twice == whole


def test_step_at_the_end_of_an_epoch():
    """Accelerate is told of the last batch of an epoch, and takes a step with the gradients left over there."""
    training = Training(accumulate=3, num_epochs=2).run()

    assert training.steps == [False, False, True] * 4 + [True] + [False, False, True] * 4 + [True]


def test_prepared_after_attach():
    """Model and optimizer may be prepared after they were attached: the same training comes of it."""
    assert Training(prepare_first=False).run().digest() == Training().run().digest()


def test_a_warm_up_that_begins_at_zero():
    """A rate of zero at the start is no mistake where the rates are the user's own."""
    model = torch.nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 5, 1))
    adapter = attach(model, optimizer, DATA, batch_size=32, num_epochs=1, scheduler_mode="keep")
    seen = []
    for x, y in adapter.loader():
        seen.append(optimizer.param_groups[0]["lr"])
        adapter.step(adapter.loss(cross_entropy(model(x), y, reduction="none")))
        rates.step()

    assert seen[:6] == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, 0.1])


def test_skipped_batches_are_refused():
    """The loader finds its place by itself: with batches skipped besides, losses would count for other samples."""
    training = Training()
    skipping = skip_first_batches(training.loader, 3)

    with pytest.raises(ValueError, match=r"skip_first_batches\(\) must be left out where R8Scheduler draws.*got 3"):
        next(iter(skipping))
    assert len(next(iter(skip_first_batches(training.loader, 0)))) == 2
