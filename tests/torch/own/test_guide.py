"""docs/any_training.md: what it counts is so."""

import re
from pathlib import Path

import pytest
import torch
from wild_scripts import SCRIPTS

from learnit_r8.torch import attach

GUIDE = (Path(__file__).parents[3] / "docs" / "any_training.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)


def test_the_first_diff_has_two_lines_and_the_step():
    """Beside the three lines of the step, which are indented, and their condition, two lines are new."""
    new = [line[1:].strip() for line in DIFFS[0].splitlines() if line.startswith("+")]
    old = [line[1:].strip() for line in DIFFS[0].splitlines() if line.startswith("-")]

    assert len(set(new) - set(old)) == 3


def test_the_guide_counts_the_kinds_of_scripts():
    """Seventeen, as it says."""
    assert f"Tests hold { {17: 'seventeen'}[len(SCRIPTS)] } kinds of scripts" in " ".join(GUIDE.split())


def test_an_adapter_takes_the_name_of_its_loader():
    """It is iterated over, measured and asked like the loader, and knows what neither has by no attribute."""
    batches, model = [torch.ones(2, 3), torch.ones(4, 3)], torch.nn.Linear(3, 1)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    loader = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), loader, num_epochs=2, handle_signals=False)
    for _ in range(2):
        assert [len(batch) for batch in loader if loader.report(model(batch).mean())] == [2, 4]

    assert (len(loader), loader.dataset, bool(loader)) == (2, batches, True)
    assert (loader.scheduler.global_step, loader.scheduler.is_over) == (4, True)
    with pytest.raises(AttributeError, match=r"no attribute 'lr'. It is adapter.scheduler.lr"):
        _ = loader.lr
    stream = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), iter(batches), handle_signals=False)
    assert stream
    with pytest.raises(TypeError, match="has no len"):
        len(stream)
