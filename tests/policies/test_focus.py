"""The policy that skips samples that are easy or look mislabelled."""

import json
import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from learnit_r8 import Context, Focus, Outlook, Policy, Predictions, R8Scheduler, even_groups
from learnit_r8.cli import main
from learnit_r8.report import write_report
from learnit_r8.state.codec import decode, encode
from learnit_r8.table.label_noise import MarginLimit
from learnit_r8.table.labels.suspicion import Humps, Suspicion
from tests.common import candidates, generator
from tests.table.labels.test_mirror import margins_of

SUSPICION = Suspicion(2.0, Humps(0.3, 0.1, 1.5, 0.1, 0.1))
SAFE = Outlook(is_exact=True, num_uses=6.0, hard_share=0.0, middle_loss=0.25)
SUSPECTING = SAFE._replace(suspicion=SUSPICION)


def kept(policy, loss, *, progress=0.5, outlook=SAFE, uses=6, group=None, count=400):
    """Share kept of each distinct loss, over many samples of each."""
    loss = np.repeat(loss, count)
    chunk = candidates(
        loss, usage_count=np.full(len(loss), uses), group=None if group is None else np.repeat(group, count)
    )
    keep, weights = policy.select(chunk, Context(progress, 6, 8, 2.0, outlook), generator())
    assert weights is None
    return keep.reshape(-1, count).mean(axis=1)


def test_skips_the_easy_half():
    """About 5 % of the half with lower last losses are kept, and all of the other half."""
    easy, easier, hard, harder = kept(Focus(), [0.2, 0.1, 0.3, 0.4])

    assert 0 < easy < 0.12
    assert 0 < easier < 0.12
    assert (hard, harder) == (1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"progress": 0.2},
        {"progress": 0.95},
        {"outlook": SAFE._replace(hard_share=0.05)},
        {"outlook": SAFE._replace(num_uses=2.0)},
        {"outlook": SAFE._replace(is_exact=False)},
        {"outlook": SUSPECTING},
    ],
    ids=["too early", "the tail", "many are hard", "hardly used", "not exact", "some look mislabelled"],
)
def test_keeps_everything_where_skipping_is_not_safe(change):
    """Early and late, with many hard samples, suspects or a rough table, nothing is skipped."""
    assert kept(Focus(), [0.1, 0.2, 0.3, 0.4], **change).tolist() == [1, 1, 1, 1]


def test_noise_guard_skips_suspects():
    """With the guard, suspects are skipped with the given probability, and so is the easy half."""
    easy, hard, suspect, suspect_too = kept(Focus(noise_guard=True), [0.1, 0.3, 4.5, 4.6], outlook=SUSPECTING)
    some = kept(Focus(noise_guard=True, skip_suspects=0.9), [0.1, 0.3, 4.5, 4.6], outlook=SUSPECTING)

    assert 0 < easy < 0.12
    assert (hard, suspect, suspect_too) == (1, 0, 0)
    assert 0.05 < some[2] < 0.17


def test_guard_skips_samples_nearly_as_bad_as_untrained():
    """The higher component is skipped from 72 % of the untrained loss on; `suspects()` requires 100 %."""
    early = SUSPECTING._replace(suspicion=SUSPICION._replace(humps=Humps(0.3, 0.05, 0.95, 0.1, 0.1)))
    below, above = kept(Focus(noise_guard=True, begin=1, end=1), [1.4, 1.5], outlook=early)

    assert (below, above) == (1, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"progress": 0.09},
        {"outlook": SUSPECTING._replace(num_uses=3.9)},
        {"outlook": SAFE._replace(hard_share=1.0)},
        {"uses": 3, "outlook": SUSPECTING._replace(hard_share=1.0)},
    ],
    ids=["too early", "hardly used", "nothing suspected", "young samples"],
)
def test_guard_waits(change):
    """Before 10 % of the budget and 4 uses on average, and without a criterion, no sample is skipped as a suspect."""
    assert kept(Focus(noise_guard=True), [0.1, 4.5], **{"outlook": SUSPECTING, **change}).tolist() == [1, 1]


