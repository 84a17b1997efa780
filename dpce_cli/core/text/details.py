"""Words that name a detail, such as a colour or a number, in groups of words that replace each other."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpce_cli.core.errors import DataError

Kinds = Mapping[str, Sequence[Sequence[str]]]
"""Groups of words that replace each other, by kind of detail."""

_ENGLISH = Path(__file__).with_name("details.toml")
_NAMED = {"english": _ENGLISH, "scenes": _ENGLISH.with_name("details_scenes.toml")}


def read_details(source: str) -> Kinds:
    """Read the words of each kind of detail.

    Args:
        source: "english" for the words of dpce, "scenes" for those of the built-in scenes, or the path of a TOML file
            like `core/text/details.toml`.

    Raises:
        DataError: it cannot be read, is not TOML, or a kind is not a list of strings of at least two different words.
    """
    path = _NAMED.get(source) or Path(source)
    try:
        kinds = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read as TOML ({error}); give 'english' or a file of words: start from a copy of "
            f"{_ENGLISH}"
        ) from error
    read = dict[str, list[list[str]]]()
    for kind, groups in kinds.items():
        if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
            raise DataError(f'{path}: {kind}: give a list of strings of words, for example ["left right"]')
        read[kind] = [group.split() for group in groups]
        words = [word for group in read[kind] for word in group]
        if len(set(words)) < len(words) or any(len(group) < 2 for group in read[kind]):
            raise DataError(f"{path}: {kind}: give at least two words per string, and each word once")
    return read
