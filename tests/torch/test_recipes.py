"""The recipes for other people's training loops: the blocks of docs/recipes.md run, and heal."""

import gc
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
BLOCKS = re.findall(r"^## (.*?)$.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
PACKAGES = {"Lightning": "lightning", "Hugging Face Trainer": "transformers", "accelerate": "accelerate"}


class Poisoned:
    """A cross entropy whose losses are NaN in one call, and that counts its calls."""

    def __init__(self, bad_call):
        self.calls = 0
        self._bad_call = bad_call

    def __call__(self, *inputs, **more):
        self.calls += 1
        losses = cross_entropy(*inputs, **more)
        return losses * float("nan") if self.calls == self._bad_call else losses


def run(name, monkeypatch, tmp_path, bad_call=None, changes=()):
    """The names that the block of a recipe leaves, and its loss."""
    pytest.importorskip(PACKAGES[name])
    code = dict(BLOCKS)[name]
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    loss = Poisoned(bad_call)
    monkeypatch.setattr("torch.nn.functional.cross_entropy", loss)
    names = {"__name__": "recipe"}
    with warnings.catch_warnings():
        # What those packages warn of is theirs; what we warn of is an error.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module=r"learnit_r8\..*")
        warnings.filterwarnings("error", message=".*(scheduler|backup|loss of step).*", category=RuntimeWarning)
        exec(compile(code, name, "exec"), names)
        gc.collect()
    return names, loss


def accuracy(names):
    from sklearn.datasets import load_digits

    digits = load_digits()
    with torch.no_grad():
        found = names["net"](torch.tensor(digits.data / 16, dtype=torch.float32)).argmax(1).numpy()
    return (found == digits.target).mean()


@pytest.mark.parametrize("name", PACKAGES)
def test_a_recipe_trains(name, monkeypatch, tmp_path):
    """A recipe takes every sample once an epoch, knows its losses exactly, and the model learns."""
    names, loss = run(name, monkeypatch, tmp_path)
    r8 = names["adapter"].scheduler

    assert (r8.global_step, loss.calls) == (174, 174)
    assert set(r8.table.usage_count.tolist()) == {6}
    assert r8.table.source == "exact"
    assert accuracy(names) > 0.95


@pytest.mark.parametrize("name", PACKAGES)
def test_a_recipe_sets_the_rate(name, monkeypatch, tmp_path):
    """The rate is that of our schedule, and not that of another one: constant, where theirs would have fallen."""
    constant = 'batch_size=64, scheduler_mode="constant", warmup_proportion=0.0, min_lr=0.2,'
    names, _ = run(name, monkeypatch, tmp_path, changes=[("batch_size=64,", constant)])

    assert names["adapter"].optimizer.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize("name", PACKAGES)
def test_a_recipe_heals(name, monkeypatch, tmp_path):
    """A NaN on the way is refused, and the model is none the worse."""
    names, _ = run(name, monkeypatch, tmp_path, bad_call=100)
    r8 = names["adapter"].scheduler

    assert r8.sentry.num_refused == 1
    assert r8.global_step == 174
    assert accuracy(names) > 0.95


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Lightning", [("max_epochs=EPOCHS,", "max_epochs=EPOCHS, accumulate_grad_batches=3,"),
                       ("num_epochs=EPOCHS)", "num_epochs=EPOCHS, accumulate=3)")]),
        ("Hugging Face Trainer", [("use_cpu=True,", "use_cpu=True, gradient_accumulation_steps=3,"),
                                  ("num_epochs=EPOCHS)", "num_epochs=EPOCHS, accumulate=3, ahead=2)")]),
    ],
)  # fmt: skip
def test_a_recipe_adds_up_gradients(name, changes, monkeypatch, tmp_path):
    """With the settings that the page names every batch is reported where several make a step."""
    names, _ = run(name, monkeypatch, tmp_path, changes=changes)

    assert set(names["adapter"].scheduler.table.usage_count.tolist()) == {6}
    assert accuracy(names) > 0.9


@pytest.mark.parametrize("name", ["Lightning", "Hugging Face Trainer"])
def test_a_recipe_ends_with_the_budget(name, monkeypatch, tmp_path):
    """When the budget is spent the loop ends, whatever number of epochs it was told."""
    names, loss = run(name, monkeypatch, tmp_path, changes=[("num_epochs=EPOCHS)", "num_steps=40)")])

    assert names["adapter"].scheduler.global_step == loss.calls == 40


def test_every_recipe_is_tested():
    """The page holds the recipes of this file and no others."""
    assert [name for name, _ in BLOCKS] == list(PACKAGES)
