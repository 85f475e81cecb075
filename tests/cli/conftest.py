import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.journal.samples import write_samples
from tests.cli.commands import GONE, SEVEN
from tests.journal.run_folders import STARTED, folder_with
from tests.report.sample_files import samples


@pytest.fixture
def run(tmp_path):
    """A folder with some steps, an alert, metrics and samples; its process is gone."""
    refused = events.BatchRefused(350, 175.0, 3, float("nan"), 0.05, 0.025, 1, (), "not finite")
    logged = events.MetricsLogged(300, 150.0, 300, {"=accuracy": 0.75, "loss": 0.5})
    done = events.EpochDone(300, 150.0, 2, 0.35, 0.0075, 0.05, 1000, 50.0)
    folder = folder_with(tmp_path / "20260101-it", STARTED, *SEVEN, done, logged, refused, process=GONE)
    loss = np.array([0.1, 3.0, 0.2, 2.0])
    names = {1: "=cmd()", 3: "\x1b[31mcat 猫.png"}
    write_samples(
        folder, [samples(2, loss, last=np.float32([0.1, 2.5, 0.2, 1.5]), uses=np.array([3, 4, 5, 6]), names=names)]
    )
    return folder