def test_guard_goes_by_predictions_where_losses_do_not_tell():
    """Samples beyond the limit of the margins are skipped, by the guard alone and once it is time; others are not."""
    outlook = SAFE._replace(hard_share=0.5, limit=MarginLimit(1.5, "margin", 5))
    loss = np.repeat([0.1, 2.0, 2.0, 2.0], 100)
    chunk = candidates(loss, group=np.arange(400) % 4)._replace(
        margin=np.repeat([-3, 1.4, 1.5, np.inf], 100).astype(np.float32)
    )

    def kept_of(policy, progress=0.5, uses=6.0):
        context = Context(progress, 6, 8, 2.0, outlook._replace(num_uses=uses))
        return policy.select(chunk, context, generator())[0].reshape(4, 100).mean(1).tolist()

    assert kept_of(Focus(noise_guard=True)) == [1, 1, 0, 0]
    assert kept_of(Focus()) == kept_of(Focus(noise_guard=True), 0.05) == kept_of(Focus(noise_guard=True), uses=3.0)
    assert kept_of(Focus()) == [1, 1, 1, 1]


def test_weighs_labels_by_how_likely_they_are_right():
    """Nobody is left out by predictions; weights fall with the margin, and are 1 on average."""
    limit = MarginLimit(1.5, "margin", 5, ((0.0, 1.0, 2.0), (0.1, 0.5, 0.9)))
    outlook = SAFE._replace(hard_share=0.5, limit=limit)
    chunk = candidates(np.full(400, 2.0), group=np.arange(400) % 4)._replace(
        margin=np.repeat([-3, 0.5, 1.5, 2.5], 100).astype(np.float32)
    )

    def chosen(progress=0.5, limit=limit):
        context = Context(progress, 6, 8, 2.0, outlook._replace(limit=limit))
        return Focus(noise_guard="weigh").select(chunk, context, generator())

    keep, weights = chosen()

    assert keep.all()
    assert weights.mean() == pytest.approx(1)
    assert weights[::100] / weights[0] == pytest.approx([1, 0.9, 0.5, 0.1])
    assert chosen(progress=0.15)[1] is None
    assert chosen(limit=limit._replace(levels=((), ())))[1] is None
    assert chosen(limit=None)[1] is None


def test_easy_half_is_kept_where_margins_look_wrong():
    """Wrong labels would be in the hard half: without the guard nothing is skipped."""
    outlook = SAFE._replace(limit=MarginLimit(1.5, "margin", 5))

    assert kept(Focus(), [0.1, 0.2, 0.3, 0.4], outlook=outlook).tolist() == [1, 1, 1, 1]
    assert kept(Focus(noise_guard=True), [0.1, 0.2, 0.3, 0.4], outlook=outlook)[0] < 0.12


def test_guard_protects_groups():
    """If all suspects are of one group, most of that group is kept."""
    plain = kept(Focus(noise_guard=True, begin=1, end=1), [0.1, 0.1, 0.1, 4.5], outlook=SUSPECTING)
    grouped = kept(
        Focus(noise_guard=True, begin=1, end=1), [0.1, 0.1, 0.1, 4.5], outlook=SUSPECTING, group=[0, 0, 0, 1]
    )

    assert plain[3] < 0.17
    assert grouped[3] > 0.6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"noise_guard": 1}, TypeError, r"noise_guard must be True, False or 'weigh', got 1\."),
        ({"skip_easy": 1.5}, ValueError, r"skip_easy must be in \[0, 1\], got 1\.5\."),
        ({"skip_suspects": -1}, ValueError, r"skip_suspects must be in \[0, 1\], got -1\."),
        ({"begin": "x"}, ValueError, r"begin must be in \[0, 1\], got 'x'\."),
        ({"most_hard": float("nan")}, ValueError, r"most_hard must be in \[0, 1\], got nan\."),
        ({"end": 0.1}, ValueError, r"end must be in \[begin, 1\] = \[0\.25, 1\], got 0\.1\."),
    ],
)
def test_bad_arguments(arguments, error, message):
    """Arguments outside their range are refused."""
    with pytest.raises(error, match=message):
        Focus(**arguments)


