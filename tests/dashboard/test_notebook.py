"""The view of a notebook."""

import gc
import html
import html.parser
import itertools
import json
import re
import sys
import threading
import time
import types

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.dashboard.notebook import EVERY_SECONDS, NotebookView, html_of, is_notebook, text_of
from learnit_r8.dashboard.state.view import View
from tests.dashboard.state.told import start, steps
from tests.screen_common import fake_view
from tests.terminals import ROOT


class Kernel:
    """Keeps what is displayed, as a notebook does: by the name of the output."""

    def __init__(self, monkeypatch):
        self.shown, self.updates, self.following = {}, [], []
        shell = types.SimpleNamespace(kernel=object(), events=self)
        module = types.ModuleType("IPython")
        module.get_ipython = lambda: shell
        display = types.ModuleType("IPython.display")
        display.display = self.display
        monkeypatch.setitem(sys.modules, "IPython", module)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def register(self, name, function):
        assert name == "post_run_cell"
        self.following.append(function)

    def unregister(self, name, function):
        self.following.remove(function)

    def end_cell(self, error=None):
        result = types.SimpleNamespace(error_before_exec=None, error_in_exec=error)
        for function in list(self.following):
            function(result)

    def pages(self):
        return [said_by(bundle["text/html"]) for bundle in self.shown.values()]

    def display(self, bundle, *, raw, display_id, update):
        assert raw
        assert update == (display_id in self.shown)
        self.shown[display_id] = bundle
        self.updates.append((time.monotonic(), threading.current_thread().name))


def said_by(page):
    """The texts of a page, without its tags."""
    return " ".join(html.unescape(re.sub("<[^>]*>", "", page)).split())


def trained(name="it", seconds=0.0):
    with R8Scheduler(100, batch_size=10, num_epochs=2, use_curses=True, run_dir=False, name=name) as r8:
        for _ in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                time.sleep(seconds)
                r8.update_with_loss(1.0)
            r8.log(accuracy=0.5)


def test_run_is_one_view_that_is_updated(monkeypatch, capsys):
    """In a notebook `use_curses=True` shows the run as one output that is replaced; a second run has one of its own."""
    kernel = Kernel(monkeypatch)
    trained("first")
    trained("second")
    pages = [bundle["text/html"] for bundle in kernel.shown.values()]

    assert len(pages) == 2
    assert "first" in pages[0]
    assert "second" in pages[1]
    assert all("FINISHED" in page and "accuracy" in page for page in pages)
    assert {thread for _, thread in kernel.updates} == {"r8-notebook"}
    assert capsys.readouterr().err == ""


def scheduler(num_epochs=2):
    return R8Scheduler(100, batch_size=10, num_epochs=num_epochs, use_curses=True, run_dir=False)


def train(r8, most=1000):
    for _, _ in zip(range(most), (batch for _ in r8.epoch_iterator() for batch in r8.batch_iterator()), strict=False):
        r8.update_with_loss(1.0)


def test_run_under_a_second_is_shown_whole_when_its_cell_ends(monkeypatch):
    """A run that nobody closes shows its last step, and that it has finished."""
    kernel = Kernel(monkeypatch)
    r8 = scheduler()
    train(r8)
    kernel.end_cell()
    kernel.end_cell()
    (page,) = kernel.pages()

    assert "FINISHED" in page
    assert "step 20/20" in page
    assert len(kernel.updates) <= 2


@pytest.mark.filterwarnings("ignore:step .* was not reported")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "the cell has ended"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ValueError("<b>"), "ValueError <b>"),
    ],
)
def test_run_that_is_left_ends_as_what_it_was_and_goes_on_in_another_cell(monkeypatch, error, said):
    """The view says how its cell ended; the next cell, or the same one run again, has a view of its own."""
    kernel = Kernel(monkeypatch)
    r8 = scheduler()
    train(r8, most=7)
    kernel.end_cell(error)
    (page,) = kernel.pages()
    train(r8)
    kernel.end_cell()

    assert f"STOPPED {said}" in page
    assert "step 7/20" in page
    assert "left" not in page.replace("left out", "")
    assert kernel.pages()[0] == page
    assert "FINISHED" in kernel.pages()[1]
    assert len(kernel.pages()) == 2
    r8.close()
    kernel.end_cell()
    assert kernel.following == []


def test_training_on_another_thread_outlives_the_cell(monkeypatch):
    """Its view is not ended by the cell that started the thread."""
    kernel = Kernel(monkeypatch)
    r8 = scheduler()
    thread = threading.Thread(target=train, args=(r8, 5))
    thread.start()
    thread.join()
    kernel.end_cell()

    assert not any("STOPPED" in page for page in kernel.pages())
    r8.close()


def test_view_that_is_gone_is_not_told_of_cells(monkeypatch):
    """A scheduler that was replaced and collected leaves nothing behind with IPython."""
    kernel = Kernel(monkeypatch)
    r8 = scheduler()
    train(r8, most=3)
    kernel.end_cell()
    del r8
    gc.collect()
    kernel.end_cell()

    assert kernel.following == []


