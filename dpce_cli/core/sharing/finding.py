"""Finding the model that a user names: a folder, or a model on the Hugging Face hub."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dpce_cli.core.errors import CheckpointError
from dpce_cli.core.progress import Reporter
from dpce_cli.core.retrieval.model import Model
from dpce_cli.core.retrieval.relevance import load_relevances
from dpce_cli.core.sharing.model_folder import FILES, load_model
from dpce_cli.core.workspace.workspace import Workspace

if TYPE_CHECKING:
    import torch

    from dpce_cli.core.workspace.checkpoint import Checkpoint

HUB = "hf:"


def find_model(
    name: str | None,
    workspace: Workspace,
    *,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> Model:
    """The model that `name` names (see `locate_model`), or without one the best model of the workspace's data set.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        WorkspaceError: no name is given and no data set is prepared.
    """
    if name is not None:
        return load_model(locate_model(name, reporter), device=device, reporter=reporter)
    from dpce_cli.core.workspace.artefacts import load_best

    return workspace_model(workspace, load_best(workspace, None, None), device=device, reporter=reporter)


def workspace_model(
    workspace: Workspace,
    checkpoint: Checkpoint,
    *,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> Model:
    """The model of a checkpoint of the workspace, with the bank and the relevance that extract-features made for it."""
    from dpce_cli.core.retrieval.hubness import bank_loader

    return Model.of_checkpoint(
        checkpoint,
        load_bank=bank_loader(workspace.bank_path(checkpoint.stage), checkpoint),
        relevances=load_relevances(workspace.relevance_path(checkpoint.stage), checkpoint.fingerprint),
        device=device,
        reporter=reporter,
    )


def locate_model(name: str, reporter: Reporter | None = None) -> Path:
    """The folder of a model by the name that a user types: a path, or `hf:USER/NAME[@REVISION]`.

    A model of the hub is downloaded once, into the cache of the library `huggingface_hub`; the environment variable
    HF_ENDPOINT names another server.

    Raises:
        CheckpointError: there is no such folder or model, or the hub cannot be reached.
    """
    if not name.startswith(HUB):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise CheckpointError(
                f"{name}: there is no such model folder; 'dpce export {name}' makes one, and {HUB}USER/NAME names one "
                "on the Hugging Face hub"
            )
        return folder
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name.removeprefix(HUB))
    if not match:
        raise CheckpointError(f"{name}: expected {HUB}USER/NAME or {HUB}USER/NAME@REVISION")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
        from huggingface_hub.utils.tqdm import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )
    except ImportError as error:
        raise CheckpointError(f"{name}: needs the library huggingface_hub; pip install 'dpce[hub]'") from error
    download = partial(snapshot_download, match[1], revision=match[2], allow_patterns=list(FILES))
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()  # they would be drawn each time, also where everything is in the cache
    try:
        if reporter:
            try:
                download(local_files_only=True)
            except LocalEntryNotFoundError:
                reporter.note(f"{name}: downloading")
        return Path(download())
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise CheckpointError(
            f"{name}: cannot be downloaded ({' '.join(lines[:2])}); check the name and the network"
        ) from error
    finally:
        if had_bars:
            enable_progress_bars()
