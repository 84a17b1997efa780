from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from dpce_cli.core.data.readers.flickr8k import read_flickr8k
from dpce_cli.core.data.readers.folder import read_folder
from dpce_cli.core.data.records import CaptionedImages
from dpce_cli.core.errors import ConfigError, DataError


def read(
    root: Path, *, captions: Path | None = None, val: float = 0.0, test: float = 0.0, seed: int = 0
) -> CaptionedImages:
    return read_folder(root, captions=captions, val_fraction=val, test_fraction=test, seed=seed)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def captions_of(data: CaptionedImages) -> dict[str, tuple[str, ...]]:
    return {image.image_id: image.captions for image in data.images}


def splits_of(data: CaptionedImages) -> dict[str, str]:
    return {image.image_id: image.split for image in data.images}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touch(tmp_path / "album", "a.jpg", "trip/b.PNG")


EXPECTED = {"a.jpg": ("A dog, asleep.", 'It says "no".'), "trip/b.PNG": ("Café",)}


@pytest.mark.parametrize("image", ["image", "File", " filename ", "path"])
def test_captions_are_read_from_csv(root: Path, image: str) -> None:
    rows = ['a.jpg,x,"A dog, asleep."', "./trip/b.PNG,,Café", ' a.jpg ,,"It says ""no""."', ""]
    text = "\r\n".join([f"{image},note,Caption", *rows])
    (root / "captions.csv").write_text(text, encoding="utf-8-sig", newline="")
    data = read(root)
    assert captions_of(data) == EXPECTED
    assert (data.name, data.root, data.skipped) == ("folder", root, ())
    assert [image.path for image in data.images] == ["a.jpg", "trip/b.PNG"]


