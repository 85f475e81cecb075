"""The experiment, driven by hand: a fake lab holds the state, and each test answers the probes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.recovery.backups import Backup
from learnit_r8.recovery.experiment import CHANCE, Alarm, Case, draw_again, draw_with_earlier, investigate

NAN, INF = math.nan, math.inf


class FakeLab:
    """A model that is the number of the backup in it; None for the present weights."""

    def __init__(self, *, whole=True, memory=True, missing=(), swollen=False, jumped_from=None):
        self.whole, self.memory, self.missing, self.swollen = whole, memory, missing, swollen
        self.jumped_from = jumped_from
        self.current, self.puts = None, []

    def mend(self):
        return self.whole

    def find_jump(self):
        return self.jumped_from

    def is_swollen(self):
        return self.swollen

    def before_swollen(self, known):
        return known

    def damage(self):
        return "" if self.whole else "w"

    def keep_present(self):
        return self.memory

    def put(self, backup):
        if backup.updates in self.missing:
            return False
        self.current = backup
        self.puts.append(backup.updates)
        return True

    def put_present(self):
        self.current = None
        return self.memory


def backups(count, *, proven=True):
    """One every fifty updates; losses fall from 2, and each record is the loss of then."""
    made = []
    for number in range(count):
        level = 2.0 * 0.8**number
        recent = () if number == 0 else tuple(level * (1 + 0.01 * (n % 5 - 2)) for n in range(32))
        made.append(
            Backup(50 * number, 50 * number, recent=recent, witness=[np.arange(2)], losses=[level], is_proven=proven)
        )
    return made


def case_of(known, alarm=Alarm.SPIKE, *, level=20.0, **more):
    more = {"share": 0.01, "is_sudden": True} | more
    return Case(alarm, INF if alarm is Alarm.NOT_FINITE else level, known, 2.0, 0.02, 2.0, **more)


def drive(steps, answer):
    """Answer each probe; returns the finding."""
    loss = None
    while True:
        try:
            loss = answer(steps.send(loss))
        except StopIteration as end:
            return end.value


def conduct(case, lab, answer):
    """The finding, and the updates of the witnesses that were drawn; ``answer(lab, witness)`` is a loss."""
    steps, drawn = investigate(case, lab), []
    try:
        asked = next(steps)
        while True:
            drawn.append(asked.updates)
            asked = steps.send(answer(lab, asked))
    except StopIteration as end:
        return end.value, drawn


def healthy_to(last):
    """Weights up to so many updates repeat what they should; later ones and the present are damaged."""

    def answer(lab, witness):
        is_good = lab.current is not None and lab.current.updates <= last
        return max(witness.record, lab.current.record) if is_good else 30.0

    return answer


def times(factor):
    """Every witness has so many times its record, whatever the weights."""
    return lambda lab, witness: factor * witness.record


def higher(rise):
    """Only the present weights are worse, by so much."""
    return lambda lab, witness: witness.record + (rise if lab.current is None else 0.0)


def never_on(*updates):
    """The present weights have no finite loss on these witnesses."""
    return lambda lab, witness: NAN if lab.current is None and witness.updates in updates else witness.record


def of_other_data(lab, witness):
    """Weights that were never trained repeat their loss on other data, and those of now are better than they."""
    if lab.current is None:
        return 0.5 if not witness.updates else 10 * witness.record
    return witness.record if not lab.current.updates else 10 * witness.record


SLOW = {"alarm": Alarm.RAISED, "level": 2.0 * 0.8**5 + 0.5}
SCENES = {
    "as recorded": (4, {}, {}, times(1), "healthy", None, [150, 100]),
    "lower, as more was learned": (4, {}, {}, times(0.5), "healthy", None, [150, 100]),
    "the newest that repeats its record": (7, {}, {}, healthy_to(150), "restored", 150, None),
    "no state does: the loss has changed": (4, {}, {}, times(10), "level", None, None),
    "never finite: the data": (4, {"alarm": Alarm.NOT_FINITE}, {}, times(NAN), "data", None, None),
    "only the start, and it is worse": (4, {**SLOW, "level": 5.0}, {}, of_other_data, "level", None, None),
    "a huge gradient in the state": (4, {}, {"swollen": True}, times(1), "restored", 150, None),
    "within the noise of a slow rise": (6, SLOW, {}, higher(0.025), "healthy", None, None),
    "half-way back after a slow rise": (6, SLOW, {}, higher(0.15), "restored", 250, None),
    "no memory for the present weights": (4, {}, {"memory": False}, times(10), "restored", 0, None),
    "nothing can be put back": (3, {}, {"memory": False, "missing": (0, 50, 100)}, times(10), "lost", None, None),
    "the newest two cannot be": (4, {}, {"missing": (100, 150)}, healthy_to(150), "restored", 50, None),
    "two witnesses that are not finite": (
        4, {"alarm": Alarm.NOT_FINITE}, {}, never_on(0, 50, 100, 150), "restored", 150, [150, 150, 100, 100],
    ),
    "an older one that is not": (4, {}, {}, never_on(100), "restored", 150, [150, 100]),
}  # fmt: skip
"""How many backups there are, the case, the model, the losses; the verdict, the state gone on from, the first draws."""


@pytest.mark.parametrize(("count", "case", "lab", "answer", "verdict", "updates", "first"), SCENES.values(), ids=SCENES)
def test_finding(count, case, lab, answer, verdict, updates, first):
    """What is found, and which state is in the model then: that of the finding, or the present one."""
    known, lab = backups(count), FakeLab(**lab)
    finding, drawn = conduct(case_of(known, **case), lab, answer)

    assert (finding.verdict, finding.backup and finding.backup.updates) == (verdict, updates)
    assert lab.current is finding.backup
    assert drawn[: len(first or ())] == (first or [])


def test_a_record_far_above_the_losses_before_it_clears_no_weights():
    """It may be that of weights damaged for some steps: that they do better on it outweighs no other batch."""
    known = backups(3)
    known[1].losses = [2.0]
    rises = {2: 0.14, 1: -0.2}
    case = case_of(known, Alarm.RAISED, level=1.8)
    assert known[1].is_typical
    assert not known[1].is_usual
    drawn = []

    def answer(lab, witness):
        drawn.append(witness.updates)
        return witness.record + (rises.get(witness.updates // 50, 0.0) if lab.current is None else 0.0)

    assert conduct(case, FakeLab(), answer)[0].verdict == "restored"
    rises = {2: 0.0, 1: -0.2}
    assert conduct(case, FakeLab(), answer)[0].verdict == "healthy"
    known[2].losses = [2.0]
    rises = {2: -0.2, 1: -0.2}
    assert conduct(case, FakeLab(), answer)[0].verdict == "healthy"
    assert drawn[-2:] == [100, 50]


def test_ruined_states_are_compared_with_the_untrained_one_where_the_present_weights_are_not_finite():
    """That these cannot be set aside makes them no better; without memory nothing is known, and nothing changes."""
    known = backups(4)

    def answer(lab, witness):
        return NAN if lab.current is None else 2.0 if lab.current.updates <= 50 else 1e4

    for whole, found in ((False, ("restored", 50)), (True, ("healthy", None))):
        finding, _ = conduct(case_of(known, Alarm.ABOVE), FakeLab(whole=whole, memory=False), answer)

        assert (finding.verdict, finding.backup and finding.backup.updates) == found


@pytest.mark.parametrize(("on_others", "verdict"), [(3.0, "healthy"), (5.0, "restored")])
def test_one_batch_of_outliers_makes_no_weights_worse_than_the_untrained_ones(on_others, verdict):
    """Where targets have heavy tails it makes up most of the sum; the other batches must be worse, too."""
    known = backups(4)

    def answer(lab, witness):
        is_present = lab.current is None
        if witness.updates == 100:
            return 520.0 if is_present else 500.0
        return on_others if is_present else 4.0

    assert conduct(case_of(known, Alarm.ABOVE), FakeLab(), answer)[0].verdict == verdict


def test_the_tolerance_of_the_untrained_state_is_bounded_by_its_record():
    """Where the first updates ruin the weights, the first losses of the run say nothing of what is usual."""
    known = backups(2)
    case = Case(Alarm.NOT_FINITE, INF, known, 2.0, 1e5, 8e4, share=0.01, is_sudden=True)

    assert case.tolerance(known[0]) == pytest.approx(2.0 * 10.0 * 2.0)


@given(st.integers(1, 40), st.data())
def test_bisection_finds_the_newest_healthy_state(count, data):
    """Whichever state is the first damaged one, the newest before it is found, in few tests."""
    known = [Backup(n, n, losses=[2.0], witness=[np.arange(2)], is_proven=True) for n in range(count)]
    last = data.draw(st.integers(0, count - 1))
    lab = FakeLab()
    finding, _ = conduct(case_of(known), lab, healthy_to(last))

    # Where no trained state has its record any more, the data have changed, not all of the copies.
    found = ("restored", last) if last or count == 1 else ("level", None)
    assert (finding.verdict, finding.backup and finding.backup.updates) == found
    assert len(finding.tested) <= 2 * math.ceil(math.log2(count + 1)) + 1


@pytest.mark.parametrize("record", [5.0, 2.0 * 0.8**3])
def test_data_that_change_put_no_untrained_model_in(record):
    """That repeats its record on any data, as does a backup made since; of the other trained states none does."""
    known = backups(4)
    known[3].losses, known[3].is_proven = [record], False

    def answer(lab, witness):
        return witness.record if lab.current is witness is known[0] else 5.0

    assert conduct(case_of(known), FakeLab(), answer)[0].verdict == "level"


@pytest.mark.parametrize(("repeats", "found"), [(False, ("level", None)), (True, ("restored", 0))])
def test_weights_that_are_worse_than_the_untrained_ones_on_other_data_stay(repeats, found):
    """Where labels have changed, all trained states are, on batches of their own, too; ruined ones repeat a record."""
    known = backups(4)

    def answer(lab, witness):
        is_own = repeats and lab.current is witness
        return witness.record if is_own else 2.0 if lab.current is known[0] else 20.0

    finding, _ = conduct(case_of(known, Alarm.ABOVE), FakeLab(), answer)

    assert (finding.verdict, finding.backup and finding.backup.updates) == found


@given(st.lists(st.sampled_from([NAN, 0.0, 0.9, 1.0, 1.1, 5.0, 1e9]), min_size=1, max_size=9), st.booleans())
def test_always_ends_with_one_of_four_findings(losses, memory):
    """Whatever probes say, the experiment ends, and a restored state is one of those it was told of."""
    known, count = backups(5), iter(range(10**6))
    finding, drawn = conduct(
        case_of(known), FakeLab(memory=memory), lambda lab, witness: losses[next(count) % len(losses)]
    )

    assert finding.verdict in ("healthy", "restored", "level", "data", "lost")
    assert (finding.backup in known) == (finding.verdict == "restored")
    assert len(drawn) < 200


def test_witness_that_is_much_better_outweighs_no_other():
    """The sum over witnesses is not that of one lucky batch."""
    known = backups(6)
    answers = {known[-1].updates: -1.0, known[-2].updates: 0.4, known[-3].updates: 0.4, known[-4].updates: 0.4}
    case = case_of(known, Alarm.RAISED, level=known[-1].level + 0.5)
    finding, _ = conduct(
        case, FakeLab(), lambda lab, witness: witness.record + (answers[witness.updates] if lab.current is None else 0)
    )

    assert finding.verdict == "restored"


def test_state_that_is_not_whole_is_not_probed():
    """A present state with numbers that are not finite is not probed: backups are tested at once."""
    lab = FakeLab(whole=False)
    _, drawn = conduct(case_of(backups(4), Alarm.NOT_FINITE), lab, healthy_to(150))

    assert lab.puts[0] == drawn[0] == 150


@pytest.mark.parametrize("alarm", [Alarm.NOT_FINITE, Alarm.SPIKE])
def test_state_that_cannot_be_seen_is_restored_at_once(alarm):
    """Where the state cannot be checked, a NaN or an extremely high loss puts a backup back before the first probe."""
    lab = FakeLab(whole=None)
    next(investigate(case_of(backups(4), alarm), lab))

    assert lab.puts == [150]


def test_probe_that_is_not_finite_is_repeated():
    """A passing fault may hit a probe: it is drawn again until chance is out of the question."""
    answers = iter([NAN, NAN, 1.0])
    known = backups(3)
    case = case_of(known, Alarm.NOT_FINITE, share=0.3)
    finding, drawn = conduct(case, FakeLab(), lambda lab, witness: next(answers) * witness.record)

    assert (finding.verdict, drawn) == ("healthy", [100] * 3)


def test_batches_that_stand_for_probes_are_waited_for_in_bounds():
    """Where many losses are not finite, weights that are damaged must be found before the run is given up."""
    assert case_of(backups(2), share=0.9, is_exact=False).repeats == 3


@given(st.floats(0.0, 1.0))
def test_repeats_leave_little_to_chance(share):
    """So many faults in a row have a chance of at most 1 in 10,000, within 2 to 64 probes."""
    repeats = case_of(backups(2), share=share).repeats

    assert 2 <= repeats <= 64
    assert repeats == 64 or share**repeats <= CHANCE * (1 + 1e-9)


def test_witness_that_holds_a_bad_sample():
    """A witness whose loss is never finite convicts no healthy weights: the next one is asked."""
    known = backups(4)

    def answer(lab, witness):
        return NAN if witness is known[3] else witness.record

    finding, drawn = conduct(case_of(known, Alarm.NOT_FINITE), FakeLab(), answer)

    assert finding.verdict == "healthy"
    assert set(drawn) == {150, 100}


@pytest.mark.parametrize("num_bad", [3, 7, 9])
def test_bad_batches_that_stand_for_probes_convict_no_weights(num_bad):
    """Those of a rollout are all bad: once a backup has finite losses, it is seen whether the present weights have."""
    answers, lab = iter([NAN] * num_bad), FakeLab()
    case = case_of(backups(5), Alarm.NOT_FINITE, share=0.02, is_exact=False)
    finding, _ = conduct(case, lab, lambda lab, witness: next(answers, witness.record))

    assert (finding.verdict, lab.current) == ("healthy", None)
    assert bool(lab.puts) == (num_bad > 6)


@pytest.mark.parametrize("swollen", [False, True])
def test_weights_that_give_no_finite_loss_on_any_batch_are_damaged(swollen):
    """Finite ones may overflow: a backup stays where others give finite losses and they none, at once if they grew."""
    lab = FakeLab(swollen=swollen)
    case = case_of(backups(4), Alarm.NOT_FINITE, share=0.02, is_exact=False)
    finding, drawn = conduct(case, lab, lambda lab, witness: witness.record if lab.current else NAN)

    assert (finding.verdict, finding.backup.updates, lab.current) == ("restored", 150, finding.backup)
    assert len(drawn) == (1 if swollen else 10)


@pytest.mark.parametrize(
    ("of_present", "verdict"), [([1.5, 1.5], "level"), ([1.7, 1.3], "level"), ([1.7, 1.7], "restored")]
)
def test_batches_that_have_become_harder_convict_no_weights(of_present, verdict):
    """Where other batches stand for probes, old weights that repeat their losses must be better than the present ones.

    They have 1.5 on the batches of now, as an old state had on those of then.
    """
    answers = iter(of_present)
    case, lab = case_of(backups(4), **SLOW, is_exact=False), FakeLab()
    finding, _ = conduct(case, lab, lambda lab, witness: 1.5 if lab.current else next(answers))

    assert finding.verdict == verdict
    assert (lab.current is None) == (verdict == "level")


@pytest.mark.parametrize(("present", "jumped_from", "num_drawn"), [(4.0, None, 3), (8.0, None, 5), (4.0, 150, 5)])
def test_few_other_batches_are_spent_where_data_have_changed(present, jumped_from, num_drawn):
    """Once two states have five on those of now: the present weights have no more, or may be damaged as well."""
    case, lab = case_of(backups(5), is_exact=False), FakeLab(jumped_from=jumped_from)
    finding, drawn = conduct(case, lab, lambda lab, witness: 5.0 if lab.current else present)

    assert (finding.verdict, len(drawn)) == ("level", num_drawn)


def test_unproven_state_must_pass_an_older_witness():
    """A backup of weights that were damaged already repeats its own record, but not that of a proven older one."""
    known = backups(4)
    known[3].is_proven = False
    known[3].losses = [8.0]

    def answer(lab, witness):
        if lab.current is None:
            return 30.0
        return lab.current.record if lab.current is known[3] else witness.record

    finding, _ = conduct(case_of(known), FakeLab(), answer)

    assert finding.backup is known[2]


def test_unproven_state_must_pass_the_witness_that_tells():
    """A hard batch has the same loss with damaged weights: that one counts which they are known to be worse on."""
    known = backups(5)
    known[4].is_proven = False
    known[4].losses = [3.0]

    def answer(lab, witness):
        is_damaged = lab.current is None or lab.current is known[4]
        return 3.0 if is_damaged and witness is not known[3] else witness.record

    finding, _ = conduct(case_of(known, Alarm.FELL, level=3.0), FakeLab(), answer)

    assert finding.backup is known[3]


@pytest.mark.parametrize(
    ("of_old", "of_present", "verdict"), [(0.9, 1.5, "restored"), (1.6, 3.0, "restored"), (1.6, 1.5, "level")]
)
def test_losses_that_stay_higher_as_the_data_have_changed(of_old, of_present, verdict):
    """Weights that forget are worse on earlier batches, and no older state is better on later ones: neither than the
    weights of that time, nor than the present ones, as where those were healthy still."""
    known = backups(5)
    known[4].is_proven = False
    known[4].losses = [1.5]

    def answer(lab, witness):
        is_old = lab.current is not None and lab.current is not known[4]
        if witness is known[4]:
            return of_old if is_old else of_present
        return witness.record if is_old else of_present

    finding, _ = conduct(case_of(known, Alarm.FELL, level=1.5), FakeLab(), answer)

    assert finding.verdict == verdict
    assert finding.backup is (known[3] if verdict == "restored" else None)


def test_passing_fault_does_not_convict_an_unproven_state():
    """The probe of the older witness is repeated too where it is not finite."""
    known = backups(4)
    known[3].is_proven = False
    faults = iter([NAN])

    def answer(lab, witness):
        if lab.current is None:
            return 30.0
        return next(faults, witness.record) if witness is known[2] else witness.record

    finding, _ = conduct(case_of(known, Alarm.NOT_FINITE), FakeLab(whole=False), answer)

    assert finding.backup is known[3]


def test_changed_loss_repeats_itself():
    """The same different loss twice shows that the loss has changed, though the difference is within the tolerance."""
    known = backups(3)
    finding, _ = conduct(case_of(known), FakeLab(), lambda lab, witness: 1.02 * witness.record if lab.current else 30.0)

    assert finding.verdict == "level"


def test_noisy_probes_are_told_and_tolerated():
    """A loss that differs each time is noise: within the tolerance the state is healthy, and the noise is noted."""
    known, signs = backups(3), iter([1, -1] * 50)

    def answer(lab, witness):
        return witness.record + 0.03 * next(signs) if lab.current else 30.0

    finding, _ = conduct(case_of(known), FakeLab(), answer)

    assert finding.backup is known[2]
    assert known[2].noise == pytest.approx(0.06)


@pytest.mark.parametrize(("noise", "verdict"), [(0.4, "healthy"), (0.02, "restored")])
def test_rise_within_the_noise_of_probes_restores_nothing(noise, verdict):
    """A rise that is no larger than what draws with the same weights differ by says nothing of the present ones."""
    known, count = backups(4), iter(range(100))

    def answer(lab, witness):
        return witness.record + (0.9 if lab.current is None else -noise * (1 - next(count) % 2))

    finding, _ = conduct(case_of(known, level=known[-1].level + 2.0), lab := FakeLab(), answer)

    assert finding.verdict == verdict
    assert (lab.current is None) == (verdict == "healthy")


def test_means_stand_for_probes():
    """Where no witness can be drawn, the level of the losses before a backup is what a mean is compared with."""
    known = backups(3)
    known[2].losses = [9.0]

    assert case_of(known, is_exact=False).record(known[2]) == known[2].level < 2
    assert case_of(known).record(known[2]) == 9.0


def test_slow_rise_that_always_returns_is_what_training_does():
    """Losses that are known to rise when they are trained on are the new level, unless the rise is sudden."""
    known = backups(4)
    slow, _ = conduct(case_of(known, Alarm.RAISED, rises=True, is_sudden=False), FakeLab(), healthy_to(150))
    sudden, _ = conduct(case_of(known, Alarm.RAISED, rises=True), FakeLab(), healthy_to(150))

    assert (slow.verdict, sudden.verdict) == ("level", "restored")


def test_lost_progress_goes_back_no_further_than_its_best():
    """For progress that was lost, only the best backup and older ones are tested, and the best one is asked first."""
    known = backups(5)
    finding, drawn = conduct(
        case_of(known, Alarm.REGRESS, best=known[3], is_sudden=False), FakeLab(), healthy_to(10**6)
    )

    assert finding.backup is known[3]
    assert 200 not in drawn
    assert drawn[0] == 150


@given(st.floats(0.0, 1e6), st.integers(0, 4), st.sampled_from([Alarm.SPIKE, Alarm.RAISED, Alarm.NOT_FINITE]))
def test_tolerance_is_below_the_rise(level, number, alarm):
    """A probe as high as the losses that raised the alarm is never within the tolerance."""
    known = backups(5)
    backup = known[number]
    tolerance = case_of(known, alarm, level=level).tolerance(backup)

    assert tolerance >= 0
    if alarm is not Alarm.NOT_FINITE and level > backup.usual:
        assert tolerance <= 0.4 * (level - backup.usual)


def test_batch_is_drawn_again():
    """A batch that is drawn again has its loss noted."""
    batch = Backup(0, 5, witness=[np.arange(2)], losses=[1.0])
    steps = draw_again(batch)
    assert next(steps) is batch
    with pytest.raises(StopIteration) as end:
        steps.send(1.5)

    assert end.value.value.tested == [batch]
    assert batch.replayed == 1.5


@pytest.mark.parametrize(("more", "replayed"), [({}, 1.5), ({"missing": [50]}, NAN), ({"memory": False}, NAN)])
def test_the_batch_of_an_explosion_is_drawn_with_earlier_weights(more, replayed):
    """The present weights are back afterwards; without memory or the earlier ones, nothing is found out."""
    lab, before, batch = FakeLab(**more), backups(2)[1], Backup(90, 90, witness=[np.arange(2)], losses=[9.0])
    steps, tested = draw_with_earlier(batch, before, lab, low=5.0), []
    finding = drive(steps, lambda asked: tested.append((asked, lab.current)) or 1.5)

    assert finding.verdict == "healthy"
    assert lab.current is None
    assert np.array_equal(batch.replayed, replayed, equal_nan=True)
    assert tested == ([] if math.isnan(replayed) else [(batch, before)] * 2)


@pytest.mark.parametrize(("losses", "replayed"), [((1.5, 1.6), NAN), ((1.5, NAN), NAN), ((5.5,), 5.5), ((NAN,), NAN)])
def test_a_lower_loss_must_be_the_same_twice(losses, replayed):
    """With dropout a batch whose loss was high has nearly always a lower one the next time, whatever the weights."""
    batch, left = Backup(90, 90, witness=[np.arange(2)], losses=[9.0]), list(losses)
    drive(draw_with_earlier(batch, backups(2)[1], FakeLab(), low=5.0), lambda asked: left.pop(0))

    assert np.array_equal(batch.replayed, replayed, equal_nan=True)
    assert not left


def test_present_weights_that_cannot_be_put_back_are_lost():
    """Then that is the finding, and what the callback raised is raised."""
    lab, batch = FakeLab(), Backup(90, 90, witness=[np.arange(2)], losses=[9.0])

    def answer(asked):
        lab.memory = False
        return 1.5

    assert drive(draw_with_earlier(batch, backups(2)[1], lab, low=5.0), answer).verdict == "lost"


def test_trained_states_that_are_better_than_the_untrained_one_are_kept():
    """Where only the untrained state repeats its record, as the loss depends on what cannot be put back (the hidden
    state of a network that is carried on), the newest state that is better on the same batch is gone on from."""
    known = backups(5)

    def answer(lab, witness):
        if lab.current is None:
            return NAN
        return 1.1 * lab.current.record if witness is known[0] else 1.4 * witness.record

    finding, _ = conduct(case_of(known, Alarm.NOT_FINITE), FakeLab(whole=False, memory=False), answer)

    assert (finding.verdict, finding.backup.updates) == ("restored", 200)


@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize(("jumped_from", "restored"), [(None, None), (100, 100)])
def test_weights_that_grow_by_far_are_damaged_though_no_witness_shows_it(is_exact, jumped_from, restored):
    """It goes back to before they did, whatever witnesses say of later states."""
    finding, _ = conduct(case_of(backups(4), is_exact=is_exact), FakeLab(jumped_from=jumped_from), times(1))

    assert finding.verdict == ("healthy" if restored is None else "restored")
    assert restored is None or finding.backup.updates == restored


@pytest.mark.parametrize(
    ("may_drift", "loss", "is_better"), [(False, 9.0, True), (True, 9.0, False), (True, 2.5, True)]
)
def test_a_loss_on_old_data_that_is_far_above_the_last_ones_is_no_damage(may_drift, loss, is_better):
    """Weights that have followed the data are worse on the old ones alone; damaged ones are so on all."""
    (_, backup) = known = backups(2)
    case = case_of(known, Alarm.RAISED, level=2.0, may_drift=may_drift, of_present={backup: loss})

    assert (case.better_than_present() is backup) == is_better


@pytest.mark.parametrize(
    ("on_latest", "verdict", "record"), [(0.9, "restored", 3.0), (2.0, "level", 3.0), (2.0, "restored", 300.0)]
)
def test_a_state_must_bring_the_last_batches_back_to_the_usual_level(on_latest, verdict, record):
    """With batches of the user's own: else the data have changed. A last batch that is far too high tells nothing."""
    known, latest = backups(4), Backup(0, 0, witness=[np.arange(2)], losses=[record])
    lab = FakeLab()

    def answer(backup):
        if backup is latest:
            return on_latest
        return 20.0 if lab.current is None else backup.record

    case = case_of(known, Alarm.SPIKE, may_drift=True, latest=[latest])
    assert drive(investigate(case, lab), answer).verdict == verdict


