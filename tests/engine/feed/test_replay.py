import pickle
import random
import re
import sys
import types

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from learnit_r8 import R8Scheduler
from learnit_r8.engine.feed import replay
from learnit_r8.engine.feed.replay import read_start, set_generators
from learnit_r8.engine.settings import grouped
from learnit_r8.events import Notice

from .drive import Line, Loader, generators, seed_all


class Killed(BaseException):
    """Stands for a process that ends at once."""


def resumable(folder, line, **settings):
    """A scheduler that writes checkpoints of a line, and goes on with the newest."""
    given = {"scheduler_mode": "keep", "checkpoint_dir": folder, "resume": "auto", "backup_dir": False}
    given |= {"state_callback": line.read, "load_callback": line.load, "save_callback": line.save}
    return R8Scheduler(handle_signals=False, **grouped({**given, **settings}))


def train(folder, *, kill_at=None, loader=None, seed=3, **settings):
    """Train for three epochs of a loader, checkpoints every 7 steps; ``kill_at`` ends it in that step."""
    seed_all(seed)
    line, loader = Line(), Loader() if loader is None else loader
    r8 = resumable(folder, line, **{"num_epochs": 3, "checkpoint_every": 7, **settings})
    begun = r8.global_step
    for _ in r8.epoch_iterator():
        for batch in r8.batches(loader):
            if r8.global_step == kill_at:
                raise Killed
            if r8.update_with_loss(line.loss(batch)):
                line.step(0.02)
    r8.close()
    return line, loader, begun


