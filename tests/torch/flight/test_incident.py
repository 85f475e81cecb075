"""The same failure again: a recorded incident is loaded, replayed, listed, shown and sent."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from learnit_r8 import Recovery, TrainingDiverged, events
from learnit_r8.cli import main
from learnit_r8.engine.settings import grouped
from learnit_r8.loggers import alert_of
from learnit_r8.recovery.record import numbers_in
from learnit_r8.report import write_report
from learnit_r8.state import codec
from learnit_r8.state.tree import pack
from learnit_r8.testing import record_events
from learnit_r8.torch import attach, load_incident

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
BAD = 21


class Net(nn.Module):
    """With dropout, which draws random numbers."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.head = nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.first(x))))


def loss_fn(model, batch):
    return mse_loss(model(batch[0]), batch[1])


def train(folder, *, value, own_loader=False, workers=0, bad=(BAD,), until=60, **settings):
    """Train with bad samples; returns the losses that were reported, and the weights that they were computed with."""
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    x[list(bad)] = value
    dataset = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True).clamp(-9, 9))
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    common = {"num_steps": 60, "run_dir": folder, "run_batch": lambda batch: loss_fn(model, batch), **settings}
    fetched = {"num_workers": workers, "persistent_workers": workers > 0}
    if own_loader:
        dataset = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True, **fetched)
    else:
        common |= {"batch_size": 8, "sample_ids": [f"img/{n}.png" for n in range(64)]}
    adapter = attach(model, optimizer, dataset, **grouped(common))
    losses, weights = {}, {}
    for _ in adapter.epochs():
        for batch in adapter.batches() if own_loader else adapter.loader(**fetched):
            step = adapter.scheduler.global_step
            if step == until:
                adapter.scheduler.save_checkpoint()
                adapter.close()
                return losses, weights
            weights[step] = {name: each.clone() for name, each in model.state_dict().items()}
            loss = loss_fn(model, batch)
            losses[step] = loss.item()
            adapter.step(loss if own_loader else adapter.loss(loss))
    adapter.close()
    return losses, weights


REPLAYED = {
    "worker": {"workers": 1},
    "own loader, worker": {"own_loader": True, "workers": 1},
    "batch alone": {"record": "batch"},
    "resumed": {"until": 40},
    "resumed, own loader": {"until": 40, "own_loader": True},
}


@pytest.mark.parametrize("settings", REPLAYED.values(), ids=REPLAYED)
def test_a_replayed_loss_is_the_same_to_the_bit(tmp_path, settings):
    """With dropout: the weights, the batch and the random generators of then, in a new model."""
    settings = {"record": "all", **settings}
    if "until" in settings:
        settings["checkpoint_dir"] = tmp_path / "saved"
        train(tmp_path, value=3e3, **settings)
        # Another sample goes bad after the resume.
        settings |= {"until": 60, "resume": "auto", "bad": (BAD, 5)}
    before = numbers_in(tmp_path)
    losses, weights = train(tmp_path, value=3e3, **settings)
    numbers = [number for number in numbers_in(tmp_path) if number not in before]
    incidents = [load_incident(tmp_path / "incidents" / str(number)) for number in numbers]
    # The first one with a refusal: whether later ones are looked into depends on how long the run has taken.
    incident = next(each for each in incidents if each.record["refusals"])
    step = incident.record["refusals"][0]["step"] - 1

    def replayed():
        torch.manual_seed(5)
        model = Net()
        model.load_state_dict(weights[step] if settings["record"] == "batch" else model.state_dict())
        return incident.replay(model, loss_fn)

    again = replayed()
    assert again.item() == incident.loss == losses[step] > 1000
    assert replayed().item() == incident.loss
    again.backward()
    assert len(numbers_in(tmp_path)) > len(before) >= ("resume" in settings)
    # The first batch after a resume has no good one before it to be compared with.
    is_named = "own_loader" not in settings and "resume" not in settings
    assert "whose input holds 3000 at [0]" in incident.cause or not is_named
    assert (incident.refused is None) == (settings["record"] == "batch")
    assert repr(incident).count(f"step {step + 1}: ") == 1


