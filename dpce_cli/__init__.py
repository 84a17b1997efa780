"""dpce: image-text retrieval with dual-path convolutional embeddings and instance loss."""

__version__ = "0.2.0"
