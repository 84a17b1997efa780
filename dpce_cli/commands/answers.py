"""Printing the results of retrieve, and writing them to files."""

from __future__ import annotations

import csv
import io
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from dpce_cli.commands.console import print_json, print_table
from dpce_cli.core.errors import QueryError
from dpce_cli.core.progress import Reporter, visible

if TYPE_CHECKING:
    from dpce_cli.core.retrieval.hits import Answers

Form = Literal["table", "json", "csv", "paths", "paths0"]


def chosen_form(*, as_json: bool, as_csv: bool, paths: bool, null: bool, sheet: Path | None, html: Path | None) -> Form:
    """The form in which answers are printed.

    Raises:
        BadParameter: options exclude each other.
    """
    forms: dict[Form, bool] = {"json": as_json, "csv": as_csv, "paths": paths}
    chosen = [form for form, is_chosen in forms.items() if is_chosen]
    if len(chosen) > 1:
        raise typer.BadParameter(f"{' and '.join(f'--{form}' for form in chosen)} exclude each other; choose one")
    if null and not paths:
        raise typer.BadParameter("--null goes with --paths")
    if sheet and sheet == html:
        raise typer.BadParameter("--sheet and --html name the same file")
    return "paths0" if null else (*chosen, "table")[0]


def give_answers(answers: Answers, form: Form, *, sheet: Path | None, html: Path | None, reporter: Reporter) -> None:
    """Write the contact sheet and the page, if their paths are given, then print the answers on stdout."""
    if sheet or html:
        from dpce_cli.core.retrieval.page import write_page
        from dpce_cli.core.retrieval.sheet import draw_sheet
        from dpce_cli.core.retrieval.thumbnails import Thumbnails

        thumbnails = Thumbnails(reporter)
        if sheet:
            draw_sheet(sheet, answers, thumbnails)
            reporter.note(f"contact sheet: {sheet}")
        if html:
            write_page(html, answers, thumbnails)
            reporter.note(f"page: {html}")
        if unseen := len(thumbnails.problems):
            reporter.warn(f"{unseen} {'photo' if unseen == 1 else 'photos'} cannot be shown")
    if form == "json":
        print_json([asdict(hit) for hit in answers.hits])
    elif form == "csv":
        _print_csv(answers)
    elif form == "table":
        _print_table(answers)
    else:
        _print_paths(answers, "\0" if form == "paths0" else "\n", reporter)


def _print_table(answers: Answers) -> None:
    hits = answers.hits
    values = {
        "rank": [f"{hit.rank}" for hit in hits],
        "score": [f"{hit.score:.3f}" for hit in hits],
        "relevance": [hit.percent for hit in hits],
        "date": [(hit.date or "").replace("T", " ") for hit in hits],
        "path": [hit.path if answers.photo(hit) else "" for hit in hits],
        "caption": [hit.caption for hit in hits],
    }
    shown = {name: cells for name, cells in values.items() if any(cells)}
    numbers = len(shown.keys() & {"rank", "score", "relevance"})
    rows = list(zip(*shown.values(), strict=True))
    print_table(f"{answers.title}: {answers.query}", tuple(shown), rows, text_columns=len(shown) - numbers)


def _print_csv(answers: Answers) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "score", "relevance", "id", "path", "caption", "date"])
    for hit in answers.hits:
        numbers = hit.rank, f"{hit.score:.6f}", "" if hit.relevance is None else f"{hit.relevance:.4f}"
        writer.writerow([*numbers, hit.image_id, hit.path, hit.caption, hit.date or ""])
    _print_exactly(text.getvalue())


def _print_paths(answers: Answers, end: str, reporter: Reporter) -> None:
    """Print each photo's whole path once."""
    paths = list(dict.fromkeys(str(path) for path in map(answers.photo, answers.hits) if path))
    if answers.hits and not paths:
        raise QueryError("--paths: these answers are sentences, which belong to no photo; leave --paths out")
    if end == "\n" and any("\n" in path for path in paths):
        reporter.warn("a path contains a line break; use --null to separate the paths")
    _print_exactly("".join(path + end for path in paths))


def _print_exactly(text: str) -> None:
    """Print file names byte for byte; in a terminal, control characters are escaped."""
    if sys.stdout is not None and sys.stdout.isatty():
        typer.echo("".join(letter if letter in "\n\0" else visible(letter) for letter in text), nl=False)
        return
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair, which no file's name has
        data = text.encode("utf-8", "backslashreplace")
    typer.echo(data, nl=False)
