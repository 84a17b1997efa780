"""dpce train-stage2"""

from __future__ import annotations

from dpce_cli.commands.options import (
    DEFAULT_WORKSPACE,
    DeviceOption,
    EpochsOption,
    FeatureCacheOption,
    FreshOption,
    SetOption,
    ShowConfigOption,
    WorkersOption,
    WorkspaceOption,
)


def train_stage2(
    epochs: EpochsOption = None,
    feature_cache: FeatureCacheOption = True,
    settings: SetOption = [],  # noqa: B006 - Typer copies it
    fresh: FreshOption = False,
    show_config: ShowConfigOption = False,
    device: DeviceOption = "auto",
    workers: WorkersOption = 2,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Stage II: add the ranking loss, from Stage I's best model. Interrupted, the same command continues.

    Encoders and seed are Stage I's; only stage2.* can be set.

    Example: dpce train-stage2 --set stage2.margin=0.1
    """
    from dpce_cli.commands.console import ConsoleReporter
    from dpce_cli.commands.training import print_plan, print_result
    from dpce_cli.core.artefacts import load_best
    from dpce_cli.core.config import stage2_config
    from dpce_cli.core.devices import choose_device
    from dpce_cli.core.training.plan import plan_stage
    from dpce_cli.core.training.run import RunOptions
    from dpce_cli.core.training.stage2 import train_stage2 as train
    from dpce_cli.core.training.stage2 import word_table
    from dpce_cli.core.workspace import Workspace

    place = Workspace(workspace)
    dataset = place.load_dataset()
    first = load_best(place, dataset, 1)
    if epochs is not None:
        settings = [*settings, f"stage2.epochs={epochs}"]
    config = stage2_config(first.config, dataset.config, settings)
    if show_config:
        words = word_table(first)
        plan = plan_stage(dataset, config, words, stage=2, feature_cache=feature_cache, classes=first.instances)
        print_plan(plan, config)
        return
    options = RunOptions(device=choose_device(device), workers=workers, feature_cache=feature_cache, fresh=fresh)
    result = train(place, dataset, config, first, options, ConsoleReporter())
    print_result(result, then="dpce extract-features")
