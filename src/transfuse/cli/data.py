"""`transfuse data`: the data sets that the scale public reads."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from transfuse.cli.app import example_text
from transfuse.cli.selection import JsonOption
from transfuse.cli.tables import count, print_json, size, table
from transfuse.data import folder as data_folder_module
from transfuse.data.folder import DataFile, DataSet, address, data_folder, data_set, fetch, find, manifest
from transfuse.errors import UserError

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    invoke_without_command=True,
    epilog=example_text(["transfuse data list", "transfuse data get clinc150", "transfuse data path"]),
)


@app.callback()
def data(ctx: typer.Context) -> None:
    """See, fetch and find the data sets of the scale public. Nothing is downloaded unless you type get."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def complete_sets(incomplete: str) -> list[tuple[str, str]]:
    """Data sets for the shell's completion."""
    return [(set_id, set_.title) for set_id, set_ in manifest().items() if set_id.startswith(incomplete)]


SetIds = Annotated[
    list[str] | None, typer.Argument(metavar="[SET]...", help="Data sets.", autocompletion=complete_sets)
]


@app.command("list", epilog=example_text(["transfuse data list", "transfuse data list --verify"]))
def list_sets(
    verify: Annotated[bool, typer.Option("--verify", help="Read every file that is there and check it.")] = False,
    json: JsonOption = False,
) -> None:
    """Show all data sets: what they are, their licence and size, and whether they are here."""
    sets = list(manifest().values())
    states = {set_.id: _state(set_, verify) for set_ in sets}
    if json:
        print_json([_as_values(set_, states[set_.id]) for set_ in sets])
    else:
        rows = [(s.id, s.title, s.licence, size(sum(file.bytes for file in s.files)), states[s.id]) for s in sets]
        typer.echo(table(("ID", "WHAT IT IS", "LICENCE", "SIZE", "HERE"), rows))
        typer.echo(f"\nfolder: {data_folder()}")
    if any(state == "damaged" for state in states.values()):
        raise typer.Exit(1)


@app.command(
    epilog=example_text(["transfuse data get clinc150 wn18rr-text", "transfuse data get --all --from /media/usb/data"])
)
def get(
    ids: SetIds = None,
    everything: Annotated[bool, typer.Option("--all", help="All data sets.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Copy from a data folder instead of the network.")
    ] = None,
) -> None:
    """Fetch data sets into the data folder; every file is verified before it takes its name."""
    if bool(ids) == everything:
        raise UserError(
            "data sets and --all together" if ids else "nothing to get",
            "data sets, or --all",
            "see transfuse data list",
        )
    sets = list(manifest().values()) if everything else [data_set(set_id) for set_id in dict.fromkeys(ids or ())]
    if source is not None and not source.is_dir():
        raise UserError(f"--from {str(source)!r} is not a folder", "a data folder: <set>/<file>")
    for set_ in sets:
        _verify_present(set_)
    wanted = [file for set_ in sets for file in set_.files if find(set_.id, file.name) is None]
    with _Progress(sum(file.bytes for file in wanted)) as progress:
        for set_ in sets:
            opener = _copier(set_, source, progress) if source else _downloader(progress)
            fetched = fetch(set_.id, opener)
            progress.say(f"{set_.id}: {count(len(fetched), 'file')} fetched" if fetched else f"{set_.id}: already here")
    typer.echo(f"folder: {data_folder()}")


@app.command(epilog=example_text(["transfuse data path", "transfuse data path clinc150"]))
def path(
    set_id: Annotated[
        str | None, typer.Argument(metavar="[SET]", help="A data set.", autocompletion=complete_sets)
    ] = None,
) -> None:
    """Print the data folder, or the folder of one set."""
    typer.echo(str(data_folder() / data_set(set_id).id if set_id else data_folder()))


def _state(set_: DataSet, verify: bool) -> str:
    here = [file for file in set_.files if find(set_.id, file.name) is not None]
    if not here:
        return "no"
    if verify and not all(_is_sound(set_, file) for file in here):
        return "damaged"
    return (
        ("yes, verified" if verify else "yes") if len(here) == len(set_.files) else f"{len(here)} of {len(set_.files)}"
    )


def _is_sound(set_: DataSet, file: DataFile) -> bool:
    try:
        data_folder_module.read_bytes(set_.id, file.name)
    except UserError:
        return False
    return True


def _verify_present(set_: DataSet) -> None:
    """A damaged file is named before anything is fetched; it is the user's to delete."""
    for file in set_.files:
        if find(set_.id, file.name) is not None:
            data_folder_module.read_bytes(set_.id, file.name)


def _as_values(set_: DataSet, state: str) -> dict[str, Any]:
    return {
        "id": set_.id,
        "title": set_.title,
        "licence": set_.licence,
        "citation": set_.citation,
        "source": f"{set_.repository}@{set_.commit}",
        "bytes": sum(file.bytes for file in set_.files),
        "files": [file.name for file in set_.files],
        "here": state,
    }


def _downloader(progress: _Progress) -> Callable[[str], bytes]:
    """Reads an address in pieces, so that the bar moves."""

    def read(url: str) -> bytes:
        import gzip
        import urllib.error
        import urllib.request

        pieces: list[bytes] = []
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                while piece := answer.read(1 << 16):
                    pieces.append(piece)
                    progress.advance(len(piece))
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"cannot fetch {url}: {reason}", fix="check the network, or use --from DIR, or set TRANSFUSE_DATA"
            ) from None
        content = b"".join(pieces)
        if not url.endswith(".gz"):
            return content
        try:
            return gzip.decompress(content)  # the manifest names what a packed file holds
        except (OSError, EOFError):
            raise UserError(f"{url} sent no gzip file", "the pinned file") from None

    return read


def _copier(set_: DataSet, source: Path, progress: _Progress) -> Callable[[str], bytes]:
    """Reads the same files from a folder; they may be packed there."""
    by_address: dict[str, DataFile] = {address(set_, file): file for file in set_.files}

    def read(url: str) -> bytes:
        import gzip

        file = by_address[url]
        plain = source / set_.id / file.name
        packed = plain.with_name(plain.name + ".gz")
        try:
            content = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
        except FileNotFoundError:
            raise UserError(
                f"{str(plain)!r} is not there", f"the files of {set_.id!r}, as they are or packed as .gz"
            ) from None
        except (OSError, EOFError) as error:
            raise UserError(f"{str(packed if not plain.is_file() else plain)!r} cannot be read: {error}") from None
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise UserError(
                f"{str(plain)!r} is not the file that the manifest names (its sha256 differs)",
                f"{file.bytes} bytes, version {set_.commit[:12]}",
            )
        progress.advance(len(content))
        return content

    return read


class _Progress:
    """A bar over bytes in a terminal, plain lines elsewhere."""

    def __init__(self, total: int) -> None:
        self.bar: Any = None
        if sys.stdout.isatty() and total:
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

            self.bar = Progress(BarColumn(), DownloadColumn(), TimeRemainingColumn(), transient=True)
            self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> _Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, count: int) -> None:
        """So many bytes more are here."""
        if self.bar:
            self.bar.advance(self.task, count)

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self.bar:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            typer.echo(line)


COMMAND = typer.main.get_command(app)