def verdict_on_latest(known, records, on_state, on_present=None, **state_of_model):
    """What is found where all states repeat their records, and these are the losses of the last batches.

    Args:
        known: The states.
        records: The losses of the last batches as they were trained on.
        on_state: Those of the same batches by the updates of a state, for those that are asked for.
        on_present: Those with the present weights; by default as they were.
        state_of_model: For `FakeLab`.
    """
    latest = [Backup(0, 0, witness=[np.arange(2)], losses=[record]) for record in records]
    lab = FakeLab(**state_of_model)

    def answer(backup):
        if any(backup is each for each in latest):
            place = latest.index(backup)
            return on_state[lab.current.updates][place] if lab.current is not None else (on_present or records)[place]
        return 20.0 if lab.current is None else backup.record

    found = drive(investigate(case_of(known, Alarm.SPIKE, may_drift=True, latest=latest), lab), answer)
    return found.verdict, found.backup and found.backup.updates


@pytest.mark.parametrize(
    ("with_newest", "verdict"), [([9.0, 1.1, 0.9, 0.8], "restored"), ([3.0, 3.0, 3.0, 3.0], "level")]
)
def test_one_of_the_last_batches_may_be_a_hard_one(with_newest, verdict):
    """It is higher still with the earlier weights, and outweighs all others, which are as usual with those."""
    others = [3.0] * 4

    found, _ = verdict_on_latest(backups(4), [6.0, 3.0, 3.5, 2.5], {150: with_newest, 100: others, 50: others})

    assert found == verdict


