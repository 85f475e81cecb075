"""Counts, shares and states that several views of one run give are the same."""

import dataclasses
import html
import json
import re

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, Recovery, TrainingDiverged, events
from learnit_r8.cli import main
from learnit_r8.cli.agent_server import RunTools
from learnit_r8.dashboard.notebook import html_of
from learnit_r8.dashboard.render.samples import samples_panel
from learnit_r8.dashboard.state.ui_state import Scene, UiState
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.theme import Theme
from learnit_r8.journal.run import Run
from learnit_r8.report import write_report
from learnit_r8.report.comparison import write_comparison
from tests.drive import NAN
from tests.journal.run_folders import STARTED, folder_with, steps
from tests.report.test_page import Page

NUM, WRONG = 400, 40


def train(run_dir, *, epochs=12, stop_at=None, memorises_from=99):
    """A run with wrong labels, of which half are learnt by heart from some epoch on; and its own verdict."""
    rng = np.random.default_rng(0)
    with R8Scheduler(NUM, batch_size=20, num_epochs=epochs, run_dir=run_dir, name="it") as r8:
        for epoch in r8.epoch_iterator():
            for batch, _ in r8.batch_iterator():
                losses = 2.3 * np.exp(-0.5 * epoch) + 0.05 * rng.random(len(batch))
                knows = (batch < WRONG // 2) & (epoch >= memorises_from)
                r8.update_with_loss(np.where((batch < WRONG) & ~knows, 3.0 + rng.random(len(batch)), losses))
                if r8.global_step == stop_at:
                    r8.requests.stop()
    return r8.table.suspects()


def view_of(run_dir):
    view = View()
    for record in Run(run_dir).records():
        view.fold(record.event)
    return view


def counts_of(run_dir, capsys):
    """Suspects and samples judged, as each view says it."""
    view = view_of(run_dir)
    said = {
        "screen": "".join(
            span.text for span in samples_panel(view, UiState(listed="suspects"), 120, 20, Theme(), Scene())[0]
        ),
        "notebook": html_of(view, view.seconds),
        "page": write_report(run_dir, run_dir / "page.html").read_text(),
    }
    capsys.readouterr()
    main(["samples", str(run_dir), "--suspects"])
    said["command"] = capsys.readouterr().out
    main(["samples", str(run_dir), "--suspects", "--json"])
    facts = json.loads(capsys.readouterr().out)
    main(["samples", str(run_dir), "--suspects", "--csv"])
    assert len(capsys.readouterr().out.splitlines()) - 1 == facts["num_suspects"]
    counts = {name: re.search(r"([\d,]+) of ([\d,]+) judged .*?\(([\d.]+)%\)", text) for name, text in said.items()}
    found = {name: tuple(float(part.replace(",", "")) for part in match.groups()) for name, match in counts.items()}
    share = round(100 * facts["num_suspects"] / facts["num_judged"], 1)
    return {**found, "json": (facts["num_suspects"], facts["num_judged"], share)}


def test_every_view_counts_as_many_suspects_as_the_run(tmp_path, capsys):
    """The table, the screen, the notebook, the report and the command name one number, and the share of that."""
    verdict = train(tmp_path / "run")

    num = len(verdict.indices)
    assert 30 <= num <= 50
    assert set(counts_of(tmp_path / "run", capsys).values()) == {(num, NUM, round(100 * num / NUM, 1))}


def test_so_does_a_run_that_knows_wrong_labels_by_heart_or_was_stopped(tmp_path, capsys, monkeypatch):
    """Where earlier epochs had more suspects, the views still agree, and the page says where there were more."""
    # However long a file takes, that of the next epoch is written too.
    monkeypatch.setattr("learnit_r8.journal.writer.SAMPLES_PAUSE", 0)
    verdict = train(tmp_path / "run", epochs=30, stop_at=515, memorises_from=8)

    counts = counts_of(tmp_path / "run", capsys)
    assert {count[0] for count in counts.values()} == {len(verdict.indices)}
    assert len(set(counts.values())) == 1
    assert "more at the end of epoch" in (tmp_path / "run" / "page.html").read_text()


def end(run_dir, how):
    """A run with two incidents, metrics and suspects that ends in some way."""
    model = {"w": np.zeros(2)}
    more = {"state_callback": lambda: model, "load_callback": model.update, "name": "it", "monitor": "val_loss"}
    r8 = R8Scheduler(NUM, batch_size=20, num_epochs=12, run_dir=run_dir, recovery=Recovery(max_refused=12), **more)
    refused = (37, 90, *(range(120, 300) if how == "diverged" else ()))
    try:
        for epoch in r8.epoch_iterator():
            for batch, _ in r8.batch_iterator():
                step = r8.global_step
                losses = 2.3 * np.exp(-0.5 * epoch) + 0.01 * (batch % 7) + 3.0 * (batch < WRONG)
                r8.update_with_loss(losses * (NAN if step in refused else 1.0))
                if step == 111 and how == "stopped":
                    r8.requests.stop()
                elif step == 123 and how == "finished early":
                    r8.stop("good enough")
                elif step == 130 and how == "died":
                    raise ZeroDivisionError
            r8.log(val_loss=1.0 + 0.01 * (epoch - 4) ** 2)
    except (ZeroDivisionError, TrainingDiverged) as error:
        r8._close(is_whole=False)
        r8._journal.close(error)
    r8.close()


OF, WORD, VALUE, DONE = r"(\d+(?:/| of )\d+)", "([a-z]+(?: early)?)", r"([\d.]+)", r"([\d.]+)%"
LABELS = {
    "screen": {
        "state": "● ([A-Z]+(?: EARLY)?)", "done": rf"total \S+ +{DONE}",
        "epoch": f"epoch {OF}", "step": f"step {OF}", "loss": f"loss {VALUE} ", "smoothed": f"smooth {VALUE}",
        "refused": f"refused {VALUE}", "warnings": f", {VALUE} warning", "val_loss": f"val_loss {VALUE} ",
    },
    "status": {
        "state": f"^it {{2}}{WORD}", "done": DONE, "epoch": f"epoch {OF}", "step": f"step {OF}",
        "loss": f"loss {VALUE}", "smoothed": f"smoothed {VALUE}",
    },
    "ls": {"state": f"^run {{2,}}(?!state){WORD}", "done": DONE, "step": f"% +{OF}", "smoothed": rf"/\d+ +{VALUE}"},
    "notebook": {
        "state": "● ([A-Z]+(?: EARLY)?)", "done": rf"total +{DONE}",
        "epoch": f"epoch {OF}", "step": f"step {OF}", "loss": f"loss {VALUE} ", "smoothed": f"smooth {VALUE}",
        "refused": f"refused {VALUE}", "val_loss": f"val_loss {VALUE} ",
        "best": f"val_loss [^ ]+ best {VALUE} @", "best step": f"val_loss [^ ]+ best [^ ]+ @{VALUE}",
    },
    "page": {
        "state": f'"state": "{WORD}"', "done": f'"progress", "{DONE}', "step": f"step {OF}",
        "epoch": f"epoch {OF}", "smoothed": f'loss", "{VALUE}"', "loss": f"last batch {VALUE}",
        "warnings": r"warnings and alerts: (\d+)", "val_loss": f'"val_loss", "{VALUE}"',
        "best": rf"best {VALUE} at step \d", "best step": rf"best [\d.]+ at step {VALUE}",
    },
}  # fmt: skip
"""What a person reads in each view."""


def plain(text):
    """A figure or a word without the form that a view gives it."""
    text = str(text).lower().replace(",", "").replace(" of ", "/")
    return f"{float(text):.4g}" if re.fullmatch(r"[\d.e+-]+", text) else text


def spoken(run, capsys):
    """The facts of a run as each view gives them: {fact: {view: text}}."""
    view, seen = view_of(run), {}
    shown = {"watch": ["watch", "120", "40"], "replay": ["replay", "120", "40"], "narrow": ["watch", "80", "24"]}
    texts = {name: ("screen", printed(capsys, kind, run, "--once", "--width", width, "--height", height))
             for name, (kind, width, height) in shown.items()}  # fmt: skip
    texts["status"] = "status", printed(capsys, "status", run)
    texts["ls"] = "ls", printed(capsys, "ls", run.parent, "--find", run.name)
    texts["notebook"] = "notebook", html.unescape(re.sub("<[^>]*>", "", html_of(view, view.seconds)))
    texts["page"] = "page", write_report(run, run / "page.html").read_text()
    for name, (kind, text) in texts.items():
        for fact, pattern in LABELS[kind].items():
            found = re.search(pattern, text, re.MULTILINE)
            assert found, (name, fact, text[:2000])
            seen.setdefault(fact, {})[name] = plain(found[1])
    tools = RunTools(run.parent)
    programs = {
        "status --json": json.loads(printed(capsys, "status", run, "--json")),
        "ls --json": json.loads(printed(capsys, "ls", run.parent, "--json"))[0],
        "run_status": tools.run_status(run.name),
    }
    for name, facts in programs.items():
        seen["state"][name] = facts["state"]
        seen["done"][name] = plain(round(100 * facts["progress"], 1))
        seen["step"][name] = f"{facts['step']}/{facts['total_steps']}"
        seen["epoch"][name] = f"{facts['epoch'] + 1}/12"
        seen["loss"][name], seen["smoothed"][name] = plain(facts["loss"]), plain(facts["smoothed_loss"])
        seen["val_loss"][name] = plain(facts["metrics"]["val_loss"])
    compared = json.loads(printed(capsys, "compare", run, run, "--json"))
    figures = {name: plain(values[0]) for name, values in compared["figures"].items()}
    seen["state"]["compare"] = compared["states"][0]
    for fact, figure in {
        "smoothed": "smoothed loss", "refused": "losses refused", "warnings": "warnings", "val_loss": "val_loss, last",
        "best": "val_loss, best", "best step": "val_loss, best at step",
    }.items():  # fmt: skip
        seen[fact]["compare"] = figures[figure]
    records = json.loads(printed(capsys, "incidents", run, "--json"))["incidents"]
    seen["incidents"] = {"compare": figures["incidents"], "incidents": plain(len(records))}
    seen["refused"]["incidents"] = plain(sum(len(record["refusals"]) for record in records))
    return seen


def printed(capsys, *command):
    capsys.readouterr()
    main([str(part) for part in command])
    return capsys.readouterr().out


@pytest.mark.parametrize("how", ["finished", "stopped", "finished early", "died", "diverged"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_view_gives_the_same_state_progress_losses_and_counts(how, tmp_path, capsys):
    """Screens of two sizes, a replay, the commands as text and for programs, the notebook, the report."""
    end(tmp_path / "run", how)

    seen = spoken(tmp_path / "run", capsys)
    assert {fact: texts for fact, texts in seen.items() if len(set(texts.values())) > 1} == {}
    assert set(seen["state"].values()) == {how}


def test_every_comparison_prints_the_same_figures(tmp_path, capsys):
    """Rows of the command and of the page; long runs, too."""
    folders = [folder_with(tmp_path / name, *long_run(step)) for name, step in (("one", 1_234_567), ("two", 98_765))]
    for folder in folders:
        (folder / "run.json").write_text(json.dumps({"name": folder.name}))
    names = ["steps", "val_loss, best", "val_loss, best at step"]
    lines = [re.split(r"  +", line) for line in printed(capsys, "compare", *folders).splitlines()[:3]]
    page = Page(write_comparison(folders, tmp_path / "page.html").read_text())
    tables = [(lines[0], lines[1:]), table_of(page)]
    found = [
        {row[0]: [row[columns.index(name)].removesuffix(" *") for name in names] for row in rows}
        for columns, rows in tables
    ]

    assert found[0]["one"] == ["1,234,567", "0.9877", "1,234,567"]
    assert found[1] == found[0]


def long_run(step):
    steps_done = dataclasses.replace(steps(step), loss=0.123456, last_loss=0.123456, seconds=3.7, own_seconds=0.001)
    metrics = events.MetricsLogged(step, 3.7, step, {"val_loss": 0.98765432})
    return dataclasses.replace(STARTED, total_steps=2_000_000), steps_done, metrics


def table_of(page):
    """The columns and the rows of a comparison's table, as texts."""
    (table,) = page.blocks("Runs", "table")
    return table["columns"], [[one["bold"] if isinstance(one, dict) else one for one in row] for row in table["rows"]]