def test_captions_are_read_from_json_lines(root: Path) -> None:
    lines = [
        {"file": "a.jpg", "captions": ["A dog, asleep.", 'It says "no".']},
        {"image": "trip/b.PNG", "caption": "Café"},
    ]
    (root / "captions.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines), encoding="utf-8-sig")
    assert captions_of(read(root)) == EXPECTED


def test_captions_are_read_from_text_files_beside_the_images(root: Path) -> None:
    (root / "a.txt").write_text('A dog, asleep.\n\n It says "no". \n')
    (root / "trip/b.txt").write_text("Café\n", encoding="utf-8-sig")
    (root / "readme.txt").write_text("Not a caption.\n")
    data = read(root)
    assert captions_of(data) == EXPECTED
    assert data.skipped == ("text files without an image beside them: 1 (first: readme.txt)",)


def test_a_captions_file_may_lie_elsewhere(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.CSV").write_text("image,caption\na.jpg,x\n")
    (root / "captions.csv").write_text("not read")
    assert captions_of(read(root, captions=tmp_path / "mine.CSV")) == {"a.jpg": ("x",)}


def test_what_cannot_be_used_is_left_out_and_counted(root: Path) -> None:
    source = root / "captions.csv"
    source.write_text("image,caption\na.jpg,x\na.jpg, x\na.jpg,\nno.jpg,y\nno.jpg,z\ncaptions.csv,y\n")
    assert read(root).skipped == (
        f"repeated captions: 1 (first: {source}:3)",
        f"empty captions: 1 (first: {source}:4)",
        f"captions whose image is not in {root}: 3 (first: no.jpg, no.jpg, captions.csv)",
        "images without a caption: 1 (first: trip/b.PNG)",
    )


def test_splits_are_those_of_the_file(tmp_path: Path) -> None:
    words = ["train", " Train", "val", "dev", "valid", "validation", "TEST"]
    root = touch(tmp_path, *(f"{number}.jpg" for number in range(7)))
    rows = [f"{number}.jpg,{word},a\n{number}.jpg,{word},b\n" for number, word in enumerate(words)]
    (root / "captions.csv").write_text("image,split,caption\n" + "".join(rows))
    expected = ["train", "train", "val", "val", "val", "val", "test"]
    assert list(splits_of(read(root, val=0.5)).values()) == expected

    lines = [{"image": f"{number}.jpg", "split": word, "captions": ["a"]} for number, word in enumerate(words)]
    (root / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list(splits_of(read(root, captions=root / "lines.jsonl", val=0.5)).values()) == expected


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_splits_are_drawn_in_exact_fractions_by_the_seed(tmp_path: Path, count: int) -> None:
    root = touch(tmp_path, *(f"{number:03}.jpg" for number in range(count)))
    (root / "captions.csv").write_text("image,caption\n" + "".join(f"{n:03}.jpg,x\n" for n in range(count)))
    splits = splits_of(read(root, val=0.29, test=0.1))
    sizes = {"val": 29 * count // 100, "test": count // 10}
    assert Counter(splits.values()) == Counter(sizes | {"train": count - sum(sizes.values())})
    assert splits_of(read(root, val=0.29, test=0.1)) == splits
    if count == 100:
        assert splits_of(read(root, val=0.29, test=0.1, seed=1)) != splits
        with (root / "captions.csv").open("a") as file:
            file.write("050.jpg,another caption\n")
        assert splits_of(read(root, val=0.29, test=0.1)) == splits


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (float("nan"), 0.0)])
def test_impossible_fractions_are_a_config_error(root: Path, val: float, test: float) -> None:
    with pytest.raises(ConfigError, match="choose two fractions"):
        read(root, val=val, test=test)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            r":1: .* one column image or .*; found \[\]; rename .* 'image', .* prepare-vocab's --image-column",
        ),
        ("a.jpg,x\n", r":1: needs exactly one column .*; found \['a\.jpg', 'x'\]"),
        ("image,path,caption\n", ":1: needs exactly one column"),
        (
            "image,words\n",
            r":1: needs exactly one column caption or .*; found \['image', 'words'\]; .*--caption-c",
        ),
        ("image,caption\na.jpg,x\na.jpg,hello, world\n", ":3: not as many cells .* contain ','"),
        ("image,caption\na.jpg\n", ":2: not as many cells"),
        ('image,caption\na.jpg,"open\n', ":2: not valid CSV .*; check the quotes"),
        ('image,caption\na.jpg,"x"y\n', ":2: not valid CSV"),
        (f"image,caption\na.jpg,{'x' * 200_000}\n", ":2: not valid CSV"),
        ("image,caption,split\na.jpg,x,training\n", ":2: unknown split 'training'; use one of train, val"),
        ("image,caption,split\na.jpg,x,\n", ":2: unknown split ''"),
        (
            "image,caption,split\na.jpg,x,train\na.jpg,y,val\n",
            r":3: a\.jpg is in val here and in train before",
        ),
        ('image,caption\na.jpg,x\na.jpg,"open\nb.jpg,y\n', ":3: not valid CSV"),
        ("image,caption\n../a.jpg,x\n", r":2: '\.\./a\.jpg' is not a path below"),
        ("image,caption\n/a.jpg,x\n", r":2: '/a\.jpg' is not a path below"),
        ("image,caption\n,x\n", r"no image with a caption .*rows without an image: 1 \(first: .*captions\.csv:2\)"),
        ("image,caption\nzebra.jpg,x\n", r"no image with a caption is left to read \(captions whose image"),
    ],
)
def test_a_bad_csv_is_a_data_error_with_its_line(root: Path, text: str, message: str) -> None:
    (root / "captions.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read(root)


GOOD = '{"image": "a.jpg", "caption": "x"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no image with a caption is left to read"),
        (GOOD + '{"image": "a.jpg", "capt', r"captions\.jsonl:2: not valid JSON .*; put one whole object"),
        (GOOD + "[" * 100_000, ":2: not valid JSON"),
        (GOOD + "9" * 10_000, ":2: not valid JSON"),
        ('["a.jpg", "x"]', ":1: not an object"),
        ('{"caption": "x"}', ":1: needs exactly one column image or file"),
        ('{"image": "a.jpg", "path": "a.jpg", "caption": "x"}', ":1: needs exactly one column"),
        ('{"image": "a.jpg"}', ":1: needs exactly one column caption or text"),
        ('{"image": 3, "caption": "x"}', ":1: needs a text for the image"),
        ('{"image": "a.jpg", "captions": {"x": 1}}', r"captions that are no text: 1 .*:1 \("),
        ('{"image": "a.jpg", "caption": "\\ud800"}', ":1: .* is not Unicode text"),
        ('{"image": "a.jpg", "caption": "x", "split": 1}', ":1: unknown split 1"),
        (
            GOOD + '{"image": "a.jpg", "caption": "y", "split": "val"}',
            r":1: states no split, but other lines do",
        ),
        ('{"image": "../../a.jpg", "caption": "x"}', ":1: .* is not a path below"),
    ],
)
def test_a_bad_json_lines_file_is_a_data_error_with_its_line(root: Path, text: str, message: str) -> None:
    (root / "captions.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read(root)


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "a.txt"])
def test_bytes_that_are_not_utf8_are_named_by_file_and_line(root: Path, name: str) -> None:
    (root / name).write_bytes(b"\n\xff")
    with pytest.raises(DataError, match=rf"{name}:2: not UTF-8"):
        read(root)


