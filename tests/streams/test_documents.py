"""Every Python block of the two documents runs against this package, with only its import lines changed.

Deviations, each an error of the documents themselves or a gap that the reader is to fill:

- FitStream 2.4 sinks ``events``, which is infinite there: ``events`` is its first three here.
- FitStream writes ``...`` for the arguments given before: they are filled in.
- FitStream writes to ``runs/`` before it exists: no deviation, the sink makes the folder.
- FitStream's data are at an address: ``pandas.read_csv`` answers from a local frame with the same columns.
- PAMIQ-Core's blocks use names of the reader's program (``check_condition``, ``running``, ``Trainer``): given here.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

import learnit_r8.streams
from learnit_r8.triggers import Scheduler, StepIntervalScheduler, TimeIntervalScheduler

pandas = pytest.importorskip("pandas")
torch = pytest.importorskip("torch")

DOCUMENTS = Path(__file__).parents[1] / "documents"


def blocks(name):
    """The Python blocks of a document, with the import lines changed and nothing else."""
    text = (DOCUMENTS / name).read_text(encoding="utf-8")
    return [
        code.replace("from pamiq_core.utils.schedulers import", "from learnit_r8.triggers import").replace(
            "from fitstream import", "from learnit_r8.streams import"
        )
        for code in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    ]


PAMIQ, TUTORIAL = blocks("pamiq_schedulers.md"), blocks("fitstream_tutorial.md")


def test_all_blocks_are_found():
    assert (len(PAMIQ), len(TUTORIAL)) == (6, 26)


class Countdown:
    """True so many times."""

    def __init__(self, times):
        self.left = times

    def __bool__(self):
        self.left -= 1
        return self.left >= 0


def test_pamiq_blocks_run(capsys, monkeypatch):
    """The six blocks, one after the other, and what they print and call."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now.__setitem__(0, now[0] + 21.0) or now[0])
    calls = []
    conditions = iter([False, True])
    names = {
        "check_condition": lambda: next(conditions),
        "running": Countdown(10),
        "total_steps": 250,
        "Trainer": type("Trainer", (), {}),
        "save_checkpoint": lambda: calls.append("save"),
        "log_performance": lambda: calls.append("log"),
        "clean_memory": lambda: calls.append("clean"),
    }
    for number, code in enumerate(PAMIQ):
        exec(compile(code, f"pamiq block {number + 1}", "exec"), names)
        if number == 3:
            poll(names["scheduler"], 20)

    poll(names["scheduler"], 20)
    mine = names["MyScheduler"](lambda: calls.append("mine"))
    mine.update()
    mine.update()
    trainer = names["MyTrainer"]()
    for _ in range(20):
        trainer.train()

    assert issubclass(names["MyScheduler"], Scheduler)
    assert isinstance(names["metrics_scheduler"], TimeIntervalScheduler)
    assert isinstance(names["eval_scheduler"], StepIntervalScheduler)
    assert calls == ["save", "log", "clean", "save", "log", "mine"]
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["Logging metrics..."] * 3 + ["Evaluating model performance..."] * 2


def poll(scheduler, times):
    for _ in range(times):
        scheduler.update()


COLUMNS = [
    "longitude", "latitude", "housing_median_age", "total_rooms", "total_bedrooms", "population", "households",
    "median_income", "median_house_value",
]  # fmt: skip


def housing(address):
    """A frame like the one at the tutorial's addresses: a price that follows income, and noise."""
    assert re.fullmatch(
        r"https://download\.mlcc\.google\.com/mledu-datasets/california_housing_(train|test)\.csv", address
    )
    rng = np.random.default_rng(len(address))
    rows = 600 if "train" in address else 200
    frame = pandas.DataFrame(rng.lognormal(size=(rows, len(COLUMNS))), columns=COLUMNS)
    frame["median_house_value"] = 40_000 * frame["median_income"] + rng.normal(100_000, 10_000, rows)
    return frame


def filled_in(name, names):
    """``epoch_stream`` or ``augment`` that reads ``...`` as "the arguments given before"."""
    original = getattr(learnit_r8.streams, name)
    earlier = {
        "epoch_stream": lambda: original(
            (names["x_train"], names["y_train"]), names["model"], names["optimizer"], names["loss_fn"], batch_size=512
        ),
        "augment": lambda: original(
            learnit_r8.streams.validation_loss((names["x_val"], names["y_val"]), names["loss_fn"])
        ),
    }

    def call(*arguments, **keywords):
        return earlier[name]() if arguments == (...,) else original(*arguments, **keywords)

    return call


def accuracy(event):
    return {"val_acc": event["step"] / 100}


@pytest.fixture
def tutorial(monkeypatch, tmp_path):
    """The names the tutorial's blocks share, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(pandas, "read_csv", housing)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = {}
    for name in ("epoch_stream", "augment"):
        monkeypatch.setattr(learnit_r8.streams, name, filled_in(name, names))
    yield names
    torch.set_num_threads(threads)


def test_tutorial_blocks_run(tutorial, capsys, tmp_path):
    """All blocks, one after the other, as a reader would type them; every pipe they build yields events."""
    for number, code in enumerate(TUTORIAL, start=1):
        if 'collect_jsonl(events, "runs/train.jsonl"' in code:
            tutorial["events"] = list(itertools.islice(tutorial["events"], 3))
        if 'early_stop(key="val_acc"' in code:
            # The comment in the block says so: an augmenter that makes val_acc stands where the dots are.
            tutorial["augment"] = lambda _: learnit_r8.streams.augment(accuracy)
        exec(compile(code, f"tutorial block {number}", "exec"), tutorial)
        if "augment" in tutorial:
            tutorial["augment"] = learnit_r8.streams.augment
        if "events = pipe(" in code and "for ev" not in code and "(events" not in code:
            events = list(itertools.islice(tutorial["events"], 3))
            assert [one["step"] for one in events] == [1, 2, 3]
        check(number, code, tutorial, capsys.readouterr().out.splitlines(), tmp_path)


def check(number, code, names, printed, folder):
    """What the tutorial says of its blocks, of those that say something."""
    if "print(train_df.columns" in code:
        assert printed == [str(COLUMNS)]
    if "take(10)(events)" in code and "val_loss" not in code:
        assert len(printed) == 10
        assert printed[0].startswith("epoch=001 train_loss=")
    if "print(history[-1])" in code:
        assert list(names["history"][-1]) == ["step", "train_loss", "train_time_sec"]
        assert names["history"][-1]["step"] == 50
    if 'include=["step", "train_loss", "val_loss", "lr"]' in code:
        lines = [json.loads(line) for line in (folder / "runs/train.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [11, 12, 13]
    if 'print("stopped at epoch"' in code:
        assert printed == [f"stopped at epoch {len(names['history'])}"]
    if "every=5" in code:
        assert [line[:9] for line in printed] == ["step=0005", "step=0010", "step=0015"]
    if "for ev in events" in code:
        rates = [float(line.split()[2]) for line in printed]
        assert len(rates) == 50
        assert rates[0] == pytest.approx(0.001)
        assert rates[10:] == pytest.approx([0.01] * 40)
    if "RUNS_DIR" in code:
        lines = [json.loads(line) for line in (folder / "runs/california_housing.jsonl").read_text().splitlines()]
        assert list(lines[-1]) == ["step", "train_loss", "train_time_sec", "val_loss", "param_l2", "val_loss_ema"]
        assert len(printed) == len(lines) // 10
        assert lines[-1]["val_loss"] < lines[0]["val_loss"]
