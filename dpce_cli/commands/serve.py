"""dpce serve"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from dpce_cli.commands.options import DEFAULT_WORKSPACE, ModelOption, WorkspaceOption
from dpce_cli.core.errors import ConfigError, WorkspaceError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    gallery: Annotated[
        list[str] | None,
        typer.Option("--gallery", "-g", metavar="NAME", help="Gallery to show; may be repeated.  \\[default: all]"),
    ] = None,
    model: ModelOption = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port.")] = 0,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; another than this machine's own needs --token.")
    ] = "127.0.0.1",
    token: Annotated[
        str, typer.Option("--token", help="Secret that the page's address then holds, at least 16 characters.")
    ] = "",
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    workspace_path: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Open a local page that searches galleries with sentences and photos. Ctrl-C stops it.

    The page is for browsers on this machine only, unless another --host is given together with a --token.

    Example: dpce serve --gallery photos --open
    """
    from importlib.util import find_spec

    if not (find_spec("starlette") and find_spec("uvicorn")):
        raise ConfigError("dpce serve needs the libraries starlette and uvicorn; run: pip install 'dpce[serve]'")
    if host not in _LOOPBACK and not token:
        raise typer.BadParameter("another --host than 127.0.0.1 lets other machines in; add --token")
    if token and len(token) < 16:
        raise typer.BadParameter("--token is a secret of at least 16 characters")
    import socket
    import webbrowser
    from urllib.parse import quote

    import uvicorn

    from dpce_cli.core.galleries.gallery import Gallery, recorded_model
    from dpce_cli.core.galleries.overview import gallery_states
    from dpce_cli.core.sharing.finding import find_model
    from dpce_cli.core.workspace.workspace import Workspace, check_name
    from dpce_cli.web.pages import Notes, Searches, build_app
    from dpce_cli.web.safety import Guard

    workspace, notes = Workspace(workspace_path), Notes()
    names = gallery or [state.name for state in gallery_states(workspace.gallery_folder(""))]
    if not names:
        raise WorkspaceError(f"{workspace_path}: there is no gallery; 'dpce index FOLDER' makes one")
    galleries, models = {}, {}
    for name in names:
        folder = workspace.gallery_folder(check_name(name))
        source = model or recorded_model(folder)
        if source not in models:
            models[source] = find_model(source, workspace, reporter=notes)
        galleries[name] = Gallery(folder, models[source])
    for loaded in models.values():
        loaded.encode_text([loaded.vocabulary.words[0]])  # loads the encoder before the first search
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: cannot listen ({error.strerror}); choose another") from error
    bound = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    own = (shown, "127.0.0.1", "localhost", "[::1]") if host in _LOOPBACK else (shown,)
    hosts = frozenset(f"{one.lower()}:{bound}" for one in own)
    app = Guard(build_app(Searches(workspace, galleries, notes, model)), hosts=hosts, token=token)
    address = f"http://{shown}:{bound}/" + (f"?token={quote(token)}" if token else "")
    typer.echo(f"{address}  (Ctrl-C stops it)")
    if open_browser:
        webbrowser.open(address)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=5, server_header=False)
    with suppress(KeyboardInterrupt):  # the usual end of a server, at SIGTERM as well
        uvicorn.Server(config).run(sockets=[listening])
