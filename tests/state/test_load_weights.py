"""The weights of a checkpoint, loaded where neither the run nor R8Scheduler is."""

import json

import pytest

from learnit_r8 import NoValidCheckpoint, R8Scheduler, load_weights
from learnit_r8.engine.settings import grouped


def trained(folder, *, metric="val_loss", **more):
    """A torch training whose second of four epochs was the best; returns its model, and a copy of the best weights."""
    torch = pytest.importorskip("torch")
    from learnit_r8.torch import attach

    torch.manual_seed(0)
    x = torch.randn(80, 3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.TensorDataset(x, x[:, :2])
    settings = {"batch_size": 20, "num_epochs": 4, "monitor": "val_loss", "keep_checkpoints": 1, **more}
    with attach(
        torch.compile(model, backend="eager"), optimizer, data, checkpoint_dir=folder, **grouped(settings)
    ) as adapter:
        for epoch in adapter.epochs():
            for inputs, targets in adapter.loader():
                adapter.step(adapter.loss(((model(inputs) - targets) ** 2).mean(1)))
            adapter.log(**{metric: abs(epoch - 1.0)})
            if epoch == 1:
                best = {name: value.clone() for name, value in model.state_dict().items()}
    return model, best


def test_the_best_weights_are_a_plain_state_dict(tmp_path):
    """One line gives what the model's own load_state_dict takes, from a folder, a checkpoint or a model file."""
    torch = pytest.importorskip("torch")
    model, best = trained(tmp_path)
    weights = load_weights(tmp_path)
    elsewhere = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))

    assert elsewhere.load_state_dict(weights).missing_keys == []
    assert all(torch.equal(weights[name], value) for name, value in best.items())
    newest = load_weights(max(tmp_path.glob("ck_*.r8")))
    assert all(torch.equal(newest[name], value) for name, value in model.state_dict().items())
    assert newest.keys() == load_weights(max(tmp_path.glob("model_*"))).keys() == weights.keys()
    assert load_weights(tmp_path, "optimizer")["param_groups"][0]["momentum"] == 0
    with pytest.raises(ValueError, match=r"part must be one of \['model', 'optimizer', 'random'\], got 'ema'"):
        load_weights(tmp_path, "ema")


def test_without_a_monitored_metric_the_newest_count(tmp_path):
    """Where nothing says which are best, those of the newest checkpoint come; a note that is damaged names none."""
    torch = pytest.importorskip("torch")
    model, _ = trained(tmp_path, monitor=None)
    (tmp_path / "best_00000000.json").write_text(json.dumps([1]))

    assert all(torch.equal(load_weights(tmp_path)[name], value) for name, value in model.state_dict().items())


def test_a_monitor_without_a_best_is_said(tmp_path):
    """Where the run had a monitor that was never logged, a warning says that the weights are the newest."""
    torch = pytest.importorskip("torch")
    with pytest.warns(RuntimeWarning, match="monitor must be a metric given to log.*Until it is"):
        model, _ = trained(tmp_path, metric="f1")
    with pytest.warns(RuntimeWarning, match=r"returns the newest weights, of step 16: .* monitor='val_loss'"):
        weights = load_weights(tmp_path)

    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_what_cannot_be_loaded_is_said(tmp_path):
    """No checkpoint, no model in it, a file of the user's own: each error names the path."""
    with pytest.raises(FileNotFoundError, match=r"path must be a folder of checkpoints or a file of one, got '.*none'"):
        load_weights(tmp_path / "none")
    with pytest.raises(NoValidCheckpoint):
        load_weights(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"of the user's own")
    with pytest.raises(ValueError, match=r"path must lead to a model that R8 wrote, got .*only you can read"):
        load_weights(tmp_path / "model.pt")
    with R8Scheduler(40, batch_size=20, num_epochs=1, checkpoint_dir=tmp_path / "bare") as r8:
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
    with pytest.raises(ValueError, match=r"path must be a checkpoint with a model, got .*which has none"):
        load_weights(tmp_path / "bare")