WRONG = np.arange(0, 400, 10)


def losses_of(indices, epoch):
    """Right labels are learnt, wrong ones get worse."""
    return np.where(indices % 10 == 0, 2.0 + 0.4 * epoch, 2.0 * 0.5**epoch) * (1 + 0.1 * np.sin(indices))


def train(r8, *, until=None, visits=None, reduce=lambda losses: losses, part_size=None):
    """Train to the end, or to a step."""
    while r8.global_step != until and (ticket := r8.draw_if_any()) is not None:
        if visits is not None:
            visits[ticket.epoch, ticket.indices] += 1
        r8.report(ticket, reduce(losses_of(ticket.indices, ticket.epoch)), part_size=part_size)


def test_a_run_hardly_visits_wrong_labels_any_more():
    """An epoch is still N visits; from the fifth on they go to samples with right labels."""
    r8 = R8Scheduler(
        400, batch_size=32, num_epochs=10, policy=Focus(noise_guard=True, begin=1, end=1), groups=np.arange(400) % 3
    )
    visits = np.zeros((10, 400))
    train(r8, visits=visits)

    assert visits.sum(axis=1).tolist() == [400] * 10
    assert (visits[:4] == 1).all()
    assert visits[5:, WRONG].sum() == 0


MANY = 3000


def hard_report(r8, ticket, bend=0.0):
    """The losses of wrong labels are among those of hard samples; what is predicted tells them."""
    margin, is_wrong = margins_of(0, wrong=0.2, count=MANY)
    noise = np.random.default_rng(ticket.step).normal(0, 0.3, len(ticket.indices))
    margin = (margin[ticket.indices] + noise + bend).astype(np.float32)
    given = ticket.indices % 10
    said = Predictions(margin, np.where(margin > 0, (given + 1) % 10, given), given, 10)
    r8.report(ticket, np.log1p(np.exp(margin / 2)), predictions=said)
    return is_wrong


def test_wrong_labels_are_left_out_by_predictions():
    """From the fifth epoch on most wrong labels are hardly visited; a resumed run draws the same batches."""

    def make():
        groups = np.arange(MANY) % 10
        return R8Scheduler(MANY, batch_size=50, num_epochs=10, policy=Focus(noise_guard=True), groups=groups, seed=3)

    whole, other = make(), make()
    while (ticket := whole.draw_if_any()) is not None:
        is_wrong = hard_report(whole, ticket)
        if whole.global_step == 420:
            other.load_state_dict(decode(encode(whole.state_dict())))
    uses = whole.table.usage_count

    assert (uses[is_wrong] <= 5).mean() > 0.6
    assert (uses[~is_wrong] <= 5).mean() < 0.1
    while (ticket := other.draw_if_any()) is not None:
        hard_report(other, ticket)
    assert np.array_equal(uses, other.table.usage_count)


def test_wrong_labels_weigh_less_and_are_visited():
    """With weights nobody misses a visit; a run that is resumed in mid-pass gives the same batches the same weights."""

    def make():
        policy = Focus(noise_guard="weigh")
        return R8Scheduler(MANY, batch_size=50, num_epochs=10, policy=policy, groups=np.arange(MANY) % 10, seed=3)

    whole, other, weighed = make(), make(), []
    while (ticket := whole.draw_if_any()) is not None:
        if ticket.weights is not None:
            weighed.append((ticket.step, ticket.indices.copy(), ticket.weights.copy()))
        is_wrong = hard_report(whole, ticket)
        if whole.global_step == 425:
            other.load_state_dict(decode(encode(whole.state_dict())))
    weight = np.ones(MANY)
    for _, indices, weights in weighed:
        weight[indices] = weights

    assert np.ptp(whole.table.usage_count) == 0
    assert np.mean([weights.mean() for _, _, weights in weighed]) == pytest.approx(1, abs=0.02)
    assert weight[is_wrong].mean() < 0.4 < 0.9 < weight[~is_wrong].mean()
    for step, indices, weights in weighed:
        if step >= 425:
            ticket = other.draw()
            assert np.array_equal(ticket.indices, indices)
            assert np.array_equal(ticket.weights, weights)
            hard_report(other, ticket)


