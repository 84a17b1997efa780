from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpce_cli.core.errors import VocabularyError, WorkspaceError
from dpce_cli.core.progress import Advance, Reporter
from dpce_cli.core.text import word_vectors
from dpce_cli.core.text.vocabulary import Vocabulary
from dpce_cli.core.text.word_vectors import (
    build_word_vectors,
    load_word_vectors,
    read_word_vectors,
    save_word_vectors,
    train_word_vectors,
)

Rows = npt.NDArray[np.float32]

WORDS = ["the", "Dog", "dog", "café", "狗", "x" * 300, "in/it's", "5"]
MATRIX: Rows = np.random.default_rng(0).normal(size=(len(WORDS), 7)).astype(np.float32)


class Recorder(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total = 0
        self.done = 0

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextmanager
    def track(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        self.total = total

        def advance(count: int = 1, fields: Mapping[str, str] | None = None) -> None:
            self.done += count

        yield advance


def keyed_vectors(words: list[str], matrix: Rows) -> Any:
    from gensim.models import KeyedVectors

    vectors = KeyedVectors(matrix.shape[1])
    vectors.add_vectors(words, matrix)
    return vectors


def write_headless(vectors: Any, path: Path) -> None:
    vectors.save_word2vec_format(str(path), write_header=False)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "w.bin": lambda vectors, path: vectors.save_word2vec_format(str(path), binary=True),
    "w.bin.gz": lambda vectors, path: vectors.save_word2vec_format(str(path), binary=True),
    "w.txt": lambda vectors, path: vectors.save_word2vec_format(str(path)),
    "w.vec": lambda vectors, path: vectors.save_word2vec_format(str(path)),
    "w.300d.txt.gz": lambda vectors, path: vectors.save_word2vec_format(str(path)),
    "glove.txt": write_headless,
    "glove.txt.gz": write_headless,
}


def binary(words: list[bytes], matrix: Rows, header: bytes | None = None) -> bytes:
    rows = b"".join(word + b" " + row.astype("<f4").tobytes() + b"\n" for word, row in zip(words, matrix, strict=True))
    return (header or b"%d %d\n" % matrix.shape) + rows


def read(path: Path, words: list[str], reporter: Reporter | None = None) -> tuple[dict[str, Rows], int]:
    return read_word_vectors(path, words, reporter or Reporter())


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_what_gensim_wrote(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](keyed_vectors(WORDS, MATRIX), path)
    recorder = Recorder()
    found, dim = read(path, [*WORDS, "missing"], recorder)
    assert dim == 7
    assert list(found) == WORDS
    np.testing.assert_array_equal(np.stack([found[word] for word in WORDS]), MATRIX)
    assert all(row.dtype == np.float32 for row in found.values())
    assert recorder.notes == [f"{name}: 8 of 9 words have a vector of 7 numbers (0 of them only in lower case)"]
    assert recorder.total == path.stat().st_size
    assert recorder.done == recorder.total


def test_the_real_vectors_are_what_gensim_reads(shared_data: Path) -> None:
    from gensim.models import KeyedVectors

    path = shared_data / "word-vectors" / "glove-6b-100d.bin"
    expected = KeyedVectors.load_word2vec_format(str(path), binary=True)
    words = expected.index_to_key[::97]
    found, dim = read(path, words)
    assert len(expected) == 62_616
    assert dim == 100
    assert list(found) == words
    np.testing.assert_array_equal(np.stack(list(found.values())), expected[words])


def test_a_word_is_found_as_it_is_before_its_lower_case_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(binary([b"Dog", b"dog", b"cat", b"Bird"], MATRIX[:4]))
    recorder = Recorder()
    found, _ = read(path, ["Dog", "dog", "Cat", "CAT", "bird"], recorder)
    assert set(found) == {"Dog", "dog", "Cat", "CAT"}
    np.testing.assert_array_equal(found["Dog"], MATRIX[0])
    np.testing.assert_array_equal(found["dog"], MATRIX[1])
    np.testing.assert_array_equal(found["Cat"], MATRIX[2])
    np.testing.assert_array_equal(found["CAT"], MATRIX[2])
    assert recorder.notes == ["w.bin: 4 of 5 words have a vector of 7 numbers (2 of them only in lower case)"]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_binary_row_may_or_may_not_end_in_a_newline(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(binary([b"a", b"b"], MATRIX[:2]).replace(b"\nb ", end + b"b "))
    found, _ = read(path, ["a", "b"])
    np.testing.assert_array_equal(np.stack([found["a"], found["b"]]), MATRIX[:2])


@pytest.mark.parametrize("name", ["w.bin", "w.txt"])
def test_words_that_are_not_utf8_are_skipped(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    words = [b"a", b"caf\xe9\xff", b"b"]
    if name == "w.bin":
        path.write_bytes(binary(words, MATRIX[:3]))
    else:
        path.write_bytes(b"3 2\n" + b"".join(word + b" 1.5 -2e-3\n" for word in words))
    assert set(read(path, ["a", "b", "café", "\udcff", "caf\ufffd\ufffd"])[0]) == {"a", "b"}


@pytest.mark.parametrize("name", ["w.bin", "w.txt"])
def test_the_first_of_two_rows_of_a_word_counts(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    rows = np.array([[1, 2], [3, 4]], np.float32)
    text = b"2 2\na 1 2\na 3 4\n"
    path.write_bytes(binary([b"a", b"a"], rows) if name == "w.bin" else text)
    np.testing.assert_array_equal(read(path, ["a"])[0]["a"], [1, 2])


def test_glove_words_with_spaces_do_not_disturb_the_others(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("a 1 2 3\n. . . 4 5 6\nat name@domain.com 7 8 9\nb 10 11 12\n\n")
    found, dim = read(path, ["a", "b", ".", "at"])
    assert dim == 3
    assert set(found) == {"a", "b"}
    np.testing.assert_array_equal(found["b"], [10, 11, 12])


NAN = np.array([[1, np.nan]], np.float32)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.bin", b"", r"byte 0: the header is b''"),
        ("w.bin", b"the quick brown\n", r"byte 0: the header is b'the quick brown\\n'"),
        ("w.bin", b"1 2", r"byte 0: the header"),
        ("w.bin", b"-1 2\n", r"byte 0: the header"),
        ("w.bin", b"1 0\n", r"byte 0: the dimension is 0"),
        ("w.bin", b"1 99999999999\n", r"byte 0: the dimension is 99999999999"),
        ("w.bin", binary([b"a"], MATRIX[:1], b"9 7\n"), r"byte 35: the file ends in word 2 of 9"),
        ("w.bin", binary([b"a"], MATRIX[:1])[:-3], r"byte 32: the file ends in word 1 of 1"),
        ("w.bin", binary([b"a", b"b"], MATRIX[:2], b"1 7\n"), r"byte 34: the file has more than the 1 words"),
        ("w.bin", b"2 2\n" + b"x" * 9000, r"byte 4: no end of a word within 8192 bytes"),
        ("w.bin", binary([b"a"], NAN), r"byte 6: the row of 'a' is not finite"),
        ("w.txt", b"", r"line 1: the dimension is 0"),
        ("w.txt", b"a\nb\n", r"line 1: the dimension is 0"),
        ("w.txt", b"2 2\na 1 2\n", r"end of the file: 1 words, but the header says 2"),
        ("w.txt", b"1 2\na 1 2\nb 1 2\n", r"end of the file: 2 words, but the header says 1"),
        ("w.txt", b"2 2\na 1 2\nb 1\n", r"line 3: 1 numbers, but the other lines have 2"),
        ("w.txt", b"2 2\na 1 2\nb 1 2 3\n", r"line 3: more numbers than the 2 of the other lines"),
        ("w.txt", b"a 1 2\nb 1 2 3\n", r"line 2: more numbers than the 2 of the other lines"),
        ("w.txt", b"1 2\na 1 two\n", r"line 2: not a number"),
        ("w.txt", b"c 1 2\na nan 2\n", r"line 2: the row of 'a' is not finite"),
        ("w.txt", b"a 1e60 2\n", r"line 1: the row of 'a' is not finite"),
        ("w.txt", b"a 1 2\n" + b"x" * (1 << 22), r"line 2: the line is longer than 4194304 bytes"),
        ("w.bin.gz", b"1 2\n", r"byte 4: damaged compressed data \(Not a gzipped file"),
        ("w.txt.gz", gzip.compress(b"a 1 2\n" * 99, mtime=0)[:-9], r"byte \d+: damaged compressed data"),
        ("w.kv", b"", r"is a pickle, which can run code; convert it with gensim: .*save_word2vec_format"),
        ("w.npz", b"", r"the name of a word vector file ends in one of \.bin, "),
        ("w", b"", r"the name of a word vector file ends in one of"),
    ],
)
def test_a_damaged_file_is_an_error_that_says_where(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match=message) as caught:
        read(path, ["a", "b"])
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_file_or_a_folder_cannot_be_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(VocabularyError, match=r"cannot be read \(No such file or directory\)"):
        read(path, ["a"])
    path.mkdir()
    with pytest.raises(VocabularyError, match=r"cannot be read \(Is a directory\)"):
        read(path, ["a"])


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    files = {}
    for name in ("w.bin", "w.txt", "glove.txt", "w.bin.gz"):
        WRITERS[name](keyed_vectors(WORDS, MATRIX), folder / name)
        files[name] = (folder / name).read_bytes()
    return files


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def read_or_refuse(path: Path) -> bool:
    try:
        found, dim = read(path, WORDS)
    except VocabularyError:
        return False
    assert all(row.shape == (dim,) and np.isfinite(row).all() for row in found.values())
    return True


@settings(max_examples=150)
@given(st.data())
def test_a_cut_file_is_refused_or_read_but_never_a_traceback(
    whole_files: dict[str, bytes], scratch: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(whole_files)))
    content = whole_files[name]
    path = scratch / name
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    readable = read_or_refuse(path)
    if name == "w.bin.gz":
        assert not readable


@settings(max_examples=150)
@given(st.data())
def test_a_corrupt_file_is_refused_or_read_but_never_a_traceback(
    whole_files: dict[str, bytes], scratch: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["w.bin", "w.txt", "glove.txt", "w.bin.gz"]))
    content = bytearray(whole_files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    path = scratch / name
    path.write_bytes(content)
    read_or_refuse(path)


@settings(max_examples=100)
@given(st.sampled_from(["a.bin", "a.txt", "a.txt.gz", "a.vec"]), st.binary(max_size=60))
def test_any_bytes_are_refused_or_read_but_never_a_traceback(scratch: Path, name: str, content: bytes) -> None:
    path = scratch / name
    path.write_bytes(content)
    read_or_refuse(path)


class Malicious:
    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.args


@pytest.mark.parametrize("name", ["big.bin", "big.txt.gz"])
def test_only_the_wanted_rows_of_a_big_file_stay_in_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    count, dim = 200_000, 50
    row = np.arange(dim, dtype=np.float32)
    with gzip.open(path, "wb", compresslevel=1) if name.endswith(".gz") else open(path, "wb") as file:
        file.write(b"%d %d\n" % (count, dim))
        fields = row.tobytes() if name == "big.bin" else b" ".join(b"%d" % number for number in range(dim))
        for index in range(count):
            file.write(b"word%d %s\n" % (index, fields))
    words = [f"word{index}" for index in range(0, count, 1000)]
    read(path, words[:1])  # do not count what is loaded only once
    tracemalloc.start()
    try:
        found, _ = read(path, words)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(found) == words
    assert all((found[word] == row).all() for word in words)
    assert kept < 0.3e6  # 200 rows are 40 kB; the whole file would be 40 MB
    assert peak < 8e6


CAPTIONS = [f"a {colour} {animal} runs".split() for colour in ("red", "blue") for animal in ("dog", "cat")] * 30


def test_trained_vectors_cover_the_captions_and_depend_on_the_seed() -> None:
    recorder = Recorder()
    first = train_word_vectors(CAPTIONS, dim=8, seed=1, epochs=3, reporter=recorder)
    again = train_word_vectors(CAPTIONS, dim=8, seed=1, epochs=3, reporter=Reporter())
    other = train_word_vectors(CAPTIONS, dim=8, seed=2, epochs=3, reporter=Reporter())
    assert set(first) == {"a", "red", "blue", "dog", "cat", "runs"}
    assert (recorder.total, recorder.done) == (3, 3)
    assert all(row.shape == (8,) and row.dtype == np.float32 for row in first.values())
    assert all((first[word] == again[word]).all() for word in first)
    assert any((first[word] != other[word]).any() for word in first)


def test_trained_vectors_are_the_same_in_every_process() -> None:
    code = (
        "from dpce_cli.core.progress import Reporter\n"
        "from dpce_cli.core.text.word_vectors import train_word_vectors\n"
        "captions = [['a', 'dog', 'runs'], ['a', 'red', 'cat'], ['the', 'dog']] * 40\n"
        "vectors = train_word_vectors(captions, dim=4, seed=3, epochs=2, reporter=Reporter())\n"
        "print({word: row.tobytes().hex() for word, row in vectors.items()})"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(results) == 1
    assert b"runs" in results.pop()


@pytest.mark.parametrize("captions", [[], [[], []]])
def test_captions_without_a_word_are_refused(captions: list[list[str]]) -> None:
    with pytest.raises(VocabularyError, match="there is no word in the training captions"):
        train_word_vectors(captions, dim=4, seed=1, epochs=1, reporter=Reporter())


VOCABULARY = Vocabulary(("a", "zyx", "dog", "qqq"), lowercase=True)
FOUND: dict[str, Rows] = {
    "dog": np.array([1, 2, 3], np.float32),
    "a": np.array([3, 2, 1], np.float32),
    "unasked": np.array([9, 9, 9], np.float32),
}


def test_words_without_a_vector_are_dropped_as_in_the_paper() -> None:
    built = build_word_vectors(VOCABULARY, FOUND, oov="drop", seed=1, source="w.bin")
    assert built.vocabulary == Vocabulary(("a", "dog"), lowercase=True)
    np.testing.assert_array_equal(built.matrix, [[3, 2, 1], [1, 2, 3]])
    assert built.matrix.dtype == np.float32
    assert built.coverage == 0.5
    assert built.token_coverage is None
    assert (built.source, built.oov) == ("w.bin", "drop")


def test_words_without_a_vector_get_a_random_row_that_the_seed_decides() -> None:
    built, again, other = (
        build_word_vectors(VOCABULARY, FOUND, oov="random", seed=seed, source="w.bin") for seed in (1, 1, 2)
    )
    assert built.vocabulary == VOCABULARY
    np.testing.assert_array_equal(built.matrix[[0, 2]], [[3, 2, 1], [1, 2, 3]])
    np.testing.assert_array_equal(built.matrix, again.matrix)
    assert (built.matrix[[1, 3]] != other.matrix[[1, 3]]).any()
    assert built.matrix.dtype == np.float32
    assert built.coverage == 0.5


def test_random_rows_have_the_scale_of_the_found_ones() -> None:
    generator = np.random.default_rng(0)
    words = [f"w{index}" for index in range(4000)]
    found = {word: generator.normal([5, -1], [0.1, 3]).astype(np.float32) for word in words[:2000]}
    matrix = build_word_vectors(
        Vocabulary(tuple(words), lowercase=True), found, oov="random", seed=1, source="w"
    ).matrix
    np.testing.assert_allclose(matrix[2000:].mean(axis=0), [5, -1], atol=0.3)
    np.testing.assert_allclose(matrix[2000:].std(axis=0), [0.1, 3], rtol=0.1)


def test_token_coverage_counts_a_word_as_often_as_it_occurs() -> None:
    counts = {"a": 60, "dog": 30, "zyx": 9, "qqq": 1}
    built = build_word_vectors(VOCABULARY, FOUND, oov="drop", seed=1, source="w", counts=counts)
    assert built.token_coverage == 0.9


@pytest.mark.parametrize("oov", ["random", "drop"])
def test_a_vocabulary_without_any_vector_is_an_error(oov: Literal["random", "drop"]) -> None:
    with pytest.raises(VocabularyError, match=r"w\.bin: none of the vocabulary's 4 words has a vector"):
        build_word_vectors(VOCABULARY, {"unasked": MATRIX[0]}, oov=oov, seed=1, source="w.bin")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "word_vectors.h5"
    counts = {"a": 2, "zyx": 1, "dog": 1, "qqq": 1}
    built = build_word_vectors(VOCABULARY, FOUND, oov="random", seed=1, source="wörter.bin", counts=counts)
    save_word_vectors(path, built, {"seed": 1, "train": "Größe"})
    return path


def test_saved_word_vectors_come_back_whole(saved: Path) -> None:
    vectors, meta = load_word_vectors(saved)
    expected = build_word_vectors(VOCABULARY, FOUND, oov="random", seed=1, source="")
    assert vectors.vocabulary == VOCABULARY
    np.testing.assert_array_equal(vectors.matrix, expected.matrix)
    assert vectors.matrix.dtype == np.float32
    assert (vectors.coverage, vectors.token_coverage) == (0.5, 0.6)
    assert (vectors.source, vectors.oov) == ("wörter.bin", "random")
    assert meta == {"seed": 1, "train": "Größe"}
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_a_large_vocabulary_is_saved(tmp_path: Path) -> None:
    vocabulary = Vocabulary(tuple(f"wörd{index}" for index in range(30_000)), lowercase=False)
    found = dict.fromkeys(vocabulary.words, MATRIX[0])
    path = tmp_path / "w.h5"
    save_word_vectors(path, build_word_vectors(vocabulary, found, oov="drop", seed=1, source="w"), {})
    assert load_word_vectors(path)[0].vocabulary == vocabulary


def test_missing_word_vectors_name_the_command_that_builds_them(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"none\.h5: there are no word vectors yet; run `dpce build-word2vec`"):
        load_word_vectors(tmp_path / "none.h5")


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_word_vector_file_is_refused_with_advice(data: st.DataObject, scratch: Path) -> None:
    path = scratch / "word_vectors.h5"
    built = build_word_vectors(VOCABULARY, FOUND, oov="random", seed=1, source="w.bin")
    save_word_vectors(path, built, {})
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    refused = ""
    try:
        vectors, meta = load_word_vectors(path)
    except WorkspaceError as error:
        refused = str(error)
    if refused:
        assert "re-run `dpce build-word2vec`" in refused
    else:  # no value depends on this byte of HDF5's
        np.testing.assert_array_equal(vectors.matrix, built.matrix)
        assert vectors.vocabulary == VOCABULARY
        assert meta == {}


@pytest.mark.parametrize("key", ["matrix", "description", "sha256"])
def test_a_word_vector_file_that_lacks_a_part_is_refused(key: str, saved: Path) -> None:
    with h5py.File(saved, "r+") as file:
        del file[key]
    with pytest.raises(WorkspaceError, match=r"cannot be read .*; re-run `dpce build-word2vec`"):
        load_word_vectors(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary": 3}, {"vocabulary": None}, {"coverage": "all"}, {"coverage": 10**400}, {"token_coverage": [1]},
        {"source": 7}, {"meta": 5}, {"meta": None}, {"vocabulary": {"lowercase": True, "words": ["dog"]}},
    ],
    ids=lambda changes: str(changes)[:40],
)  # fmt: skip
def test_crafted_word_vectors_end_in_one_line(saved: Path, changes: dict[str, Any]) -> None:
    with h5py.File(saved, "r+") as file:
        description = {**json.loads(file["description"].asstr()[()]), **changes}
        _craft(file, json.dumps({key: value for key, value in description.items() if value is not None}))
    with pytest.raises(WorkspaceError, match=r"^[^\n]*h5: .*cannot be read .*; re-run `dpce build-word2vec`$"):
        load_word_vectors(saved)


@pytest.mark.parametrize("matrix", [3.0, np.zeros(4), np.zeros((4, 3)), np.full((4, 3), np.nan, np.float32), "text"])
def test_a_crafted_matrix_ends_in_one_line(saved: Path, matrix: Any) -> None:
    with h5py.File(saved, "r+") as file:
        del file["matrix"]
        file["matrix"] = matrix
        if not isinstance(matrix, str):
            _craft(file, file["description"].asstr()[()])
    with pytest.raises(WorkspaceError, match=r"^[^\n]*h5: .*cannot be read .*; re-run `dpce build-word2vec`$"):
        load_word_vectors(saved)


def _craft(file: h5py.File, description: str) -> None:
    """Change the description and its checksum."""
    del file["description"], file["sha256"]
    file["description"] = description
    file["sha256"] = word_vectors._checksum(description, file["matrix"][()])


def test_a_changed_number_is_noticed(saved: Path) -> None:
    with h5py.File(saved, "r+") as file:
        file["matrix"][1, 1] += 1
    with pytest.raises(WorkspaceError, match=r"wrong checksum.*; re-run `dpce build-word2vec`"):
        load_word_vectors(saved)


def test_vectors_are_trained_with_any_seed() -> None:
    captions = [["a", "red", "dog"], ["a", "blue", "cat"]]
    for seed in (0, 2**32, 2**63 - 1):
        assert set(train_word_vectors(captions, dim=4, seed=seed, epochs=1, reporter=Reporter())) >= {"red", "cat"}
