"""Pictures of samples as PNG files within a page."""

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.report.samples import MOST_BYTES, SIDE, data_address, pixels_of, png_of

RNG = np.random.default_rng(0)


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 3, 4]))
def test_another_program_reads_the_same_pixels(height, width, channels):
    """Whatever the size and the channels, Pillow reads from the file what was written."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)
    read = np.asarray(image.open(io.BytesIO(png_of(pixels))))

    np.testing.assert_array_equal(read.reshape(pixels.shape), pixels)


@pytest.mark.parametrize(
    ("array", "corner"),
    [
        (np.full((2, 2), True), [255]),
        (np.full((2, 2), 300), [255]),
        (np.full((2, 2, 3), 7, np.uint8), [7, 7, 7]),
        (np.full((3, 8, 8), 0.5), [128, 128, 128]),
        (np.array([[-1.0, 1.0]]), [0]),
        (np.array([[np.nan, 1.0]]), [0]),
        (np.array([[np.inf, np.nan]]), [255]),
        ([[0, 9]], [0]),
    ],
    ids=["booleans", "too high", "bytes", "channels first", "stretched", "not a number", "infinite", "a list"],
)
def test_any_numbers_become_pixels(array, corner):
    """Booleans, integers, floats of any range, channels first or last: what is shown is what a person expects."""
    assert pixels_of(array)[0, 0].tolist() == corner


def test_large_arrays_are_averaged_down():
    """A picture is at most 96 pixels a side, and keeps its mean."""
    large = np.zeros((200, 480))
    large[:, 240:] = 1.0
    pixels = pixels_of(large)

    assert pixels.shape == (40, SIDE, 1)
    assert pixels[:, 0].max() == 0
    assert pixels[:, -1].min() == 255


def test_tensor_is_an_array():
    """A tensor of torch on the CPU is taken as it is."""
    torch = pytest.importorskip("torch")

    assert pixels_of(torch.ones(3, 5, 7)).shape == (5, 7, 3)


def test_bytes_of_a_file_are_embedded_as_they_are():
    """Bytes of PNG and JPEG files reach the page unchanged."""
    for content, kind in ((png_of(np.zeros((1, 1, 1), np.uint8)), "png"), (b"\xff\xd8\xff\xe0rest", "jpeg")):
        start, _, encoded = data_address(content).partition(",")

        assert start == f"data:image/{kind};base64"
        assert base64.b64decode(encoded) == content


@pytest.mark.parametrize(
    ("picture", "error", "said"),
    [
        (
            b"GIF89a",
            ValueError,
            r"^thumbnail must give bytes of a PNG or JPEG file, got bytes that begin with b'GIF89a'",
        ),
        (b"\xff\xd8\xff" + bytes(MOST_BYTES), ValueError, r"at most 65,536 bytes a picture, got 65,539\.$"),
        ("a.png", TypeError, r"^thumbnail must give an array of numbers or bytes of a PNG file, got a str\.$"),
        (
            np.zeros((5, 5, 5)),
            ValueError,
            r"of shape \[H, W\], \[H, W, C\] or \[C, H, W\] with 1 to 4 channels, got \(5",
        ),
        (np.zeros((0, 2)), ValueError, r"got \(0, 2\)\.$"),
        (np.zeros(4), ValueError, r"got \(4,\)\.$"),
    ],
    ids=["another format", "too many bytes", "a path", "five channels", "empty", "a vector"],
)
def test_what_is_no_picture_is_refused(picture, error, said):
    """The message says what was given and what would be right."""
    with pytest.raises(error, match=said):
        data_address(picture)
