"""dpce: image-text retrieval with dual-path convolutional embeddings and instance loss.

For programs, `load_model` gives a `Model` that embeds sentences and photos, and a `Gallery` that `dpce index` made is
searched with it:

    import dpce_cli

    model = dpce_cli.load_model("dogs-model")
    gallery = dpce_cli.Gallery("dpce-workspace/galleries/photos", model)
    for hit in gallery.search("two dogs in the snow", top_k=5):
        print(hit.score, hit.path)

What is wrong with files, models or queries raises a `DpceError` whose message is for people. Whatever is slow to import
is imported when it is used, so that `import dpce_cli` is instant.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpce_cli.core.errors import DpceError
    from dpce_cli.core.galleries.gallery import Gallery
    from dpce_cli.core.retrieval.hits import Filters, Hit
    from dpce_cli.core.retrieval.model import Model

__version__ = "0.2.0"
__all__ = ["DpceError", "Filters", "Gallery", "Hit", "Model", "load_model"]

_MODULES = {
    "DpceError": "core.errors",
    "Filters": "core.retrieval.hits",
    "Gallery": "core.galleries.gallery",
    "Hit": "core.retrieval.hits",
    "Model": "core.retrieval.model",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'dpce_cli' has no attribute {name!r}")
    return getattr(import_module(f"dpce_cli.{_MODULES[name]}"), name)


def load_model(path: str | os.PathLike[str], *, device: str | None = None) -> Model:
    """The model in a folder that `dpce export` wrote, or on the Hugging Face hub (`"hf:USER/NAME[@REVISION]"`).

    Its methods give float32 arrays `(items, model.dim)` with rows of length 1, so that the dot product of two rows is
    their cosine similarity. Words that the model does not know are ignored.

        import dpce_cli

        model = dpce_cli.load_model("dogs-model")
        sentences = model.encode_text(["two dogs in the snow", "a red bus"])
        photos = model.encode_images(["rex.jpg"])
        similarity = photos @ sentences.T  # (1, 2)

    Args:
        device: "cpu", "cuda" or "cuda:N". None is the CPU, and needs no torch for sentences where the folder has
            text.onnx (`dpce export --onnx`) and onnxruntime is installed.

    Raises:
        DpceError: there is no such model or device, or the model is damaged.
    """
    from dpce_cli.core.sharing.finding import locate_model
    from dpce_cli.core.sharing.model_folder import load_model as load

    if device is None:
        return load(locate_model(os.fspath(path)))
    from dpce_cli.core.processes.devices import choose_device

    return load(locate_model(os.fspath(path)), device=choose_device(device))
