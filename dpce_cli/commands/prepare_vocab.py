"""dpce prepare-vocab"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, SeedOption, SetOption, WorkersOption, WorkspaceOption


class Dataset(StrEnum):
    scenes = "scenes"
    flickr8k = "flickr8k"
    flickr30k = "flickr30k"
    coco = "coco"
    cuhk_pedes = "cuhk-pedes"
    folder = "folder"
    webdataset = "webdataset"


PRESET_OF = {
    Dataset.scenes: "scenes",
    Dataset.flickr8k: "flickr8k",
    Dataset.flickr30k: "paper-flickr30k",
    Dataset.coco: "paper-coco",
    Dataset.cuhk_pedes: "paper-cuhk-pedes",
    Dataset.folder: "flickr8k",
    Dataset.webdataset: "flickr8k",
}


SCENE_SIZE = 96


def prepare_vocab(
    dataset: Annotated[
        Dataset,
        typer.Argument(
            help="scenes: cartoons drawn on the spot. flickr8k, flickr30k, coco, cuhk-pedes: the published files. "
            "folder: your own photos with captions.csv, captions.jsonl or one .txt a photo. "
            "webdataset: tar shards of photos with a .txt or .json each."
        ),
    ] = Dataset.scenes,
    root: Annotated[Path | None, typer.Option("--root", help="Folder of the photos; not needed for scenes.")] = None,
    captions: Annotated[
        Path | None, typer.Option("--captions", help="folder: the CSV or JSON Lines file, if it lies elsewhere.")
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
    train_images: Annotated[int, typer.Option("--train-images", min=2, help="scenes: training pictures.")] = 1500,
    test_images: Annotated[
        int, typer.Option("--test-images", min=1, help="scenes: validation pictures, and as many test pictures.")
    ] = 200,
    preset: Annotated[
        str | None, typer.Option("--preset", help="A named configuration.  \\[default: by data set]")
    ] = None,
    resize: Annotated[
        bool,
        typer.Option(
            "--resize-images", help="Keep photos in the workspace at the size that training needs, to read them faster."
        ),
    ] = False,
    workers: WorkersOption = 2,
    settings: SetOption = [],  # noqa: B006 - Typer copies it
    seed: SeedOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Read a data set, build its vocabulary from the training captions, and make it the current one.

    Example: dpce prepare-vocab flickr8k --root ~/data/flickr8k
    """
    from dpce_cli.commands.console import ConsoleReporter, print_table
    from dpce_cli.core.data.readers.coco import read_coco
    from dpce_cli.core.data.readers.cuhk_pedes import read_cuhk_pedes
    from dpce_cli.core.data.readers.flickr8k import read_flickr8k
    from dpce_cli.core.data.readers.flickr30k import read_flickr30k
    from dpce_cli.core.data.readers.folder import read_folder
    from dpce_cli.core.data.readers.webdataset import read_webdataset
    from dpce_cli.core.data.splits import save_splits
    from dpce_cli.core.presets import build_preset
    from dpce_cli.core.scenes.dataset import build_scenes
    from dpce_cli.core.workspace.preparation import prepare_dataset
    from dpce_cli.core.workspace.workspace import Workspace

    if seed is not None:
        settings = [*settings, f"seed={seed}"]
    config = build_preset(preset or PRESET_OF[dataset]).with_settings(settings)
    reporter = ConsoleReporter()
    if dataset is Dataset.scenes:
        root = root or workspace / "scenes" / "photos"
    elif root is None:
        raise typer.BadParameter(f"{dataset} needs the folder of its photos", param_hint="--root")
    match dataset:
        case Dataset.scenes:
            counts = {"train": train_images, "val": test_images, "test": test_images}
            captioned = build_scenes(root, seed=config.seed, counts=counts, size=SCENE_SIZE, reporter=reporter)
        case Dataset.flickr8k:
            captioned = read_flickr8k(root)
        case Dataset.flickr30k:
            captioned = read_flickr30k(root, splits=splits)
        case Dataset.coco:
            captioned = read_coco(root, splits=splits, seed=config.seed)
        case Dataset.cuhk_pedes:
            captioned = read_cuhk_pedes(root)
        case Dataset.folder:
            captioned = read_folder(
                root, captions=captions, val_fraction=val_fraction, test_fraction=test_fraction, seed=config.seed
            )
        case Dataset.webdataset:
            captioned = read_webdataset(
                root, val_fraction=val_fraction, test_fraction=test_fraction, seed=config.seed, reporter=reporter
            )
    if resize:
        from dpce_cli.core.data.resizing import resize_images  # slow to import: it decodes with torch's workers

        folder = workspace / captioned.name / "images"
        captioned = resize_images(captioned, folder, config.image, workers=workers, reporter=reporter)
    for line in captioned.skipped:
        reporter.warn(f"left out: {line}")
    prepared, summaries = prepare_dataset(Workspace(workspace), captioned, config, reporter)
    if splits == "paper" and dataset in (Dataset.flickr30k, Dataset.coco):
        save_splits(workspace / prepared.name / "splits.json", captioned)
        reporter.note(f"the ids of each split are in {workspace / prepared.name / 'splits.json'}, a file for --splits")
    print_table(
        f"{prepared.name}: {len(prepared.vocabulary)} words, preset {config.preset}, in {workspace / prepared.name}",
        ("split", "images", "captions", f"over {config.text.max_words} words", "unknown words"),
        [
            (s.split, f"{s.images}", f"{s.captions}", f"{s.cut_captions}", f"{100 * s.unknown_words:.1f}%")
            for s in summaries
        ],
        text_columns=0,
    )
