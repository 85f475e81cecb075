"""The parts of benchmarks/incidents.py: what goes wrong and when, what is counted, and which runs are compared."""

import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
pytest.importorskip("torch")
pytest.importorskip("sklearn")

from incident_faults import Faults, Injector, draw_cluster
from incident_figures import Results, measure_beyond, measure_worse, worse_than
from incident_groups import GROUPS
from incident_poison import PoisonRun, draw_poison
from incident_runs import ARMS, Case, Watch
from incident_tasks import make_network, make_task

from learnit_r8 import R8Scheduler, events


def inject(faults: Faults, seed: int = 0) -> tuple[Injector, list[int]]:
    told: list[int] = []
    return Injector(faults, make_network("digits sgd", seed), seed, 100, told.append), told


def restore(watch: Watch, step: int, to_step: int) -> None:
    watch(events.RolledBack(step=step, seconds=0.0, to_step=to_step, source="backup"))


@pytest.mark.parametrize(
    "faults",
    [
        Faults(nan_share=0.3),
        Faults(nan_at=(0, 7)),
        Faults(bad_samples=40),
        Faults(bad_samples=40, bad_share=0.5),
        Faults(cluster=((3, "nan"), (5, "blow"))),
    ],
)
def test_the_oracle_leaves_out_the_batches_that_are_nan(faults: Faults) -> None:
    """What is left out by hand is what has a loss that is NaN, and the same for every way to train."""
    first, second = inject(faults)[0], inject(faults)[0]
    batches = np.random.default_rng(0).permutation(1400)[:1280].reshape(40, 32)

    is_nan = [bool(np.isnan(first.factor(n, batch)).any()) for n, batch in enumerate(batches)]

    assert is_nan == [second.is_bad_batch(n, batch) for n, batch in enumerate(batches)]
    assert 0 < sum(is_nan) <= 40


def test_a_rate_fault_lasts_five_steps() -> None:
    """The rate is fifty times as high in five steps, and as planned before and after."""
    injector, told = inject(Faults(cluster=((10, "rate"),)))

    rates = [injector.rate(number, 1.0) for number in range(8, 18)]
    injector.damage(10)

    assert rates == [1.0, 1.0, 50.0, 50.0, 50.0, 50.0, 50.0, 1.0, 1.0, 1.0]
    assert told == [10]


def test_a_false_report_leaves_the_gradient_alone() -> None:
    """Only what is reported is multiplied; the gradient of a NaN batch is NaN."""
    injector, _ = inject(Faults(reported=(4, 1e3), nan_at=(5,)))

    factors = [injector.factor(number, np.arange(32)) for number in (3, 4, 5)]

    assert factors[:2] == [1.0, 1e3]
    assert [injector.scale(factor) for factor in factors[:2]] == [1.0, 1.0]
    assert math.isnan(injector.scale(factors[2]))


def test_a_cluster_lies_within_250_steps() -> None:
    """Two to eight faults, in order."""
    for number in range(50):
        places = [place for place, _ in draw_cluster(number)]
        assert 2 <= len(places) <= 8
        assert places == sorted(places)
        assert places[-1] - places[0] < 250


def test_what_is_undone_beyond_the_damage_is_counted_by_incident() -> None:
    """Steps before the damage count; those after it do not; a second restore without new damage adds to the first."""
    watch = Watch()
    watch.note_damage(120)
    restore(watch, 125, 100)
    restore(watch, 130, 50)
    watch.note_damage(160)
    restore(watch, 170, 155)

    assert watch.beyond == [20 + 80, 5]
    assert watch.lost == 25 + 80 + 15


def test_a_restore_without_damage_is_all_beyond() -> None:
    """Where nothing was damaged, every step undone was undone in vain."""
    watch = Watch()
    watch.note_fault()
    restore(watch, 90, 50)

    assert watch.beyond == [40]


def test_a_restore_behind_the_damage_leaves_it_there() -> None:
    """A state that was damaged when it was kept brings the damage back: the next restore is measured from it."""
    watch = Watch()
    watch.note_damage(120)
    restore(watch, 200, 150)
    restore(watch, 210, 110)

    assert watch.beyond == [0 + 10]


