"""Short runs at rates near the highest: what they end with is as good as it may be, whatever was tried on the way."""

import contextlib
import io
import math

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits

from learnit_r8 import R8Scheduler, Recovery, TrainingDiverged, events
from learnit_r8.dashboard.plain import PlainLog
from learnit_r8.engine.settings import grouped
from learnit_r8.events.event import describe

NUM_FIXED, WIDTH, MOMENTUM = 256, 32, 0.9


def _houses():
    """Targets with heavy tails, and skewed inputs, as prices of houses have."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(1500, 8))
    x[:, 3:6] = np.exp(1.2 * x[:, 3:6])
    x = (x - x.mean(0)) / x.std(0)
    y = np.tanh(x @ rng.normal(size=8)) + 0.5 * np.sin(2 * x[:, 0]) * x[:, 1] + 0.3 * rng.standard_t(3, size=1500)
    return x, y


def _scaled(y):
    return ((y - y.mean()) / y.std())[:, None]


_digits, _diabetes = load_digits(), load_diabetes()
KINDS = (
    (_houses()[0], _scaled(_houses()[1]), (0.03, 0.07)),
    (_digits.data / 16, np.eye(10)[_digits.target], (0.05, 0.2)),
    (_diabetes.data / _diabetes.data.std(0), _scaled(_diabetes.target), (0.03, 0.07)),
)
"""Inputs, targets, rates. More than one target are those of classes."""


class Network:
    """Three hidden layers, and SGD with momentum.

    Args:
        sizes: Of the layers.
        seed: Of the initial weights.
    """

    def __init__(self, sizes, seed):
        rng = np.random.default_rng(seed)
        bounds = [1 / math.sqrt(size) for size in sizes[:-1]]
        self.weights = [
            rng.uniform(-bound, bound, (1 + before, size))
            for bound, before, size in zip(bounds, sizes[:-1], sizes[1:], strict=True)
        ]
        self.speeds = [np.zeros_like(each) for each in self.weights]

    def state(self):
        return {"weights": self.weights, "speeds": self.speeds}

    def load(self, state):
        self.weights, self.speeds = state["weights"], state["speeds"]

    def losses(self, x, y):
        """float[B], the losses; and float[B, outputs], their gradient."""
        self.inputs = []
        for each in self.weights:
            self.inputs.append(np.hstack([np.ones((len(x), 1)), x if not self.inputs else np.maximum(x, 0)]))
            x = self.inputs[-1] @ each
        if y.shape[1] == 1:
            return (x - y)[:, 0] ** 2, 2 * (x - y)
        x = x - x.max(1, keepdims=True)
        logs = x - np.log(np.exp(x).sum(1, keepdims=True))
        return -(logs * y).sum(1), np.exp(logs) - y

    def step(self, gradient, lr):
        """Take the step for what `losses` has returned."""
        gradient = gradient / len(gradient)
        for n in reversed(range(len(self.weights))):
            own = self.inputs[n].T @ gradient
            gradient = (gradient @ self.weights[n][1:].T) * (self.inputs[n][:, 1:] > 0)
            self.speeds[n] = MOMENTUM * self.speeds[n] + own
            self.weights[n] = self.weights[n] - lr * self.speeds[n]


class Case:
    """A short run; ``number`` says which."""

    def __init__(self, number):
        rng = np.random.default_rng(number)
        self.x, self.y, (low, high) = KINDS[number % len(KINDS)]
        self.lr = math.exp(rng.uniform(math.log(low), math.log(high)))
        self.settings = {
            "num_steps": int(rng.integers(100, 200)), "batch_size": int(rng.choice([16, 32])), "seed": number,
            "policy": "shuffle", "scheduler_mode": "keep", "handle_signals": False,
        }  # fmt: skip

    def network(self):
        return Network([self.x.shape[1], WIDTH, WIDTH, WIDTH, self.y.shape[1]], self.settings["seed"])

    def loss(self, network):
        """The loss of the fixed samples."""
        return float(network.losses(self.x[:NUM_FIXED], self.y[:NUM_FIXED])[0].mean())

    def train(self, *, is_plain=False):
        """The network after the run; ``is_plain``: as if there were no R8, with the same batches and rate."""
        network = self.network()
        callbacks = {} if is_plain else {"state_callback": network.state, "load_callback": network.load}
        r8 = R8Scheduler(len(self.x), **grouped(dict(**self.settings, **callbacks)))
        for _ in r8.epoch_iterator():
            for indices, factor in r8.batch_iterator():
                losses, gradient = network.losses(self.x[indices], self.y[indices])
                if r8.update_with_loss(1.0 if is_plain else losses) or is_plain:
                    network.step(gradient, factor * self.lr)
        r8.close()
        return network


def fault_of(number):
    """What is wrong with the end of a run; "" for nothing."""
    case = Case(number)
    first, network = case.network(), case.train()
    before, after = case.loss(first), case.loss(network)
    is_first = all(map(np.array_equal, first.weights, network.weights))
    if after <= 1.02 * before and not is_first:
        # Whatever the run without R8 does.
        return ""
    plain, text = case.loss(case.train(is_plain=True)), f"run {number}: loss {before:.3f} before, {after:.3f} after it"
    if is_first and plain < before:
        return f"{text} with the initial weights, {plain:.3f} without R8"
    if math.isfinite(plain) and not after <= 1.02 * max(before, plain):
        return f"{text}, {plain:.3f} without R8"
    return ""


@pytest.mark.parametrize(
    "numbers", [range(60, 100), pytest.param(range(1000, 1400), marks=pytest.mark.slow)], ids=["40", "400"]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_short_run_ends_worse_than_it_may(numbers):
    """A run ends no worse than it began or than without R8, and never with its initial weights for nothing."""
    faults = [fault for fault in map(fault_of, numbers) if fault]

    assert not faults, "\n".join(faults)


class Watched(Case):
    """A run in which something happens on the way."""

    def train(self, act, *, closes=True):
        """The network after the run; ``act(r8, network)`` is called before each batch, and ends the run if true."""
        network = self.network()
        r8 = R8Scheduler(
            len(self.x),
            **grouped(dict(backup_every=10, **self.settings)),
            state_callback=network.state,
            load_callback=network.load,
        )
        for _ in r8.epoch_iterator():
            for indices, factor in r8.batch_iterator():
                if act(r8, network):
                    break
                losses, gradient = network.losses(self.x[indices], self.y[indices])
                if r8.update_with_loss(losses):
                    network.step(gradient, factor * self.lr)
            else:
                continue
            break
        if closes:
            r8.close()
        return network

    def scheduler(self, network, **more):
        callbacks = {"state_callback": network.state, "load_callback": network.load, **more}
        return R8Scheduler(len(self.x), **grouped(dict(**self.settings, **callbacks)))


IN_TRIAL = 373
"""A run that ends within a trial of a lower rate."""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_what_a_trial_kept_aside_comes_back_as_the_run_ends(is_damaged, closes):
    """The weights from before a trial return where they are better, as well if those of the trial are damaged."""
    case = Watched(IN_TRIAL)
    weights = {}

    def act(r8, network):
        trial = r8.controller.state.early.trial
        if trial is not None:
            weights["aside"] = [each.copy() for each in trial.present["weights"]]
        if is_damaged and trial is not None and r8.global_step == case.settings["num_steps"] - 1:
            network.weights = [30 * each for each in network.weights]

    final = case.train(act, closes=closes)

    assert weights
    assert all(map(np.array_equal, final.weights, weights["aside"]))
    assert case.loss(final) < 0.8 * case.loss(case.network())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("step", [20, 90])
def test_run_that_is_left_in_an_experiment_ends_with_a_better_state(step):
    """Damaged weights do not come back, nor does the initial state replace them while a trained one is no worse."""
    case, tested = Watched(2), []

    def act(r8, network):
        current = r8.controller.live.current
        if current is None and r8.global_step == step and not tested:
            network.weights = [4 * each for each in network.weights]
        tested.extend([current] if current is not None else [])
        return bool(tested)

    final = case.train(act)
    first, loss = case.network(), case.loss(final)

    assert tested
    assert loss < (0.8 if step == 90 else 1.0) * case.loss(first)
    assert not any(map(np.array_equal, final.weights, first.weights))


@pytest.mark.parametrize("max_refused", [3, 10**6])
def test_text_of_a_restore_where_a_run_is_left_names_what_was_looked_into(max_refused, recwarn):
    """An experiment may end with the run, or as it is given up: it was made for another reason than the last losses."""
    case = Watched(2)
    case.settings["recovery"] = Recovery(max_refused=max_refused)

    def act(r8, network):
        current = r8.controller.live.current
        if r8.global_step >= 90 and current is None:
            network.weights = [4 * each for each in network.weights]
        return current is not None and max_refused > 3

    with contextlib.nullcontext() if max_refused > 3 else pytest.raises(TrainingDiverged):
        case.train(act)
    [said] = [text for text in (str(each.message) for each in recwarn.list) if "restored to step" in text]

    assert said.startswith("losses were far too high: the weights were damaged")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_exception_within_a_trial_leaves_the_weights_that_count():
    """Whoever catches it, and saves the model, has the weights from before the trial."""
    case, network, weights = Watched(IN_TRIAL), Watched(IN_TRIAL).network(), {}
    with contextlib.suppress(KeyboardInterrupt), case.scheduler(network) as r8:
        for _ in r8.epoch_iterator():
            for indices, factor in r8.batch_iterator():
                losses, gradient = network.losses(case.x[indices], case.y[indices])
                if r8.update_with_loss(losses):
                    network.step(gradient, factor * case.lr)
                trial = r8.controller.state.early.trial
                if trial is not None and r8.global_step == case.settings["num_steps"] - 1:
                    weights["aside"] = [each.copy() for each in trial.present["weights"]]
                    raise KeyboardInterrupt

    assert all(map(np.array_equal, network.weights, weights["aside"]))


@pytest.mark.filterwarnings("ignore:.*not finite", "ignore:the run was left")
@pytest.mark.parametrize("how", ["break", "exception", "load raises"])
def test_weights_are_looked_at_where_a_run_is_left(how):
    """NaN in them, which no loss has shown, is put back by close(); an exception of the user's is not hidden."""
    case, network = Watched(3), Watched(3).network()

    def load(state):
        if how == "load raises":
            raise OSError("no")
        network.load(state)

    r8 = case.scheduler(network, load_callback=load, listeners=[])
    with contextlib.suppress(ZeroDivisionError), r8:
        for indices, factor in r8.batch_iterator():
            losses, gradient = network.losses(case.x[indices], case.y[indices])
            if r8.update_with_loss(losses):
                network.step(gradient, factor * case.lr)
            if r8.global_step == 25:
                network.weights = [each.copy() for each in network.weights]
                network.weights[1][0] = np.nan
                if how != "break":
                    raise ZeroDivisionError
                break

    assert r8.global_step == 25
    assert all(np.isfinite(each).all() for each in network.weights) == (how != "load raises")


