"""What a newcomer gets wrong is answered with what would be right."""

import configparser
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import learnit_r8
from learnit_r8 import Monitor, R8Scheduler
from learnit_r8._validation import how_to_install
from learnit_r8.engine.settings import ELSEWHERE, OF_LOADERS, SchedulerSettings
from learnit_r8.engine.values import WITHIN, how_to_write
from learnit_r8.policies.registry import POLICIES, PolicyName
from learnit_r8.schedules.schedule import MODES, ScheduleName

GOOD = {"batch_size": 10, "num_epochs": 1}


def make(**others):
    return R8Scheduler(100, **{**GOOD, **others})


def train(r8, loss=1.0, reports=1):
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            for _ in range(reports):
                r8.update_with_loss(loss)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_name_of_another_library_leads_to_the_setting(name):
    """A keyword that other libraries use is answered with the name it has here."""
    with pytest.raises(TypeError) as error:
        make(**{name: 1})

    meant = ELSEWHERE[name]
    hint = how_to_write([meant], {meant: 1}) if meant in WITHIN else repr(meant)
    assert str(error.value) == f"R8Scheduler() got an unexpected keyword argument {name!r}. Did you mean {hint}?"


def test_names_of_other_libraries_lead_to_settings_only():
    """Every suggestion is a keyword, and no keyword is taken for another."""
    keywords = set(SchedulerSettings.__annotations__)

    assert set(ELSEWHERE.values()) <= keywords | WITHIN.keys()
    assert not keywords & ELSEWHERE.keys()
    assert len(ELSEWHERE) + len(OF_LOADERS) == 30


@pytest.mark.parametrize(("wrong", "right"), [("nmu_epochs", "num_epochs"), ("polcy", "policy")])
def test_misspelt_keyword_is_answered_with_the_nearest(wrong, right):
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{wrong}'\. Did you mean '{right}'\?"):
        make(**{wrong: 1})


def test_unknown_keyword_like_nothing_else_is_named():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzz'\.$"):
        make(zzz=1)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"policy": "balance"}, "balanced"),
        ({"policy": "Focus"}, "focus"),
        ({"scheduler_mode": "cosin"}, "cosine"),
        ({"scheduler_mode": "onecycle"}, "one_cycle"),
        ({"estimator": "relativ"}, "relative"),
        ({"last_batch": "dropped"}, "drop"),
        ({"monitor": Monitor("loss", mode="maximum")}, "max"),
    ],
)
def test_misspelt_choice_is_answered_with_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=rf"must be one of .*'{right}'.* Did you mean '{right}'\?"):
        make(**wrong)


def test_misspelt_resume_is_answered_with_auto():
    with pytest.raises(FileNotFoundError, match=r"resume must be 'auto', the file of a checkpoint.*mean 'auto'"):
        make(resume="atuo")


@pytest.mark.parametrize("data", [np.zeros((100, 3)), list(range(100))])
def test_data_given_as_their_number_lead_to_len(data):
    """The data are not printed."""
    kind = type(data).__name__
    with pytest.raises(ValueError, match=rf"num_samples must be .*>= 1, got {kind} of length 100; pass len\(x\)\.$"):
        R8Scheduler(data, **GOOD)


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "seed"])
def test_number_given_as_text_is_named_as_such(name):
    """No upper limit distracts from what is wrong."""
    with pytest.raises(ValueError, match=rf"{name} must be a whole number >= \d, got '100', which is a str\.$"):
        R8Scheduler(**{"num_samples": 100, **GOOD, name: "100"})


def test_number_above_its_range_is_told_the_range():
    with pytest.raises(ValueError, match=r"batch_size must be a whole number in \[1, \d+\], got 8589934592\.$"):
        make(batch_size=2**33)


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((10, 1), r"got shape \(10, 1\)\. Add \.squeeze\(1\)\."),
        ((10, 3), r"Average several losses of a sample with \.mean\(1\); class scores are not losses\."),
        ((10, 3, 2), r"with \.mean\(\(1, 2\)\)"),
        ((7,), r"got shape \(7,\)\.$"),
    ],
)
def test_losses_of_another_shape_are_told_the_way(shape, way):
    with pytest.raises(ValueError, match=way):
        train(make(), np.ones(shape))


def test_second_report_of_a_batch_is_told_that_it_is_one():
    with pytest.raises(RuntimeError, match=r"at step 1 with no batch open; the last one was reported already"):
        train(make(), reports=2)


def test_report_before_any_batch_is_told_to_draw():
    with pytest.raises(RuntimeError, match=r"at step 0 with no batch open; draw one first"):
        make().update_with_loss(1.0)


def test_loop_run_again_says_that_the_budget_is_spent():
    """Where a notebook's cell is run twice, the second run says why nothing happens, once."""
    r8 = make()
    train(r8)

    with pytest.warns(RuntimeWarning, match=r"the budget was spent at step 10, so this loop trains nothing"):
        train(r8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(r8)


def test_stopped_run_is_not_called_spent():
    r8 = make()
    r8.requests.stop("enough")
    train(r8)

    assert r8.pace.is_stopped
    assert r8.global_step == 0


@pytest.mark.parametrize("name", ["run_dir", "checkpoint_dir"])
def test_file_in_place_of_a_folder_fails_at_once(name, tmp_path):
    """Not at the first save."""
    (tmp_path / "taken").touch()
    with pytest.raises((ValueError, OSError), match=rf"{name} must be a folder, or a path where one can be made, got "):
        make(**{name: tmp_path / "taken"})


def test_names_for_type_checkers_are_all_names():
    """What a type checker accepts is what there is."""
    assert set(PolicyName.__args__) == set(POLICIES)
    assert ScheduleName.__args__ == MODES


def test_messages_name_extras_that_exist():
    """Where packages are missing, the message names an extra of setup.cfg, in the one form that works: from a clone."""
    root = Path(learnit_r8.__file__).parent
    source = "".join(path.read_text() for path in root.rglob("*.py"))
    config = configparser.ConfigParser()
    config.read(root.parent / "setup.cfg")
    named = set(re.findall(r"how_to_install\(['\"](\w+)['\"]\)", source))

    assert how_to_install("torch") == 'pip install ".[torch]" in a clone of the repository'
    assert {"torch", "tensorflow", "mcp"} <= named <= set(config["options.extras_require"])
    assert "learnit-r8[" not in source