@pytest.mark.parametrize(
    ("records", "with_oldest", "verdict"),
    [
        ([3.0] * 4, [1.0, 1.0], "restored"),
        ([3.0] * 4, [2.9, 1.0], "level"),
        ([1.4, 1.3, 3.0, 3.0], [0.9, 0.9], "level"),
    ],
)
def test_two_last_batches_that_are_far_better_are_enough(records, with_oldest, verdict):
    """If both had risen by half of what is usual; each further one costs the loop a batch."""
    on_state = {150: [*with_oldest, 9.0, 9.0], 100: [9.0] * 4, 50: [9.0] * 4}

    assert verdict_on_latest(backups(4), records, on_state)[0] == verdict


@pytest.mark.parametrize(("with_newest", "verdict"), [(1.0, "restored"), (2.9, "level")])
def test_the_last_batch_is_enough_where_weights_have_swollen(with_newest, verdict):
    """They are known to be damaged, without a test of theirs; that the data have not changed is all that is asked."""
    on_state = {150: [9.0, 9.0, 9.0, with_newest], 100: [9.0] * 4, 50: [9.0] * 4}

    assert verdict_on_latest(backups(4), [3.0] * 4, on_state, swollen=True)[0] == verdict


def test_last_batches_tell_nothing_of_weights_that_changed_at_once():
    """Without a rise since, all were trained on before that, and a few of them are a little above the usual level."""
    known = backups(4)
    latest = [Backup(0, 0, witness=[np.arange(2)], losses=[known[-1].usual + 0.01])] * 4
    lab = FakeLab()

    def answer(backup):
        return 20.0 if lab.current is None else backup.record

    case = case_of(known, Alarm.CHANGED, is_sudden=False, may_drift=True, latest=latest)
    found = drive(investigate(case, lab), answer)

    assert (found.verdict, found.backup.updates) == ("restored", 150)