class Scored(Watched):
    """A run of several epochs, a trial of a lower rate among them; its weights are looked at after each.

    Attributes:
        scores: After each epoch, the loss of the model; that of the state which a trial has kept aside, or None.
        borders: The weights as an epoch's last step was done, and as the next epoch's first batch was in hand.
    """

    def __init__(self):
        super().__init__(82)
        # A rate at which losses make no progress: at lower ones, a plateau is no reason for a trial.
        self.lr *= 3
        self.x, self.y = self.x[:480], self.y[:480]
        self.settings["num_steps"] = 200
        self.scores, self.borders = [], []

    def train(self, r8, network, each_step=lambda r8: None, each_epoch=lambda r8: None):
        """Train ``network`` with the batches of ``r8``."""
        last = None
        for _ in r8.epoch_iterator():
            for batch in self.batches(r8):
                if last is not None:
                    self.borders.append((last, list(network.weights)))
                    last = None
                x, y, lr = batch
                losses, gradient = network.losses(x, y)
                if r8.update_with_loss(losses):
                    network.step(gradient, lr)
                each_step(r8)
                done = list(network.weights)
            last = done
            trial = r8.controller.state.early.trial
            aside = None
            if trial is not None:
                other = self.network()
                other.load(getattr(trial.present, "parts", trial.present))
                aside = self.loss(other)
            self.scores.append((self.loss(network), aside))
            each_epoch(r8)

    def batches(self, r8):
        return ((self.x[indices], self.y[indices], factor * self.lr) for indices, factor in r8.batch_iterator())

    def check(self):
        """Some epochs have ended within a trial: with the state from before it, and the trial has gone on unchanged."""
        within = [score for score in self.scores if score[1] is not None]

        assert len(within) > 1
        assert all(loss == aside for loss, aside in within)
        same = [all(map(np.array_equal, before, after)) for before, after in self.borders]
        assert sum(same) >= len(self.borders) - 1  # the trial itself may begin or end there


