"""The code in the README and the guides runs, its assertions hold, and so do the examples."""

import re
import tarfile
from pathlib import Path

import pytest

from learnit_r8.cli import main
from tests.programs import printed_by

ROOT = Path(__file__).parents[2]
# The blocks of the first stand on names of the reader's own, which their own test brings; those of the others are many
# and quick, and run in one process.
QUICK = ("flax.md", "index.md", "loops.md", "streams.md", "triggers.md")
ELSEWHERE = {"distributed.md", "incidents.md", "keras.md", *QUICK}
NEEDS = {"flax.md": "learnit_r8.flax", "recipes.md": "torch", "streams.md": "torch", "triggers.md": "torch"}
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
    "examples/sweep.py": ["val_loss 0.", "lr-0.3 ", "val_loss, best at step", "initial_lr  rate ", "compared.html ("],
    "examples/own_policy.py": ["skip_easy"],
    "examples/recover.py": [", within 10 %", "spike: loss", "model restored from the backup of step"],
    "examples/find_wrong_labels.py": ["labels look wrong", "right label suggested", "as many visits, the guard"],
    "examples/pytorch_plain.py": ["test accuracy"],
    "examples/pytorch_loop.py": ["test accuracy"],
    "examples/flax_devices.py": ["4 devices, 1 batch refused, accuracy 0.9", "hardest samples"],
    "examples/own_loader.py": ["weights equal to the bit: yes", "a NaN in the weights at step 300: accuracy 0.9"],
    "examples/housing_stream.py --epochs 10 --runs runs --scheduler": ["best val_loss"],
}


def example(folder, name, *arguments, code=0):
    """What an example prints."""
    return printed_by(folder, ROOT / "examples" / name, *arguments, code=code)


@pytest.mark.program
@pytest.mark.parametrize("block", BLOCKS)
def test_code_in_documents_runs(block, tmp_path):
    """Every Python block of the documents runs unchanged, except for the Quick Start's sleep."""
    printed_by(tmp_path, "-c", block.replace("time.sleep(0.05)", "time.sleep(0)"))


@pytest.mark.program
@pytest.mark.parametrize("page", QUICK)
def test_blocks_of_the_page_run(page, monkeypatch, tmp_path):
    """Every block runs on its own."""
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for number, code in enumerate(blocks, start=1):
        exec(compile(code, f"{page} block {number}", "exec"), {})


@pytest.mark.program
@pytest.mark.parametrize("command", EXAMPLES)
def test_example_runs(command, tmp_path):
    """Every example runs to its end and prints what it demonstrates."""
    path, *options = command.split()
    printed = printed_by(tmp_path, ROOT / path, *options)

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
    printed = printed_by(ROOT, "setup.py", "--quiet", "--long-description")
    links = re.findall(r"\]\(([^)#\s]+)", printed)
    home = "https://github.com/cekkr/learnit-r8"
    files = [re.sub(rf"^{home}/(blob|raw)/main/", "", link) for link in links]

    assert "![" in printed
    assert [link for link in links if not link.startswith("https://")] == []
    assert [name for name in files if not (ROOT / name).exists()] == []


@pytest.mark.program
def test_source_distribution_holds_the_package_and_no_part_of_the_tests(tmp_path):
    """Four files of tests, which setuptools would take by itself, run nowhere without the others."""
    pytest.importorskip("setuptools")
    build = ["egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path]
    printed_by(ROOT, "setup.py", "--quiet", *build)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as made:
        folders = {name.split("/")[1] for name in made.getnames() if name.count("/") > 1}
    classifiers = (ROOT / "setup.cfg").read_text(encoding="utf-8")

    assert "learnit_r8" in folders
    assert "tests" not in folders
    assert all(f"Python :: 3.{minor}\n" in classifiers for minor in range(10, 15))


@pytest.mark.program
def test_example_finds_the_flipped_labels(tmp_path):
    """suspects() finds at least 80 % of the labels that example.py flips, at a precision of at least 80 %."""
    printed = printed_by(tmp_path, ROOT / "example.py", "--quick")
    precision, recall = map(float, re.search(r"precision ([\d.]+), recall ([\d.]+)", printed).groups())

    assert min(precision, recall) >= 0.8


@pytest.mark.program
def test_example_heals_a_rate_that_is_far_too_high(tmp_path):
    """At a rate of 30 each of three trainings ends near the right rate's accuracy, where a plain shuffle guesses."""
    printed = printed_by(tmp_path, ROOT / "example.py", "--rate", "30")
    rows = re.findall(r"^ +\d +([\d.]+)% +([\d.]+)%$", printed, re.MULTILINE)

    assert len(rows) == 3
    assert all(float(healed) > 85 for healed, _ in rows)
    assert all(float(plain) < 20 for _, plain in rows)
    assert "the rate is probably too high from the start" in printed


def test_plain_example(tmp_path):
    """It stops early, near the true weights."""
    printed = example(tmp_path, "plain_loop.py")

    assert int(re.search(r"stopped after (\d+)", printed)[1]) < 2000
    assert float(re.search(r"error of a weight: ([\d.]+)", printed)[1]) < 0.02


def test_example_resumes_after_it_was_killed(tmp_path):
    """The example kills itself in the middle; started again, it goes on as if it had not, which it shows."""
    example(tmp_path, "resume.py", tmp_path / "saved", code=9)
    begun, ended, *_, batches, rates, weights, table = example(
        tmp_path, "resume.py", tmp_path / "saved"
    ).splitlines()  # fmt: skip

    assert begun == "begins at step 60"
    assert ended.startswith("ends at step 100: weights [1.0, -2.0, 3.0, 0.5")
    assert [batches, rates, weights, table] == [
        f"{name}: equal to the bit" for name in ("batches", "rates", "weights", "table")
    ]  # fmt: skip


@pytest.mark.program
def test_digits_example(tmp_path):
    """It learns the digits, and goes on from its checkpoints."""
    pytest.importorskip("sklearn")
    pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
    printed = example(tmp_path, "flax_digits.py", "--epochs", "6")
    again = example(tmp_path, "flax_digits.py", "--epochs", "6", "--resume")

    assert float(re.search(r"accuracy ([\d.]+) after 6", printed)[1]) > 0.9
    assert again.splitlines()[-1] == printed.splitlines()[-1]
    assert (tmp_path / "runs" / "digits" / "history.json").exists()


HOUSES = "longitude,latitude,housing_median_age,total_rooms,total_bedrooms,population,households,median_income"


@pytest.mark.program
def test_housing_example(tmp_path, monkeypatch):
    """It trains on the table of houses where there is one, skipping rows with gaps."""
    pytest.importorskip("pandas")
    rows = [",".join(str((7 * i * k) % 11 + i / 10) for k in range(1, 9)) + f",{i * 1000}" for i in range(100)]
    rows[5] = rows[5].replace(",", ",,", 1).rsplit(",", 1)[0]
    (tmp_path / "california_housing.csv").write_text("\n".join([f"{HOUSES},median_house_value", *rows]))
    monkeypatch.setenv("LEARNIT_R8_DATA", str(tmp_path))

    assert "best val_loss" in example(tmp_path, "housing_stream.py", "--epochs", "10", "--runs", "runs")
    assert (tmp_path / "runs" / "california_housing.jsonl").exists()
