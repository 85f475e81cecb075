"""The gallery of a report, and its table of confused labels."""

import numpy as np
import pytest

from learnit_r8.journal.samples import write_samples
from learnit_r8.report import write_report
from learnit_r8.report.page import report_data
from learnit_r8.report.samples import MOST_TOTAL, confusion_of
from tests.journal.run_folders import STARTED, folder_with, steps
from tests.report.sample_files import samples
from tests.report.test_page import HOSTILE, Page

GREY = np.full((8, 8), 128, np.uint8)


@pytest.fixture
def noisy(tmp_path):
    """A run of a hundred samples, of classes "cat" and "dog" in turn; the first five look mislabelled."""
    folder = folder_with(tmp_path / "run", STARTED, steps(5))
    loss = np.where(np.arange(100) < 5, 5.0, 0.1)
    groups = {"group": np.arange(100, dtype=np.uint16) % 2, "group_labels": ("cat", "dog")}
    for epoch in (3, 4):
        write_samples(folder, [samples(epoch, loss, uses=np.full(100, 9), untrained=2.3)._replace(**groups)])
    return folder


def addresses(page):
    return [text for text in page.texts if text.startswith("data:image/")]


def test_suspects_are_shown_with_picture_label_and_text(noisy, tmp_path):
    """Each suspect has a card with its picture, its label, the user's text and how its loss went."""
    asked = []

    def thumbnail(index):
        asked.append(index)
        return GREY if index else None

    out = write_report(noisy, tmp_path / "out.html", thumbnail=thumbnail, describe=lambda index: f"photo {index}")
    read = Page(out.read_text())
    said = read.said

    assert asked[:5] == [0, 1, 2, 3, 4]
    assert len(addresses(read)) == sum(map(bool, asked))
    assert all(address.startswith("data:image/png;base64,") for address in addresses(read))
    assert "The first 5 of 5 samples that look mislabelled" in said
    assert {"photo 0", "photo 4", "cat", "dog"} <= set(read.texts)
    assert read.text.count("; img-src data:") == 1


def test_page_without_pictures_allows_none(noisy, tmp_path):
    """Where the user gives no pictures there is none, and the browser is told to load none."""
    read = Page(write_report(noisy, tmp_path / "out.html").read_text())

    assert not addresses(read)
    assert "img-src" not in read.text


def test_order_without_a_verdict_is_called_so(tmp_path):
    """Where no sample is suspect, the gallery shows the highest losses if the user gives pictures, and no verdict."""
    folder = folder_with(tmp_path / "run", STARTED, steps(5))
    write_samples(folder, [samples(0, np.linspace(0.5, 1, 100), uses=np.full(100, 9))])
    shown = Page(write_report(folder, tmp_path / "a.html", thumbnail=lambda index: GREY).read_text()).said
    bare = Page(write_report(folder, tmp_path / "b.html").read_text()).said

    assert "#99" in shown
    assert "This is an order and no verdict" in shown
    assert "no verdict" not in bare


def test_estimates_have_no_gallery(tmp_path):
    """Losses of samples that are estimated from batch means rank nothing that is worth a look."""
    folder = folder_with(tmp_path / "run", STARTED, steps(5))
    write_samples(folder, [samples(0, np.linspace(0, 1, 100))._replace(is_exact=False)])

    assert report_data(folder).samples.ranked == ()


def test_pictures_are_bounded(tmp_path):
    """Pictures beyond the room of the page are left out; the page says the rest all the same."""
    folder = folder_with(tmp_path / "run", STARTED, steps(5))
    write_samples(folder, [samples(0, np.linspace(0.5, 1, 100), uses=np.full(100, 9))])
    large = b"\xff\xd8\xff" + bytes(60_000)
    page = write_report(folder, tmp_path / "out.html", thumbnail=lambda index: large).read_text()

    assert len(addresses(Page(page))) == MOST_TOTAL // 80_027
    assert "#60" in page


def test_failing_thumbnail_writes_nothing(noisy, tmp_path):
    """An error of the user's function, or a picture that is none, is raised, and no half page is left."""
    with pytest.raises(ValueError, match=r"^thumbnail must give bytes of a PNG or JPEG file"):
        write_report(noisy, tmp_path / "out.html", thumbnail=lambda index: b"GIF89a")

    assert not (tmp_path / "out.html").exists()


def test_hostile_texts_stay_texts(noisy, tmp_path):
    """Labels of the run and texts of the user cannot become markup."""
    for epoch in (3, 4):
        loss = np.where(np.arange(100) < 5, 5.0, 0.1)
        groups = {"group": np.zeros(100, np.uint16), "group_labels": (HOSTILE,)}
        file = samples(epoch, loss, uses=np.full(100, 9), untrained=2.3)._replace(**groups)
        write_samples(noisy, [file])
    read = Page(write_report(noisy, tmp_path / "out.html", describe=lambda index: HOSTILE).read_text())

    assert "img" not in read.tags
    assert read.text.count("<script") == 2
    assert "<script>alert(1)</script>" in read.said


def test_confused_labels_are_counted():
    """Each pair of labels is counted once, numbers in order; pairs of which one is unknown are not."""
    confusion = confusion_of(["10", "9", "9", "", "9"], ["9", "10", "10", "9", ""])

    assert confusion.labels == ["9", "10"]
    assert confusion.counts.tolist() == [[0, 2], [1, 0]]
    assert confusion_of(["9", ""], ["", "9"]) is None


def test_rare_labels_are_others():
    """Of many labels the twelve most frequent have a row; all pairs of different ones are in the table."""
    given = [str(number) for number in range(20)] + ["3"] * 5
    confusion = confusion_of(given, ["7"] * len(given))

    assert len(confusion.labels) == 13
    assert confusion.labels[-1] == "others"
    assert confusion.counts.sum() == len(given) - 1
    assert confusion.counts[confusion.labels.index("3"), confusion.labels.index("7")] == 6
