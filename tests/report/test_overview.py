"""The data at a glance in a report and in a notebook."""

import html
import itertools
import math
import re

import numpy as np
import pytest

from learnit_r8 import predictions_of
from learnit_r8.report import DataView, write_report
from learnit_r8.report.page import report_data
from learnit_r8.report.samples import NO_LOOK, SamplesData, regions_of, samples_page
from learnit_r8.table.labels.evidence import EVIDENCE
from tests.drive import make
from tests.report.sample_files import samples
from tests.report.test_page import Page

NAMES = np.array(["ant", "bee", "<cow>"])
LOGITS = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32) * 2
GIVEN = LOGITS.argmax(1)
GIVEN[:6] = (GIVEN[:6] + 1) % 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A scheduler whose run was trained for eight epochs on ninety samples, the first six mislabelled."""
    folder = tmp_path_factory.mktemp("at") / "a run"
    r8 = make(90, batch_size=10, num_epochs=8, run_dir=folder, groups=NAMES[GIVEN])
    for epoch in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            noise = np.random.default_rng([epoch, 1]).normal(size=(90, 3))[indices]
            logits = LOGITS[indices] * (1 + epoch) / 4 + noise
            losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(indices)), GIVEN[indices]]
            r8.update_with_loss(losses, predictions=predictions_of(logits, GIVEN[indices]))
    r8.close()
    return r8


def test_report_shows_the_data_at_a_glance(run, tmp_path):
    """Map, quality of each class, what the model confuses, calibration, when samples were learnt."""
    read = Page(write_report(run.run_dir, tmp_path / "out.html").read_text())
    said = read.said

    for title in ("Data map", "Quality of each class", "What the model confuses", "Calibration", "Learnt when"):
        assert title in said
    assert "by its mean margin" in said
    assert {"ant", "bee", "<cow>"} <= set(read.texts)
    assert "cow" not in read.tags


def test_regions_of_the_map_hold_every_sample_once(run, tmp_path):
    """Each region can be ticked, shows its samples, and saves the ids of all of them; together they are all samples."""
    page = Page(write_report(run.run_dir, tmp_path / "out.html").read_text())
    (drawn,), regions = page.blocks("Data map", "map"), list(regions_of(report_data(run.run_dir).samples.overview))
    ids = [[index for index, _ in region["save"]["rows"]] for region in drawn["regions"]]

    assert ids == [sorted(region.indices.tolist()) for region in regions]
    assert sorted(itertools.chain(*ids)) == list(range(90))
    assert all(region["cards"] for region in drawn["regions"])


def test_overview_of_the_table_knows_the_regions(run):
    """The ends of a region in the page give its very samples from the table."""
    for region in regions_of(report_data(run.run_dir).samples.overview):
        assert run.table.overview().region(region.mean, region.spread).tolist() == sorted(region.indices)


@pytest.mark.parametrize("of", ["run folder", "scheduler", "table"])
def test_notebook_shows_the_same(run, of):
    """The view of a notebook is the panels on samples in a frame of its own."""
    source = {"run folder": run.run_dir, "scheduler": run, "table": run.table}[of]
    frame = DataView(source, describe=lambda index: f"photo {index}")._repr_html_()
    (page,) = re.findall(r'<iframe [^>]* srcdoc="([^"]*)"></iframe>', frame)
    said = Page(html.unescape(page)).said

    assert "Quality of each class" in said
    assert "photo 0" in said


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("values", [None, (math.nan, math.inf, -math.inf, 3e38, -3e38)])
def test_damaged_evidence_still_gives_a_page(values):
    """A samples file with numbers that no run writes is shown as far as they make sense."""
    rng = np.random.default_rng(3)
    raw = np.frombuffer(rng.bytes(200 * EVIDENCE.itemsize), EVIDENCE)
    evidence = {name: raw[name].copy() for name in EVIDENCE.names}
    for name in ("mean_margin", "variance", "margin") if values else ():
        evidence[name][:] = rng.choice(np.array(values, np.float32), 200)
    file = samples(0, rng.random(200), uses=np.full(200, 9))._replace(evidence=evidence)
    data = SamplesData.of([file], 0.5)

    assert "Quality of each class" in Page(samples_page(data, NO_LOOK)).texts


def test_view_refuses_what_it_cannot_show():
    """A source without samples, and one that is none, are refused with what would be right."""
    with pytest.raises(ValueError, match="source must have learned of some samples"):
        DataView(make(8))
    with pytest.raises(TypeError, match="source must be a run folder, a scheduler or its table, got 3"):
        DataView(3)


def test_frame_has_the_map(run):
    """The frame of a table holds the map, so that a region is a filter of its rows."""
    pandas = pytest.importorskip("pandas")
    frame, overview = run.table.to_frame("pandas"), run.table.overview()

    assert isinstance(frame, pandas.DataFrame)
    for name in ("margin", "variability", "confidence", "learned", "forgotten"):
        np.testing.assert_array_equal(frame[name].to_numpy(), getattr(overview, name))
    assert frame[frame.margin > 1].index.tolist() == overview.region((np.nextafter(1, 2), 99)).tolist()
