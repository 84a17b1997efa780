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

import errno


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


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space or choose another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change the permissions or choose another place"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "use fewer --workers, or allow more open files with 'ulimit -n'"),
    **dict.fromkeys((errno.EPIPE, errno.ECONNRESET), "another process of this command ended early"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk and its connection"),
    errno.EROFS: "this disk cannot be written to; choose another place",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.EISDIR: "this is a folder; name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOMEM: "close other programs",
    errno.ENOENT: "check the path",
}


def advice_on(error: OSError) -> str:
    """What a person can do about an error of the operating system, before running the command again."""
    return _ADVICE.get(error.errno or 0, "check the path")
