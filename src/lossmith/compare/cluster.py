"""Fits on a cluster that runs already, through joblib's backends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from joblib import parallel_config

from lossmith.errors import InputError, near

PACKAGES = {"dask": "distributed", "ray": "ray"}
SECONDS = 20  # to wait for a scheduler


@contextmanager
def cluster_of(backend: str, address: str | None) -> Iterator[None]:
    """Inside, joblib hands its work to the cluster.

    Args:
        backend: "dask" or "ray".
        address: of the scheduler; None takes what the backend knows (DASK_SCHEDULER_ADDRESS; for Ray, "auto").

    Raises:
        InputError: another backend, one that is not installed, or a cluster that does not answer.
    """
    if backend not in PACKAGES:
        raise InputError(f"--backend: there is no {backend!r}; {near(backend, PACKAGES)}")
    package = PACKAGES[backend]
    try:
        module = import_module(package)
    except ImportError:
        raise InputError(f"--backend {backend}: needs the package {package}: pip install {package}") from None
    close = (_dask if backend == "dask" else _ray)(module, address)
    try:
        with parallel_config(backend=backend):
            yield
    finally:
        with suppress(Exception):  # a cluster that has gone needs no farewell
            close()


def _dask(distributed: Any, address: str | None) -> Any:
    known = address or import_module("dask").config.get("scheduler-address", None)
    if not known:
        raise InputError("--cluster: expected the address of Dask's scheduler, such as tcp://host:8786")
    try:
        return distributed.Client(known, timeout=SECONDS).close
    except Exception as error:  # of many kinds, by the scheme of the address
        raise InputError(f"--cluster: {known}: no scheduler answers ({_line(error)})") from None


def _ray(ray: Any, address: str | None) -> Any:
    try:
        ray.init(address=address or "auto", logging_level="ERROR")
    except Exception as error:
        raise InputError(f"--cluster: {address or 'auto'}: no cluster answers ({_line(error)})") from None
    import_module("ray.util.joblib").register_ray()
    return ray.shutdown


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