def test_the_newest_batches_tell_of_weights_that_changed_at_once():
    """What has been learned since makes older ones lower even so."""
    case, lab = case_of(backups(6), Alarm.CHANGED, is_sudden=False), FakeLab()

    def answer(backup):
        if lab.current is not None:
            return backup.record
        return backup.record + case.tolerance(backup) * (1.5 if backup.updates >= 200 else -5.0)

    found = drive(investigate(case, lab), answer)

    assert (found.verdict, found.backup.updates) == ("restored", 250)


@pytest.mark.parametrize(("jumped_from", "updates"), [(100, 100), (150, 150)])
def test_a_backup_since_weights_have_jumped_is_not_the_one_to_go_on_from(jumped_from, updates):
    """It may have been taken right after that, before any loss."""
    case = case_of(backups(4), Alarm.CHANGED, is_sudden=False)
    found = drive(investigate(case, FakeLab(jumped_from=jumped_from)), lambda backup: 0.0)

    assert (found.verdict, found.backup.updates) == ("restored", updates)


def test_a_last_batch_from_before_the_rise_tells_nothing():
    """The loss is no higher than usual, and the same with the state: it was trained on right after that."""
    known = backups(4)

    assert verdict_on_latest(known, [known[-1].usual], {150: [known[-1].usual]}) == ("restored", 150)


