"""The settings: named once, typed from the public signature to the parts of a run."""

import dataclasses
import inspect
import pydoc
import re

import numpy as np
import pytest

import learnit_r8
from learnit_r8 import Monitor, OwnBatches, R8Scheduler, RateShape, TokenBatches, scheduler
from learnit_r8.engine import settings
from learnit_r8.engine.settings import (
    ARGUMENTS,
    WITHIN,
    AllSettings,
    CommonSettings,
    NewGoal,
    SchedulerSettings,
    Settings,
    flat,
    grouped,
    how_to_write,
    kept_defaults,
    text_of,
    whole,
)
from learnit_r8.state.run_config import arguments_of
from tests.package_copy import copy_package, replace_in, run_beside

PARAMETERS = {name: each for name, each in inspect.signature(R8Scheduler.__init__).parameters.items() if name != "self"}


def test_settings_are_the_arguments_of_the_scheduler():
    """A keyword that is added to R8Scheduler is added for those who hand settings on, where it is typed."""
    assert set(SchedulerSettings.__annotations__) == set(PARAMETERS) - {"num_samples"}
    assert set(AllSettings.__annotations__) == set(PARAMETERS)


def test_settings_have_the_types_of_the_scheduler():
    """The types are those of the constructor, but for what is known of a setting besides."""
    texts = {name: each.annotation for name, each in PARAMETERS.items()}
    typed = {name: getattr(each, "__origin__", each) for name, each in AllSettings.__annotations__.items()}
    refined = {each.name: each.type for each in dataclasses.fields(Settings) if each.name != "given"}

    for name, kind in typed.items():
        bare = kind if hasattr(AllSettings.__annotations__[name], "__metadata__") else AllSettings.__annotations__[name]
        assert bare == eval(texts[name], vars(settings)), name
    assert {kind.__name__ for kind in refined.values()} | {"TokenBatches", "OwnBatches"} == {
        kind.__name__ for kind in ARGUMENTS
    }


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

    assert built.value.args[0].given == {name: whole(name, value) for name, value in given.items()}


def test_a_scheduler_has_at_most_34_arguments():
    """All of them are named; what belongs together is one value."""
    assert len(PARAMETERS) <= 34
    assert not [each for each in PARAMETERS.values() if each.kind is each.VAR_KEYWORD]


@pytest.mark.parametrize("name", WITHIN)
def test_a_setting_that_was_an_argument_leads_to_its_place(name):
    """The error says what to write, and what it says can be written."""
    with pytest.raises(TypeError) as error:
        R8Scheduler(8, num_epochs=1, **{name: None})
    written = str(error.value).partition(": write ")[2].removesuffix(".")
    given = eval(f"dict({written})", vars(learnit_r8.engine.settings))

    assert flat(given)[name] is None
    assert given == grouped({name: None})


def test_settings_that_belong_together_are_told_together():
    with pytest.raises(TypeError, match=r"write scheduler_mode=RateShape\('wsd', warmup_steps=5, min_lr=0\.1\)\.$"):
        R8Scheduler(8, num_epochs=1, scheduler_mode="wsd", warmup_steps=5, min_lr=0.1)
    with pytest.raises(TypeError, match=r"write batch_size=TokenBatches\(lengths=\.\.\., batch_size=4\)\.$"):
        R8Scheduler(99, batch_size=4, num_epochs=1, lengths=[1] * 99)
    with pytest.raises(TypeError, match=r"'warmup_ratio'\. Did you mean scheduler_mode=RateShape\(warmup_propor"):
        R8Scheduler(8, num_epochs=1, warmup_ratio=0.1)


def test_a_resumed_run_keeps_what_a_new_value_does_not_replace(tmp_path):
    """A plain value replaces that value alone, a whole one all that it holds; old names are told of, too."""
    shape = learnit_r8.RateShape("wsd", warmup_steps=1, min_lr=0.001)
    made = R8Scheduler(8, batch_size=4, num_epochs=2, checkpoint_dir=tmp_path, scheduler_mode=shape)
    made.draw()
    made.save_checkpoint()

    def resumed(**new):
        return R8Scheduler.resume_from_checkpoint(tmp_path, **new).host.run.settings

    assert resumed()["warmup_steps"] == resumed(scheduler_mode="linear")["warmup_steps"] == "1"
    assert resumed(scheduler_mode="linear")["min_lr"] == "0.001"
    assert resumed(scheduler_mode=learnit_r8.RateShape("linear", min_lr=0.005))["min_lr"] == "0.005"
    assert "warmup_steps" not in resumed(scheduler_mode=learnit_r8.RateShape("linear"))
    with pytest.raises(TypeError, match=r"resume_from_checkpoint\(\) got .*write scheduler_mode=RateShape\(warmup"):
        resumed(warmup_steps=3)


ADDED = """
import learnit_r8
from learnit_r8 import Monitor, OwnBatches, R8Scheduler, RateShape, TokenBatches, scheduler
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
print(*(settings.given["{name}"] for settings in seen), r8.host.run.settings["{name}"])
print(attach(range(8), batch_size=4, num_epochs=1, {name}="cyan").host.run.settings["{name}"])
try:
    attach(range(8), batch_size=4, num_epochs=1, color="cyan")
except TypeError as error:
    print(error)
"""


def test_an_argument_is_added_in_two_files(tmp_path):
    """In the signature and the types of the settings: it reaches parts, files, listeners, adapters and messages."""
    package = copy_package(tmp_path)
    public, settings = package / "scheduler.py", package / "engine" / "settings.py"
    replace_in(public, "seed: int = 0, clock", 'colour: str = "blue", seed: int = 0, clock')
    replace_in(settings, "    seed: Anno", "    colour: Annotated[str, about(kept=NOTED)]\n    seed: Anno")

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

    arguments = arguments_of(config, {}, kept_defaults(R8Scheduler))

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


class Plain:
    """What has no words of its own."""


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
    # No address, by which two runs of one kind would differ.
    assert text_of(Plain()) == text_of(Plain()) == f"<{__name__}.Plain object>"
    assert {"table", "pace", "sentry", "controller", "schedule", "lr"} <= {*dir(r8)}


def test_the_hint_of_an_old_name_keeps_what_the_new_value_holds():
    """Who follows it loses nothing that was given."""
    given = {"scheduler_mode": RateShape("wsd", min_lr=0.001), "warmup_steps": 5}
    assert how_to_write(["warmup_steps"], given) == "scheduler_mode=RateShape('wsd', min_lr=0.001, warmup_steps=5)"
    given = {"batch_size": OwnBatches(max_ids=7), "resume_data": "start"}
    assert how_to_write(["resume_data"], given) == "batch_size=OwnBatches(max_ids=7, resume_data='start')"
    given = {"batch_size": TokenBatches([1, 2], 10, batch_size=4), "max_tokens": 20}
    assert "lengths=[1, 2], max_tokens=20" in how_to_write(["max_tokens"], given)


@pytest.mark.parametrize("value", [OwnBatches(), RateShape, Monitor("loss")])
def test_a_value_of_another_argument_is_refused(value):
    """The error names the argument and the value that it takes; a class in place of a value is met, too."""
    with pytest.raises(TypeError, match=r"scheduler_mode must be given alone or as RateShape\(...\), got "):
        R8Scheduler(100, batch_size=10, num_epochs=1, scheduler_mode=value)
