"""dpce prepare-vocab"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpce_cli.commands.options import (
    DEFAULT_WORKSPACE,
    SeedOption,
    SetOption,
    WorkersOption,
    WorkspaceOption,
    number_of_workers,
)

if TYPE_CHECKING:
    from dpce_cli.core.data.records import CaptionedImages


class Dataset(StrEnum):
    scenes = "scenes"
    flickr8k = "flickr8k"
    flickr30k = "flickr30k"
    coco = "coco"
    cuhk_pedes = "cuhk-pedes"
    icfg_pedes = "icfg-pedes"
    rstp_reid = "rstp-reid"
    folder = "folder"
    webdataset = "webdataset"


@dataclass(frozen=True)
class Source:
    """A kind of data set."""

    reader: str
    """Module and function below `dpce_cli.core`."""
    preset: str
    options: tuple[str, ...] = ()
    """Options of the command that the reader takes; all others of `READER_OPTIONS` are refused."""
    named_by_folder: bool = False
    """Whether the data set takes its folder's name, because there may be several of this kind."""

    def read(self, root: Path, values: Mapping[str, Any]) -> CaptionedImages:
        module, _, function = self.reader.partition(":")
        read: Callable[..., CaptionedImages] = getattr(import_module(f"dpce_cli.core.{module}"), function)
        return read(root, **{name: values[name] for name in self.options})


DRAWN_SPLITS = ("val_fraction", "test_fraction", "seed")
SOURCES = {
    Dataset.scenes: Source("scenes.dataset:draw_scenes", "scenes", ("train_images", "test_images", "seed", "reporter")),
    Dataset.flickr8k: Source("data.readers.flickr8k:read_flickr8k", "flickr8k", ("captions",)),
    Dataset.flickr30k: Source("data.readers.flickr30k:read_flickr30k", "paper-flickr30k", ("splits",)),
    Dataset.coco: Source("data.readers.coco:read_coco", "paper-coco", ("splits", "seed")),
    Dataset.cuhk_pedes: Source("data.readers.cuhk_pedes:read_cuhk_pedes", "paper-cuhk-pedes", ("seed",)),
    Dataset.icfg_pedes: Source("data.readers.cuhk_pedes:read_icfg_pedes", "paper-cuhk-pedes"),
    Dataset.rstp_reid: Source("data.readers.cuhk_pedes:read_rstp_reid", "paper-cuhk-pedes"),
    Dataset.folder: Source(
        "data.readers.folder:read_folder",
        "flickr8k",
        ("captions", "image_column", "caption_column", *DRAWN_SPLITS),
        named_by_folder=True,
    ),
    Dataset.webdataset: Source(
        "data.readers.webdataset:read_webdataset", "flickr8k", (*DRAWN_SPLITS, "reporter"), named_by_folder=True
    ),
}
READER_OPTIONS = {
    "captions", "image_column", "caption_column", "splits", "val_fraction", "test_fraction", "train_images",
    "test_images",
}  # fmt: skip