def test_two_captions_files_are_ambiguous(root: Path) -> None:
    touch(root, "captions.csv", "captions.jsonl")
    with pytest.raises(DataError, match=r"holds captions\.csv and captions\.jsonl"):
        read(root)


def test_a_captions_file_that_is_missing_or_of_another_kind_is_a_data_error(root: Path) -> None:
    with pytest.raises(DataError, match=r"no\.csv: cannot be read \(No such file"):
        read(root, captions=root / "no.csv")
    with pytest.raises(DataError, match=r"captions\.xlsx: captions are read from \.csv, \.tsv, \.jsonl and"):
        read(root, captions=root / "captions.xlsx")


def test_a_missing_root_and_one_without_images_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: cannot be listed \(No such file"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match=r"no image with a caption is left to read \(it holds no images\)"):
        read(tmp_path)


def test_links_out_of_the_root_are_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret\n")
    (root / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(DataError, match=r"a\.txt: a link that leads out"):
        read(root)


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "a.txt"])
@given(st.binary() | st.text().map(lambda text: f"image,caption,split\na.jpg,{text}".encode()))
@example(b"image,caption\na.jpg,x\n")
@example(b'{"image": "a.jpg", "caption": "x"}')
def test_whatever_bytes_a_captions_file_holds_nothing_but_a_data_error_arises(name: str, content: bytes) -> None:
    with TemporaryDirectory() as folder:
        root = touch(Path(folder), "a.jpg")
        (root / name).write_bytes(content)
        try:
            data = read(root)
        except DataError:
            return
        assert all(captions for captions in captions_of(data).values())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("a.jpg"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["image", "path", "caption", "captions", "split"]), inner)
        ),
    )
)
def test_whatever_json_a_line_holds_nothing_but_a_data_error_arises(value: object) -> None:
    with TemporaryDirectory() as folder:
        root = touch(Path(folder), "a.jpg")
        (root / "captions.jsonl").write_text(json.dumps(value))
        try:
            data = read(root)
        except DataError:
            return
        assert list(captions_of(data)) == ["a.jpg"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.tsv", "file_name\ttext\nA.JPG\ta dog, brown\n"),
        ("captions.csv", "image;caption\na.jpg;a dog, brown\n"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "a dog, brown"}\n'),
        ("metadata.csv", 'file_name,text\na,"a dog, brown"\n'),
        ("captions.txt", 'image,caption\na.jpg,"a dog, brown"\n'),
        ("captions.jsonl", '{"image": ".\\\\a.jpg", "captions": "a dog, brown"}\n'),
    ],
)
def test_the_tables_that_people_have_are_read(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text)
    data = read(root, val=0, test=0)
    assert [(image.path, image.captions) for image in data.images] == [("a.jpg", ("a dog, brown",))]


def test_parquet_is_read_and_what_is_no_text_is_counted(root: Path) -> None:
    table = pa.table({"file_name": ["a.jpg", "a.jpg", "a.jpg"], "text": ["a dog", None, "a brown dog"]})
    parquet.write_table(table, root / "metadata.parquet")
    data = read(root, val=0, test=0)
    assert data.images[0].captions == ("a dog", "a brown dog")
    assert any(line.startswith("captions that are no text: 1 (first: ") for line in data.skipped)
    (root / "metadata.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"metadata\.parquet: cannot be read as Parquet"):
        read(root)


def test_captions_that_are_no_text_are_counted_and_the_rest_is_read(root: Path) -> None:
    lines = [
        '{"image": "a.jpg", "caption": NaN}',
        '{"image": "a.jpg", "captions": ["a dog", 3, null]}',
        '{"image": "a.jpg", "captions": null}',
        '{"image": null, "caption": "a cow"}',
        '{"image": NaN, "caption": "a cow"}',
    ]
    (root / "captions.jsonl").write_text("\n".join(lines))
    data = read(root, val=0, test=0)
    assert data.images[0].captions == ("a dog",)
    assert any(line.startswith("captions that are no text: 4 (first: ") for line in data.skipped)
    assert any(line.startswith("rows without an image: 2 (first: ") for line in data.skipped)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.csv", "Photo,Was man sieht,text\na.jpg,ein Hund,x\n"),
        ("captions.jsonl", '{"Photo": "a.jpg", "Was man sieht": "ein Hund", "text": "x"}\n'),
    ],
)
def test_columns_of_other_names_are_named_by_the_person(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text)
    data = read_folder(
        root,
        captions=None,
        val_fraction=0,
        test_fraction=0,
        seed=0,
        image_column="photo",
        caption_column="was man sieht",
    )
    assert data.images[0].captions == ("ein Hund",)


