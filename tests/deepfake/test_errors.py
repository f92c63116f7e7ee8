"""What an error says, in one line."""

import errno

import pytest

from deepfake.errors import first_sentence, one_line

FULL = OSError(errno.ENOSPC, "No space left on device", "/data/a.jpg")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines  and\ta tab"), "two lines and a tab"),
        (ValueError("x" * 400), "x" * 300),
        (ValueError(), "ValueError"),
        (ValueError("\n"), "ValueError"),
        (FULL, "[Errno 28] No space left on device: '/data/a.jpg'"),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FULL, "No space left on device"),
        (OSError("cannot identify image file"), "cannot identify image file"),  # Pillow's
        (EOFError(), "EOFError"),
        (ValueError("no path in it"), "no path in it"),
    ],
)
def test_who_names_the_path_gets_the_reason_alone(error: Exception, line: str) -> None:
    assert one_line(error, path=False) == line


def test_a_limit_is_a_choice() -> None:
    assert one_line(ValueError("x" * 400), 5) == "xxxxx"
    assert one_line(ValueError("x" * 400), None) == "x" * 400


def test_of_torchs_errors_the_first_sentence_is_enough() -> None:
    error = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nSee documentation")
    assert first_sentence(error) == "CUDA out of memory"
    assert first_sentence(MemoryError()) == "MemoryError"
