"""The table of a run whose batches are its own and say which samples they hold."""

import json
import re

import numpy as np
import pytest

from learnit_r8 import OwnBatches, R8Scheduler, events
from learnit_r8.engine.settings import grouped
from learnit_r8.events import NO_TABLE, Notice, RunStarted, SamplesSurveyed
from learnit_r8.testing import record_events

from .drive import Line

QUIET = {"handle_signals": False, "scheduler_mode": "keep"}


def stream(count=60, size=4, seed=0):
    """Batches with the names of their samples and their losses, in an order of their own."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        rows = rng.integers(0, 30, size)
        yield {"id": [f"s{row}" for row in rows], "loss": rows / 10 + 0.5}


def run(batches, *, loss="loss", ids="id", r8=None, hook=None, skip=None, **settings):
    """Train on batches, and return the scheduler."""
    r8 = R8Scheduler(**grouped({**QUIET, "num_epochs": 1, **settings})) if r8 is None else r8
    for batch in r8.batches(batches, ids=ids, skip=skip):
        if hook is not None:
            hook(r8)
        r8.update_with_loss(batch[loss])
    return r8


@pytest.mark.parametrize("ids", ["id", lambda batch: np.array(batch["id"])])
def test_batches_that_name_their_samples_have_a_table(ids):
    """Losses, uses and hardest are those of the names, in the order in which these came first."""
    r8 = run(stream(), ids=ids)
    table, seen = r8.table, {}
    for batch in stream():
        for name, loss in zip(batch["id"], batch["loss"], strict=True):
            seen.setdefault(name, []).append(loss)

    assert table.source == "exact"
    assert [table.storage.name_of(place) for place in range(len(table))] == list(seen)
    assert table.usage_count.tolist() == [len(each) for each in seen.values()]
    assert np.allclose(table.last, [each[-1] for each in seen.values()])
    assert [sample.name for sample in table.hardest(3)] == ["s29", "s28", "s27"]
    assert NO_TABLE not in r8.summary()
    assert "Q4" in r8.summary()


def test_one_mean_for_a_batch_is_divided_among_its_samples():
    """As where the scheduler draws them: the hard ones are found by the batches that they are in."""
    batches = [{"id": list(each["id"]), "loss": float(np.mean(each["loss"]))} for each in stream(count=2000)]
    table = run(batches).table
    losses = [float(table.storage.name_of(place)[1:]) for place in range(len(table))]

    assert table.source == "batch means of 4"
    assert np.corrcoef(table.loss, losses)[0, 1] > 0.9


def test_rows_of_several_samples_have_one_loss():
    """Mosaics and packed rows: the table learns from the means of rows, of whatever number of samples."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(1500):
        rows = [rng.integers(0, 30, rng.integers(1, 5)).tolist() for _ in range(4)]
        batches.append({"id": rows, "loss": np.array([np.mean(row) / 10 + 0.5 for row in rows])})
    table = run(batches).table

    assert table.source in ("parts of 2", "parts of 3")
    assert table.usage_count.sum() == sum(len(row) for batch in batches for row in batch["id"])
    assert np.corrcoef(table.loss, table.storage.sample_ids)[0, 1] > 0.9


def test_several_losses_of_a_sample_count_as_their_mean():
    """Tokens or pixels: a row of losses is one loss of its sample, the mean."""
    batch = {"id": ["a", "b"], "loss": np.array([[1.0, 3.0], [4.0, 8.0]])}
    table = run([batch]).table

    assert table.last.tolist() == [2.0, 6.0]


def test_ids_may_come_with_the_loss():
    """Where there is no iterable, the step says which samples it was of."""
    r8 = R8Scheduler(num_steps=3, **grouped(QUIET))
    for _ in r8.steps():
        r8.update_with_loss(np.array([1.0, 3.0]), ids=[7, 9])

    assert r8.table.usage_count.tolist() == [3, 3]
    assert [sample.name for sample in r8.table.hardest(1)] == [9]
    with pytest.raises(ValueError, match="ids must be left out where the scheduler draws"):
        R8Scheduler(4, batch_size=2, num_steps=2).update_with_loss(1.0, ids=[1])