def test_a_photo_of_a_format_that_is_not_read_is_told_from_a_missing_one(root: Path) -> None:
    (root / "raw.cr2").write_bytes(b"")
    (root / "captions.csv").write_text("image,caption\na.jpg,a dog\nraw.cr2,a cat\ngone.jpg,a cow\n")
    skipped = read(root, val=0, test=0).skipped
    assert "captions of photos of the format .cr2, which is not read: 1 (first: raw.cr2)" in skipped
    assert f"captions whose image is not in {root}: 1 (first: gone.jpg)" in skipped


def test_names_of_columns_are_refused_where_there_is_no_table(root: Path) -> None:
    (root / "a.txt").write_text("a dog\n")
    for columns in ({"image_column": "photo"}, {"caption_column": "text"}):
        with pytest.raises(DataError, match="holds no table of captions, which --image-column and --caption-column"):
            read_folder(root, captions=None, val_fraction=0, test_fraction=0, seed=0, **columns)


def test_a_name_with_accents_as_characters_of_their_own_is_the_same_name(root: Path) -> None:
    touch(root, unicodedata.normalize("NFD", "Käse.jpg"))
    (root / "captions.csv").write_text(unicodedata.normalize("NFC", "image,caption\nKäse.jpg,cheese\n"))
    assert list(captions_of(read(root)).values()) == [("cheese",)]


def test_a_text_beside_a_photo_of_a_format_that_is_not_read_says_so(root: Path) -> None:
    touch(root, "raw.cr2")
    for name in ("a.txt", "raw.txt"):
        (root / name).write_text("a dog\n")
    assert read(root).skipped == (
        "captions of photos of the format .cr2, which is not read: 1 (first: raw.cr2)",
        "images without a caption: 1 (first: trip/b.PNG)",
    )


def test_a_photo_of_another_name_is_counted_once_however_its_captions_are_ordered(root: Path) -> None:
    (root / "captions.csv").write_text("image,caption\nA.JPG,a dog\ntrip/b.PNG,a cat\nA.JPG,one dog\n")
    data = read(root, val=0, test=0)
    assert captions_of(data)["a.jpg"] == ("a dog", "one dog")
    assert data.skipped == ("photos found under a slightly different name: 1 (first: A.JPG as a.jpg)",)


def test_kaggles_flickr8k_is_read(tmp_path: Path, shared_data: Path) -> None:
    official = read_flickr8k(shared_data / "flickr8k").images[::500]
    (tmp_path / "Images").mkdir()
    with open(tmp_path / "captions.txt", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "caption"))
        for image in official:
            shutil.copy(shared_data / "flickr8k" / image.path, tmp_path / "Images")
            rows.writerows((image.image_id, caption) for caption in image.captions)
    data = read(tmp_path)
    assert captions_of(data) == {f"Images/{image.image_id}": image.captions for image in official}
    assert [line.partition(" (")[0] for line in data.skipped] == ["photos found under a slightly different name: 14"]


def test_tables_that_are_not_read_are_named(root: Path) -> None:
    (root / "captions.csv").write_text("image,caption\na.jpg,a dog\n")
    (root / "more.csv").write_text("x")
    assert "tables that are not read (name one with --captions): 1 (first: more.csv)" in read(root).skipped
    (root / "metadata.jsonl").write_text("")
    with pytest.raises(
        DataError, match=r"holds captions\.csv and metadata\.jsonl; name the one to read with --captions"
    ):
        read(root)