class ScoredOwn(Scored):
    """The same with batches of a loader of the user's own, and a schedule of R8's."""

    def __init__(self):
        super().__init__()
        self.order = list(np.random.default_rng(4).permutation(480).reshape(15, 32))

    def batches(self, r8):
        loader = [(self.x[indices], self.y[indices]) for indices in self.order]
        return ((*batch, r8.lr) for batch in r8.batches(loader))

    def scheduler(self, network, **more):
        settings = {name: value for name, value in self.settings.items() if name not in ("batch_size", "policy")}
        settings |= {"scheduler_mode": "constant", "initial_lr": self.lr}
        callbacks = {"state_callback": network.state, "load_callback": network.load, **more}
        return R8Scheduler(**grouped(dict(**settings, **callbacks)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", [Scored, ScoredOwn])
def test_validation_sees_no_weights_on_trial(kind):
    """After an epoch that ends within a trial the weights from before it are there; the next epoch goes on with it."""
    case, network = kind(), kind().network()
    with case.scheduler(network) as r8:
        case.train(r8, network)

    case.check()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_metrics_logged_within_a_trial_are_marked_and_no_best():
    """In mid-epoch they say nothing of the run, whatever their value; after the epoch they do."""
    heard, case, network = [], Scored(), Scored().network()
    marked = {}

    def log(name):
        def act(r8):
            controller = r8.controller
            is_on = controller.state.early.trial is not None or controller.live.current is not None
            before = len(heard)
            r8.log(**{name: -1.0 if is_on and name == "inside" else 1.0})
            # None where the same was logged at this step before.
            told = [each for each in heard[before:] if isinstance(each, events.MetricsLogged)]
            marked.setdefault(name, []).extend((is_on, each.is_on_trial) for each in told)

        return act

    with case.scheduler(network, listeners=[heard.append], monitor="inside", mode="min", early_stopping=1000) as r8:
        case.train(r8, network, log("inside"), log("outside"))

    assert {(True, True), (False, False)} == set(marked["inside"])
    assert (True, False) in marked["outside"]
    assert not any(is_marked for _, is_marked in marked["outside"])
    assert r8.host.early_stop.best.value == 1.0
    assert events.MetricsLogged(1, 0.0, 1, {"a": 2.0}, is_on_trial=True).named == {"a_on_trial": 2.0}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_state_saved_within_a_trial_is_marked(tmp_path):
    """In events, views, and the state itself, by which a program of the user's may tell."""
    heard, case, network = [], Scored(), Scored().network()
    marked = []

    def act(r8):
        is_on = r8.controller.is_on_trial
        if r8.global_step % 10 == 3 and r8.save_checkpoint() is not None:
            marked.append((is_on, heard[-1].is_on_trial, r8.state_dict()["recovery"]["is_on_trial"]))

    with case.scheduler(network, listeners=[heard.append], checkpoint_dir=tmp_path, checkpoint_every=10**6) as r8:
        case.train(r8, network, act)
    told = [event for event in heard if isinstance(event, events.CheckpointSaved)]
    [mark] = {describe(event).text.split("saved")[1] for event in told if event.is_on_trial}

    assert {(True, True, True), (False, False, False)} == set(marked)
    assert mark == ", with weights on trial"
    for event in told:
        text = io.StringIO()
        PlainLog(text)(event)
        assert ("on trial" in text.getvalue()) == event.is_on_trial


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_state_of_weights_under_test_says_so_when_it_is_loaded():
    """One that a program has saved while backups were tested: the weights that counted are not among it."""
    case, states = Watched(2), []

    def act(r8, network):
        is_tested = r8.controller.live.current is not None
        if not is_tested and r8.global_step == 20:
            network.weights = [4 * each for each in network.weights]
        states.extend([r8.state_dict()] if is_tested else [])
        return is_tested

    case.train(act)
    with pytest.warns(RuntimeWarning, match="goes on from weights that were only on trial"):
        case.scheduler(case.network()).load_state_dict(states[0])


class Left(Exception):
    """The process is gone."""


def _save(state, path):
    with open(path, "wb") as file:
        np.savez(file, *state["model"]["weights"], *state["model"]["speeds"])


def _load(network, source):
    if isinstance(source, str):
        with np.load(source) as file:
            arrays = [file[name] for name in file.files]
        source = {"weights": arrays[: len(arrays) // 2], "speeds": arrays[len(arrays) // 2 :]}
    network.load(source)


def _trained(case, folder, *, every=10**6, saves_at=None, until=None):
    """From where a run in the folder goes on, after each step: its weights, whether they were on trial, the probes."""
    network, found = case.network(), {}
    r8 = case.scheduler(
        network, save_callback=_save, load_callback=lambda source: _load(network, source), checkpoint_dir=folder,
        checkpoint_every=every, resume="auto", backup_dir=False,
    )  # fmt: skip

    def note(r8):
        step = r8.global_step
        controller = r8.controller
        is_on, num_probes = controller.state.early.trial is not None, controller._incidents.num_probes
        found[step] = [*network.weights, *network.speeds], is_on, num_probes
        if step == saves_at:
            r8.save_checkpoint()
        if step == until:
            raise Left

    with contextlib.suppress(Left):
        case.train(r8, network, note)
        r8.close()
        found["end"] = network.weights, False, 0
    return found


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("kind", "saving"),
    [(Scored, {"every": 9}), (Scored, {"every": None}), (Scored, {"saves_at": 170}), (ScoredOwn, {"saves_at": 157})],
)
def test_run_resumed_within_a_trial_goes_on_with_it(kind, saving, tmp_path):
    """A checkpoint of a trial holds its weights and those from before it: each step after a resume is the same."""
    whole = _trained(kind(), tmp_path / "whole", **saving)
    within = [step for step, (_, is_on, _) in whole.items() if is_on]
    _trained(kind(), tmp_path / "resumed", **saving, until=within[-4])
    resumed = _trained(kind(), tmp_path / "resumed", every=saving.get("every", 10**6))
    first = min(step for step in resumed if step != "end")

    assert within[0] < first <= within[-4] + 1
    for step, (arrays, is_on, _) in resumed.items():
        assert all(map(np.array_equal, arrays, whole[step][0])), step
        assert is_on == whole[step][1]


class Probed(Scored):
    """A run whose first steps are probed: early losses, then how much updates change, then perhaps a lower rate."""

    def __init__(self, number, by):
        Watched.__init__(self, number)
        self.lr *= by
        self.scores, self.borders = [], []


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("number", "by", "saves_at", "num_trials"),
    [(60, 1, 40, 0), (60, 1, 115, 0), (69, 1, 5, 0), (75, 1, 5, 0), (75, 1, 60, 0), (105, 3, 147, 1)],
)
def test_resumed_run_goes_on_with_the_watch_of_its_first_steps(number, by, saves_at, num_trials, tmp_path):
    """Whether it is saved before the probes or among them: it makes the same ones, and each step is the same."""
    whole = _trained(Probed(number, by), tmp_path / "whole")
    _trained(Probed(number, by), tmp_path / "resumed", saves_at=saves_at, until=saves_at + 2)
    resumed = _trained(Probed(number, by), tmp_path / "resumed")
    steps = [step for step in whole if step == "end" or step > saves_at]

    assert [step for step in resumed if step != saves_at] == steps
    assert any(whole[step][1] for step in steps) == bool(num_trials)
    for step in steps:
        assert all(map(np.array_equal, resumed[step][0], whole[step][0])), step
        assert resumed[step][1:] == whole[step][1:], step


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_resumed_run_that_cannot_try_a_lower_rate_says_so(tmp_path):
    """Saved before its losses stood still, it has no initial weights to go back to: it says what may help."""
    said = "may be too high. A lower one would be tried from the start, but the run was resumed"
    _trained(Probed(105, 3), tmp_path, saves_at=30, until=32)
    with pytest.warns(RuntimeWarning, match=said):
        resumed = _trained(Probed(105, 3), tmp_path)

    assert not any(is_on for _, is_on, _ in resumed.values())
