"""Loggers of other libraries, against the real ones where they are installed."""

import sys

import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.loggers import MLflow, TensorBoard, Wandb
from learnit_r8.loggers.background import Logger

pytestmark = pytest.mark.filterwarnings("ignore:a loss was refused, and there is nothing to restore:RuntimeWarning")


def run(logger, *, name="it", stop=False, **more):
    """Two epochs with metrics and a loss that is refused."""
    with R8Scheduler(100, batch_size=10, num_epochs=2, listeners=[logger], name=name, seed=3, **more) as r8:
        for epoch in r8.epoch_iterator():
            for _, _ in r8.batch_iterator():
                r8.update_with_loss(float("nan") if r8.global_step == 14 else 1.0)
            r8.log(accuracy=(epoch + 1) / 2, **{"val/loss": 0.5})
            if stop:
                break
    assert (logger.num_lost, logger.error) == (0, None)


def test_tensorboard_reads_it(tmp_path):
    """TensorBoard reads the numbers, at their steps, and the incident."""
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(TensorBoard(tmp_path))
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()

    assert [(one.step, one.value) for one in read.Scalars("accuracy")] == [(10, 0.5), (20, 1.0)]
    assert {"r8/loss", "r8/lr", "val/loss"} <= set(read.Tags()["scalars"])
    assert "r8/incident/text_summary" in read.Tags()["tensors"]


def test_tensorboard_of_a_resumed_run(tmp_path):
    """A run that goes on from its checkpoint shows no step twice."""
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with R8Scheduler(100, batch_size=10, num_epochs=2, listeners=[TensorBoard(tmp_path)], seed=3) as r8:
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
            if r8.global_step == 6:
                state = r8.state_dict()
        r8.log(accuracy=0.125)
    with R8Scheduler(100, batch_size=10, num_epochs=2, listeners=[TensorBoard(tmp_path)], seed=3) as r8:
        r8.load_state_dict(state)
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
        r8.log(accuracy=0.25)
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()

    assert [(one.step, one.value) for one in read.Scalars("accuracy")] == [(10, 0.25)]


def test_wandb_keeps_it(tmp_path, monkeypatch):
    """Weights & Biases, offline, keeps settings, numbers and the step; a second run with the same logger is another."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged = []
    real = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda self, values, **more: (logged.append(values), real(self, values)))
    logger = Wandb(project="r8-tests", dir=str(tmp_path))
    run(logger)
    run(logger)

    assert {"accuracy": 1.0, "val/loss": 0.5, "r8/step": 20} in logged
    assert len(list(tmp_path.rglob("*.wandb"))) == 2


def test_wandb_run_of_the_user_stays_open(tmp_path, monkeypatch):
    """A run that was given is not finished."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    given = wandb.init(mode="offline", dir=str(tmp_path), project="r8-tests")
    run(Wandb(run=given))
    given.log({"after": 1.0})
    config = dict(given.config)
    given.finish()

    assert config["r8/initial_lr"] == "0.01"


# Of what MLflow calls in SQLAlchemy.
@pytest.mark.program
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_keeps_it(tmp_path, monkeypatch):
    """MLflow keeps parameters, numbers at their steps, and how the run ended."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny alone has no store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/ml.db")
    from mlflow.tracking import MlflowClient

    # Making the data base takes longer than the end of a run waits.
    client = MlflowClient()
    client.create_experiment("trial")
    run(MLflow("trial"))
    (found,) = client.search_runs([client.get_experiment_by_name("trial").experiment_id])

    assert found.info.status == "FINISHED"
    assert found.data.params["r8.initial_lr"] == "0.01"
    assert [(one.step, one.value) for one in client.get_metric_history(found.info.run_id, "accuracy")] == [
        (10, 0.5), (20, 1.0),
    ]  # fmt: skip
    assert "not finite" in found.data.tags["r8.incident"]
    client.create_experiment("early")
    with R8Scheduler(100, batch_size=10, num_epochs=2, listeners=[MLflow("early")]) as r8:
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
            r8.stop("good enough")
    (found,) = client.search_runs([client.get_experiment_by_name("early").experiment_id])
    assert found.info.status == "FINISHED"


@pytest.mark.parametrize(("module", "make", "package"), [
    ("wandb", Wandb, "wandb"),
    ("mlflow", MLflow, "mlflow"), ("tensorboard", lambda: TensorBoard("tb"), "tensorboardX"),
])  # fmt: skip
def test_library_that_is_missing_is_named(module, make, package, monkeypatch):
    """A logger whose library is not installed says when it is made what to install."""
    for name in ("tensorboardX", "torch.utils.tensorboard", "wandb", "mlflow", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        make()


def test_base_writes_nothing():
    """The base of the loggers has to be given a `write`."""
    with pytest.raises(NotImplementedError):
        Logger().write(None)
