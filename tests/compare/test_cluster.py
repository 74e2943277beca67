"""Rows that a cluster computes are those of this process; what is no cluster is refused in words."""

import sys

import distributed
import pytest

from lossmith import cli
from lossmith.compare.cluster import cluster_of
from lossmith.compare.plan import Plan
from lossmith.compare.run import run
from lossmith.compare.store import open_store
from lossmith.data import load
from lossmith.errors import InputError
from support.rows import timeless


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as local:
        yield local


def test_a_dask_cluster_computes_the_same_rows(tmp_path, cluster):
    plan = Plan(load("iris"), methods=(), losses=("hinge",), folds=2, trials=1, epochs=2)
    with open_store(tmp_path / "plain") as store:
        expected = run(plan, store)
    before = cluster.scheduler.transition_counter
    with cluster_of("dask", cluster.scheduler_address), open_store(tmp_path / "cluster") as store:
        found = run(plan, store, jobs=-1)
    assert timeless(found) == timeless(expected)
    assert cluster.scheduler.transition_counter > before  # it has done the work


def test_the_command_takes_a_cluster(tmp_path, cluster, monkeypatch, capsys):
    address = cluster.scheduler_address
    given = [
        "iris",
        "--methods",
        "likelihood",
        "--folds",
        "2",
        "--backend",
        "dask",
        "--cluster",
        address,
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", ["lossmith", "compare", *given])
    cli.main()
    assert "report:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("backend", "address", "message"),
    [
        ("spark", None, r"^--backend: there is no 'spark'; choose from 'dask', 'ray'$"),
        ("dask", None, "^--cluster: expected the address of Dask's scheduler, such as"),
        ("dask", "tcp://127.0.0.1:1", "^--cluster: tcp://127.0.0.1:1: no scheduler answers"),
        ("dask", "nowhere://x", "^--cluster: nowhere://x: no scheduler answers"),
    ],
)
def test_no_cluster_is_refused_in_a_line(backend, address, message, monkeypatch):
    monkeypatch.setattr("lossmith.compare.cluster.SECONDS", 1)
    with pytest.raises(InputError, match=message) as refused, cluster_of(backend, address):
        pass
    assert "\n" not in str(refused.value)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"^--backend ray: needs the package ray: pip install ray$"), cluster_of("ray", None):
        pass