def test_losses_of_other_rows_than_the_ids_are_said_once():
    """One id too few: the mean of the losses is all that counts, and a warning says why."""
    told = []
    batches = [{"id": [1, 2, 3], "loss": np.array([1.0, 2.0, 3.0, 4.0])}] * 3
    with pytest.warns(RuntimeWarning, match="a loss with 4 rows was reported"):
        r8 = run(batches, listeners=[lambda event: told.append(event) if isinstance(event, Notice) else None])

    assert r8.table.source == "batch means of 3"
    assert ["a loss with 4 rows was reported for a batch with 3 rows" in each.text for each in told] == [True]


def test_samples_beyond_the_most_are_counted_and_said_once(recwarn):
    """Training goes on with the table that there is."""
    notices = []
    r8 = run(stream(), max_ids=5, listeners=[notices.append])

    assert len(r8.table) == 5
    assert r8.table.storage.ids.num_beyond == 240 - int(r8.table.usage_count.sum())
    assert len([each for each in notices if "the table is full, at 5 samples" in getattr(each, "text", "")]) == 1


def test_batches_without_ids_are_steps_of_which_nothing_is_learned():
    """A batch may say None; the kind of the reports is that of those with names."""
    batches = [{"id": None, "loss": 1.0}, *stream(count=5), {"id": None, "loss": 2.0}, {"id": ["s1"], "loss": 3.0}]
    r8 = run(batches)

    assert r8.global_step == 8
    assert r8.table.source == "exact"
    assert r8.table.usage_count.sum() == 20


@pytest.mark.parametrize("at", [3, 20])
def test_a_resumed_run_knows_the_names_and_their_losses(at, tmp_path):
    """The table of a run that was broken off and resumed is that of the whole run, to the bit."""
    whole = run(list(stream(count=30)))
    line = Line()
    settings = {
        "checkpoint_dir": tmp_path, "checkpoint_every": at, "resume": "auto", "backup_dir": False,
        "state_callback": line.read, "load_callback": line.load, "save_callback": line.save,
    }  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        run(list(stream(count=30)), hook=lambda r8: r8.global_step == at + 2 and 1 / 0, **settings)
    resumed = run(list(stream(count=30)), **settings)

    assert resumed.global_step == 30
    assert resumed.table.storage.sample_ids == whole.table.storage.sample_ids
    one, two = (r8.table.storage.records.whole for r8 in (whole, resumed))
    assert all(np.array_equal(resumed.table.read(name)[name], whole.table.read(name)[name]) for name in one.dtype.names)
    assert len(one) == len(two)


def test_a_state_of_before_the_first_ids_is_loaded_back():
    """The kind of the ids was not known then, and is not known again."""
    r8 = R8Scheduler(num_epochs=2, **grouped(QUIET))
    state = r8.state_dict()
    run(list(stream(count=3)), r8=r8)
    r8.load_state_dict(state)

    assert (r8.global_step, len(r8.table)) == (0, 0)
    run([{"id": [7], "loss": np.ones(1)}] * 2, r8=r8)
    assert r8.table.storage.sample_ids == [7]


def test_another_kind_of_ids_after_a_resume_is_refused(tmp_path):
    """The message names both, and nothing is lost."""
    line = Line()
    settings = {"state_callback": line.read, "load_callback": line.load, "save_callback": line.save}
    run(list(stream(count=10)), checkpoint_dir=tmp_path, **settings).close()
    r8 = R8Scheduler(checkpoint_dir=tmp_path, resume="auto", num_epochs=2, **grouped(dict(**QUIET, **settings)))
    list(r8.batches(list(stream(count=10)), ids="id"))

    with pytest.raises(ValueError, match=r"ids must stay of one kind.*got 0 where those before were texts"):
        run([{"id": [0], "loss": np.ones(1)}] * 20, r8=r8)
    assert len(r8.table) > 5


def test_bad_samples_are_named_to_the_function_that_leaves_them_out():
    """A sample whose own loss is never finite is found, and no other; the loader can leave it out from then on."""
    left_out, given = [], []

    def batches():
        for batch in stream(count=200, seed=1):
            rows = [row for row, name in enumerate(batch["id"]) if name not in left_out]
            loss = np.where(np.array(batch["id"]) == "s13", np.nan, batch["loss"])
            given.append("s13" in [batch["id"][row] for row in rows])
            yield {"id": [batch["id"][row] for row in rows], "loss": loss[rows]}

    def skip(names):
        left_out[:] = names

    model = Line()
    with pytest.warns(RuntimeWarning, match="sample 's13' was in 2 refused batches.*no longer drawn"):
        r8 = run(batches(), skip=skip, state_callback=model.read, load_callback=model.load)

    assert left_out == ["s13"]
    assert sum(given) <= 4
    assert r8.sentry.num_refused == sum(given)
    r8.release(r8.table.quarantined)
    with pytest.warns(RuntimeWarning, match="the budget was spent"):
        list(r8.batches([], ids="id", skip=skip))
    assert left_out == []