@pytest.mark.filterwarnings("ignore")
def test_newest_healthy_state_is_read_off_the_package(tmp_path: Path) -> None:
    """Of the backups that there are, the newest without the mark of the poisoning counts, and -1 without any."""
    case = next(case for case in draw_poison(0) if (case.where, case.resume) == ("ram", "no"))
    run, found = PoisonRun(case, str(tmp_path)), []
    find = run.find_newest

    def note(r8: R8Scheduler) -> int:
        found.append((find(r8), [backup.step for backup in r8.host.persistence.backup.backups]))
        return found[-1][0]

    run.find_newest = note

    assert run.run()
    assert len(found) == case.times
    newest, steps = found[0]
    assert newest == max(step for step in steps if step <= run.poisoned_at[0])


@pytest.mark.parametrize("name", GROUPS)
def test_groups_have_as_many_cases_as_asked(name: str) -> None:
    """Any number of cases, none twice, which can be sent to another process; a larger number only adds to them."""
    group = GROUPS[name]
    few, many = group.cases(10), group.cases(130)

    assert list(many[:10]) == list(few)
    assert len(set(many)) == len(many) == 130
    assert pickle.loads(pickle.dumps(many)) == list(many)


def test_without_faults_all_ways_to_train_are_equal() -> None:
    """The oracle, plain training and the package see the same batches at the same rates."""
    case = Case("digits sgd", 3, "", steps=60)

    records = [ARMS[arm](case) for arm in ("oracle", "samples", "plain", "finite", "package")]

    assert len({record["loss"] for record in records}) == 1
    assert records[-1]["share"] == 1.0


def test_the_oracle_meets_no_damage() -> None:
    """Weights, rates, reports and moments are those of a run without faults."""
    faults = Faults(
        cluster=((3, "blow"), (5, "rate"), (8, "weights")), blow=(9, 1e3), rate=50.0, reported=(4, 9.0), moments_at=7
    )

    assert ARMS["oracle"](Case("digits sgd", 0, "", faults, steps=30)) == ARMS["oracle"](
        Case("digits sgd", 0, "", steps=30)
    )


def test_with_an_adapter_masks_are_those_of_plain_training() -> None:
    """Dropout draws the same random numbers under `attach` as by hand, so that runs can be compared in pairs."""
    case = Case("dropout adam", 3, "", steps=60)

    assert ARMS["package"](case)["loss"] == ARMS["plain"](case)["loss"]


def test_plain_training_ends_with_its_first_nan() -> None:
    """A model that is NaN stays so, and scores nothing."""
    assert ARMS["plain"](Case("digits sgd", 0, "", Faults(nan_at=(5,)), steps=60))["score"] == 0.0
    assert ARMS["oracle"](Case("digits sgd", 0, "", Faults(nan_at=(5,)), steps=60))["score"] > 30.0


def test_scores_are_taken_on_data_held_out() -> None:
    """The samples of the score are none of those trained on."""
    network, whole = make_network("digits", 0), make_task("digits", 0)

    assert network.num_samples == 1400
    assert len(whole.targets) == 1797
    np.testing.assert_array_equal(network.task.targets, whole.targets[:1400])


def test_figures_of_two_settings() -> None:
    """Worse by more than noise is judged within a setting; so is nothing else."""
    cases = [Case("digits sgd", seed, "wide" if seed < 2 else "narrow") for seed in range(4)]
    package = [
        {"score": s, "incidents": 1.0, "beyond": b, "furthest": b} for s, b in ((80, 0), (95, 200), (94, 0), (90, 0))
    ]
    finite = [{"score": s} for s in (90.0, 100.0, 95.0, 95.0)]
    results = Results(cases, {"finite": finite, "package": package})

    # Spread of "wide" is 7.1 points; "narrow" has none, so that half a point is noise.
    assert measure_worse(results, "package") == "2 of 4"
    assert worse_than(0.95, "finite", "").measure(results, "package") == "2 of 4"
    assert measure_beyond(results, "package") == "1.0, most 4.0; over 2 in 1 runs"
