"""The errors that a user can cause or meet; `dpce_cli.app` prints them as one line and exits with 1.

DpceError
├── DataError          a data set's root, files, images or captions
├── VocabularyError    no vocabulary, no known word, unreadable word vectors
├── ConfigError        a preset, a setting or its value
├── WorkspaceError     an artefact is missing, damaged, or does not belong with another
├── CheckpointError    a checkpoint that cannot be read or does not fit the model
├── TrainingError      training cannot go on (a loss that is not finite)
└── QueryError         a query that cannot be answered

Every message says what is wrong, where (file, line or key), and what to do next.
"""

from __future__ import annotations


class DpceError(Exception):
    """Base of every error that is the input's or the environment's, not a bug."""


class DataError(DpceError):
    pass


class VocabularyError(DpceError):
    pass


class ConfigError(DpceError):
    pass


class WorkspaceError(DpceError):
    pass


class CheckpointError(DpceError):
    pass


class TrainingError(DpceError):
    pass


class QueryError(DpceError):
    pass


class ProcessGone(TrainingError):
    """Another process of this job cannot be reached any more."""