def test_without_such_a_function_the_warning_says_what_to_do():
    """It does not claim that the sample comes no more."""
    batches = [{"id": [f"s{n}" for n in range(30)], "loss": np.arange(30.0) + 1}] + [
        {**batch, "loss": np.where(np.array(batch["id"]) == "s13", np.nan, batch["loss"])}
        for batch in stream(count=40, seed=1)
    ]
    model = Line()
    with pytest.warns(RuntimeWarning, match="your code still draws it.*skip="):
        run(batches, state_callback=model.read, load_callback=model.load)


def test_a_sample_of_a_loop_over_steps_is_still_drawn():
    """Nobody but the loop can leave it out; tests of the weights are counted, as each takes a step."""
    model, rng, heard = Line(), np.random.default_rng(0), record_events()
    settings = {"num_steps": 300, "state_callback": model.read, "load_callback": model.load, "listeners": [heard]}
    r8 = R8Scheduler(**grouped({**QUIET, **settings}))

    def train():
        for step in r8.steps():
            if step == 200:
                model.weights = model.weights * np.nan
            rows = rng.permutation(30)[:4]
            r8.update_with_loss(np.where(rows == 7, np.nan, rows / 10 + abs(model.weights[0])), ids=rows)

    with pytest.warns(RuntimeWarning, match="sample 7 was in 2 refused batches.*your code still draws it"):
        train()

    assert re.search(r"weights tested with \d+ batches; in quarantine: sample 7\n", r8.summary())
    said = " ".join(each.text for each in heard.of(events.IncidentEnded))
    assert re.search(r"healthy: other batches have a median loss of [\d.]+, [\d.]+ before", said)


def test_views_show_a_table_that_grows(tmp_path):
    """Surveys, the run folder's files of samples and the line at the start are of the samples so far."""
    heard = []

    class Listener:
        wants_surveys = True

        def __call__(self, event):
            heard.append(event)

    r8 = R8Scheduler(num_epochs=3, listeners=[Listener()], **grouped(dict(run_dir=tmp_path, **QUIET)))
    sizes = []
    with r8:
        for epoch in r8.epoch_iterator():
            for batch in r8.batches(list(stream(count=2 + 10 * epoch)), ids="id"):
                r8.update_with_loss(batch["loss"])
            sizes.append(len(r8.table))
    started = next(event for event in heard if isinstance(event, RunStarted))
    surveys = [event for event in heard if isinstance(event, SamplesSurveyed)]

    assert started.grows
    assert surveys[-1].num_read == sizes[-1] > sizes[0]
    assert surveys[-1].hardest_names[0] == "s29"
    from learnit_r8.journal.samples import read_samples, sample_epochs

    files = [read_samples(tmp_path, epoch) for epoch in sample_epochs(tmp_path)]
    assert [len(each.loss) for each in files] == [sizes[each.epoch] for each in files]
    assert files[-1].name_of(int(files[-1].hardest(1)[0])) == "s29"
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("grows") for line in lines)


def test_wrong_arguments_are_named():
    """Before anything is drawn."""
    r8 = R8Scheduler(num_epochs=1, **grouped(QUIET))

    with pytest.raises(TypeError, match=r"ids must be a function of a batch, the key of its ids, or None, got 1\.5"):
        r8.batches([1], ids=1.5)
    with pytest.raises(TypeError, match="skip must be a function of a list of ids, or None, got 3"):
        r8.batches([1], skip=3)
    with pytest.raises(ValueError, match=r"ids must be a key that every batch has.*got 'id' for a list"):
        list(r8.batches([[1, 2]], ids="id"))
    next(iter(r8.batches([{"id": [1]}], ids="id")))
    with pytest.raises(ValueError, match=r"ids must be given to batches.* or with the loss, not both"):
        r8.update_with_loss(1.0, ids=[1])
    with pytest.raises(ValueError, match="max_ids must be"):
        R8Scheduler(num_epochs=1, batch_size=OwnBatches(max_ids=0), **grouped(QUIET))
    with pytest.raises(ValueError, match="batch_size must be a number or TokenBatches"):
        R8Scheduler(10, num_epochs=1, batch_size=OwnBatches(max_ids=5))
