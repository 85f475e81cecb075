"""The settings: named once, typed from the public signature to the parts of a run."""

import dataclasses
import inspect
import pydoc
import re

import numpy as np
import pytest

import learnit_r8
from learnit_r8 import R8Scheduler, scheduler
from learnit_r8.checkpoint.run_config import arguments_of
from learnit_r8.engine.settings import KEPT, CommonSettings, NewGoal, SchedulerSettings, Settings
from tests.package_copy import copy_package, replace_in, run_beside

PARAMETERS = {name: each for name, each in inspect.signature(R8Scheduler.__init__).parameters.items() if name != "self"}


def test_settings_are_the_arguments_of_the_scheduler():
    """A keyword that is added to R8Scheduler is added for its parts, and for those who hand settings on."""
    assert [each.name for each in dataclasses.fields(Settings)] == list(PARAMETERS)
    assert set(SchedulerSettings.__annotations__) == set(PARAMETERS) - {"num_samples"}


def test_settings_have_the_types_of_the_scheduler():
    """The types are those of the constructor, word for word."""
    texts = {name: each.annotation for name, each in PARAMETERS.items()}
    typed = {name: each.__forward_arg__ for name, each in SchedulerSettings.__annotations__.items()}

    assert {each.name: each.type for each in dataclasses.fields(Settings)} == texts
    assert {"num_samples": "int | None", **typed} == texts


def test_each_argument_is_handed_on_as_itself(monkeypatch):
    """None is left out, none is taken for another."""

    class Built(Exception):
        pass

    def build(settings):
        raise Built(settings)

    given = {name: object() for name in PARAMETERS}
    monkeypatch.setattr(scheduler, "build_run", build)

    with pytest.raises(Built) as built:
        R8Scheduler(**given)

    assert all(getattr(built.value.args[0], name) is value for name, value in given.items())


ADDED = """
import learnit_r8
from learnit_r8 import R8Scheduler, scheduler
from learnit_r8.engine.settings import suggest_settings


@suggest_settings
def attach(data, **settings: "those of R8Scheduler"):
    return R8Scheduler(len(data), **settings)


seen = []
build = scheduler.build_run
scheduler.build_run = lambda settings: seen.append(settings) or build(settings)
r8 = R8Scheduler(8, batch_size=4, num_epochs=1, {name}="red", checkpoint_dir="{folder}")
R8Scheduler(8, batch_size=4, num_epochs=1)
r8.save_checkpoint()
R8Scheduler.resume_from_checkpoint("{folder}")
R8Scheduler.resume_from_checkpoint("{folder}", {name}="green")
print(*(settings.{name} for settings in seen), r8.host.run.settings["{name}"])
print(attach(range(8), batch_size=4, num_epochs=1, {name}="cyan").host.run.settings["{name}"])
try:
    attach(range(8), batch_size=4, num_epochs=1, color="cyan")
except TypeError as error:
    print(error)
"""


def test_an_argument_is_added_in_two_files(tmp_path):
    """The public signature and `Settings`: then it reaches the parts, checkpoints, listeners, adapters and messages."""
    package = copy_package(tmp_path)
    public, settings = package / "scheduler.py", package / "engine" / "settings.py"
    replace_in(public, "seed: int = 0, clock", 'colour: str = "blue", seed: int = 0, clock')
    replace_in(public, "listeners=listeners,", "listeners=listeners, colour=colour,")
    about = "colour: str = field(metadata=_about(kept=NOTED))"
    replace_in(settings, "    seed: int = field", f"    {about}\n    seed: int = field")
    replace_in(settings, "    seed: int\n", "    colour: str\n    seed: int\n")

    assert run_beside(tmp_path, ADDED.format(name="colour", folder=(tmp_path / "saved").as_posix())) == [
        "red blue red green red",
        "cyan",
        "attach() got an unexpected keyword argument 'color'. Did you mean 'colour'?",
    ]


@pytest.mark.parametrize("resume", ["nowhere", "auto"])
def test_a_run_that_cannot_be_resumed_leaves_no_folder(tmp_path, resume):
    """What is wrong is found before anything is written."""
    with pytest.raises((OSError, ValueError), match="resume"):
        R8Scheduler(8, batch_size=4, num_epochs=1, run_dir=tmp_path / "run", resume=resume)

    assert list(tmp_path.iterdir()) == []


def test_a_file_says_nothing_of_folders(tmp_path):
    """A checkpoint that was tampered with changes no setting that checkpoints do not hold."""
    r8 = R8Scheduler(8, batch_size=4, num_epochs=1, checkpoint_dir=tmp_path / "own")
    config = {**r8.host.persistence.config.values, "run_dir": str(tmp_path / "elsewhere"), "nonsense": 1}

    arguments = arguments_of(config, {}, R8Scheduler, kept=KEPT)

    assert set(arguments) == {"num_samples", "batch_size", "num_epochs"}


def test_resumed_run_may_change_what_the_file_holds():
    """Every setting but the callbacks, which are arguments of their own."""
    own = set(inspect.signature(R8Scheduler.resume_from_checkpoint).parameters)

    assert set(NewGoal.__annotations__) == set(CommonSettings.__annotations__) | {"num_samples", "batch_size"}
    assert not own & set(NewGoal.__annotations__)


def test_help_shows_the_parts_of_a_scheduler():
    """What the guides reach for as r8.table, r8.pace and so on is in help(), and is there."""
    text = pydoc.render_doc(R8Scheduler, renderer=pydoc.plaintext)
    r8 = R8Scheduler(10, batch_size=5, num_epochs=1)

    for part in ("table", "schedule", "pace", "sentry", "controller", "requests", "name"):
        assert f" {part}: " in text
        assert hasattr(r8, part)


def test_signature_is_that_of_the_constructor():
    """Editors show the keywords with their defaults, not what stands around them."""
    parameters = inspect.signature(R8Scheduler).parameters

    assert parameters["initial_lr"].default == 0.01
    assert "settings" not in parameters
    assert learnit_r8.SchedulerSettings is SchedulerSettings


def test_settings_are_shown_in_words_and_offered_by_completion(tmp_path):
    """No Python type in a viewer's configuration, and `dir` has what a run offers besides its methods."""
    names, labels = np.array([f"{n}.png" for n in range(8)]), np.zeros(8, np.int64)
    r8 = R8Scheduler(
        8,
        batch_size=4,
        num_epochs=1,
        checkpoint_dir=tmp_path / "own",
        sample_ids=names,
        groups=labels,
        seed=np.int64(3),
    )
    shown = r8.host.run.settings

    assert shown["checkpoint_dir"] == str(tmp_path / "own")
    assert (shown["sample_ids"], shown["groups"]) == ("text[8]", "int64[8]")
    assert not re.search(r"Path\(|<U|np\.", " ".join(shown.values()))
    assert shown["seed"] == "3"
    assert {"table", "pace", "sentry", "controller", "schedule", "lr"} <= {*dir(r8)}
