"""Samples files: what is kept of a run, and files made to harm whoever reads them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import predictions_of
from learnit_r8.journal.samples import kept, read_samples, sample_epochs, samples_of
from learnit_r8.state.codec import encode, read
from learnit_r8.table.labels.evidence import EVIDENCE
from tests.drive import make, sample_losses


def trained(tmp_path, **more):
    """A run folder with the samples of one epoch."""
    r8 = make(20, num_epochs=1, run_dir=tmp_path, **more)
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(sample_losses(indices))
    r8.close()
    return r8


def test_samples_come_back(tmp_path):
    """The samples file holds what the table knew, and names."""
    r8 = trained(tmp_path, sample_ids=[f"img{number}" for number in range(20)])
    samples = read_samples(tmp_path, 0)
    table = r8.table

    assert (samples.epoch, samples.step, samples.source, samples.is_exact) == (0, 5, "exact", True)
    for name in ("loss", "last", "mean", "usage_count"):
        np.testing.assert_array_equal(getattr(samples, name), getattr(table, name))
    assert samples.untrained_loss == table.untrained_loss
    assert [samples.name_of(index) for index in samples.hardest(3)] == [str(one.name) for one in table.hardest(3)]
    assert samples.suspects().reason == table.suspects().reason


def test_samples_of_an_earlier_run_go(tmp_path):
    """A run begun anew in a folder shows its own samples, though an earlier one got further."""
    for num_samples, num_epochs in ((20, 4), (12, 2)):
        with make(num_samples, num_epochs=num_epochs, run_dir=tmp_path) as r8:
            for _ in r8.epoch_iterator():
                for indices, _ in r8.batch_iterator():
                    r8.update_with_loss(sample_losses(indices))

    assert {len(read_samples(tmp_path, epoch).loss) for epoch in sample_epochs(tmp_path)} == {12}


@pytest.mark.parametrize("groups", [None, ["a", "b"] * 60])
def test_samples_are_copies(monkeypatch, groups):
    """Samples stay as they were when the epoch ended, whatever is learned before they are written."""
    monkeypatch.setattr("learnit_r8.table.records.SLICE", 50)
    r8 = make(120, batch_size=10, groups=groups, num_epochs=3)
    said = predictions_of(np.eye(10, dtype=np.float32), np.arange(10))
    for _ in range(8):
        r8.report(r8.draw(), sample_losses(np.arange(10)), predictions=said)
    before = {name: getattr(r8.table, name) for name in ("loss", "last", "mean", "usage_count")}
    samples, evidence = samples_of(r8.table, 0, 8), r8.table.read_evidence()
    for _ in range(12):
        r8.report(r8.draw(), np.full(10, 9.0), predictions=said)

    assert r8.table.usage_count.max() == 2
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(samples, name), values)
    for name in EVIDENCE.names:
        np.testing.assert_array_equal(samples.evidence[name], evidence[name])
    assert (samples.group is None) == (groups is None)


def test_unseen_samples_are_never_hardest(tmp_path):
    """Samples that were never seen have no loss to be ranked by."""
    r8 = make(20, run_dir=tmp_path)
    r8.report(r8.draw(), [1.0, 2.0, 3.0, 4.0])
    samples = samples_of(r8.table, 0, 1)

    assert len(samples.hardest(10)) == 4
    assert samples.loss[samples.hardest(1)[0]] == 4.0
    assert np.isnan(samples.loss).sum() == 16


@given(st.sets(st.integers(0, 10_000), max_size=60).map(sorted))
def test_kept_epochs_are_few_and_spread(epochs):
    """The first, the last three, and at most seven in between are kept."""
    chosen = kept(epochs)

    assert chosen[-3:] == epochs[-3:]
    assert chosen[:1] == epochs[:1]
    assert len(chosen) == min(len(epochs), 11)
    assert chosen == sorted(set(chosen) & set(epochs))


def about(**more):
    return json.dumps({"step": 5, "source": "exact", "is_exact": True, "untrained_loss": 2.0, "names": {}, **more})


def good():
    four = np.arange(4, dtype="<f4")
    return {"about": about(), "loss": four, "last": four, "mean": four, "usage_count": four.astype("<u2")}


HOSTILE = {
    "two dimensions": {"loss": np.zeros((2, 2), "<f4")},
    "texts": {"loss": np.array(["a", "b", "c", "d"])},
    "another dtype": {"loss": np.arange(4, dtype="<f8")},
    "another length": {"last": np.arange(3, dtype="<f4")},
    "no array": {"loss": [1.0, 2.0, 3.0, 4.0]},
    "deep about": {"about": "[" * 100_000},
    "about is an array": {"about": np.array(["x"])},
    "about lacks": {"about": "{}"},
    "names are no dict": {"about": about(names=3)},
    "step is infinite": {"about": about().replace('"step": 5', '"step": 1e999')},
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_samples_are_refused(tmp_path, hostile, monkeypatch):
    """A samples file made to harm is a ValueError: nothing is run, and no more is read than the file is long."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples-000000.safetensors").write_bytes(encode({**good(), **HOSTILE[hostile]}))
    with pytest.raises(ValueError, match=r"samples-000000\.safetensors must be a whole samples file, got"):
        read_samples(tmp_path, 0)

    assert [path.name for path in tmp_path.iterdir()] == ["samples-000000.safetensors"]


