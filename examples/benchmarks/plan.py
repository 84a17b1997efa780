#!/usr/bin/env python3
"""Memory that dpce plan estimates against the measured peak of three training steps."""

from __future__ import annotations

import argparse
import os

from measuring import in_own_process, peak_after_imports, peak_mib


def plan() -> None:
    """The memory that `dpce plan` estimates, against the peak of three steps, without imports."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed memory goes back to the system
    for name, preset, stage, classes, settings in PLANNED:
        estimate, measured = in_own_process(plan_and_measure, preset, stage, classes, settings)
        error = 100 * (estimate / measured - 1)
        print(f"{name:<62}{estimate:8,.0f} MiB planned {measured:8,.0f} MiB measured {error:+6.1f} %")


PLANNED: tuple[tuple[str, str, int, int, list[str]], ...] = (
    ("paper-coco, stage 1, cached features, 113,287 classes", "paper-coco", 1, 113_287, []),
    (
        "paper-flickr30k, stage 2, 16 photos per step, 29,783 classes",
        "paper-flickr30k",
        2,
        29_783,
        ["stage2.batch_size=16"],
    ),
    (
        "flickr8k, stage 1, 512-d, 1,000,000 classes, a tenth sampled",
        "flickr8k",
        1,
        1_000_000,
        ["model.embedding_dim=512", "model.classifier_sample_rate=0.1"],
    ),
)


def plan_and_measure(preset: str, stage: int, classes: int, settings: list[str]) -> tuple[float, float]:
    """Estimated and measured memory in MiB."""
    import torch

    from dpce_cli.core.models.dual_encoder import DualEncoder
    from dpce_cli.core.presets import build_preset
    from dpce_cli.core.training.optimisation import build_optimizer, cached_kind, parameter_groups
    from dpce_cli.core.training.sizing import take_step, training_memory

    config = build_preset(preset).with_settings(settings)
    sizes = {"vocabulary": 20_000, "word_dim": config.model.word_dim}
    planned = training_memory(config, stage=stage, classes=classes, feature_cache=True, **sizes)
    before = peak_after_imports()
    chosen = config.stage(stage)
    model = DualEncoder(config, vocabulary_size=sizes["vocabulary"], word_dim=sizes["word_dim"], instances=classes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.01)
    groups = parameter_groups(model, chosen.multipliers)
    optimizer = build_optimizer(groups, chosen)
    model.shared_classifier.attach_to(optimizer)
    cached = cached_kind(model, chosen.multipliers)
    model.train()
    photos = chosen.batch_size
    for _ in range(3):
        take_step(model, config, chosen, photos, photos * chosen.captions_per_image, 1, cached=cached)
        optimizer.step()
        optimizer.zero_grad()
    return sum(planned.values()) / 2**20, peak_mib() - before


def main() -> None:
    argparse.ArgumentParser(description=__doc__, allow_abbrev=False).parse_args()
    plan()


if __name__ == "__main__":
    main()