def prepare_vocab(
    context: typer.Context,
    dataset: Annotated[
        Dataset,
        typer.Argument(
            help="scenes: cartoons, drawn by the command. flickr8k, flickr30k, coco, cuhk-pedes, icfg-pedes, "
            "rstp-reid: the published files. folder: your own photos with captions in a table, JSON Lines or one .txt "
            "per photo. webdataset: tar shards of photos with a .txt or .json each."
        ),
    ] = Dataset.scenes,
    root: Annotated[Path | None, typer.Option("--root", help="Folder of the photos; scenes have none.")] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of the data set.  \\[default: its kind; for folder and webdataset the folder's name]"
        ),
    ] = None,
    captions: Annotated[
        Path | None, typer.Option("--captions", help="folder, flickr8k: read the captions from this file.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option("--image-column", help="folder: column that names the photo.  \\[default: image]")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option("--caption-column", help="folder: column of the caption.  \\[default: caption]")
    ] = None,
    splits: Annotated[
        str,
        typer.Option(
            "--splits",
            metavar="karpathy|paper|FILE",
            help="flickr30k, coco: Karpathy's, those of Zheng et al. 2020, or a splits.json.",
        ),
    ] = "karpathy",
    val_fraction: Annotated[
        float,
        typer.Option("--val-fraction", help="folder, webdataset without stated splits: share of validation photos."),
    ] = 0.1,
    test_fraction: Annotated[
        float, typer.Option("--test-fraction", help="folder, webdataset without stated splits: share of test photos.")
    ] = 0.1,
    train_images: Annotated[
        int, typer.Option("--train-images", min=2, help="scenes: number of training pictures.")
    ] = 3000,
    test_images: Annotated[
        int, typer.Option("--test-images", min=1, help="scenes: number of validation pictures, and of test pictures.")
    ] = 200,
    preset: Annotated[
        str | None, typer.Option("--preset", help="A named configuration.  \\[default: by data set]")
    ] = None,
    resize: Annotated[
        bool,
        typer.Option(
            "--resize-images",
            help="Copy the photos into the workspace at the size that training needs: they are read faster.",
        ),
    ] = False,
    workers: WorkersOption = None,
    settings: SetOption = [],  # noqa: B006 - Typer copies it
    seed: SeedOption = None,
    workspace_path: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Read a data set, build its vocabulary from the training captions, and make it the current one.

    Example: dpce prepare-vocab flickr8k --root ~/data/flickr8k
    """
    source = SOURCES[dataset]
    for option in sorted(READER_OPTIONS - {*source.options}):
        if getattr(context.get_parameter_source(option), "name", "") == "COMMANDLINE":
            raise typer.BadParameter(f"does not apply to {dataset}; leave it out", param_hint=_flag(option))
    if dataset is Dataset.scenes and root is not None:
        raise typer.BadParameter(f"does not apply to {dataset}; leave it out", param_hint="--root")
    if dataset is not Dataset.scenes and root is None:
        raise typer.BadParameter(f"{dataset} needs the folder of its photos", param_hint="--root")

    from dpce_cli.commands.console import ConsoleReporter, print_table
    from dpce_cli.core.presets import build_preset
    from dpce_cli.core.workspace.preparation import prepare_dataset
    from dpce_cli.core.workspace.workspace import Workspace, check_name, check_own_name

    if seed is not None:
        settings = [*settings, f"seed={seed}"]
    config = build_preset(preset or source.preset).with_settings(settings)
    reporter, workspace = ConsoleReporter(), Workspace(workspace_path)
    values = {
        "captions": captions, "image_column": image_column, "caption_column": caption_column, "splits": splits,
        "val_fraction": val_fraction, "test_fraction": test_fraction, "train_images": train_images,
        "test_images": test_images, "seed": config.seed, "reporter": reporter,
    }  # fmt: skip
    default = root.resolve().name if root and source.named_by_folder else dataset.value
    chosen = check_name(default if name is None else name)
    if source.named_by_folder:
        check_own_name(chosen)
    folder = workspace.root / chosen
    photos = (root or folder).resolve()
    if note := workspace.note_of_replacement(chosen, photos, is_named=name is not None):
        reporter.note(note)
    captioned = replace(source.read(root or folder, values), name=chosen)
    if resize:
        from dpce_cli.core.data.resizing import resize_images  # slow to import: it decodes with torch's workers

        captioned = resize_images(
            captioned, folder, config.image, workers=number_of_workers(workers), reporter=reporter
        )
    for line in captioned.skipped:
        reporter.warn(f"left out: {line}")
    draws_splits = splits == "paper" and "splits" in source.options
    prepared, summaries = prepare_dataset(workspace, captioned, config, reporter, with_split_ids=draws_splits)
    if draws_splits:
        reporter.note(f"the ids of each split are in {folder / workspace.about()['split_ids']}, a file for --splits")
    print_table(
        f"{chosen}: {len(prepared.vocabulary)} words, preset {config.preset}, in {folder}",
        ("split", "images", "captions", f"over {config.text.max_words} words", "unknown words"),
        [
            (s.split, f"{s.images}", f"{s.captions}", f"{s.cut_captions}", f"{100 * s.unknown_words:.1f}%")
            for s in summaries
        ],
        text_columns=0,
    )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