@given(st.data())
def test_damaged_samples_never_escape(tmp_path_factory, data):
    """A samples file cut anywhere, or with any byte changed, is read or refused with a ValueError."""
    folder = tmp_path_factory.mktemp("run")
    path = folder / "samples-000000.safetensors"
    content = bytearray(encode(good()))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        samples = read_samples(folder, 0)
    except ValueError:
        return

    assert len(samples.loss) == 4


def test_other_names_are_no_samples(tmp_path):
    """Only files named as the journal names them are looked at."""
    for name in (
        "samples-000003.safetensors",
        "samples-3.safetensors",
        "samples-000004.safetensors.bak",
        "samples-000006.npy",
        "../samples-000005.safetensors",
        "x",
    ):
        (tmp_path / name.replace("../", "dots")).touch()

    assert sample_epochs(tmp_path) == [3]


def test_groups_come_along(tmp_path):
    """Where samples have groups the file holds them, so that rare ones are protected there too."""
    r8 = trained(tmp_path, groups=[number % 2 for number in range(20)])
    found = read_samples(tmp_path, 0)

    np.testing.assert_array_equal(found.group, r8.table.storage.records.whole["group"])
    assert read_samples(trained(tmp_path / "other").run_dir, 0).group is None


def test_evidence_comes_back(tmp_path):
    """What predictions say of the labels is in the samples file, and gives the verdict and the labels of the table."""
    logits = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    given = logits.argmax(1)
    given[:6] = (given[:6] + 1) % 3
    r8 = make(60, batch_size=10, num_epochs=8, run_dir=tmp_path, groups=np.array(["ant", "bee", "cow"])[given])
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            said = predictions_of(logits[indices] * (1 + r8.current_epoch), given[indices])
            r8.update_with_loss(np.log1p(np.exp(said.margin)), predictions=said)
    r8.close()
    file, table = read_samples(tmp_path, 7), r8.table

    for name in EVIDENCE.names:
        np.testing.assert_array_equal(file.evidence[name], table.storage.evidence.whole[name])
    np.testing.assert_array_equal(file.suspects().indices, table.suspects().indices)
    np.testing.assert_array_equal(file.ranking(9).indices, table.ranking(9).indices)
    names, predicted = file.labels(np.arange(8), file.suspects())
    assert names == [["ant", "bee", "cow"][label] for label in given[:8]]
    assert predicted == [["ant", "bee", "cow"][label] for label in logits[:8].argmax(1)]
    frame = file.columns(file.suspects())
    assert frame["label_score"][:6].max() < 0.5 < frame["label_score"][6:].min()


def test_file_with_half_the_evidence_is_damaged(tmp_path):
    """A file that lacks one of the fields is refused as any damaged one."""
    trained(tmp_path)
    path = tmp_path / "samples-000000.safetensors"
    path.write_bytes(encode({**read(path), "margin": np.zeros(20, np.float32)}))

    with pytest.raises(ValueError, match="must be a whole samples file, got \"'early'\""):
        read_samples(tmp_path, 0)
