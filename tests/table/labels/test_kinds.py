"""Several labels a sample, tokens, pixels and numbers: the labels that look wrong, and the samples that hold them."""

import csv
import io

import numpy as np
import pytest

from learnit_r8 import Predictions, R8Scheduler, predictions_of
from learnit_r8.cli import main
from learnit_r8.journal.samples import read_samples, samples_of, write_samples
from learnit_r8.report import write_report
from learnit_r8.table import label_noise

SIZE, PLACES, CLASSES = 600, 6, 5
RNG = np.random.default_rng(7)
TRUE = RNG.integers(0, CLASSES, (SIZE, PLACES))
IS_WRONG = RNG.random((SIZE, PLACES)) < 0.1
GIVEN = np.where(IS_WRONG, (TRUE + RNG.integers(1, CLASSES, TRUE.shape)) % CLASSES, TRUE)
HARD = RNG.exponential(1.0, (SIZE, PLACES, 1))
VALUES = np.linspace(-2, 2, SIZE).astype(np.float32)
EXCHANGED = RNG.random(SIZE) < 0.1
TARGETS = np.where(EXCHANGED, RNG.permutation(VALUES), VALUES).astype(np.float32)


def tokens(indices, epoch):
    """Logits that know the right class of most places, and the longest sequences last."""
    rng = np.random.default_rng([epoch, *indices[:2]])
    logits = 4 * np.eye(CLASSES)[TRUE[indices]] / (0.5 + HARD[indices]) + rng.normal(
        size=(len(indices), PLACES, CLASSES)
    )
    length = PLACES if epoch else PLACES - 2
    return predictions_of(logits[:, :length], GIVEN[indices, :length])


def several(indices, epoch):
    """A logit for each label, of which one in ten was flipped."""
    rng = np.random.default_rng([epoch, *indices[:2]])
    true = TRUE[indices] > 2
    logits = np.where(true, 3, -3) / (0.5 + HARD[indices, :, 0]) + rng.normal(size=true.shape)
    return predictions_of(logits, true ^ IS_WRONG[indices], "multilabel")


def numbers(indices, epoch):
    """Numbers predicted with some noise."""
    rng = np.random.default_rng([epoch, *indices[:2]])
    return predictions_of(VALUES[indices] + 0.1 * rng.normal(size=len(indices)), TARGETS[indices], "regression")


def one_logit(indices, epoch):
    """The logit of class 1 of two."""
    rng = np.random.default_rng([epoch, *indices[:2]])
    logits = np.where(TRUE[indices, 0] > 2, 3, -3) / (0.5 + HARD[indices, 0, 0]) + rng.normal(size=len(indices))
    return predictions_of(logits[:, None], (TRUE[indices, 0] > 2) ^ IS_WRONG[indices, 0])


