"""The front page and the pages of examples show what is so; the screen in motion is a picture of a real run."""

import importlib.util
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from tests.drive import NAN, make

ROOT = Path(__file__).parents[2]
SITE, ASSETS = ROOT / "docs" / "site", ROOT / "assets"
INDEX, README, TORCH = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("docs/index.md", "README.md", "docs/pytorch.md")
)


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


examples = loaded(SITE / "record_examples.py")


@pytest.mark.parametrize("name", examples.COMMANDS)
def test_page_of_an_example_shows_what_this_script_prints(name):
    """Whoever changes an example records it again: python docs/site/record_examples.py."""
    record = examples.records()[name]

    assert record["digest"] == examples.digest(name)
    assert [run["command"].split()[2:] for run in record["runs"]] == examples.COMMANDS[name]
    assert all(run["printed"].strip() and "Traceback" not in run["printed"] for run in record["runs"])
    assert not re.search(r"/tmp/|site-packages", str(record))


def test_front_page_has_one_sentence_the_screen_an_install_line_four_proofs_and_the_diff():
    """The proofs are those of the README, the diff is that of the guide, which a test compares with the scripts."""
    rows = re.findall(r"^\| .* \| `python .*$", README, re.MULTILINE)
    diff = re.search(r"```diff\n.*?```", TORCH, re.DOTALL)[0]
    above = INDEX[: INDEX.index("## ")]

    assert "**Training that survives NaNs and tells you which labels look wrong.**" in above
    assert "](../assets/motion.svg)" in above
    assert 'pip install ".[demo]" && python example.py' in above
    assert len(rows) == 4
    assert all(row in above for row in rows)
    assert diff in above


def check_motion(text, *, most_bytes):
    root = ElementTree.fromstring(text)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}

    assert names <= {"svg", "title", "style", "rect", "g", "path", "text"}
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "prefers-reduced-motion" in text
    assert len(text.encode()) < most_bytes


def test_screen_in_motion_is_light_and_needs_nothing_else():
    """The picture of the front page shows the incident and its end."""
    text = (ASSETS / "motion.svg").read_text(encoding="utf-8")

    check_motion(text, most_bytes=300_000)
    assert "RECOVERING" in text
    assert "FINISHED" in text
    assert "restored" in text


def test_motion_is_drawn_of_any_recorded_run(tmp_path, monkeypatch):
    """Rows that stay are in the file once; at its end, and without motion, the last picture is shown."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ASSETS)])
    model = {"w": np.zeros(1)}
    r8 = make(
        40,
        num_epochs=4,
        run_dir=tmp_path / "run",
        name="<it>",
        state_callback=lambda: model,
        load_callback=model.update,
    )
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(np.ones(len(indices)) * (NAN if r8.global_step == 9 else 1.0))
    r8.close()
    text = loaded(ASSETS / "make_motion.py").motion_of(tmp_path / "run")

    check_motion(text, most_bytes=300_000)
    assert "&lt;it&gt;" in text
    assert text.count(">help</text>") == 1
    assert re.search(r'<g class="\w+ last"[^>]*>(?:(?!</g>).)*FINISHED', text)
    assert re.search(r'<g class="\w+"[^>]*>(?:(?!</g>).)*RECOVERING', text)
