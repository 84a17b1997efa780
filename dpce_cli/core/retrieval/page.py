"""A query and its ranked answers as one HTML page that can be sent to anyone."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from html import escape
from pathlib import Path

from PIL import Image

from dpce_cli.core.errors import QueryError
from dpce_cli.core.progress import visible
from dpce_cli.core.retrieval.hits import Answers, Hit
from dpce_cli.core.retrieval.thumbnails import Thumbnails
from dpce_cli.core.storage.files import replacing

MAX_HITS = 1000
"""A page with more photos is too large to send or to open easily."""
_THUMBNAIL = 480

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2329; --faint: #5b6570; --empty: #eef0f2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e8eaed; --faint: #a4adb6; --empty: #262b30; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1.25rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
header { margin-bottom: 1.5rem; }
header .frame, header .missing { width: 20rem; max-width: 100%; margin-top: 1rem; }
p { margin: .15rem 0; }
.faint { color: var(--faint); font-size: .875rem; }
ol { list-style: none; margin: 0; padding: 0; }
ol.photos { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
ol.sentences li { max-width: 45rem; padding: .6rem 0; border-top: 1px solid var(--empty); }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; }
.frame, .missing { display: grid; place-items: center; aspect-ratio: 1; background: var(--empty); border-radius: 6px;
  overflow: hidden; margin-bottom: .4rem; }
.frame img { width: 100%; height: 100%; object-fit: contain; }
.missing { color: var(--faint); font-size: .875rem; padding: 1rem; text-align: center; }
.rank { font-weight: 600; }
"""


def write_page(path: Path, answers: Answers, thumbnails: Thumbnails) -> None:
    """Write one HTML file that contains its photos; without scripts, links to other files, or the photos' metadata.

    Paths are shown relative to the folder that contains all of the photos; the page does not show that folder.

    Raises:
        QueryError: there are more than `MAX_HITS` hits.
        WorkspaceError: `path` cannot be written.
    """
    if len(answers.hits) > MAX_HITS:
        raise QueryError(
            f"{len(answers.hits):,} results are too many for a page; ask for at most {MAX_HITS:,} with --top-k, "
            "or leave out --html"
        )
    sentence = answers.query if isinstance(answers.query, str) else ""
    title = _text(sentence or Path(answers.query).name)
    photo = "" if sentence else _photo(Path(answers.query), title, thumbnails)
    folder = _common_folder(answers)
    items = "\n".join(_item(hit, answers, folder, thumbnails) for hit in answers.hits)
    style_hash = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1 lang="" dir="auto">{title}</h1>
<p class="faint">{len(answers.hits):,} {"photos" if answers.kind == "photos" else "sentences"} found in \
{_text(answers.title)}</p>
{photo}
</header>
<main>
<ol class="{answers.kind}">
{items}
</ol>
</main>
</body>
</html>
"""
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _text(text: str) -> str:
    """Text for HTML. Invisible characters become escapes, because they can hide or reverse the text after them."""
    return escape(visible(" ".join(text.split())))


def _item(hit: Hit, answers: Answers, folder: Path, thumbnails: Thumbnails) -> str:
    rank = f'<p><span class="rank">{hit.rank}</span> <span class="faint">{hit.percent or f"{hit.score:.3f}"}</span></p>'
    caption = f'<p lang="" dir="auto">{_text(hit.caption)}</p>' if hit.caption else ""
    path = answers.photo(hit)
    name = _text(path.relative_to(folder).as_posix()) if path else ""
    about = " · ".join(filter(None, (name, _text((hit.date or "").replace("T", " ")))))
    about = f'<p class="faint" lang="" dir="auto">{about}</p>' if about else ""
    if path is None or answers.kind == "sentences":
        return f"<li>{rank}{caption}{about}</li>"
    photo = _photo(path, _text(hit.caption) or name, thumbnails, root=answers.root)
    return f"<li><figure>{photo}<figcaption>{rank}{caption}{about}</figcaption></figure></li>"


def _photo(path: Path, description: str, thumbnails: Thumbnails, *, root: Path | None = None) -> str:
    thumbnail = thumbnails.read(path, _THUMBNAIL, root)
    if isinstance(thumbnail, str):
        return (
            f'<div class="missing" role="img" aria-label="{description}">{_text(path.name)}: {_text(thumbnail)}</div>'
        )
    width, height = thumbnail.size
    source = base64.b64encode(_jpeg(thumbnail)).decode()
    return (
        f'<div class="frame"><img src="data:image/jpeg;base64,{source}" alt="{description}" '
        f'width="{width}" height="{height}"></div>'
    )


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80, optimize=True)
    return file.getvalue()


def _common_folder(answers: Answers) -> Path:
    """The data set's root, or the deepest folder that holds all photos which have absolute paths."""
    absolute = [Path(hit.path).parent for hit in answers.hits if answers.photo(hit) and Path(hit.path).is_absolute()]
    return Path(os.path.commonpath(absolute)) if absolute else answers.root