def trained(said, epochs=6, **settings):
    r8 = R8Scheduler(SIZE, batch_size=50, num_epochs=epochs, policy="shuffle", seed=1, **settings)
    while not r8.is_over:
        ticket = r8.draw()
        predictions = said(ticket.indices, ticket.step * 50 // SIZE)
        losses = np.full(len(ticket.indices), 0.5, np.float32)
        if said is one_logit:
            losses = np.logaddexp(0, predictions.margin)
        r8.report(ticket, losses, predictions=predictions)
    r8.close()
    return r8


@pytest.fixture(scope="module")
def runs():
    return {said.__name__: trained(said) for said in (tokens, several, numbers)}


@pytest.mark.parametrize("name", ["tokens", "several"])
def test_wrong_labels_are_named_by_their_places(runs, name):
    """As many of the list are wrong as asked for, most wrong ones are on it, and each sample is there once."""
    table = runs[name].table
    found = table.suspects(0.7)
    places = found.places
    is_wrong = IS_WRONG[places.indices, places.places]

    assert is_wrong.mean() >= 0.7
    assert is_wrong.sum() > 0.5 * IS_WRONG.sum()
    assert sorted(found.indices) == sorted(set(places.indices.tolist()))
    assert table.given.shape == (SIZE, PLACES)
    assert (places.given == table.given[places.indices, places.places]).all()
    assert (places.suggested == table.suggested[places.indices, places.places]).all()
    right = TRUE if name == "tokens" else (TRUE > 2).astype(int)
    assert (places.suggested == right[places.indices, places.places])[is_wrong].mean() > 0.9
    assert table.ranking(3).given.tolist() == found.given[:3].tolist()


@pytest.mark.parametrize("most_fitted", [2**21, 8000])
def test_the_background_is_no_mirror_of_objects(monkeypatch, most_fitted):
    """Objects that a network does not see are right labels: the background, which it knows, would not explain them."""
    monkeypatch.setattr(label_noise, "MOST_FITTED", most_fitted)
    rng, count = np.random.default_rng(1), 4000 * PLACES
    size, is_object = rng.gamma(2.0, 1.0, count), rng.random(count) < 0.3
    is_taken, is_wrong = is_object & (rng.random(count) < 0.04), is_object & (rng.random(count) < 0.1)
    right = np.where(is_object & (rng.random(count) < 1 / (1 + np.exp(1.5 * size))), size, -size)
    margin = np.where(is_wrong, rng.normal(4.0, 1.5, count), np.where(is_object, right, -12 - size))
    margin = np.where(is_taken, 1.5 * size, margin).astype(np.float32)
    given = np.where(is_object, 1 + rng.integers(0, 4, count), 0).astype(np.uint16)
    leader = np.where(is_taken, 0, np.where(given == 4, 1, given + 1)).astype(np.uint16)
    visits = np.full(count, 9, np.uint16)
    of_samples = {"last": np.ones(4000, np.float32), "mean": np.ones(4000, np.float32), "usage_count": visits[:4000]}
    evidence = {"margin": margin, "early": margin, "visits": visits, "given": given, "leader": leader, "lead": visits}
    found = label_noise.find_suspects(of_samples, 1.6, exact=True, evidence=evidence, precision=0.8).places
    listed = found.indices * PLACES + found.places

    assert (is_wrong & ~is_taken)[listed].mean() >= 0.8
    assert is_wrong[listed].sum() > 0.7 * is_wrong.sum()
    assert (found.suggested > 0).all()
    assert (np.diff(margin[listed]) <= 0).all()


def test_masks_of_one_class_have_a_background_too():
    """Where the pixels of an object are wrong together, two classes are not each other's mirror."""
    rng, count, alike = np.random.default_rng(1), 4000, 10
    size, is_object = rng.gamma(2.0, 1.0, count), rng.random(count) < 0.4
    is_taken = is_object & (rng.random(count) < 0.08)
    is_missing = ~is_object & (rng.random(count) < 0.06)
    right = np.where(rng.random(count) < 1 / (1 + np.exp(1.5 * size)), size, -size)
    margin = np.where(is_missing, rng.normal(4.0, 1.5, count), np.where(is_object, right, -12 - size))
    margin = np.where(is_taken, 1.5 * size, margin)
    # Ten pixels alike in each sample.
    margin, given, is_wrong = (np.repeat(part, alike) for part in (margin, is_object, is_missing))
    margin = (margin + 0.01 * rng.normal(size=margin.shape)).astype(np.float32)
    visits = np.full(count * alike, 9, np.uint16)
    evidence = {
        "margin": margin, "early": margin, "visits": visits, "given": given.astype(np.uint16),
        "leader": 1 - given.astype(np.uint16), "lead": visits,
    }  # fmt: skip
    of_samples = {"last": np.ones(count, "f4"), "mean": np.ones(count, "f4"), "usage_count": visits[:count]}
    found = label_noise.find_suspects(of_samples, 0.7, exact=True, evidence=evidence, precision=0.8).places
    listed = found.indices * alike + found.places

    assert is_wrong[listed].mean() >= 0.8
    assert is_wrong[listed].sum() > 0.7 * is_wrong.sum()


def test_numbers_beyond_the_noise_of_such_samples_are_named(runs):
    """The value expected comes with them."""
    found = runs["numbers"].table.suspects(0.7)

    assert EXCHANGED[found.indices].mean() >= 0.7
    assert len(found.indices) > 20
    assert found.places is None
    np.testing.assert_allclose(found.given, TARGETS[found.indices])
    np.testing.assert_allclose(found.suggested, VALUES[found.indices], atol=0.2)


def test_one_logit_a_sample_is_judged_as_a_class():
    """The one logit of two classes has a list, the right classes and the data at a glance."""
    table = trained(one_logit).table
    found, is_wrong = table.suspects(0.7), IS_WRONG[:, 0]
    right = (TRUE[:, 0] > 2).astype(int)

    assert found.places is None
    assert is_wrong[found.indices].mean() >= 0.7
    assert is_wrong[found.indices].sum() > 0.4 * is_wrong.sum()
    assert (found.suggested == right[found.indices])[is_wrong[found.indices]].mean() > 0.7
    assert np.isfinite(table.overview().margin).all()


@pytest.mark.parametrize("name", ["tokens", "several", "numbers"])
def test_files_and_frames_say_the_same(runs, name, tmp_path):
    """A samples file gives the verdict of the run, and so does a checkpoint of it."""
    table = runs[name].table
    write_samples(tmp_path, [samples_of(table, 0, 1)])
    file = read_samples(tmp_path, 0)
    again = R8Scheduler(SIZE, batch_size=50, num_epochs=1).table
    again.load_state_dict(table.state_dict())
    expected = table.suspects()

    for found in (file.suspects(), again.suspects()):
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.suggested, expected.suggested)
    columns = file.columns(expected)
    first = int(expected.indices[0])
    at = "" if expected.places is None else f" at {expected.places.places[0]}"
    assert str(columns["given_label"][first]) == f"{expected.given[0]:.6g}{at}"
    assert columns["label_score"][first] < 0.5


