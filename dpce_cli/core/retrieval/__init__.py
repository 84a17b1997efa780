"""Test-time embeddings, search and evaluation."""
