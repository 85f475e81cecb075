"""The types of the settings: the same names and defaults everywhere."""

import inspect
import pydoc

import learnit_r8
from learnit_r8 import R8Scheduler
from learnit_r8.engine.settings import CommonSettings, NewGoal, SchedulerSettings


def test_settings_are_the_keywords_of_the_scheduler():
    """A keyword that is added to R8Scheduler is added for those who hand settings on."""
    keywords = set(inspect.signature(R8Scheduler).parameters) - {"num_samples"}

    assert set(SchedulerSettings.__annotations__) == keywords


def test_settings_have_the_types_of_the_scheduler():
    """The types are those of the constructor, word for word."""
    parameters = inspect.signature(R8Scheduler.__init__).parameters
    texts = {name: each.annotation for name, each in parameters.items() if name in SchedulerSettings.__annotations__}
    given = {name: each.__forward_arg__ for name, each in SchedulerSettings.__annotations__.items()}

    assert given == texts


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
    """Editors show the keywords, not what stands around them."""
    assert "batch_size" in inspect.signature(R8Scheduler).parameters
    assert "settings" not in inspect.signature(R8Scheduler).parameters
    assert learnit_r8.SchedulerSettings is SchedulerSettings