@pytest.mark.parametrize("said", [tokens, several, numbers])
def test_resumed_runs_know_the_same(said, runs):
    """Half a training, its state in another scheduler, and the other half end in the lists of the whole one."""
    halves = [R8Scheduler(SIZE, batch_size=50, num_epochs=6, policy="shuffle", seed=1) for _ in range(2)]
    for r8, end in zip(halves, (40, 72), strict=True):
        if end == 72:
            r8.load_state_dict(halves[0].state_dict())
        while r8.global_step < end:
            ticket = r8.draw()
            losses = np.full(len(ticket.indices), 0.5, np.float32)
            r8.report(ticket, losses, predictions=said(ticket.indices, ticket.step * 50 // SIZE))
    whole, resumed = runs[said.__name__].table, halves[1].table

    assert len(whole.suspects().indices)
    np.testing.assert_array_equal(resumed.read_evidence()["visits"], whole.read_evidence()["visits"])
    ours_of, theirs_of = resumed.suspects(), whole.suspects()
    for name in ("indices", "mean_loss", "score"):
        ours, theirs = getattr(ours_of, name), getattr(theirs_of, name)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("said", [tokens, several, numbers])
def test_batches_with_ids_have_the_same_lists(said, runs):
    """Whoever draws the samples: their names lead to the evidence that a scheduler of so many samples has."""
    rng, r8 = np.random.default_rng(5), R8Scheduler(num_steps=72)
    order = [rows for epoch in range(6) for rows in np.split(rng.permutation(SIZE), SIZE // 50)]
    for step, rows in enumerate(r8.batches(order, ids=lambda rows: [f"s{row}" for row in rows])):
        r8.update_with_loss(np.full(50, 0.5, np.float32), predictions=said(rows, step * 50 // SIZE))
    found, table = r8.table.suspects(0.7), r8.table
    rows = [int(table.storage.name_of(index)[1:]) for index in found.indices]
    is_wrong = (EXCHANGED if said is numbers else IS_WRONG.any(axis=1))[rows]

    assert len(rows) > 20
    assert is_wrong.mean() >= 0.7
    if said is not numbers:
        at = found.places
        samples = [int(table.storage.name_of(index)[1:]) for index in at.indices]
        assert IS_WRONG[samples, at.places].mean() >= 0.7


@pytest.mark.filterwarnings("ignore:sample 17 was in 2 refused batches:RuntimeWarning")
def test_samples_in_quarantine_keep_what_is_known_of_their_places():
    """A sample whose losses are never numbers is drawn no more; what was said of it before is not lost or mixed up."""
    bad = 17
    model = {"load_callback": lambda source, from_ram: None, "state_callback": lambda: {"w": np.zeros(2)}}
    r8 = R8Scheduler(SIZE, batch_size=50, num_epochs=8, policy="shuffle", seed=1, **model)
    while not r8.is_over:
        ticket = r8.draw()
        epoch = ticket.step * 50 // SIZE
        losses = np.where((ticket.indices == bad) & (epoch > 3), np.nan, 0.5).astype(np.float32)
        r8.report(ticket, losses, predictions=tokens(ticket.indices, epoch))
    found = r8.table.suspects(0.7).places
    visits = r8.table.read_evidence()["visits"].reshape(SIZE, PLACES)

    assert r8.table.quarantined.tolist() == [bad]
    assert visits[bad].max() == 4
    assert np.delete(visits, bad, 0)[:, 0].min() >= 6
    assert IS_WRONG[found.indices, found.places].mean() >= 0.7


def test_page_and_command_show_the_places(tmp_path, capsys):
    """A page has the label with its place; the command prints a row for each label, or says that there is one each."""
    found = trained(tokens, run_dir=tmp_path / "run").table.suspects().places
    page = write_report(tmp_path / "run", tmp_path / "page.html").read_text()

    assert main(["samples", str(tmp_path / "run"), "--places", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [int(row["place"]) for row in rows] == found.places.tolist()
    assert [int(row["predicted_label"]) for row in rows] == found.suggested.tolist()
    assert f"{found.given[0]} at {found.places[0]}" in page
    assert main(["samples", str(tmp_path / "run"), "--places", "--top", "3"]) == 0
    assert "should be" in capsys.readouterr().out

    trained(numbers, run_dir=tmp_path / "other")
    assert main(["samples", str(tmp_path / "other"), "--places"]) == 1
    assert "--places needs predictions of several labels a sample" in capsys.readouterr().err


def test_labels_that_change_their_meaning_are_forgotten():
    """Another number of classes is refused with the call that forgets; after it, labels are judged by new visits."""
    r8 = trained(tokens, 1)
    with pytest.raises(ValueError, match=r"must stay 5, as reported first, got 9. Call table.forget_labels\(\) first"):
        r8.table.storage.evidence.checked(predictions_of(np.zeros((2, 9)), [0, 1]), 2, 1)
    r8.table.forget_labels()

    assert (r8.table.given == -1).all()
    assert r8.table.read_evidence() is None
    assert "too early" in r8.table.suspects().reason


def test_too_many_places_are_refused():
    """Masks that would take more than half a gigabyte say how to leave some out."""
    r8 = R8Scheduler(10**6, batch_size=2, num_epochs=1)
    nothing = np.zeros((2, 64), np.float32)
    with pytest.raises(ValueError, match="predictions must hold at most 33,554,432 places in all, got 64 for each of"):
        r8.report(r8.draw(), np.ones(2, np.float32), predictions=Predictions(nothing, nothing, nothing, 2))


@pytest.mark.parametrize("given", [-100, 3])
@pytest.mark.parametrize("classes", [4, 10_000])
@pytest.mark.parametrize("places", [(), (2,)])
def test_odd_labels_name_nobody(given, classes, places):
    """No labels at all in some samples, labels that are all equal, and many classes end in no list, not in an error."""
    size = 60

    def said(indices):
        logits = np.random.default_rng(int(indices[0])).normal(size=(len(indices), *places, classes))
        labels = np.where(indices < 20, -100, given).reshape(-1, *(1 for _ in places))
        return predictions_of(logits.astype(np.float32), np.broadcast_to(labels, logits.shape[:-1]))

    r8 = R8Scheduler(size, batch_size=20, num_epochs=5, policy="shuffle")
    while not r8.is_over:
        ticket = r8.draw()
        r8.report(ticket, np.ones(20, np.float32), predictions=said(ticket.indices))
    found = r8.table.suspects()

    assert not len(found.indices)
    assert found.places is None if not places else not len(found.places.indices)
    assert (r8.table.given[:20] == -1).all()
    assert r8.table.to_frame("pandas")["is_label_issue"].sum() == 0


def test_a_class_that_is_not_learned_is_not_wrong():
    """Labels of a class that is never predicted are hard; they are not named, whatever their margins."""
    rare = TRUE == 0

    def said(indices, epoch):
        rng = np.random.default_rng([epoch, *indices[:2]])
        logits = 4 * np.eye(CLASSES)[TRUE[indices]] / (0.5 + HARD[indices]) + rng.normal(size=(len(indices), PLACES, 5))
        logits[..., 0] -= 9
        return predictions_of(logits, TRUE[indices])

    found = trained(said).table.suspects()

    assert not rare[found.places.indices, found.places.places].any()
