"""Counts, shares and states that several views of one run give are the same."""

import json
import re

import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.cli import main
from learnit_r8.dashboard.notebook import html_of
from learnit_r8.dashboard.render.samples import hardest_panel
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.theme import Theme
from learnit_r8.journal.run import Run
from learnit_r8.report import write_report

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
        "screen": "".join(span.text for span in hardest_panel(view, 120, 20, Theme(), listed="suspects")[0]),
        "notebook": html_of(view, view.seconds),
        "page": write_report(run_dir, run_dir / "page.html").read_text(),
    }
    capsys.readouterr()
    main(["samples", str(run_dir), "--suspects"])
    said["command"] = capsys.readouterr().out
    main(["samples", str(run_dir), "--suspects", "--json"])
    facts = json.loads(capsys.readouterr().out)
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