def test_weights_that_have_lost_the_last_batch_are_put_back():
    """It was usual just before the alarm: data do not change so fast, whatever batches of before say of old states."""
    on_state, records = {updates: [3.0] * 4 for updates in (150, 100, 50)}, [2.2, 1.8, 1.1, 20.0]

    assert verdict_on_latest(backups(4), records, on_state)[0] == "level"
    assert verdict_on_latest(backups(4), records, on_state, [2.2, 1.8, 8.0, 20.0])[0] == "level"
    assert verdict_on_latest(backups(4), records, on_state, [2.2, 1.8, 15.0, 20.0]) == ("restored", 150)


@pytest.mark.parametrize(
    ("on_untrained", "more", "updates"),
    [(2.0, {}, 20), (6.0, {}, 40), (2.0, {"may_drift": False}, 40), (2.0, {"is_exact": False}, 40)],
)
def test_a_state_far_above_the_untrained_one_is_not_gone_on_from(on_untrained, more, updates):
    """Though it repeats its record: in the first steps it may be damaged already. The untrained weights decide."""
    known = [Backup(n, n, recent=(), witness=[np.arange(2)], losses=[2.0], is_proven=True) for n in (0, 20, 30, 40)]
    for each, losses in zip(known[2:], ([4.0], [7.0]), strict=True):
        each.losses, each.recent = losses, tuple(losses * 32)
    known[1].recent = (2.0, 2.1) * 16
    lab = FakeLab()

    def answer(witness):
        if lab.current is None:
            return 50.0
        return on_untrained if not lab.current.updates and witness.updates else witness.record

    found = drive(investigate(case_of(known, level=50.0, **({"may_drift": True} | more)), lab), answer)

    assert (found.verdict, found.backup.updates) == ("restored", updates)