def test_updates_come_at_most_once_a_second(monkeypatch):
    """Between two updates is at least a second, but before the last one."""
    kernel = Kernel(monkeypatch)
    trained(seconds=0.13)
    times = [at for at, _ in kernel.updates]

    assert 2 <= len(times) <= 5
    assert all(b - a > 0.95 * EVERY_SECONDS for a, b in itertools.pairwise(times[:-1]))


def test_plain_lines_in_a_notebook_where_they_are_wanted(monkeypatch, capsys):
    """R8_UI=plain wants lines in a notebook, too."""
    kernel = Kernel(monkeypatch)
    monkeypatch.setenv("R8_UI", "plain")
    trained()

    assert kernel.shown == {}
    assert "finished after 20 steps" in capsys.readouterr().err


def test_only_the_first_rank_has_a_view(monkeypatch):
    """Processes that a notebook starts beside the first one show nothing."""
    kernel = Kernel(monkeypatch)
    monkeypatch.setenv("RANK", "1")
    trained()

    assert kernel.shown == {}


def test_terminal_of_ipython_is_no_notebook(monkeypatch):
    """IPython in a terminal has no kernel, and a program without IPython neither."""
    module = types.ModuleType("IPython")
    monkeypatch.setitem(sys.modules, "IPython", module)
    module.get_ipython = lambda: types.SimpleNamespace()
    assert not is_notebook()
    module.get_ipython = lambda: None
    assert not is_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not is_notebook()


def test_front_end_that_is_gone_ends_the_view_only():
    """An error of the front end ends the view; the training is not told, and `RunEnded` does not wait."""

    def gone(*_):
        raise OSError("no front end")

    view = NotebookView(display=gone)
    view(start())
    for step in range(1, 30):
        view(steps(step, float(step)))
    view(events.RunEnded(30, 30.0, True))

    assert isinstance(view.error, OSError)


class Tags(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "polyline":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_small_and_static():
    """The view of a long run is small, well-formed, and runs and loads nothing, so a reload shows it as it was."""
    page = html_of(fake_view(), 1500.0)
    read = Tags(page)
    names = {tag for tag, _ in read.tags}

    assert read.open == []
    assert len(page) < 30_000
    assert names <= {"div", "span", "b", "svg", "polyline", "polygon"}
    assert not any(name in ("src", "href") or name.startswith("on") for _, found in read.tags for name in found)
    assert "RECOVERING" in page
    assert "accuracy 0.8857 best 0.8857 @4,692" in said_by(page)


def test_hostile_names_stay_text():
    """Names and messages of a run are no markup."""
    view = View()
    view.fold(events.RunStarted(0, 0.0, "<script>x</script>", 100, 10, 10, 1000, None, "balanced"))
    view.fold(events.MetricsLogged(1, 1.0, 1, {"<img src=x>": float("nan")}))
    view.fold(events.Notice(1, 1.0, "\x1b[2J<b onclick=x>", True))
    page = html_of(view, 1.0)

    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert text_of(view).startswith("<script>")


@pytest.mark.parametrize("losses", [[np.nan], [1.0], [0.0, 0.0], [1e300, -1e300], [1.0, np.inf]])
def test_any_losses_can_be_drawn(losses):
    """A view of odd losses is drawn, with finite coordinates."""
    view = View()
    view.fold(start())
    for step, loss in enumerate(losses, start=1):
        view.fold(steps(step, float(step), loss=loss))

    assert "nan," not in html_of(view, 5.0)


@pytest.mark.program
def test_real_notebook_shows_runs_as_they_were_left():
    """In a real kernel: runs under a second, closed or not, an error, and the loop once more; an output each."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    begin = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom learnit_r8 import R8Scheduler\n"
    made = "r8 = R8Scheduler(100, batch_size=10, num_epochs=3, use_curses=True, run_dir=False, name='nb')\n"
    loop = "for _ in r8.epoch_iterator():\n    for _ in r8.batch_iterator():\n        r8.update_with_loss(1.0)\n"
    broken = loop + "        if r8.global_step == 17: raise ValueError('by the user')\n"
    codes = [begin + made + loop + "r8.close()", made + loop, made, broken, loop, "r8.close()"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3", allow_errors=True).execute()
    pages = [[said_by(out["data"]["text/html"]) for out in cell.outputs if "data" in out] for cell in book.cells]

    assert [len(found) for found in pages] == [1, 1, 0, 1, 1, 0]
    assert "FINISHED" in pages[0][0]
    assert "FINISHED" in pages[1][0]
    assert "STOPPED ValueError by the user" in pages[3][0]
    assert "step 17/30" in pages[3][0]
    assert "step 30/30" in pages[4][0]
    assert "not closed yet" not in pages[4][0]
    assert len(json.dumps(book)) < 80_000
