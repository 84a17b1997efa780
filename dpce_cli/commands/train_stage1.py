"""dpce train-stage1"""

from __future__ import annotations

from typing import Annotated

import typer

from dpce_cli.commands.options import SeedOption
from dpce_cli.commands.training import (
    TrainingOptions,
    print_result,
    refuse_unused,
    show_config,
    with_training_options,
)
from dpce_cli.core.errors import ConfigError


@with_training_options
def train_stage1(
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="A CNN of torchvision, timm:NAME, resnet50-v1, resnet50-caffe or vgg16/19-caffe.  "
            "\\[default: the preset's]",
        ),
    ] = None,
    backbone_weights: Annotated[
        str | None,
        typer.Option(
            "--backbone-weights",
            help="A state dict file, imagenet (the published ones) or none.  \\[default: the preset's]",
        ),
    ] = None,
    word_vectors: Annotated[
        bool,
        typer.Option(
            "--word-vectors/--no-word-vectors",
            help="Begin with the word vectors of build-word2vec, or with random ones.",
        ),
    ] = True,
    position_shift: Annotated[
        bool | None,
        typer.Option(
            "--position-shift/--no-position-shift",
            help="Place captions at random positions, or left-aligned.  \\[default: the preset's]",
        ),
    ] = None,
    seed: SeedOption = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Begin with a trained model, a folder or hf:USER/NAME, and teach it the words of the captions. "
            "This is measured with thousands of photos; for a few, use dpce teach.",
        ),
    ] = None,
    *,
    options: TrainingOptions,
) -> None:
    """Stage I: train with the instance loss. If interrupted, run it again to continue.

    Example: dpce train-stage1 --backbone resnet50-v1 --backbone-weights resnet50-imagenet-v1.pth

    Example: dpce train-stage1 --from dogs-model
    """
    from dpce_cli.commands.console import build_reporter
    from dpce_cli.core.processes.collectives import process_group
    from dpce_cli.core.processes.environment import is_main_process
    from dpce_cli.core.sharing.finding import find_model
    from dpce_cli.core.training.stage1 import train_stage1 as train
    from dpce_cli.core.training.stage1 import word_table
    from dpce_cli.core.training.starting import config_to_continue, words_to_continue
    from dpce_cli.core.workspace.initial_vectors import load_initial_vectors
    from dpce_cli.core.workspace.workspace import Workspace

    device = options.launch()
    workspace = Workspace(options.workspace)
    dataset = workspace.load_dataset()
    named = {
        "stage1.epochs": options.epochs,
        "image.backbone": backbone,
        "image.backbone_weights": backbone_weights,
        "seed": seed,
        "model.position_shift": None if position_shift is None else str(position_shift).lower(),
    }
    refuse_unused(options.settings, 2, instead="give the setting to train-stage2")
    model, base = None, dataset.config
    if start is not None:
        if backbone or backbone_weights:
            raise ConfigError("--from MODEL brings its image CNN; leave out --backbone and --backbone-weights")
        model = find_model(start, workspace, reporter=build_reporter())
        base = config_to_continue(base, model, feature_cache=options.feature_cache)
    config = base.with_settings(
        [*options.settings, *(f"{key}={value}" for key, value in named.items() if value is not None)]
    )
    vectors = None
    if word_vectors and (model is None or workspace.word_vectors_path.is_file()):
        vectors = load_initial_vectors(workspace, dataset, otherwise=", or train with --no-word-vectors")
    if options.show_config:
        words = words_to_continue(model, dataset) if model else word_table(dataset, config, vectors)
        show_config(options, dataset, config, words, stage=1, classes=dataset.instances)
        return
    with process_group(device) as chosen:
        result = train(workspace, dataset, config, vectors, options.run_options(chosen), build_reporter(), start=model)
    if is_main_process():
        print_result(result, then="dpce train-stage2")
