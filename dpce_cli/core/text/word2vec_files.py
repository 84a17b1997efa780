"""Read word2vec's binary and text formats and GloVe's text format; only the rows of wanted words stay in memory."""

from __future__ import annotations

from collections.abc import Set
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from dpce_cli.core.errors import VocabularyError

Row = npt.NDArray[np.float32]

CHUNK_BYTES = 1 << 20
LONGEST_LINE = 1 << 22
LONGEST_WORD = 1 << 13
LARGEST_DIM = 1 << 16


def read_binary(stream: BinaryIO, path: Path, wanted: Set[bytes], leading: int = 0) -> tuple[dict[bytes, Row], int]:
    """The rows of the wanted words (UTF-8) and of the `leading` first words in a word2vec `.bin`, and the dimension.

    If a word occurs twice, the first row counts, as in gensim. Words are compared as bytes: GoogleNews has some words
    that are not UTF-8, and these are never wanted.

    Raises:
        VocabularyError: the header is wrong, the file is shorter or longer than its header says, or a wanted row is
            not finite.
    """
    header = stream.readline(64)
    sizes = _sizes(header)
    if sizes is None or not header.endswith(b"\n"):
        raise _damaged(path, "byte 0", f"the header is {header!r}, not the number of words and the dimension")
    count, dim = sizes
    _check_dim(dim, path, "byte 0")
    found: dict[bytes, Row] = {}
    buffer, start, at = b"", len(header), 0  # the buffer begins at byte `start` of the file; `at` is read next
    for index in range(count):
        while (blank := buffer.find(b" ", at, at + LONGEST_WORD)) < 0 or len(buffer) - blank <= 4 * dim:
            if blank < 0 and len(buffer) - at >= LONGEST_WORD:
                raise _damaged(path, f"byte {start + at}", f"no end of a word within {LONGEST_WORD} bytes")
            chunk = stream.read(CHUNK_BYTES)
            if not chunk:
                raise _damaged(path, f"byte {start + len(buffer)}", f"the file ends in word {index + 1} of {count}")
            start += at
            buffer, at = buffer[at:] + chunk, 0
        word = buffer[at:blank].lstrip(b"\n")
        if (word in wanted or index < leading) and word not in found:
            row = np.frombuffer(buffer, "<f4", dim, blank + 1).astype(np.float32)
            found[word] = finite(row, word, path, f"byte {start + blank + 1}")
        at = blank + 1 + 4 * dim
    if (buffer[at:] + stream.read(CHUNK_BYTES)).strip():
        raise _damaged(path, f"byte {start + at}", f"the file has more than the {count} words of its header")
    return found, dim


def read_text(stream: BinaryIO, path: Path, wanted: Set[bytes], leading: int = 0) -> tuple[dict[bytes, Row], int]:
    """As `read_binary`, for one line of text per word: word2vec's `.txt` and `.vec` have a header, GloVe's has none.

    A word may contain spaces, as some in GloVe 840B do: the last `dim` fields are the row.

    Raises:
        VocabularyError: as `read_binary`, or a line has too few or too many numbers.
    """
    lines = iter(lambda: stream.readline(LONGEST_LINE), b"")
    first = next(lines, b"")
    sizes = _sizes(first)
    count, dim = sizes or (None, first.rstrip().count(b" "))
    _check_dim(dim, path, "line 1")
    found: dict[bytes, Row] = {}
    words = 0
    for number, line in enumerate(lines if sizes else chain([first], lines), start=2 if sizes else 1):
        if len(line) == LONGEST_LINE:
            raise _damaged(path, f"line {number}", f"the line is longer than {LONGEST_LINE} bytes")
        line = line.rstrip()
        if not line:
            continue
        words += 1
        word = line[: line.index(b" ")] if line.count(b" ") == dim else _odd_word(line, dim, path, number)
        if (word in wanted or words <= leading) and word not in found:
            found[word] = finite(_row(line, dim, path, number), word, path, f"line {number}")
    if count is not None and count != words:
        raise _damaged(path, "end of the file", f"{words} words, but the header says {count}")
    return found, dim


def finite(row: Row, word: bytes, path: Path, place: str) -> Row:
    """`row`; raises a VocabularyError if a number in it is not finite."""
    if not np.isfinite(row).all():
        raise _damaged(path, place, f"the row of {word.decode(errors='replace')!r} is not finite")
    return row


def _sizes(header: bytes) -> tuple[int, int] | None:
    fields = header.split()
    if len(fields) == 2 and all(field.isdigit() and len(field) < 12 for field in fields):
        return int(fields[0]), int(fields[1])
    return None


def _odd_word(line: bytes, dim: int, path: Path, number: int) -> bytes:
    word, *row = line.rsplit(b" ", dim)
    if len(row) < dim:
        raise _damaged(path, f"line {number}", f"{len(row)} numbers, but the other lines have {dim}")
    try:
        float(word.rsplit(b" ", 1)[1])
    except ValueError:
        return word
    raise _damaged(path, f"line {number}", f"more numbers than the {dim} of the other lines")


def _row(line: bytes, dim: int, path: Path, number: int) -> Row:
    try:
        with np.errstate(over="ignore"):  # too large for float32 becomes inf, which finite() reports
            return np.array([float(field) for field in line.rsplit(b" ", dim)[1:]]).astype(np.float32)
    except ValueError as error:
        raise _damaged(path, f"line {number}", f"not a number ({error})") from None


def _check_dim(dim: int, path: Path, place: str) -> None:
    if not 1 <= dim <= LARGEST_DIM:
        raise _damaged(path, place, f"the dimension is {dim}, not a number from 1 to {LARGEST_DIM}")


def _damaged(path: Path, place: str, what: str) -> VocabularyError:
    return VocabularyError(f"{path}: {place}: {what}; the file is damaged or of another format: download it again")
