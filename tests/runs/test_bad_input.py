"""Every wrong argument is named, with its value and what would be right, before anything is changed or written."""

import configparser
import re
from pathlib import Path

import numpy as np
import pytest

import learnit_r8
from learnit_r8 import EarlyStopping, Monitor, Policy, R8Scheduler
from learnit_r8._validation import how_to_install
from learnit_r8.engine.settings import ELSEWHERE, OF_LOADERS, WITHIN, SchedulerSettings, grouped, how_to_write
from learnit_r8.policies.registry import POLICIES, PolicyName
from learnit_r8.schedules.schedule import MODES, ScheduleName
from tests.drive import INF, NAN, make, train

GOOD = {"num_samples": 12, "batch_size": 4, "num_epochs": 2}
OPEN = {"num_epochs": None, "scheduler_mode": "wsd", "warmup_steps": 5}
"""A run without an end."""


def each(name, values, text, kind=ValueError, **more):
    """A row for each wrong value of an argument."""
    return [({name: value, **more}, kind, text) for value in values]


# fmt: off
TABLE = [
    *each("num_samples", (0, -1, 1.5, "12", True, 2**33, [12], NAN),
          r"num_samples must be a whole number (in \[1, \d+\]|>= 1), got"),
    *each("num_samples", (np.zeros((100, 3)), list(range(100))),
          r"num_samples must be .*>= 1, got \w+ of length 100; pass len\(x\)\.$"),
    ({"num_samples": None}, ValueError, "batch_size needs num_samples, so that the scheduler draws the batches, got 4"),
    *each("batch_size", (0, -4, 4.0, "4", None, False),
          r"batch_size must be a whole number (in \[1, \d+\]|>= 1), got"),
    ({"batch_size": 2**33}, ValueError, r"batch_size must be a whole number in \[1, \d+\], got 8589934592\.$"),
    *each("seed", (-1, 0.5, None, "0", True), r"seed must be a whole number (in \[0, \d+\]|>= 0), got"),
    *[({name: "100"}, ValueError, rf"{name} must be a whole number >= \d, got '100', which is a str\.$")
      for name in ("num_samples", "batch_size", "seed")],
    ({"num_epochs": None}, ValueError,
     "exactly one of num_epochs, num_steps, train_duration_seconds, num_tokens must be given, got none of them"),
    ({"num_steps": 5}, ValueError,
     r"exactly one of num_epochs, .* must be given, got \{'num_epochs': 2, 'num_steps': 5\}"),
    ({"train_duration_seconds": 5}, ValueError, "exactly one of"),
    *each("num_epochs", (0, -1, INF, NAN, "2", True), "num_epochs must be a number > 0 and finite, got"),
    *each("num_steps", (0, -1, 1.5, "2", INF), "num_steps must be a", num_epochs=None),
    ({"num_epochs": None, "num_steps": 2.5}, ValueError, r"num_steps must be a whole number, got 2\.5\.$"),
    *each("train_duration_seconds", (0, -1.0, "30s", INF, NAN, True),
          "train_duration_seconds must be a number > 0 and finite, got", num_epochs=None),
    ({"num_epochs": None, "train_duration_seconds": "2h"}, ValueError, "got '2h', which is a str"),
    *each("initial_lr", (0, -0.1, INF, NAN, "0.1", None), "initial_lr must be > 0 and finite, got"),
    ({"initial_lr": "1e-3"}, ValueError, "initial_lr must be > 0 and finite, got '1e-3', which is a str"),
    *each("min_lr", (0.02, -1), r"min_lr must be in \[0, initial_lr=0\.01\], got"),
    *each("warmup_proportion", (-0.1, 1.1, NAN, "a third"), r"warmup_proportion must be in \[0, 1\], got"),
    ({"warmup_proportion": 5}, ValueError, r"warmup_proportion must be in \[0, 1\], got 5; for steps give warmup_st"),
    ({"scheduler_mode": "cosin"}, ValueError, "scheduler_mode must be one of .* or a function of progress, got"),
    ({"scheduler_mode": None}, TypeError, "scheduler_mode must be one of .* or a function of progress, got"),
    ({"scheduler_mode": lambda progress: -1.0}, ValueError,
     "scheduler_mode must return a learning rate >= 0 and finite, got"),
    ({"policy": "balance"}, ValueError, r"policy must be one of \['balanced', .*\] or a Policy, got"),
    ({"policy": "x"}, ValueError, r"\['balanced', 'focus', 'quartile', 'shuffle'\]"),
    *each("policy", (Policy, None), "policy must be a name or a Policy, got", TypeError),
    ({"estimator": "relativ"}, ValueError, r"estimator must be one of \['additive', 'relative'\], got"),
    ({"estimator": None}, ValueError, "estimator must be one of"),
    *each("alpha", (0, -0.1, 1.1, NAN), r"alpha must be in \(0, 1\], got"),
    ({"alpha": "0.1"}, (TypeError, ValueError), r"alpha must be in \(0, 1\], got"),
    ({"groups": [0, 1]}, ValueError, r"groups must have shape \(12,\), one label per sample, got \(2,\)"),
    ({"groups": [[0]] * 12}, ValueError, r"groups must have shape \(12,\), one label per sample, got \(12, 1\)"),
    ({"sample_ids": ["a"]}, ValueError, "sample_ids must have num_samples=12 entries, got 1"),
    ({"sample_ids": ["a"] * 12}, ValueError, "sample_ids must tell the samples apart, got 'a' for all 12"),
    ({"sample_ids": "names.txt"}, (TypeError, ValueError), "a list of num_samples=.* names, got the text 'names.txt'"),
    ({"sample_ids": 5}, (TypeError, ValueError), "sample_ids must"),
    *each("last_batch", ("long", "Short", None), r"last_batch must be one of \('short', 'drop', 'fill'\), got"),
    ({"batch_size": 13, "last_batch": "drop"}, ValueError,
     "last_batch='drop' needs num_samples >= batch_size=13, got 12"),
    *[({f"{name}_callback": "f"}, TypeError, f"{name}_callback must be a function or None, got")
      for name in ("save", "load", "state")],
    *[({f"{name}_callback": lambda one, two, three: None}, TypeError,
       rf"{name}_callback must take .* signature \(one") for name in ("save", "load", "state")],
    ({"load_callback": lambda: None}, TypeError,
     r"load_callback must take \(source\), with the keywords .* or without, got"),
    *each("backup_every", (0, "30", 1.5), "backup_every must be a number of steps >= 1, a time such as",
          state_callback=dict),
    ({"backup_every": 5}, ValueError, "backup_every needs a state_callback that returns the model state, got"),
    *each("checkpoint_every", (-1, "1 week", True), "checkpoint_every must be a number of steps >= 1, a time such as",
          checkpoint_dir="x"),
    ({"checkpoint_every": 5}, ValueError, "checkpoint_every needs a checkpoint_dir or a save_callback, got"),
    ({"checkpoint_dir": ""}, ValueError, "checkpoint_dir must name a folder, got"),
    ({"checkpoint_dir": 5}, (TypeError, ValueError), "checkpoint_dir must name a folder, got"),
    *each("keep_checkpoints", (0, -1, 1.5, None), "keep_checkpoints must be a whole number >= 1, got"),
    ({"keep_checkpoints": "thick"}, ValueError, "keep_checkpoints must be a whole number >= 1, got 'thick'; or 'thin'"),
    *each("backup_dir", (3, ""), "backup_dir must be a folder in memory, False or None, got", checkpoint_dir="x"),
    ({"backup_dir": "x"}, ValueError, "backup_dir needs a checkpoint_dir or a save_"),
    ({"resume": "auto"}, ValueError, "resume='auto' needs a checkpoint_dir or a save_callback, got neither"),
    ({"resume": "atuo"}, FileNotFoundError, r"resume must be 'auto', the file of a checkpoint.*mean 'auto'"),
    ({"resume": "saved"}, FileNotFoundError, "a folder of checkpoints, got 'saved', which does not exist"),
    ({"resume": True}, TypeError, r"resume must be 'auto', the file .*, got True. Did you mean 'auto'\?"),
    ({"auto_find_lr": True}, ValueError, "auto_find_lr needs a load_callback to restore the model"),
    ({"auto_find_lr": True, "load_callback": print, "scheduler_mode": abs}, ValueError,
     "auto_find_lr needs .* a scheduler_mode given by name"),
    ({"listeners": [print, "print"]}, TypeError, "listeners must be callables that take an event, got"),
    ({"listeners": print}, TypeError, "listeners must be"),
    ({"run_dir": 3}, TypeError, "run_dir must be a folder, True, False or None, got"),
    ({"early_stopping": 3}, ValueError, 'early_stopping needs the name of a metric .* monitor="val_loss", got only'),
    *[({"early_stopping": wrong, "monitor": "v"}, kind, text) for wrong, kind, text in (
        (0, ValueError, "patience must be a whole number >= 1, got 0"),
        ("3", TypeError, "early_stopping must be a number of values"),
        (True, TypeError, "early_stopping must be a number of values"),
        (EarlyStopping(1, -1.0), ValueError, "min_delta must be finite and >= 0"))],
    *[({"monitor": Monitor(wrong)}, ValueError, f"monitor must be the name of a metric, got {wrong!r}")
      for wrong in ("", 3)],
    ({"guard": "spikes"}, (TypeError, ValueError), "guard must"),
    ({"guard": False}, (TypeError, ValueError), "guard must be one of .*'finite'.*got False"),
    ({"guard": type("Half", (), {"judge": print})()}, TypeError, "guard must have a method suspicion, got"),
    ({"recovery": None}, TypeError, "recovery must"),
    ({"clock": 3.0}, TypeError, "clock must"),
    ({"use_curses": "no"}, (TypeError, ValueError), "use_curses must be True or False, got 'no'"),
    # What was meant.
    *[({name: value}, ValueError, rf"must be one of .*'{right}'.* Did you mean '{right}'\?")
      for name, value, right in (
          ("policy", "balance", "balanced"), ("policy", "Focus", "focus"), ("scheduler_mode", "cosin", "cosine"),
          ("scheduler_mode", "onecycle", "one_cycle"), ("estimator", "relativ", "relative"),
          ("last_batch", "dropped", "drop"), ("monitor", Monitor("loss", mode="maximum"), "max"))],
    *each("momentum", (None,), "unexpected keyword argument 'momentum'", TypeError),
    *each("zzz", (1,), r"unexpected keyword argument 'zzz'\.$", TypeError),
    *[({wrong: 1}, TypeError, rf"unexpected keyword argument '{wrong}'\. Did you mean '{right}'\?")
      for wrong, right in (("nmu_epochs", "num_epochs"), ("polcy", "policy"))],
    *[({wrong: 1}, TypeError, rf"unexpected keyword argument '{wrong}'\. Did you mean " + re.escape(
        (how_to_write([right], {right: 1}) if right in WITHIN else repr(right)) + "?") + "$")
      for wrong, right in ELSEWHERE.items()],
    # Of runs whose end is asked for on the way.
    *[({**OPEN, **wrong}, ValueError, text) for wrong, text in (
        ({"scheduler_mode": "cosine"}, "got none of them: scheduler_mode='cosine' gives the rate as a function of"),
        ({"scheduler_mode": "one_cycle"}, "'wsd' and 'constant' train without one"),
        ({"scheduler_mode": abs}, "got none of them: scheduler_mode="),
        ({"warmup_proportion": 0.1, "warmup_steps": None}, "warmup_proportion needs a budget to be a share of"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number >= 0, got -1"),
        ({"num_steps": 9, "warmup_proportion": 0.1}, "warmup_steps needs a budget in steps or epochs, or none"),
        ({"train_duration_seconds": 9}, "warmup_steps needs a budget in steps or epochs, or none"),
        ({"num_steps": 9, "decay_proportion": 0.6}, "decay_proportion must leave room"),
        ({"decay_proportion": 0}, r"decay_proportion must be in \(0, 1\], got 0"),
        ({"scheduler_mode": "constant", "decay_proportion": 0.1}, "decay_proportion needs scheduler_mode='wsd'"),
        ({"decay_shape": "log"}, r"decay_shape must be one of \['cosine', 'linear', 'sqrt'\], got 'log'"),
    )],
]
# fmt: on


def name_of(wrong):
    """A test's name without memory addresses, which differ between processes."""
    return re.sub(" at 0x[0-9a-f]+", "", str(wrong))[:50]


@pytest.mark.parametrize(("wrong", "kind", "text"), TABLE, ids=[name_of(row[0]) for row in TABLE])
def test_wrong_argument_is_named(wrong, kind, text, tmp_path, monkeypatch):
    """A wrong argument is refused by name and with its value, and nothing is written or reported before."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=text) as error:
        R8Scheduler(**grouped({**GOOD, **wrong}))

    assert list(tmp_path.iterdir()) == []
    name, value = next(iter(wrong.items()))
    # Of a sequence its length is shown, as it may be the data set.
    if len(wrong) == 1 and text.endswith("got") and name not in ("listeners", "scheduler_mode") and value != [12]:
        assert re.search(rf"got {re.escape(repr(value))}", str(error.value))


@pytest.mark.parametrize("given", [(12, 4), (100, 32, 5)])
def test_only_num_samples_is_positional(given):
    """All arguments except the number of samples are keyword-only, and the error names those that come next."""
    with pytest.raises(TypeError, match=r"takes one positional argument, .*: name .*R8Scheduler\(\d+, batch_size="):
        R8Scheduler(*given, num_epochs=2)


@pytest.mark.parametrize("name", ["run_dir", "checkpoint_dir"])
def test_file_in_place_of_a_folder_fails_at_once(name, tmp_path):
    """Not at the first save."""
    (tmp_path / "taken").touch()
    with pytest.raises((ValueError, OSError), match=rf"{name} must be a folder, or a path where one can be made, got "):
        make(**{name: tmp_path / "taken"})


def test_what_is_suggested_is_there():
    """Names of other libraries lead to arguments, and are none; type checkers accept what there is; extras exist."""
    keywords, root = set(SchedulerSettings.__annotations__), Path(learnit_r8.__file__).parent
    source = "".join(path.read_text() for path in root.rglob("*.py"))
    config = configparser.ConfigParser()
    config.read(root.parent / "setup.cfg")
    named = set(re.findall(r"how_to_install\(['\"](\w+)['\"]\)", source))

    assert set(ELSEWHERE.values()) <= keywords | WITHIN.keys()
    assert not keywords & ELSEWHERE.keys()
    assert len(ELSEWHERE) + len(OF_LOADERS) == 30
    assert (set(PolicyName.__args__), ScheduleName.__args__) == (set(POLICIES), MODES)
    assert how_to_install("torch") == 'pip install ".[torch]" in a clone of the repository'
    assert {"torch", "tensorflow", "mcp"} <= named <= set(config["options.extras_require"])
    assert "learnit-r8[" not in source


# fmt: off
EDGES = [
    {"num_epochs": 1}, {"num_epochs": 0.5}, {"num_epochs": np.float64(1.5)}, {"num_epochs": None, "num_steps": 1},
    {"num_epochs": None, "num_steps": np.int64(3)}, {"initial_lr": 1}, {"initial_lr": np.float32(0.5)},
    {"min_lr": 0.01}, {"warmup_proportion": 0}, {"warmup_proportion": 1}, {"alpha": 1}, {"groups": np.arange(12) % 3},
    {"groups": ["cat", "dog"] * 6}, {"sample_ids": [f"{i}.png" for i in range(12)]}, {"batch_size": 100},
    {"keep_checkpoints": 1}, {"seed": 2**63}, {"seed": np.uint8(3)},
    {"num_samples": np.int64(12), "batch_size": np.int32(4)},
]
# fmt: on


@pytest.mark.parametrize("right", EDGES, ids=str)
def test_edge_of_each_range_is_accepted(right):
    """The ends of every range, and numpy numbers, are accepted, and the run is trained to its end."""
    r8 = R8Scheduler(**grouped({**GOOD, **right}))

    assert len(train(r8)) == r8.total_steps
    assert type(r8.total_steps) is int