def test_an_older_state_is_tried_where_the_newest_is_no_better_on_the_last_batches():
    """The newest that repeats its record may be damaged already; the untrained one is not tried."""
    high, little, usual = [3.0] * 4, [2.5] * 4, [1.0] * 4

    assert verdict_on_latest(backups(4), high, {150: little, 100: usual}) == ("restored", 100)
    assert verdict_on_latest(backups(4), high, {150: little, 100: little, 50: usual}) == ("restored", 50)
    assert verdict_on_latest(backups(4), high, {150: little, 100: little, 50: little})[0] == "level"
    # Where data drift, older ones are worse still, and are not asked for.
    assert verdict_on_latest(backups(4), high, {150: high})[0] == "level"


def test_a_batch_of_which_a_sample_has_become_bad_is_no_evidence():
    """It is as far off with the weights of its own backup, and the present ones are good on another batch."""
    known = backups(4)

    def verdict(bad, own=500.0):
        lab = FakeLab()

        def answer(backup):
            if backup.updates in bad:
                return own if lab.current is backup else 600.0
            return backup.record

        case = case_of(known)
        return drive(investigate(case, lab), answer).verdict

    assert verdict({150}) == "healthy"
    assert verdict({150}, own=known[-1].record) == "restored"
    assert verdict({150, 100, 50, 0}, own=500.0) != "healthy"
