"""``learnit-r8 labels``: a table or a folder of images in, the wrong labels and a page out."""

import csv
import json
import re

import numpy as np
import pytest

from learnit_r8.cli import main

RNG = np.random.default_rng(4)
TRUE = np.arange(600) % 3
IS_WRONG = RNG.random(600) < 0.1
GIVEN = np.where(IS_WRONG, (TRUE + 1) % 3, TRUE)


def write_table(path, given=GIVEN, *, column="kind", ids=""):
    """A CSV file whose labels follow from its numbers, but for those that are wrong."""
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(3, 8)) * 2
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*([ids] if ids else []), *(f"x{place}" for place in range(8)), column])
        for index, (true, label) in enumerate(zip(TRUE, given, strict=True)):
            name = [f"case-{index}"] if ids else []
            table.writerow([*name, *(centres[true] + rng.normal(size=8)), ["ant", "bee", "cow"][label]])
    return str(path)


@pytest.mark.parametrize("end", [["--epochs", "8"], ["--minutes", "0.005"]])
def test_wrong_labels_of_a_table_are_listed(tmp_path, capsys, monkeypatch, end):
    """The JSON names them with the labels they should have; the page begins with them; a second call overwrites it.

    On a terminal a bar shows how far the training is, but not beside the JSON.
    """
    pytest.importorskip("torch")
    table, page = write_table(tmp_path / "t.csv"), tmp_path / "page.html"
    command = ["labels", table, "--label", "kind", "--out", str(page), "--list", str(tmp_path / "l.csv"), *end]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert "#" not in said.err
    if end[0] == "--epochs":
        indices = [row["index"] for row in found["samples"]]
        assert IS_WRONG[indices].mean() > 0.6
        assert len(indices) > 30
        first = found["samples"][0]
        assert first["predicted_label"] == ["ant", "bee", "cow"][TRUE[first["index"]]]
    text = page.read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[1])
    assert data["sections"][0]["title"] == "Labels to look at" or end[0] == "--minutes"

    assert main(command) == 0
    said = capsys.readouterr()
    # Of a training of a few seconds nothing may be told yet.
    assert "judged look mislabelled" in said.out or (end[0] == "--minutes" and "no suspects: " in said.out)
    assert ("%" if end[0] == "--minutes" else f"100% {40 * '#'}") in said.err


@pytest.mark.parametrize(("column", "ids"), [("Label", "sample_id"), ("class", "")])
def test_columns_of_labels_and_ids_are_guessed(tmp_path, capsys, monkeypatch, column, ids):
    """The terminal says which they are, how many labels look wrong and how sure that is; the list has the ids."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path / "t.csv", column=column, ids=ids)
    assert main(["labels", table, "--epochs", "8", "--top", "2"]) == 0
    said = capsys.readouterr().out
    with open("suspects.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    assert said.startswith(f"labels are in the column {column!r}" + (f", ids in {ids!r}\n" if ids else "\n"))
    assert re.search(rf"^{len(rows)} of \d+ judged look mislabelled", said, re.MULTILINE)
    assert re.search(r"of all labels an estimated [\d.]+% are wrong \(between [\d.]+% and [\d.]+%\)", said)
    assert len(rows) > 30
    assert all(row["name"] == (f"case-{row['index']}" if ids else row["index"]) for row in rows)
    assert "look at wrong_labels.html; the whole list is in suspects.csv" in said


@pytest.mark.parametrize(
    ("header", "row", "text"),
    [
        ("size,colour,shape", "{n}.5,{abc},{xyz}", "got none, and several that may be it (colour, shape)"),
        ("size,width", "{n}.5,{n}.25", "got none, and no column with few values"),
        ("size,one,two", "{n}.5,{bit},{bit}", "got none, and several that may be it (one, two)"),
    ],
)
def test_column_of_labels_that_cannot_be_guessed_is_asked_for(tmp_path, capsys, header, row, text):
    """The error names the columns that may be meant."""
    lines = [row.format(n=n, abc="abc"[n % 3], xyz="xyz"[n % 3], bit=n % 2) for n in range(60)]
    (tmp_path / "t.csv").write_text("\n".join([header, *lines]), encoding="utf-8")
    assert main(["labels", str(tmp_path / "t.csv")]) == 1
    assert text in capsys.readouterr().err


def test_images_are_read_by_the_folders_of_their_labels(tmp_path, capsys):
    """Names of suspects are those of the files; a file that is no image is named."""
    pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    for index in range(40):
        folder = tmp_path / "data" / ("dark", "light")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 100, (8, 8, 3)) + 120 * (index % 2)
        image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    command = ["labels", str(tmp_path / "data"), "--epochs", "1", "--out", str(tmp_path / "page.html")]
    command += ["--list", str(tmp_path / "list.csv")]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 40

    (tmp_path / "data" / "dark" / "odd.png").write_text("no image")
    assert main(command) == 1
    assert "dark/odd.png must be an image, got one that cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "label", "text"),
    [
        (GIVEN, "sort", "--label must be a column of"),
        (GIVEN, "x0", "--label must be a column whose labels each stand in several rows, got 600 labels in 600 rows"),
        (0 * GIVEN, "kind", "must have two labels or more and a column to predict them from, got 1 and 8"),
    ],
)
def test_a_table_without_labels_is_refused(tmp_path, capsys, columns, label, text):
    """The error names what is missing, before anything is trained."""
    table = write_table(tmp_path / "t.csv", columns)
    assert main(["labels", table, *(["--label", label] if label else [])]) == 1
    assert text in capsys.readouterr().err


def test_a_folder_without_labels_is_refused(tmp_path, capsys):
    """A folder needs a folder for each label."""
    pytest.importorskip("PIL")
    assert main(["labels", str(tmp_path)]) == 1
    assert "source must be a folder with a folder of images for each of two labels" in capsys.readouterr().err


def test_rows_and_columns_that_say_nothing_are_left_out_aloud(tmp_path, capsys, monkeypatch):
    """A cell with NA is missing, and its column is used; rows without a label and columns of one value are named."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path / "t.csv")
    with open(table, encoding="utf-8") as file:
        header, *rows = [[*row, "same"] for row in csv.reader(file)]
    for row in rows[::50]:
        row[0] = "NA"
    rows[7][8] = ""
    with open(table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[*header[:-1], "always"], *rows])
    assert main(["labels", table, "--label", "kind", "--epochs", "8"]) == 0
    said = capsys.readouterr().out

    assert "left out: 1 rows without a label, columns of one value or too many texts (always)" in said
    assert re.search(r"^[4-7]\d of \d+ judged look mislabelled", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--list", "t.csv"], "--list must not be the table itself"),
        (["--out", "t.csv"], "--out must not be the table itself"),
        (["--out", "same", "--list", "./same"], "--list must not be the file of --out"),
        (["--out", "missing/page.html"], "--out must be a file that can be written in a folder that is there"),
        (["--list", "."], "--list must be a file that can be written"),
    ],
)
def test_outputs_are_checked_before_the_training(tmp_path, capsys, monkeypatch, options, text):
    """Nothing that the user has is overwritten, and no training is lost to a folder that is not there."""
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path / "t.csv")
    before = (tmp_path / "t.csv").read_bytes()
    assert main(["labels", table, "--label", "kind", *options]) == 1

    assert text in capsys.readouterr().err
    assert (tmp_path / "t.csv").read_bytes() == before