def test_those_left_out_before_weigh_less():
    """A run that has left samples out and resumes with weights visits them, with little weight, and not as the others.

    Without them nothing may look wrong any more.
    """

    def make(guard):
        policy = Focus(noise_guard=guard)
        return R8Scheduler(MANY, batch_size=50, num_epochs=10, policy=policy, groups=np.arange(MANY) % 10, seed=3)

    first, then, weight = make(True), make("weigh"), np.full(MANY, np.nan)
    while first.global_step < first.steps_per_epoch * 7 and (ticket := first.draw_if_any()) is not None:
        is_wrong = hard_report(first, ticket)
    is_out = first.table.usage_count <= 5
    then.load_state_dict(decode(encode(first.state_dict())))
    while (ticket := then.draw_if_any()) is not None:
        weight[ticket.indices] = 1.0 if ticket.weights is None else ticket.weights
        hard_report(then, ticket)

    assert weight[is_out & is_wrong].mean() < 0.5 < 0.9 < weight[~is_out].mean()


def test_pairs_of_indices_and_rates_cannot_tell_weights():
    """A loop that would leave out the weights is refused before its first batch, also around another policy."""
    for policy in (Focus(noise_guard="weigh"), even_groups(Focus(noise_guard="weigh"))):
        r8 = R8Scheduler(400, batch_size=32, num_epochs=10, policy=policy, groups=np.arange(400) % 4)
        with pytest.raises(RuntimeError, match=r"weights samples: use draw\(\) and report\(\), and ticket\.weights"):
            next(r8.batch_iterator())
        assert r8.draw().step == 0


def test_with_means_of_parts_nothing_is_skipped():
    """Means of small parts do not show wrong labels, which would be in the hard half: nothing is skipped."""
    r8 = R8Scheduler(400, batch_size=32, num_epochs=10, policy=Focus(noise_guard=True), groups=np.zeros(400))
    with pytest.warns(RuntimeWarning, match=r"needs the loss of each sample but got parts of 4"):
        train(r8, reduce=lambda losses: losses.reshape(-1, 4).mean(axis=1), part_size=4)

    assert np.ptp(r8.table.usage_count) == 0


def test_guard_needs_groups():
    """Without groups a rare class looks mislabelled: the guard refuses to run without them."""
    with pytest.raises(ValueError, match=r"groups must be a label.*np\.zeros\(num_samples\) puts all samples into one"):
        R8Scheduler(400, batch_size=32, num_epochs=10, policy=Focus(noise_guard=True))


def test_rare_class_that_is_learnt_late_is_kept():
    """A class of 5 % that is learnt late is visited like the others; wrong labels in all classes are not."""
    groups = (np.arange(2000) < 100).astype(int)
    r8 = R8Scheduler(2000, batch_size=50, num_epochs=10, policy=Focus(noise_guard=True, begin=1, end=1), groups=groups)
    while (ticket := r8.draw_if_any()) is not None:
        late = np.where(groups[ticket.indices] == 1, 3.0, 0.05)
        losses = np.where(ticket.indices % 50 == 49, 3.0, late) if ticket.epoch else np.full(50, 0.69)
        r8.report(ticket, losses + 0.001 * (ticket.indices % 7))
    uses = r8.table.usage_count

    assert uses[:100].min() >= 9
    assert uses[149::50].max() <= 6


def test_with_batch_means_nothing_is_skipped_with_a_warning():
    """If only batch means are reported, every sample comes once per epoch, and one warning says why."""
    r8 = R8Scheduler(400, batch_size=32, num_epochs=6, policy="focus")
    visits = np.zeros((6, 400))
    with pytest.warns(RuntimeWarning, match=r"Focus\(.*needs the loss.*but got batch means of 32") as said:
        train(r8, visits=visits, reduce=lambda losses: float(losses.mean()))

    assert len(said) == 1
    assert (visits == 1).all()


