"""The code in the README and the guides runs, and so do the examples."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from learnit_r8.cli import main

ROOT = Path(__file__).parents[2]
# The blocks of these stand on names of the reader's own, or on a framework, which their own test brings, or are many
# and quick, and run in one process in test_guides.py.
ELSEWHERE = {
    "distributed.md",
    "flax.md",
    "incidents.md",
    "keras.md",
    "loops.md",
    "streams.md",
    "triggers.md",
    "index.md",
}
ALL_PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PAGES = [page for page in ALL_PAGES if page.name not in ELSEWHERE]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
BLOCKS = [
    pytest.param(
        block, id=f"{page.name}-{number}", marks=[pytest.mark.program] if "torch" in block and page in GUIDES else []
    )
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
EXAMPLES = {
    "example.py --quick": ["Test accuracy", "model restored from the backup of step 280", "precision"],
    "examples/sweep.py": ["best val_loss", "lr-0.3 ", "val_loss, best at step", "initial_lr  rate ", "compared.html ("],
    "examples/own_policy.py": ["skip_easy"],
    "examples/recover.py": [", within 10 %", "spike: loss", "model restored from the backup of step"],
    "examples/find_wrong_labels.py": ["labels look wrong", "right label suggested", "as many visits, the guard"],
    "examples/pytorch_plain.py": ["test accuracy"],
    "examples/pytorch_loop.py": ["test accuracy"],
    "examples/flax_devices.py": ["4 devices, 1 batch refused, accuracy 0.9", "hardest samples"],
    "examples/own_loader.py": ["weights equal to the bit: yes", "a NaN in the weights at step 300: accuracy 0.9"],
}


def run(arguments, folder):
    """The output of a program that runs in an empty folder, with the package on its path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    # That of the tests would keep an example from setting the number of its devices.
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.program
@pytest.mark.parametrize("block", BLOCKS)
def test_code_in_documents_runs(block, tmp_path):
    """Every Python block of the documents runs unchanged, except for the Quick Start's sleep."""
    run(["-c", block.replace("time.sleep(0.05)", "time.sleep(0)")], tmp_path)


@pytest.mark.program
@pytest.mark.parametrize("command", EXAMPLES)
def test_example_runs(command, tmp_path):
    """Every example runs to its end and prints what it demonstrates."""
    path, *options = command.split()
    printed = run([str(ROOT / path), *options], tmp_path)

    assert [text for text in EXAMPLES[command] if text not in printed] == []


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_are_not_broken(page):
    """Every link of a document into the repository is valid."""
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_nobody_is_sent_where_nothing_is(capsys):
    """The package is on no index, and who has installed it has no folder docs: commands and help name neither."""
    texts = [page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))]
    main([])
    said = capsys.readouterr().out
    commands = re.findall(r"^ {4}([a-z]+) ", said, re.MULTILINE)
    for name in commands:
        with pytest.raises(SystemExit):
            main([name, "--help"])
    said += capsys.readouterr().out

    assert not [text for text in texts if "pip install learnit" in text]
    assert len(commands) > 10
    assert "docs/" not in said


def test_readme_begins_with_something_to_run():
    """A newcomer reads at most 120 words before the first command, and at most six figures."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    figures = readme.split("## Measured")[1].split("##")[0]

    assert len(readme.split("```")[0].split()) <= 120
    assert figures.count("\n|") - 2 <= 6


def test_description_on_the_package_index_has_absolute_links():
    """The package index shows links and pictures of the README, away from the repository; each leads to a file."""
    pytest.importorskip("setuptools")
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--long-description"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    links = re.findall(r"\]\(([^)#\s]+)", done.stdout)
    home = "https://github.com/cekkr/learnit-r8"
    files = [re.sub(rf"^{home}/(blob|raw)/main/", "", link) for link in links]

    assert "![" in done.stdout
    assert [link for link in links if not link.startswith("https://")] == []
    assert [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.program
@pytest.mark.program
def test_source_distribution_holds_the_package_and_no_part_of_the_tests(tmp_path):
    """Four files of tests, which setuptools would take by itself, run nowhere without the others."""
    pytest.importorskip("setuptools")
    build = ["egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path]
    subprocess.run([sys.executable, "setup.py", "--quiet", *build], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as made:
        folders = {name.split("/")[1] for name in made.getnames() if name.count("/") > 1}
    classifiers = (ROOT / "setup.cfg").read_text(encoding="utf-8")

    assert "learnit_r8" in folders
    assert "tests" not in folders
    assert all(f"Python :: 3.{minor}\n" in classifiers for minor in range(10, 15))


@pytest.mark.program
def test_example_finds_the_flipped_labels(tmp_path):
    """suspects() finds at least 80 % of the labels that example.py flips, at a precision of at least 80 %."""
    printed = run([str(ROOT / "example.py"), "--quick"], tmp_path)
    precision, recall = map(float, re.search(r"precision ([\d.]+), recall ([\d.]+)", printed).groups())

    assert min(precision, recall) >= 0.8


@pytest.mark.program
def test_example_heals_a_rate_that_is_far_too_high(tmp_path):
    """At a rate of 30 each of three trainings ends near the right rate's accuracy, where a plain shuffle guesses."""
    printed = run([str(ROOT / "example.py"), "--rate", "30"], tmp_path)
    rows = re.findall(r"^ +\d +([\d.]+)% +([\d.]+)%$", printed, re.MULTILINE)

    assert len(rows) == 3
    assert all(float(healed) > 85 for healed, _ in rows)
    assert all(float(plain) < 20 for _, plain in rows)
    assert "the rate is too high from the start" in printed
