"""The page of a report: everything in it, whatever is in the run folder."""

import base64
import configparser
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import events
from learnit_r8.journal.run import UnreadableRun
from learnit_r8.journal.samples import write_samples
from learnit_r8.report import write_report
from learnit_r8.report.comparison import write_comparison
from learnit_r8.report.document import document
from learnit_r8.report.page import content_of, report_data
from tests.drive import INF, NAN, make, sample_losses
from tests.journal.run_folders import STARTED, folder_with, steps
from tests.package_copy import copy_package, run_beside
from tests.report.sample_files import samples

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[2J\u202e&amp;"


def at(step, loss, num_steps=1):
    """Some steps with one loss."""
    return events.StepsDone(step, step / 10, num_steps, 0, 0.5, loss, loss, loss, loss, 1.0, 0.1, 50, 0)


def said_of(folder, tmp_path):
    """The text of a run's report."""
    return Page(write_report(folder, tmp_path / "out.html").read_text()).said


class Page:
    """A page as its script sees it: the one object of data, and the tags around it."""

    def __init__(self, text):
        self.text = text
        self.tags = re.findall(r"<(\w+)", re.sub(r"<script.*?</script>", "<script>", text, flags=re.DOTALL))
        (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
        self.data = json.loads(data, parse_constant=pytest.fail)
        self.titles = [one["title"] for one in self.data["sections"]]
        self.texts = list(texts_in(self.data))
        self.said = " ".join(self.texts)

    def section(self, title):
        return next(one for one in self.data["sections"] if one["title"] == title)

    def blocks(self, title, kind):
        return [block[kind] for block in self.section(title)["blocks"] if kind in block]

    def charts(self, title):
        """The curves of a section by their names."""
        return {one["name"]: one for chart in self.blocks(title, "chart") for one in chart["series"]}


def texts_in(value):
    if isinstance(value, dict):
        # The rows of a file to save are as they are, not shown.
        for name, one in value.items():
            yield from () if "file" in value and name == "rows" else texts_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts_in(one)
    elif isinstance(value, str):
        yield value


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
    page = Page(write_report(trained(tmp_path / "run"), tmp_path / "out.html").read_text())

    assert page.titles == [
        "", "Loss", "Learning rate", "accuracy", "Quarters by loss", "What the samples say", "Hardest samples",
        "Events", "Configuration",
    ]  # fmt: skip
    assert (page.data["title"], page.data["state"]) == ("a run", "finished")
    assert {"initial_lr", "numpy"} <= set(page.texts)
    assert "s0" in page.said or "s1" in page.said


def test_page_needs_nothing_else(tmp_path):
    """No other file, no address: the page alone is all, and a browser runs its one script and loads nothing."""
    text = write_report(trained(tmp_path / "run"), tmp_path / "out.html").read_text()
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    assert text.count("<script") == 2
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(Page(text).tags)
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in text
    assert "http" not in text.replace('"http://www.w3.org/2000/svg"', "").replace("http-equiv", "")
    assert len(text) < 500_000


def test_copied_package_writes_pages(tmp_path):
    """The template and the script are files of the package: a copy of its folder has them, and so has a build."""
    copy_package(tmp_path)
    trained(tmp_path / "run")
    code = f"from learnit_r8.report import write_report; print(write_report({str(tmp_path / 'run')!r}, 'out.html'))"

    assert run_beside(tmp_path, code) == ["out.html"]
    assert (tmp_path / "out.html").read_text() == write_report(tmp_path / "run", tmp_path / "b.html").read_text()
    files = configparser.ConfigParser()
    files.read(Path(__file__).parents[2] / "setup.cfg")
    assert {"report/page.html", "report/page.js"} <= set(files["options.package_data"]["learnit_r8"].split(", "))


def test_hostile_texts_stay_texts(tmp_path):
    """Names, messages and settings of a run are data, which cannot become markup, nor hide other text."""
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
    page = Page(text)

    assert text.count("<script") == text.count("</script") == 2
    assert "img" not in page.tags
    assert "<script>alert(1)</script>" in page.said
    assert not {"\x1b", "\u202e"} & set(page.said)


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

    assert [row.number for row in data.samples.suspects] == [0, 1, 2, 3, 4]
    texts = Page(document(content_of(data))).texts
    assert texts.count("suspect: always high") == 5
    assert texts.count("always high") >= 5


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
    Page(document(content_of(report_data(folder))))


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
    page = Page(write_report(folder, tmp_path / "out.html").read_text())

    assert {"Loss", "Quarters by loss", "Hardest samples"} <= set(page.titles)
    assert "nan" not in page.texts


def test_no_run_no_report(tmp_path):
    """Without a run there is an error, and no file."""
    with pytest.raises(UnreadableRun, match="run must be a folder"):
        write_report(tmp_path / "nothing", tmp_path / "out.html")

    assert not (tmp_path / "out.html").exists()


def test_short_run_has_a_point_for_each_step(tmp_path):
    """A run of 128 steps, however fast, shows 128 points, and a longer one lines in place of stairs."""
    r8 = make(128, batch_size=1, num_epochs=1, run_dir=tmp_path / "run")
    for indices, _ in r8.batch_iterator():
        r8.update_with_loss(sample_losses(indices))
    r8.close()
    raw = Page(write_report(tmp_path / "run", tmp_path / "a.html").read_text()).charts("Loss")["loss of the batches"]
    folder = folder_with(tmp_path / "long", STARTED, *(at(n, 1 / n, num_steps=50) for n in range(50, 5000, 50)))
    long = Page(write_report(folder, tmp_path / "b.html").read_text()).charts("Loss")["loss of the batches"]

    assert len(raw["x"]) == 128
    assert None not in raw["y"]
    assert all(one != other for one, other in itertools.pairwise(long["y"]))


def test_losses_are_smoothed_over_the_raw_curve(tmp_path):
    """The smoothed curve stands over the means of the batches with their lowest and highest; both are in the legend."""
    curves = Page(write_report(validated(tmp_path / "run"), tmp_path / "out.html").read_text()).charts("Loss")
    raw, smooth = curves["loss of the batches"], curves["loss, smoothed"]

    assert raw["kind"] == "faint"
    assert {"low", "high"} <= set(raw)
    assert np.std(np.diff([y for y in smooth["y"] if y])) < np.std(np.diff([y for y in raw["y"] if y]))


def test_range_fits_the_last_steps(tmp_path):
    """The y range is that of the last 80 % of the steps, with a key for all; without a high start all is shown."""
    start = [at(n, 100.0 if n < 10 else 1.0 + n / 100) for n in range(1, 100)]
    folder = folder_with(tmp_path / "run", STARTED, *start)
    (chart,) = Page(write_report(folder, tmp_path / "out.html").read_text()).blocks("Loss", "chart")
    flat = folder_with(tmp_path / "flat", STARTED, *(at(n, 1.0 + n / 100) for n in range(1, 100)))

    assert chart["fit"][1] < 3
    assert Page(write_report(flat, tmp_path / "b.html").read_text()).blocks("Loss", "chart")[0]["fit"] is None


def test_incident_and_best_are_named_in_text_beside_their_marks(tmp_path):
    """The picture alone names the step of the NaN and the best; 40 checkpoints are ticks and hide neither."""
    folder = validated(tmp_path / "run", checkpoint_dir=tmp_path / "ck", checkpoint_every=2)
    page = Page(write_report(folder, tmp_path / "out.html").read_text())
    (chart,) = page.blocks("Loss", "chart")

    assert [mark["label"] for mark in chart["marks"]] == ["step 34: loss nan"]
    assert [point["label"] for point in chart["points"]] == ["best val_loss 2 at step 50"]
    assert len(chart["saved"]) >= 30
    assert [one["name"] for one in chart["legend"]] == ["incident", "checkpoint", "best"]


def test_report_of_a_diverged_run_says_when_it_was_healthy(tmp_path):
    """The tiles show the last healthy loss with its step, and when the run ended."""
    gave_up = events.GaveUp(9, 0.9, "everything was tried")
    refused = events.BatchRefused(9, 0.9, 0, NAN, 0.1, 0.05, 1, (), "not finite")
    folder = folder_with(tmp_path / "run", STARTED, at(8, 0.25), refused, gave_up)
    (cards,) = Page(write_report(folder, tmp_path / "out.html").read_text()).blocks("", "cards")
    said = {name: (value, more) for name, value, more in cards}

    assert said["last healthy loss"] == ("0.25", "smoothed, at step 8; last batch 0.25")
    assert said["gave up"][0] == "step 9"
    assert said["gave up"][1].startswith("1970-01-01T00:16")


def test_runs_are_compared_on_the_page(tmp_path):
    """The page of two runs has their figures beside each other, the better one in bold."""
    one = folder_with(tmp_path / "one", STARTED, steps(5), events.MetricsLogged(5, 1.0, 5, {"accuracy": 0.5}))
    two = folder_with(tmp_path / "two", STARTED, steps(5), events.MetricsLogged(5, 1.0, 5, {"accuracy": 0.75}))
    page = Page(write_comparison([one, two], tmp_path / "out.html").read_text())
    (table,) = page.blocks("Runs", "table")

    assert table["columns"][:3] == ["run", "state", "accuracy, best"]
    assert [row[0] for row in table["rows"]] == ["two", "one"]
    assert [row[2] for row in table["rows"]] == [{"bold": "0.75"}, "0.5"]


def rendered(path, *, width=1200, height=3000):
    """The document as a browser has drawn it; skips without a browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs a browser")
    size = (f"--window-size={width},{height}", "--virtual-time-budget=3000")
    how = ["--headless", "--no-sandbox", "--disable-gpu", *size, "--dump-dom", path.as_uri()]
    done = subprocess.run([browser, *how], capture_output=True, text=True, timeout=120)
    return done.stdout


def test_browser_draws_the_labels(tmp_path):
    """In a real browser at 1200 pixels the step of the NaN and the best step stand as text in the picture."""
    drawn = rendered(write_report(validated(tmp_path / "run"), tmp_path / "out.html"))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)

    assert {"step 34: loss nan", "best val_loss 2 at step 50"} <= set(texts)
    assert drawn.count("<svg") > 8
    assert "NaN" not in drawn.rpartition("</main>")[0]


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


def validated(folder, **more):
    """A run with an incident, a training and a validation loss, and an accuracy of each."""
    model = {"w": np.zeros(1)}
    callbacks = {"state_callback": lambda: model, "load_callback": model.update}
    r8 = make(40, batch_size=4, num_epochs=8, run_dir=folder, name="v", **callbacks, **more)
    for epoch in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            losses = 1 + sample_losses(indices) / (1 + r8.global_step)
            r8.update_with_loss(losses * NAN if r8.global_step == 33 else losses)
        r8.log(val_loss=2 + abs(epoch - 4), train_accuracy=epoch / 8, val_accuracy=epoch / 9, lr_scale=1.0)
    r8.close()
    return folder


def test_incidents_are_the_first_section(tmp_path):
    """A colleague who opens the page sees first what went wrong, what was done and what it was."""
    page = Page(write_report(validated(tmp_path / "run"), tmp_path / "out.html").read_text())
    ((incident,),) = page.blocks("Incidents", "incidents")

    assert page.titles[:3] == ["Incidents", "", "Loss"]
    assert page.section("Incidents")["note"] == "1 incident, newest first; 1 loss refused in all."
    assert incident["headline"] == "step 34: loss nan: not finite"
    assert [name for name, _ in incident["facts"]] == ["what", "found", "done"]
    assert len(incident["losses"]) > 10
    assert incident["tried"]


def test_training_and_validation_share_a_chart(tmp_path):
    """Metrics of one stem are over each other, with the best step; the validation loss is over that of the batches."""
    page = Page(write_report(validated(tmp_path / "run"), tmp_path / "out.html").read_text())
    (chart,) = page.blocks("accuracy", "chart")

    assert page.titles.count("accuracy") == 1
    assert set(page.charts("accuracy")) == {"train_accuracy", "val_accuracy"}
    assert "best 0.7778 at step 80" in [point["label"] for point in chart["points"]]
    assert page.charts("Loss")["val_loss"]["dots"]


def test_every_suspect_is_listed_to_mark_and_to_take_along(tmp_path):
    """All of them, with label, suggestion and odds; the CSV that the page saves holds the same rows."""
    folder = folder_with(tmp_path / "run", STARTED, steps(5))
    loss = np.where(np.arange(900) < 80, 5.0, 0.1)
    for epoch in (3, 4):
        write_samples(folder, [samples(epoch, loss, uses=np.full(900, 9), untrained=2.3)])
    page = Page(write_report(folder, tmp_path / "out.html").read_text())
    (saved,), (table,) = page.blocks("Suspects", "save"), page.blocks("Suspects", "table")
    rows = [dict(zip(saved["columns"], row, strict=True)) for row in saved["rows"]]

    assert "All 80 samples that look mislabelled" in page.section("Suspects")["note"]
    assert sum("check" in row[0] for row in table["rows"]) == len(rows) == 80
    assert [row["index"] for row in rows] == list(range(80))
    assert all(row["score"] > 0.9 and row["why"] == "always high" for row in rows)