@pytest.mark.parametrize("wrap", [lambda policy: policy, even_groups])
def test_without_predictions_nothing_is_weighed_with_a_warning(wrap):
    """A run that is to weigh, and reports losses alone, hears after the first pass that it will not; once."""
    r8 = R8Scheduler(400, batch_size=32, num_epochs=6, policy=wrap(Focus(noise_guard="weigh")), groups=np.zeros(400))
    with pytest.warns(RuntimeWarning, match=r"needs predictions .* got losses without them, so no loss weighs") as said:
        train(r8, until=14)

    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(r8)


@dataclass(frozen=True)
class FromTheStart(Policy):
    """Weighs from the first batch on."""

    weighs = True

    def select(self, chunk, context, rng):
        return np.ones(len(chunk.indices), bool), np.float32(0.5) + (chunk.indices % 2).astype(np.float32)


def weighed_run(policy, **more):
    """A run that fits what weighs little ever less; bool[MANY], which labels are wrong."""
    groups = np.arange(MANY) % 10
    r8 = R8Scheduler(MANY, batch_size=50, num_epochs=10, policy=policy, groups=groups, seed=3, guard="finite", **more)
    while (ticket := r8.draw_if_any()) is not None:
        weights = np.ones(len(ticket.indices)) if ticket.weights is None else ticket.weights
        is_wrong = hard_report(r8, ticket, bend=4 * (weights < 0.9))
    r8.close()
    return r8, is_wrong


def test_the_list_after_weights_is_that_of_before(tmp_path, capsys):
    """Once losses have weights margins are bent: the list goes by those of before, in every view and after a resume."""
    weighed, is_wrong = weighed_run(Focus(noise_guard="weigh"), run_dir=tmp_path / "run")
    other = R8Scheduler(MANY, batch_size=50, num_epochs=10, groups=np.arange(MANY) % 10, guard="finite")
    other.load_state_dict(decode(encode(weighed.state_dict())))
    found = weighed.table.suspects(precision=0.9)
    main(["samples", str(tmp_path / "run"), "--suspects", "--precision", "0.9", "--json"])
    listed = json.loads(capsys.readouterr().out)
    bent = weighed.table.read_evidence()["margin"] > 4

    assert is_wrong[bent].mean() < 0.8
    assert len(found) > 200
    assert found.caution == ""
    assert found.precision >= 0.9
    assert is_wrong[found.indices].mean() >= 0.9
    assert [each["index"] for each in listed["samples"]] == found.indices.tolist()
    assert np.array_equal(other.table.suspects(precision=0.9).indices, found.indices)
    assert np.isin(weighed.table.suspects(0.9, runs=[other]).indices, np.flatnonzero(is_wrong)).mean() >= 0.9


def test_no_precision_is_promised_after_weights_from_the_start(tmp_path, capsys):
    """Where weights began before samples could be judged, the list says so in every view, and after a resume."""
    weighed, _ = weighed_run(FromTheStart(), run_dir=tmp_path / "run")
    plain, _ = weighed_run(Focus())
    other = R8Scheduler(MANY, batch_size=50, num_epochs=10, groups=np.arange(MANY) % 10, guard="finite")
    other.load_state_dict(decode(encode(weighed.state_dict())))
    found = weighed.table.suspects(precision=0.9)
    main(["samples", str(tmp_path / "run"), "--suspects", "--precision", "0.9"])
    listed = capsys.readouterr().out
    write_report(tmp_path / "run", tmp_path / "page.html", precision=0.9)

    assert plain.table.suspects().caution == ""
    assert len(found) > 0
    assert np.isnan(found.precision)
    for text in (found.caution, repr(found), listed, (tmp_path / "page.html").read_text()):
        assert "no precision is promised, as losses had weights" in text
    assert np.isnan(other.table.suspects().precision)
    assert np.isnan(plain.table.suspects(runs=[weighed]).precision)
