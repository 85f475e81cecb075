"""Several runs on the same samples count together."""

import csv

import numpy as np
import pytest

from learnit_r8 import predictions_of
from learnit_r8.cli import main
from learnit_r8.table.labels.evidence import EVIDENCE, combine
from tests.cli.commands import printed
from tests.drive import make

SIZE = 2000


def evidence(margin, leader, lead, given=(0, 0, 0), visits=(9, 9, 9)):
    found = {name: np.zeros(3, EVIDENCE[name]) for name in EVIDENCE.names}
    for name, values in {"margin": margin, "early": margin, "leader": leader, "lead": lead}.items():
        found[name][:] = values
    found["given"][:], found["visits"][:] = given, visits
    return found


def test_margins_are_means_and_votes_add_up():
    """Equal suggestions strengthen each other, the stronger of two different ones stays; the first run is unchanged."""
    first = evidence([1.0, 2.0, 3.0], [1, 1, 1], [10, 10, 10])
    other = evidence([3.0, 2.0, -3.0], [1, 2, 2], [5, 4, 30])
    third = evidence([5.0, 2.0, 0.0], [1, 2, 2], [5, 4, 1])
    found = combine(first, [other, third])

    assert found["margin"].tolist() == [3.0, 2.0, 0.0]
    assert found["leader"].tolist() == [1, 1, 2]
    assert found["lead"].tolist() == [20, 2, 21]
    assert first["margin"].tolist() == [1.0, 2.0, 3.0]


def test_runs_with_other_labels_say_nothing():
    """A sample that another run has too few visits of, or knew by another label, is judged by the first run alone."""
    first = evidence([1.0, 1.0, 1.0], [1, 1, 1], [10, 10, 10])
    other = evidence([9.0, 9.0, 9.0], [1, 1, 1], [5, 5, 5], given=[0, 3, 0], visits=[9, 9, 3])
    found = combine(first, [other])

    assert found["margin"].tolist() == [5.0, 1.0, 1.0]
    assert found["lead"].tolist() == [15, 10, 10]


def trained(seed, **more):
    """A run whose network errs on other samples with each seed; every tenth label is wrong; and which are."""
    rng = np.random.default_rng(7)
    right, wrong = rng.integers(0, 10, SIZE), np.arange(SIZE) % 10 == 0
    given = np.where(wrong, (right + rng.integers(1, 10, SIZE)) % 10, right)
    clear = 2 * rng.gamma(2.0, 1.0, SIZE)
    own = np.random.default_rng(seed).normal(size=(SIZE, 10))
    r8 = make(SIZE, batch_size=100, num_epochs=5, seed=seed, **more)
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            logits = own[indices]
            logits[np.arange(len(indices)), right[indices]] += clear[indices]
            said = predictions_of(logits, given[indices])
            r8.update_with_loss(np.logaddexp(0, said.margin), predictions=said)
    r8.close()
    return r8, wrong


def test_several_runs_find_more():
    """Three runs list more of the wrong labels than one, still as many wrong ones as asked for."""
    runs = [trained(seed) for seed in (1, 2, 3)]
    (first, wrong), others = runs[0], [run for run, _ in runs[1:]]
    alone, together = first.table.suspects(), first.table.suspects(runs=[others[0], others[1].table])

    assert wrong[together.indices].sum() > 1.1 * wrong[alone.indices].sum() > 0
    assert wrong[together.indices].mean() > 0.5
    assert together.votes.mean() > 2 * alone.votes.mean()


def test_command_counts_other_runs(tmp_path, capsys):
    """`samples --suspects --with` takes other folders, and lists what the tables together do."""
    first, second = (trained(seed, run_dir=tmp_path / f"run {seed}")[0] for seed in (1, 2))
    _, lines = printed(capsys, "samples", first.run_dir, "--suspects", "--with", second.run_dir, "--csv")
    expected = first.table.suspects(runs=[second]).indices.tolist()

    assert [int(row["index"]) for row in csv.DictReader(lines)] == expected
    assert main(["samples", str(first.run_dir), "--suspects", "--with", str(tmp_path / "none")]) == 1
    losses_alone = make(8, run_dir=tmp_path / "alone")
    losses_alone.report(losses_alone.draw(), np.ones(4))
    losses_alone.close()
    capsys.readouterr()
    assert main(["samples", str(first.run_dir), "--suspects", "--with", str(tmp_path / "alone")]) == 1
    assert "--with: runs must all have reported predictions" in capsys.readouterr().err


def test_what_is_no_run_of_these_samples_is_refused():
    """Another number of samples, no predictions, and no run at all are said before anything is computed."""
    first, other = trained(1)[0], make(8)

    with pytest.raises(TypeError, match="runs must be schedulers or their tables, got 'run'"):
        first.table.suspects(runs=["run"])
    with pytest.raises(ValueError, match="runs must all have reported predictions"):
        first.table.suspects(runs=[other])
    with pytest.raises(ValueError, match="runs must all have reported predictions"):
        other.table.suspects(runs=[first])
    other.report(other.draw(), np.ones(4), predictions=predictions_of(np.ones((4, 2)), np.zeros(4, int)))
    with pytest.raises(ValueError, match="runs must be of the same 2,000 samples, got one of 8"):
        first.table.suspects(runs=[other])
