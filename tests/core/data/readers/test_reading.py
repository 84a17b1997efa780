from __future__ import annotations

from pathlib import Path

import pytest

from dpce_cli.core.data.readers.reading import (
    CaptionRow,
    Skips,
    captioned_images,
    folder_names,
    group_captions,
    read_lines,
    relative_path,
    scan_files,
)
from dpce_cli.core.errors import DataError


def test_skips_count_each_kind_and_name_the_first_three() -> None:
    skips = Skips()
    for name in ("a", "b", "c", "d"):
        skips.add("images without a caption", name)
    skips.add("empty captions", "x\x1b[2J")
    assert skips.lines() == (
        "images without a caption: 4 (first: a, b, c)",
        r"empty captions: 1 (first: 'x\x1b[2J')",
    )


def test_lines_are_trimmed_numbered_and_free_of_the_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  two\xe2\x80\xa8still two\n")
    assert list(read_lines(path)) == [(f"{path}:1", "one"), (f"{path}:3", "two\u2028still two")]


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("fine\nfine\ncaf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt:3: not UTF-8 text; save"):
        list(read_lines(path))


def test_a_scan_finds_nested_files_by_suffix_and_passes_over_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.JPG", "sub/deep/a.png", "notes.md", ".hidden/c.jpg", "sub/._a.png", "x.jpg/inside.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert scan_files(tmp_path) == ["b.JPG", "sub/deep/a.png", "x.jpg/inside.gif"]
    assert scan_files(tmp_path, "sub") == ["sub/deep/a.png"]
    assert scan_files(tmp_path, suffixes=(".md",)) == ["notes.md"]


def test_links_are_followed_to_files_inside_the_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.jpg").touch()
    (root / "b.jpg").symlink_to(root / "a.jpg")
    (root / "again").symlink_to(root)
    (root / "dangling.jpg").symlink_to(root / "none.jpg")
    assert scan_files(root) == ["a.jpg", "b.jpg"]
    (tmp_path / "link").symlink_to(root)
    assert scan_files(tmp_path / "link") == ["a.jpg", "b.jpg"]
    for target, name in ((tmp_path / "secret.jpg", "c.jpg"), (tmp_path, "outside")):
        (root / "sub" / name).symlink_to(target)
        with pytest.raises(DataError, match=rf"sub/{name}: a link that leads out"):
            scan_files(root)
        (root / "sub" / name).unlink()


def test_a_folder_that_is_missing_or_a_file_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "file", "Not a directory"),
    ):
        for listing in (scan_files, folder_names):
            with pytest.raises(DataError, match=rf"{path}: cannot be listed \({reason}\)"):
                listing(path)


def test_a_file_name_that_is_not_utf8_is_a_data_error(tmp_path: Path) -> None:
    with open(bytes(tmp_path) + b"/caf\xe9.jpg", "wb"):
        pass
    with pytest.raises(DataError, match="not Unicode text"):
        scan_files(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/a.jpg",
        "../a.jpg",
        "sub/../../a.jpg",
        "..\\a.jpg",
        "C:\\a.jpg",
        "\\\\host\\share\\a.jpg",
        "",
        ".",
    ],
)
def test_paths_that_could_leave_the_root_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"captions\.csv:2: .* is not a path below"):
        relative_path(name, "captions.csv:2")


def test_paths_below_the_root_are_put_in_one_form() -> None:
    assert relative_path("./sub//a..b.jpg", "") == "sub/a..b.jpg"


def rows(*captions: tuple[str, str]) -> list[CaptionRow]:
    return [
        CaptionRow(image=image, caption=caption, where=f"f:{line}") for line, (image, caption) in enumerate(captions, 1)
    ]


def test_captions_are_grouped_cleaned_and_what_is_left_out_is_counted() -> None:
    skips = Skips()
    grouped = group_captions(
        rows(("b", "two \n lines\0"), ("a", "x"), ("./b", "x"), ("b", " x "), ("a", "\t"), ("none", "y")),
        images={"a", "b", "c"},
        place="here",
        skips=skips,
    )
    assert grouped == {"b": ["two lines", "x"], "a": ["x"]}
    assert skips.lines() == (
        "repeated captions: 1 (first: f:4)",
        "empty captions: 1 (first: f:5)",
        "captions whose image is not in here: 1 (first: none)",
        "images without a caption: 1 (first: c)",
    )


def test_equal_captions_with_different_numbers_are_not_repetitions() -> None:
    numbered = [CaptionRow(image="a", caption="x", where="f:1", number=number) for number in ("0", "1", "1")]
    assert group_captions(numbered, images={"a"}, place="here", skips=Skips()) == {"a": ["x", "x"]}


def test_a_caption_with_a_lone_surrogate_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"f:1: .* is not Unicode text"):
        group_captions(rows(("a", "\ud800")), images={"a"}, place="here", skips=Skips())


def test_a_data_set_whose_rows_are_all_skipped_is_an_error_that_says_why(tmp_path: Path) -> None:
    skips = Skips()
    skips.add("empty captions", "f:1")
    with pytest.raises(DataError, match=r"no image with a caption is left .*empty captions: 1 \(first: f:1\)"):
        captioned_images("folder", tmp_path, [], skips)
    with pytest.raises(DataError, match="it holds no images"):
        captioned_images("folder", tmp_path, [], Skips())
