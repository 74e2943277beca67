"""``lossmith data``: what there is, what was fetched, and where it lies."""

import json

import pytest
from click.testing import CliRunner

from lossmith.cli import cli
from lossmith.data import public
from lossmith.errors import InputError


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LOSSMITH_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(public, "run_tool", lambda command, place: (1, f"E: no network for {command[0]}"))
    return tmp_path / "cache"


def call(*arguments):
    """What the command prints on standard output and on standard error."""
    result = CliRunner().invoke(cli, ["data", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def refused(*arguments):
    """The message of a command that must fail, and what the command printed before."""
    result = CliRunner().invoke(cli, ["data", *arguments])
    assert isinstance(result.exception, InputError)
    assert "\n" not in str(result.exception)
    return str(result.exception), result.stdout


def landed(cache, *names):
    for name in names:
        (cache / name).mkdir(parents=True)


@pytest.mark.parametrize("arguments", [[], ["list"]])
def test_the_list_is_a_table(cache, arguments):
    landed(cache, "keel")
    out, _ = call(*arguments)
    rows = {
        line.split()[0]: line.split()[-1] for line in out.splitlines() if line.split()[:1] and line.split()[0] in public.SETS
    }
    assert list(rows) == list(public.SETS)
    assert (rows["keel"], rows["mnist"]) == ("yes", "no")
    assert "lossmith data fetch NAME" in out


def test_the_list_as_json(cache):
    landed(cache, "mnist")
    listed = {entry["name"]: entry for entry in json.loads(call("list", "--json")[0])}
    assert list(listed) == list(public.SETS)
    assert listed["keel"]["folder"] is None
    assert listed["mnist"]["folder"] == str(cache / "mnist")
    assert listed["mnist"]["sha256"] == public.SETS["mnist"].sha256
    assert all(entry["licence"] and entry["homepage"] for entry in listed.values())


def test_fetch_prints_folder_and_use(cache):
    landed(cache, *public.SETS)
    out, err = call("fetch", "keel", "mnist", "keel")
    assert out.splitlines() == [
        f"keel: {cache / 'keel'}", "  lossmith compare keel/monk-2",
        f"mnist: {cache / 'mnist'}", '  lossmith.data.images.images("mnist", "train")',
    ]  # fmt: skip
    assert err == ""
    assert [line.split(":")[0] for line in call("fetch", "all")[0].splitlines()[::2]] == list(public.SETS)


def test_a_set_that_fails_does_not_keep_the_others_away(cache):
    landed(cache, "fashion-mnist", "reviews")
    message, out = refused("fetch", "all")
    assert [part.split(":")[0] for part in message.split(" | ")] == ["keel", "mnist"]
    assert "check the network" in message
    assert f"reviews: {cache / 'reviews'}" in out


def test_unknown_names_before_any_fetch(cache):
    message, out = refused("fetch", "mnist", "kell")
    assert message == "kell: there is no such public set; did you mean 'keel'?"
    assert out == ""
    assert not cache.exists()


def test_path(cache):
    assert call("path")[0] == f"{cache}\n"
    message, _ = refused("path", "keel")
    assert message.startswith("keel: expected a fetched set")
    landed(cache, "keel")
    assert call("path", "keel")[0] == f"{cache / 'keel'}\n"
