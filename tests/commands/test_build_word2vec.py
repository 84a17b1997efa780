from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpce_cli.core.text.word_vectors import load_word_vectors
from tests.command_line import dpce, succeed
from tests.core.tiny import dataset_file


def _vectors(path: Path, *words: str) -> Path:
    path.write_text("".join(f"{word} 0.5 {index} -1\n" for index, word in enumerate(words)))
    return path


def _words(workspace: Path) -> list[str]:
    words: list[str] = json.loads(dataset_file(workspace / "scenes", "vocabulary.json").read_text())["words"]
    return words


def test_vectors_are_trained_on_the_captions_by_default(workspace: Path) -> None:
    (workspace / "scenes" / "word_vectors.h5").unlink()
    outcome = succeed("build-word2vec", workspace=workspace)
    trained = (workspace / "scenes" / "word_vectors.h5").read_bytes()

    count = len(_words(workspace))
    assert outcome.stdout == (
        f"{count} words with 12-d vectors from word2vec trained on the captions; 100.0% of the vocabulary and 100.0% "
        "of the words in training captions have one, the others are random\n"
    )
    assert outcome.stderr == "word2vec epochs | 20/20 | eta 0s\n"
    assert load_word_vectors(workspace / "scenes" / "word_vectors.h5")[0].matrix.shape == (count, 12)

    succeed("build-word2vec", "--train", workspace=workspace)
    assert (workspace / "scenes" / "word_vectors.h5").read_bytes() == trained


@pytest.mark.parametrize("oov", ["random", "drop"])
def test_vectors_are_taken_from_a_file_of_any_dimension(workspace: Path, tmp_path: Path, oov: str) -> None:
    first, second, *others = _words(workspace)
    file = _vectors(tmp_path / "glove.txt", first, "unrelated", second)
    outcome = succeed("build-word2vec", "--vectors", file, "--oov", oov, workspace=workspace)

    built, _ = load_word_vectors(workspace / "scenes" / "word_vectors.h5")
    assert len(built.vocabulary) == (2 if oov == "drop" else 2 + len(others))
    assert built.matrix[:2].tolist() == [[0.5, 0, -1], [0.5, 2, -1]]
    assert outcome.stdout.startswith(f"{len(built.vocabulary)} words with 3-d vectors from glove.txt; ")
    assert outcome.stdout.endswith(f"the others are {'dropped' if oov == 'drop' else 'random'}\n")
    reading, found = outcome.stderr.splitlines()
    assert reading == f"glove.txt (bytes) | {file.stat().st_size}/{file.stat().st_size} | eta 0s"
    assert found.startswith(f"glove.txt: 2 of {2 + len(others)} words have a vector of 3 numbers")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.txt", None, "missing.txt: cannot be read (No such file or directory)"),
        ("vectors.zip", b"", "vectors.zip: the name of a word vector file ends in one of .bin, .bin.gz"),
        ("other.txt", b"unrelated 1 2\n", "other.txt: none of the vocabulary's"),
        ("broken.bin", b"3 4\nabc", "broken.bin"),
    ],
)
def test_unusable_vector_files_are_refused_and_leave_the_old_vectors(
    workspace: Path, tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = (workspace / "scenes" / "word_vectors.h5").read_bytes()

    assert expected in dpce("build-word2vec", "--vectors", tmp_path / name, workspace=workspace).error
    assert (workspace / "scenes" / "word_vectors.h5").read_bytes() == before


@pytest.mark.parametrize(
    "arguments", [("--vectors", "a.txt", "--train"), ("--oov", "keep"), ("--vectors",), ("--nosuch",)]
)
def test_a_wrong_command_line_exits_with_2(workspace: Path, arguments: tuple[str, ...]) -> None:
    outcome = dpce("build-word2vec", *arguments, workspace=workspace)

    assert (outcome.code, outcome.stdout) == (2, "")
    assert "Usage: dpce build-word2vec" in outcome.stderr
