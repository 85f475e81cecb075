"""The page of a report: everything in it, whatever is in the run folder."""

import base64
import csv
import dataclasses
import html.parser
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import events
from learnit_r8.journal.run import UnreadableRun
from learnit_r8.journal.samples import write_samples
from learnit_r8.report import write_report
from learnit_r8.report.data import report_data
from learnit_r8.report.page import page
from tests.drive import INF, NAN, make, sample_losses
from tests.journal.run_folders import STARTED, folder_with, steps
from tests.report.sample_files import samples

VOID = {"meta", "input", "br", "link", "img"}

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[2J\u202e&amp;"


def said_of(folder, tmp_path):
    """The text of a run's report."""
    return " ".join(Reader(write_report(folder, tmp_path / "out.html").read_text()).texts)


class Reader(html.parser.HTMLParser):
    """Reads a page the way a browser does: tags, attributes, text; every tag must be closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def trained(folder, *, per_sample=True, epochs=6):
    """A run with a refused loss and a metric, and the samples of all its epochs."""
    r8 = make(
        40, batch_size=4, num_epochs=epochs, run_dir=folder, name="a run", sample_ids=[f"s{n}" for n in range(40)]
    )
    for epoch in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            losses = sample_losses(indices) / (1 + r8.global_step)
            r8.update_with_loss(losses if per_sample else float(losses.mean()))
        r8.log(accuracy=1 - 1 / (2 + epoch))
    r8.close()
    return folder


def test_page_has_every_part(tmp_path):
    """A whole run gives every section, and the file names of its hardest samples."""
    text = write_report(trained(tmp_path / "run"), tmp_path / "out.html").read_text()
    read = Reader(text)
    said = " ".join(read.texts)

    for title in (
        "a run", "finished", "Loss", "Learning rate", "accuracy", "Quarters by loss",
        "Data map", "Hardest samples", "Events", "Configuration", "What the samples say", "initial_lr", "numpy",
    ):  # fmt: skip
        assert title in said
    assert read.tags.count("svg") > 6
    assert "s0" in said or "s1" in said


def test_page_needs_nothing_else(tmp_path):
    """No script, no other file, no address: the page alone is all, and a browser is told to load nothing."""
    read = Reader(write_report(trained(tmp_path / "run"), tmp_path / "out.html").read_text())

    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    assert not {"src", "srcset", "action", "style"} & {name for name, _ in read.attributes}
    assert all(value.startswith(("#", "data:text/csv;")) for name, value in read.attributes if name == "href")
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in read.attributes
    assert (tmp_path / "out.html").stat().st_size < 2_000_000


def test_pictures_are_well_formed(tmp_path):
    """Every picture in the page is XML that a program can read, with finite coordinates."""
    text = write_report(trained(tmp_path / "run"), tmp_path / "out.html").read_text()
    pictures = ["<svg" + part.split("</svg>")[0] + "</svg>" for part in text.split("<svg")[1:]]
    for picture in pictures:
        for element in ElementTree.fromstring(picture).iter():
            for name, value in element.attrib.items():
                assert "nan" not in value or name == "aria-label"
                assert "inf" not in value or name == "aria-label"

    assert len(pictures) > 6


def test_hostile_texts_stay_texts(tmp_path):
    """Names, messages and settings of a run cannot become markup, nor hide other text."""
    started = events.RunStarted(0, 0.0, HOSTILE, 100, 10, 10, 1000, None, HOSTILE, {HOSTILE: HOSTILE})
    folder = folder_with(
        tmp_path / "run",
        started,
        steps(5),
        events.Notice(5, 0.5, HOSTILE, is_warning=True),
        events.MetricsLogged(5, 0.5, 5, {HOSTILE: 1.0}),
        events.CheckpointSaved(5, 0.5, HOSTILE, HOSTILE),
        events.ProcessLeft(5, 0.5, HOSTILE),
    )
    (folder / "run.json").write_text(json.dumps({"name": HOSTILE, "versions": {HOSTILE: HOSTILE}, "program": HOSTILE}))
    names = dict.fromkeys(range(100), HOSTILE)
    for epoch in (0, 1):
        write_samples(folder, [samples(epoch, np.ones(100), source=HOSTILE, names=names)])
    text = write_report(folder, tmp_path / "out.html").read_text()
    read = Reader(text)

    assert not {"script", "img"} & set(read.tags)
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in "".join(read.texts)
    assert not {"\x1b", "\u202e"} & set(text)


def test_estimates_are_called_estimates(tmp_path):
    """Where only batch means were reported no sample is called mislabelled, and the numbers are called rough."""
    said = said_of(trained(tmp_path / "run", per_sample=False), tmp_path)

    assert "batch means of 4" in said
    assert "the order of samples is rough" in said
    assert "per-sample losses are needed" in said


def test_suspects_are_listed(tmp_path):
    """Samples that stay worse than untrained are counted, listed and marked."""
    folder = folder_with(tmp_path / "run", STARTED, steps(5))
    loss = np.where(np.arange(100) < 5, 5.0, 0.1)
    for epoch in (3, 4):
        write_samples(folder, [samples(epoch, loss, uses=np.full(100, 9), untrained=2.3)])
    data = report_data(folder)

    assert [row.number for row in data.suspects] == [0, 1, 2, 3, 4]
    assert page(data).count(">suspect: always high<") == 5
    assert page(data).count("<td>always high</td>") == 5


@pytest.mark.parametrize("happened", [[], [STARTED], [STARTED, events.RunEnded(0, 0.0, False)], [steps(5)]])
def test_short_run_has_a_page(tmp_path, happened):
    """A run that has hardly begun, or whose beginning is missing, has a page too."""
    said = said_of(folder_with(tmp_path / "run", *happened), tmp_path)

    assert "it" in said


def test_damage_is_reported(tmp_path):
    """The end of the page counts the lines that could not be read."""
    folder = folder_with(tmp_path / "run", STARTED, steps(5), text="garbage\n" * 3)
    (folder / "samples-000000.safetensors").write_bytes(b"garbage")
    said = said_of(folder, tmp_path)

    assert "3 lines of the journal could not be read" in said
    assert "could not be shown: samples-000000.safetensors must be a whole samples file" in said


def test_files_of_another_data_set_are_left_out(tmp_path):
    """Samples files that do not fit the newest one are named and not compared."""
    folder = folder_with(tmp_path / "run", STARTED)
    for epoch, size in ((0, 7), (1, 5)):
        write_samples(folder, [samples(epoch, np.ones(size))])

    assert report_data(folder).notes == ["epoch 1 has 7 samples, the newest 5"]


ODD = [NAN, INF, -INF, 0.0, -3.0, 1e-30, 0.5, 1e38]


@given(st.lists(st.lists(st.sampled_from(ODD), min_size=6, max_size=6), min_size=1, max_size=4))
def test_any_losses_can_be_drawn(tmp_path_factory, epochs):
    """Whatever the numbers in the samples files, the page is drawn and well formed."""
    folder = folder_with(tmp_path_factory.mktemp("runs") / "run", STARTED, steps(5))
    for epoch, values in enumerate(epochs):
        last = np.array(values[::-1], np.float32)
        write_samples(folder, [samples(epoch, values, last=last, untrained=values[0])])
    text = page(report_data(folder))
    Reader(text)

    assert 'points="nan' not in text


@pytest.mark.parametrize(
    "losses",
    [np.full(6, -1.0), np.linspace(-3, -1, 6), np.array([0.0, -1.0] * 3), np.full(6, 1e37), np.zeros(6)],
    ids=["all -1", "negative", "0 and -1", "huge", "zero"],
)
def test_losses_of_any_size_have_a_report(tmp_path, losses):
    """Negative losses, equal ones and huge ones, whose range is empty or ends at 0, are drawn."""
    folder = tmp_path / "run"
    r8 = make(60, batch_size=10, num_epochs=3, run_dir=folder)
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(losses[indices % 6])
    r8.close()
    text = write_report(folder, tmp_path / "out.html").read_text()
    Reader(text)

    assert 'class="cell"' in text
    assert ">nan<" not in text
    assert 'points="nan' not in text


def test_no_run_no_report(tmp_path):
    """Without a run there is an error, and no file."""
    with pytest.raises(UnreadableRun, match="run must be a folder"):
        write_report(tmp_path / "nothing", tmp_path / "out.html")

    assert not (tmp_path / "out.html").exists()


def test_contents_lead_to_every_section(tmp_path):
    """The contents name each section of the page, and every link leads to one."""
    folder = folder_with(tmp_path / "run", STARTED, steps(5), events.MetricsLogged(5, 1.0, 5, {"a<b>": 0.5}))
    written = write_report(folder, tmp_path / "out.html").read_text()
    reader = Reader(written)
    links = [value for name, value in reader.attributes if name == "href"]
    anchors = [value for name, value in reader.attributes if name == "id"]

    assert links
    assert {f"#{name}" for name in anchors} >= set(links)
    assert len(links) == written.count("<section")


def test_pictures_have_their_numbers(tmp_path):
    """Under every chart its numbers can be opened, few rows of many, the last one among them."""
    logged = [events.MetricsLogged(step, float(step), step, {"accuracy": step / 1000}) for step in range(1, 401)]
    folder = folder_with(tmp_path / "run", STARTED, steps(5), *logged)
    written = write_report(folder, tmp_path / "out.html").read_text()

    assert written.count("<details>") == 3
    assert "<td>400</td><td>0.4</td>" in written
    assert written.count("<tr>") < 100


def test_runs_are_compared_on_the_page(tmp_path):
    """With another run the page has its figures beside this one's, the better one in bold."""
    one = folder_with(tmp_path / "one", STARTED, steps(5), events.MetricsLogged(5, 1.0, 5, {"accuracy": 0.5}))
    two = folder_with(tmp_path / "two", STARTED, steps(5), events.MetricsLogged(5, 1.0, 5, {"accuracy": 0.75}))
    written = write_report(one, tmp_path / "out.html", other=two).read_text()

    assert "<th>accuracy, best</th><td>0.5</td><td><b>0.75</b></td>" in written
    assert "Comparison" not in write_report(one, tmp_path / "out.html").read_text()


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_page_fits_a_browser(width, tmp_path):
    """In a real browser nothing is wider than the page, no text below 11 pixels, and no row on a phone has 4 lines."""
    playwright = pytest.importorskip("playwright.sync_api")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs a browser")
    refused = events.BatchRefused(20, 2.0, 0, float("nan"), 0.1, 0.05, 1, (), "not finite, and more to say of it " * 9)
    settings = {"recovery": "Recovery(" + ", ".join(f"field_{n}={n}" for n in range(30)) + ")"}
    started = dataclasses.replace(STARTED, settings=settings)
    happened = [started, *(steps(n) for n in range(5, 20)), events.MetricsLogged(9, 1.0, 9, {"accuracy": 0.5}), refused]
    folder = folder_with(tmp_path / "run", *happened)
    write_samples(folder, [samples(epoch, np.linspace(0.1, 3, 40) * (2 - epoch)) for epoch in range(2)])
    path = write_report(folder, tmp_path / "out.html")
    with playwright.sync_playwright() as machine:
        running = machine.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        opened = running.new_page(viewport={"width": width, "height": 900})
        opened.goto(path.as_uri())
        wide, smallest, tallest = opened.evaluate(MEASURE)
        running.close()

    assert wide <= width
    assert smallest >= 11
    assert width > 640 or tallest <= 3 * 24 + 12


MEASURE = """() => {
  const sizes = [...document.querySelectorAll('svg text, td, th, p, a, dt, summary')].filter(
    one => one.getBoundingClientRect().width).map(one => {
      const size = parseFloat(getComputedStyle(one).fontSize), svg = one.ownerSVGElement;
      return svg ? size * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : size; });
  const rows = [...document.querySelectorAll('tr')].map(row => row.getBoundingClientRect().height);
  return [document.documentElement.scrollWidth, Math.min(...sizes), Math.max(...rows)]; }"""


def validated(folder):
    """A run with an incident, a training and a validation loss, and an accuracy of each."""
    model = {"w": np.zeros(1)}
    callbacks = {"state_callback": lambda: model, "load_callback": model.update}
    r8 = make(40, batch_size=4, num_epochs=8, run_dir=folder, name="v", **callbacks)
    for epoch in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            losses = 1 + sample_losses(indices) / (1 + r8.global_step)
            r8.update_with_loss(losses * NAN if r8.global_step == 33 else losses)
        r8.log(val_loss=2 + abs(epoch - 4), train_accuracy=epoch / 8, val_accuracy=epoch / 9, lr_scale=1.0)
    r8.close()
    return folder


def section_of(text, name):
    return re.search(rf'id="{name}">(.*?)</section>', text, re.DOTALL)[1]


def test_incidents_are_the_first_section(tmp_path):
    """A colleague who opens the page sees first what went wrong, what was done and what it was."""
    text = write_report(validated(tmp_path / "run"), tmp_path / "out.html").read_text()
    incidents = section_of(text, "incidents")

    assert re.findall(r"<h2>(.*?)</h2>", text)[:2] == ["Incidents", "Loss"]
    assert "1 incident, newest first; 1 loss refused in all" in incidents
    assert "loss nan" in incidents
    assert "<summary>" in incidents


def test_training_and_validation_share_a_chart(tmp_path):
    """Metrics of one stem are over each other, with the best step; the validation loss is over that of the batches."""
    text = write_report(validated(tmp_path / "run"), tmp_path / "out.html").read_text()
    loss, accuracy = section_of(text, "loss"), section_of(text, "accuracy")

    assert re.findall(r"<h2>(.*?)</h2>", text).count("accuracy") == 1
    assert "train_accuracy" in accuracy
    assert "val_accuracy" in accuracy
    assert "best 0.7778 at step 80" in accuracy
    assert 'class="metric held"' in loss
    assert "val_loss, best 2 at step 50 (ring)" in loss


def test_machine_over_time_has_its_panels(tmp_path):
    """Use of cores and GPUs in percent, memory in GB, over the training time; what is not known has no curve."""
    gpu = (0.5, 3e9, 24e9, 60.0)
    loads = [
        events.MachineLoad(n, 600.0 * n, 0.25, 2.0, 16, 8e9, 64e9, 1e9 * n, (gpu, (1.0, *gpu[1:])))
        for n in range(1, 19)
    ]
    folder = folder_with(tmp_path / "run", STARTED, steps(18), *loads)
    written = write_report(folder, tmp_path / "out.html").read_text()
    used, held = section_of(written, "use-of-the-machine"), section_of(written, "memory-of-the-machine")

    assert "Percent of 16 cores." in used
    assert "this process, 3:00:00: 12.5</title>" in used
    assert "2 GPUs, mean, 10:00: 75</title>" in used
    assert "64 GB in all, 48 GB on 2 GPUs" in held
    assert "this process, 3:00:00: 18</title>" in held
    assert re.search(r'class="label faint"[^>]*>h</text>', used)


def test_machine_without_numbers_has_no_panel(tmp_path):
    """A run whose journal tells no load, or only that of another kind, draws what there is."""
    nan = float("nan")
    folder = folder_with(
        tmp_path / "run", STARTED, steps(9), events.MachineLoad(9, 0.9, 0.5, nan, 0, nan, nan, nan, ((),))
    )
    written = write_report(folder, tmp_path / "out.html").read_text()

    assert "this process" not in section_of(written, "use-of-the-machine")
    assert "memory-of-the-machine" not in written


def test_the_value_under_the_pointer_is_said(tmp_path):
    """Without a script: stretches of the chart of losses have a tooltip with their values."""
    text = write_report(validated(tmp_path / "run"), tmp_path / "out.html").read_text()
    said = re.findall(r'class="zone".*?<title>(.*?)</title>', text)

    assert len(said) >= 70
    assert any(re.fullmatch(r"steps \d+ to \d+: loss [\d.]+ \([\d.]+ to [\d.]+\), val_loss 2", one) for one in said)


def test_no_text_is_over_a_curve(tmp_path):
    """Labels of axes and marks are beside the curves, in charts for wide pages and for phones."""
    text = write_report(validated(tmp_path / "run"), tmp_path / "out.html").read_text()
    label = r'<text class="([^"]*)" x="([-\d.]+)" y="([-\d.]+)"(?: text-anchor="(\w+)")?[^>]*>([^<]+)</text>'
    num_texts = 0
    for chart in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        corners = [
            re.findall(r"([-\d.]+),([-\d.]+)", each) for each in re.findall(r'<polyline[^>]*points="([^"]+)"', chart)
        ]
        curves = [np.array(each, float) for each in corners if len(each) > 1]
        for _, x, y, anchor, said in re.findall(label, chart):
            # Letters of 11.5 are some 7 wide, and 8 high above their line.
            left = float(x) - {"end": 1.0, "middle": 0.5}.get(anchor, 0.0) * 7 * len(said)
            num_texts += 1
            for curve in curves:
                places = np.linspace(left, left + 7 * len(said), 20)
                over = np.interp(places, curve[:, 0], curve[:, 1], left=np.nan, right=np.nan)
                assert not ((float(y) - 8 < over) & (over < float(y))).any(), (said, chart[:200])

    assert num_texts > 40


def test_no_panel_is_stretched(tmp_path):
    """Panels of half the width come in pairs; an odd one at the end keeps its width."""
    text = write_report(validated(tmp_path / "run"), tmp_path / "out.html").read_text()

    assert "only-child{grid-column" not in text
    assert '<div class="pair"></div>' not in text


def test_every_suspect_is_listed_to_mark_and_to_take_along(tmp_path):
    """All of them, with label, suggestion and odds; the CSV in the page holds the same rows."""
    folder = folder_with(tmp_path / "run", STARTED, steps(5))
    loss = np.where(np.arange(900) < 80, 5.0, 0.1)
    for epoch in (3, 4):
        write_samples(folder, [samples(epoch, loss, uses=np.full(900, 9), untrained=2.3)])
    section = section_of(write_report(folder, tmp_path / "out.html").read_text(), "suspects")
    content = base64.b64decode(re.search('base64,([^"]+)', section)[1]).decode()
    rows = list(csv.DictReader(content.splitlines()))

    assert "All 80 samples that look mislabelled" in section
    assert section.count('type="checkbox"') == len(rows) == 80
    assert [row["index"] for row in rows] == [str(number) for number in range(80)]
    assert all(float(row["score"]) > 0.9 and row["why"] == "always high" for row in rows)