def test_without_run_batch_the_record_says_what_is_missing(tmp_path, capsys):
    """In one line; the forward pass has been looked at."""
    train(tmp_path, value=float("nan"), run_batch=None)

    assert main(["incidents", str(tmp_path), "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "whose input holds NaN at [0]" in shown[0]
    assert shown[1].startswith("  not looked at: without run_batch= only the forward pass can be run again")


def test_without_data_nothing_of_the_batch_is_written(tmp_path, capsys):
    """Names only by default; one file to send, with the data only if that is asked for."""
    train(tmp_path / "a", value=float("nan"))
    assert [each.name for each in (tmp_path / "a" / "incidents" / "1").iterdir()] == ["incident.json"]
    incident = load_incident(tmp_path / "a" / "incidents" / "1")
    with pytest.raises(ValueError, match="record='batch'"):
        incident.replay(Net(), loss_fn)

    train(tmp_path / "b", value=float("nan"), record="batch")
    for name, flags in (("plain", []), ("whole.r8", ["--data"])):
        assert main(["incidents", str(tmp_path / "b"), "1", "--export", str(tmp_path / name), *flags]) == 0
    plain, whole = load_incident(tmp_path / "plain.r8"), load_incident(tmp_path / "whole.r8")
    assert (plain.batch, plain.cause) == (None, whole.cause)
    assert math.isnan(whole.replay(Net(), loss_fn).item())
    assert "with data" in capsys.readouterr().out


def test_incidents_are_listed_and_shown(tmp_path, capsys):
    """The sentence first, then the evidence; the same in the report, first of all."""
    train(tmp_path, value=float("nan"))
    assert main(["incidents", str(tmp_path)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].split() == ["#", "step", "refused", "state", "what"]
    assert "NaN first in `first` (forward), for sample 21 ('img/21.png')" in listed[1]

    assert main(["incidents", str(tmp_path), "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("step ")
    for part in ("whose input holds NaN at [0]; the weights are healthy", "evidence", "losses before:", "img/21.png"):
        assert part in shown
    assert main(["incidents", str(tmp_path), "9"]) == 1

    text = write_report(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    body = text[text.index('id="data"') :]
    assert "NaN first in `first` (forward), for sample 21" in body
    assert body.index("NaN first in") < body.index('"cards"')


@pytest.mark.parametrize("fault", ["input", "unknown"])
def test_one_sentence_is_said_everywhere(tmp_path, capsys, fault):
    """In the error, the event, the record, the list, the screen, the report, and the alert of a logger: the same."""
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    times = 1.0 if fault == "input" else float("nan")
    x[:, 0] = float("nan") if fault == "input" else 1.0
    model, heard = Net(), record_events()
    adapter = attach(
        model, torch.optim.SGD(model.parameters(), 1e-2), torch.utils.data.TensorDataset(x, x[:, 1:2]), batch_size=8,
        num_steps=60, run_dir=tmp_path, name="run", recovery=Recovery(max_refused=12),
        listeners=[heard],
        run_batch=lambda batch: loss_fn(model, batch) if fault == "input" else 1 / 0,
    )  # fmt: skip

    def run():
        for _ in adapter.epochs():
            for batch in adapter.loader():
                adapter.step(adapter.loss(loss_fn(model, batch) * times))

    with pytest.raises(TrainingDiverged) as raised:
        run()
    adapter.close()
    found = heard.of(events.CauseFound)[0]
    sentence = found.text
    assert found.fault == fault
    assert sentence.startswith(f"step {heard.of(events.BatchRefused)[0].step}: ")

    assert str(raised.value).startswith(f"It began at {sentence}.")
    assert heard.of(events.GaveUp)[0].text.startswith(f"It began at {sentence}.")
    # Not more than the first three of a kind are looked into.
    assert len(heard.of(events.CauseFound)) == 3
    assert load_incident(tmp_path / "incidents" / "1").cause == sentence
    assert alert_of(found) == ("cause", sentence)
    page = write_report(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert json.dumps(sentence) in page
    for command in (
        ["incidents", tmp_path],
        ["incidents", tmp_path, 1],
        ["watch", tmp_path, "--once", "--view", "incidents", "--width", "80", "--height", "60"],
    ):
        main(list(map(str, command)))
        # A list has room for its beginning.
        said = sentence if len(command) > 2 else sentence[:80]
        assert said in " ".join(capsys.readouterr().out.split()), command


def test_a_forged_incident_runs_nothing(tmp_path):
    """A file of another kind, and one whose parts are others."""
    (tmp_path / "x.r8").write_bytes(b"R8CK" + bytes(200))
    with pytest.raises(ValueError, match="exported incident"):
        load_incident(tmp_path / "x.r8")
    with pytest.raises((ValueError, OSError)):
        load_incident(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ([1, 2], "batch must be a dict"),
        ({"batch": [[1], {}], "is_training": True}, "batch must be a dict with"),
        ({"batch": [1], "is_inputs": 3, "is_training": True}, "is_inputs must be True or False"),
        ({"batch": 7, "is_inputs": True, "is_training": True}, "batch.batch must be a list"),
        ({"batch": [[1], 2], "is_inputs": True, "is_training": True}, "must be a dict"),
    ],
)
def test_received_part_of_another_form_is_refused_by_its_place(tmp_path, part, what):
    """A received record whose parts are whole files of other things is refused as it is loaded."""
    train(tmp_path, value=math.nan, record="all")
    folder = tmp_path / "incidents" / str(numbers_in(tmp_path)[0])
    (folder / "batch.r8").write_bytes(codec.encode(pack(part)))

    with pytest.raises(ValueError, match=f"must hold a batch, got something else .*{what}"):
        load_incident(folder)


def test_refused_state_that_holds_no_model_is_named(tmp_path):
    """As it is replayed, before the generators are set."""
    train(tmp_path, value=math.nan, record="all")
    folder = tmp_path / "incidents" / str(numbers_in(tmp_path)[0])
    (folder / "refused.r8").write_bytes(codec.encode(pack([1, 2])))

    with pytest.raises(ValueError, match=r"must hold the refused weights under 'model', got \[1, 2\]"):
        load_incident(folder).replay(Net(), loss_fn)