def killed(folder, step, **more):
    """Train up to a step and lose the process."""
    with pytest.raises(Killed):
        train(folder, kill_at=step, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    line, loader, _ = train(tmp_path_factory.mktemp("whole"))
    return line, loader, generators()


@pytest.mark.parametrize("step", [8, 29, 31, 45, 62, 89])
def test_a_killed_run_goes_on_with_the_same_next_batch(tmp_path, whole, step):
    """Drawing and dropping, with the generators of the start of the epoch, leads to equal weights to the bit."""
    killed(tmp_path, step)
    line, loader, begun = train(tmp_path, seed=99)

    plain, order, after = whole
    assert begun == step // 7 * 7
    assert np.array_equal(line.weights, plain.weights)
    assert loader.given[-(90 - begun) :] == order.given[begun:]
    assert generators() == after


def test_a_run_saved_at_the_last_step_of_an_epoch_goes_on_with_the_next(tmp_path, whole):
    """A checkpoint behind the last batch, before the loader says that there is none, repeats no epoch."""
    killed(tmp_path, 31, checkpoint_every=10)
    line, loader, begun = train(tmp_path, seed=99, checkpoint_every=10)

    assert begun == 30
    assert np.array_equal(line.weights, whole[0].weights)
    assert loader.given[-60:] == whole[1].given[30:]


def test_a_state_that_is_taken_within_a_batch_gives_it_again():
    """A batch that was handed out and not reported is the first of the run that goes on."""
    states, loaders = [], [Loader(), Loader()]
    for loader in loaders:
        seed_all()
        r8 = R8Scheduler(num_epochs=1, scheduler_mode="keep", handle_signals=False)
        if states:
            r8.load_state_dict(states[0])
        for number, _ in enumerate(r8.batches(loader)):
            if number == 4 or states:
                states.append(r8.state_dict())
                break
            r8.update_with_loss(1.0)

    assert loaders[1].given == loaders[0].given


def test_drawing_and_dropping_says_how_long_it_takes(tmp_path, monkeypatch, capsys):
    """Where it takes long, it counts the batches and tells the seconds that are left."""
    monkeypatch.setattr(replay, "LOUD_SECONDS", 0.0)
    killed(tmp_path, 45)
    train(tmp_path, seed=99)

    said = capsys.readouterr().err
    assert re.search(r"^resuming: 1 of 12 batches skipped, \d+ s left$", said, re.MULTILINE)
    assert "resuming: 12 batches skipped in" in said


@pytest.mark.parametrize("step", [31, 59, 62])
def test_a_run_that_is_saved_between_epochs_goes_on_with_its_generators(tmp_path, whole, step):
    """The next epoch shuffles, and the training draws, as in the run that was not killed."""
    killed(tmp_path, step, checkpoint_every=None)
    line, loader, begun = train(tmp_path, seed=99, checkpoint_every=None)

    plain, order, after = whole
    assert begun == step // 30 * 30
    assert np.array_equal(line.weights, plain.weights)
    assert loader.given == order.given[begun:]
    assert generators() == after


def test_a_run_is_resumed_twice(tmp_path, whole):
    """The second resume, in the epoch of the first, goes on as well."""
    killed(tmp_path, 40)
    killed(tmp_path, 52, seed=5)
    line, _, begun = train(tmp_path, seed=6)

    assert begun == 49
    assert np.array_equal(line.weights, whole[0].weights)


def test_a_finished_run_does_nothing(tmp_path):
    """Running the same program again trains nothing."""
    first, _, _ = train(tmp_path)
    with pytest.warns(RuntimeWarning, match="finished, nothing to do"):
        line, loader, begun = train(tmp_path)

    assert begun == 90
    assert not loader.given
    assert np.array_equal(line.weights, first.weights)


class Rewindable(Loader):
    """A loader that knows its place, which it keeps when it is asked for its state."""

    def __init__(self):
        super().__init__()
        self.order, self.place = [], 0

    held = None

    def state_dict(self):
        more = {"kinds": {1: b"bytes", "rows": (np.arange(2), {3})}, "held": self.held}
        return {"order": list(self.order), "place": self.place, **more}

    def load_state_dict(self, state):
        self.order, self.place = list(state["order"]), state["place"]
        assert state["kinds"][1] == b"bytes"
        assert state["kinds"]["rows"][1] == {3}

    def __iter__(self):
        self.begun += 1
        if not self.order:
            self.order = list(range(len(self.batches)))
            random.shuffle(self.order)
        while self.place < len(self.order):
            self.place += 1
            self.given.append(self.order[self.place - 1])
            yield self.batches[self.given[-1]]
        self.order, self.place = [], 0


def test_a_loader_with_a_state_is_not_replayed(tmp_path):
    """Its state is in the checkpoint, so that no batch is drawn for nothing."""
    whole, order, _ = train(tmp_path / "whole", loader=Rewindable())
    killed(tmp_path / "killed", 45, loader=Rewindable())
    line, loader, begun = train(tmp_path / "killed", loader=Rewindable(), seed=9)

    assert begun == 42
    assert loader.given == order.given[42:]
    assert np.array_equal(line.weights, whole.weights)


def test_a_state_of_a_loader_that_no_file_holds_is_said(tmp_path):
    """The run goes on, and is resumed by drawing and dropping."""

    class Odd(Rewindable):
        held = (each for each in ())

    heard = []
    whole, _, _ = train(tmp_path / "whole", loader=Rewindable())
    killed(tmp_path / "killed", 45, loader=Odd(), listeners=[heard.append])
    line, loader, begun = train(tmp_path / "killed", loader=Odd(), seed=9)

    assert begun == 42
    assert len(loader.given) == 60
    assert np.array_equal(line.weights, whole.weights)
    said = [event.text for event in heard if isinstance(event, Notice)]
    assert any("the state of the loader cannot be saved, as 'held'" in text for text in said)


def test_a_stream_that_nobody_can_rewind_begins_anew_loudly(tmp_path):
    """With resume_data="start" the epoch begins with its first batch, and a warning says how many come again."""
    killed(tmp_path, 45)
    with pytest.warns(RuntimeWarning, match=r"the loader starts over, .*: the 12 batches .* come again"):
        _, loader, _ = train(tmp_path, resume_data="start")

    assert len(loader.given) == 60


def test_another_loader_is_noticed(tmp_path):
    """One that ends before the saved place is not that of the saved run."""
    killed(tmp_path, 55)
    with pytest.raises(ValueError, match=r"the loader must be that of the saved run, .* 19 batches .* ends after 10"):
        train(tmp_path, loader=Loader(10))


def test_an_iterator_is_replayed_from_its_beginning(tmp_path):
    """An endless stream goes on over epochs that are cut from it, and a new one is brought to the same place."""

    def stream():
        rng = np.random.default_rng(0)
        while True:
            yield rng.normal(size=(4, 3))

    def run(kill_at=None):
        line, source = Line(), stream()
        seed_all()
        r8 = resumable(tmp_path / str(kill_at is None), line, num_steps=40, checkpoint_every=5)
        while not r8.is_over:
            for place, batch in enumerate(r8.batches(source)):
                if r8.global_step == kill_at:
                    raise Killed
                if r8.update_with_loss(line.loss(batch)):
                    line.step(0.02)
                if place == 7:
                    break
        r8.close()
        return line

    whole = run()
    (tmp_path / "True").rename(tmp_path / "kept")
    with pytest.raises(Killed):
        run(kill_at=27)
    (tmp_path / "False").rename(tmp_path / "True")

    assert np.array_equal(run().weights, whole.weights)


def test_a_kill_in_the_validation_repeats_the_validation(tmp_path):
    """A checkpoint of the end of an epoch resumes in that epoch, which has no batches left."""

    def run(kill_in=None):
        line, loader, validated = Line(), Loader(7), []
        r8 = resumable(tmp_path, line, num_epochs=3)
        for epoch in r8.epoch_iterator():
            for batch in r8.batches(loader):
                if r8.update_with_loss(line.loss(batch)):
                    line.step(0.02)
            if epoch == kill_in:
                raise Killed
            validated.append((epoch, r8.current_epoch, r8.global_step))
        r8.close()
        return validated

    with pytest.raises(Killed):
        run(kill_in=1)

    assert run() == [(1, 1, 14), (2, 2, 21)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_an_exception_over_an_epoch_that_is_repeated_without_batches_says_so(tmp_path):
    """As of a loss that is printed after the batches; one with batches says nothing of the kind."""

    def run(kill_in):
        with resumable(tmp_path, Line(), num_epochs=3) as r8:
            for epoch in r8.epoch_iterator():
                losses = []
                for _ in r8.batches(Loader(7)):
                    losses.append(0.5)
                    r8.update_with_loss(losses[-1])
                assert losses[-1] == 0.5
                if epoch == kill_in:
                    raise Killed

    with pytest.raises(Killed) as killed:
        run(kill_in=1)
    with pytest.raises(IndexError) as raised:
        run(kill_in=None)

    assert not hasattr(killed.value, "__notes__")
    assert "after the last batch of its epoch, so batches() gave none" in raised.value.__notes__[0]


def test_a_loop_of_steps_goes_on_with_its_generators(tmp_path):
    """Where there is nothing to iterate over, the generators alone say which batch is next."""

    def run(folder, kill_at=None, seed=1):
        seed_all(seed)
        line = Line()
        r8 = resumable(folder, line, num_steps=30, checkpoint_every=4)
        for step in r8.steps():
            if step == kill_at:
                raise Killed
            if r8.update_with_loss(line.loss(np.random.standard_normal((4, 3)))):
                line.step(0.02)
        r8.close()
        return line.weights

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=22)

    assert np.array_equal(run(tmp_path / "killed", seed=8), whole)


@pytest.mark.parametrize(
    ("name", "generator", "draw"),
    [
        ("rng", np.random.default_rng(0), lambda each: each.random()),
        ("g", np.random.default_rng(0), lambda each: each.random()),
        ("dice", np.random.RandomState(0), lambda each: each.rand()),
        ("_random", random.Random(0), lambda each: each.random()),
        ("g", torch.Generator(), lambda each: torch.rand((), generator=each).item()),
    ],
)
def test_generators_of_a_loader_are_put_back(name, generator, draw):
    """A loader's own generators are part of its place, of whatever kind and in whatever attribute."""
    own = types.SimpleNamespace(sampler=types.SimpleNamespace(**{name: generator}), system=random.SystemRandom())
    state = pickle.loads(pickle.dumps(read_start(own)))
    first = draw(generator)
    set_generators(own, state)

    assert len(state["own"]) == 1
    assert draw(generator) == first


def test_the_spare_number_of_a_generator_is_put_back():
    """Python's normal numbers come in pairs: the second of one is part of the state."""
    generator = random.Random(3)
    own = types.SimpleNamespace(rng=generator)
    generator.gauss(0, 1)
    state, expected = read_start(own), generator.gauss(0, 1)
    set_generators(own, state)

    assert generator.gauss(0, 1) == expected


class Dice(Loader):
    """Shuffles with a generator of its own."""

    def __init__(self, generator):
        super().__init__()
        self.dice = generator

    def __iter__(self):
        order = list(range(len(self.batches)))
        self.dice.shuffle(order)
        for place in order:
            self.given.append(place)
            yield self.batches[place]


class Around(Loader):
    """Holds a loader with a generator of its own, as one that fetches ahead does."""

    def __init__(self, generator):
        super().__init__()
        self.inner = DataLoader(range(30), batch_size=None, shuffle=True, generator=generator)

    def __iter__(self):
        return (self.batches[int(place)] for place in self.inner)


class Counting(Loader):
    """Shuffles by the number of its epoch, which it, or its data set, counts itself."""

    def __init__(self, holder=None):
        super().__init__()
        self.dataset = self if holder is None else holder
        self.dataset.own_epoch = 0

    def __iter__(self):
        order = list(range(len(self.batches)))
        random.Random(self.dataset.own_epoch).shuffle(order)
        self.dataset.own_epoch += 1
        return (self.batches[place] for place in order)


class Negatives(Loader):
    """Goes on through a list with each batch, from epoch to epoch, as data sets of word2vec draw their negatives."""

    def __init__(self, setting=0):
        super().__init__()
        self.dataset = types.SimpleNamespace(place=0, setting=setting)

    def __iter__(self):
        for _ in self.batches:
            self.dataset.place += 7
            # Each epoch begins elsewhere.
            yield self.batches[self.dataset.place % (len(self.batches) - 1)]


def test_a_number_of_the_data_set_that_counts_no_batches_is_the_script_s(tmp_path):
    """A setting that was changed between two runs stays as the script has it: no batch has changed the number."""
    killed(tmp_path, 45, loader=Negatives(setting=1))
    loader = Negatives(setting=2)
    train(tmp_path, loader=loader)

    assert loader.dataset.setting == 2


@pytest.mark.parametrize(
    "make",
    [
        Counting,
        Negatives,
        lambda: Counting(types.SimpleNamespace()),
        lambda: Dice(random.Random(1)),
        lambda: Dice(np.random.RandomState(1)),
        lambda: Dice(np.random.default_rng(1)),
        lambda: Around(torch.Generator().manual_seed(1)),
    ],
)
def test_a_run_whose_loader_shuffles_by_itself_goes_on_with_the_same_next_batch(tmp_path, make):
    """In an epoch other than the first, too, whose order follows from what the generator drew before."""
    plain, _, _ = train(tmp_path / "plain", loader=make())
    killed(tmp_path / "killed", 45, loader=make())
    line, _, begun = train(tmp_path / "killed", loader=make())

    assert begun == 42
    assert np.array_equal(line.weights, plain.weights)


def follow(folder, *, kill_at=None, begin_at=None, **settings):
    """A trainer that counts the epochs, and draws the order of each from numpy; returns what it drew, and R8."""
    seed_all(3)
    line, drawn = Line(), []
    r8 = resumable(folder, line, checkpoint_every=3, **settings)
    batches = r8.follow(counts_epochs=True)
    batches.begin_run()
    for epoch in range(r8.current_epoch if begin_at is None else begin_at, 3):
        num_had = batches.begin_pass(epoch)
        for number, batch in enumerate(np.random.permutation(8)):
            if number < num_had:
                continue
            if r8.global_step == kill_at:
                r8.host.saver.store.release()
                raise Killed
            batches.begin()
            drawn.append(int(batch))
            r8.update_with_loss(1.0)
        batches.end_pass()
        r8.host.between_steps()
    batches.end_run()
    r8.close()
    return drawn, r8


@pytest.mark.parametrize("kills", [[4], [8], [13], [5, 8, 21]])
def test_a_trainer_that_counts_epochs_passes_over_what_a_saved_run_had(tmp_path, kills):
    """Resumed in mid-epoch, also twice in one, it draws the order of that epoch again, and goes on behind its steps."""
    whole, _ = follow(tmp_path / "whole")
    for step in kills:
        with pytest.raises(Killed):
            follow(tmp_path / "killed", kill_at=step)
    drawn, r8 = follow(tmp_path / "killed")

    assert drawn == whole[-len(drawn) :]
    assert (r8.global_step, r8.current_epoch) == (24, 2)


def test_a_trainer_that_begins_with_another_epoch_is_told_so(tmp_path):
    """From the first epoch again, or with ``resume_data="start"``: a warning says what comes twice."""
    with pytest.raises(Killed):
        follow(tmp_path, kill_at=13)

    with pytest.warns(RuntimeWarning, match="begins with epoch 0, and the saved run goes on with epoch 1 at step 12"):
        assert len(follow(tmp_path, begin_at=0)[0]) == 24


def test_a_trainer_may_start_the_epoch_over(tmp_path):
    """With ``resume_data="start"``, which is said."""
    with pytest.raises(Killed):
        follow(tmp_path, kill_at=13)

    with pytest.warns(RuntimeWarning, match="the trainer starts that epoch over"):
        assert len(follow(tmp_path, resume_data="start")[0]) == 16
