"""The command ``doctor``: what the kernels find on this machine."""

from __future__ import annotations

import os
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version

import click

NO_FOLDER = "none can be written, so each process compiles anew; set NUMBA_CACHE_DIR to a folder that can be written"


@click.command(short_help="What serves on this machine: versions, threads, kernels and where they are kept.")
@click.option("--warm-up", is_flag=True, help="Compile every kernel for the CPU now, for an image or a node.")
def doctor(warm_up: bool) -> None:
    """Show versions, threads, kernels and the folder that keeps compiled ones, one a line; compute ten stored values again.

    With --warm-up every kernel for the CPU is compiled first, in one to two minutes, so that no training waits for one.
    Where a value is not as accurate as promised, the exit code is 1.
    """
    rows = _rows(warm_up)
    wrong, values = _stored_values()
    rows.append(("stored values", values))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    if wrong:
        raise SystemExit(1)


def _stored_values() -> tuple[bool, str]:
    """Whether any of ten stored values comes out wrong here, and the line that says so."""
    from lossmith.bench import numerics

    results = numerics.spot_check()
    wrong = [f"{result.noise}, {result.classes} classes" for result in results if not result.kept]
    if wrong:
        return (
            True,
            f"{len(wrong)} of {len(results)} less accurate than promised: {'; '.join(wrong)}; see lossmith bench accuracy",
        )
    worst, worst_32 = max(result.ours.p for result in results), max(result.ours.p_32 for result in results)
    return (
        False,
        f"{len(results)} of {len(results)} as promised; worst error of p {worst:.0e} in float64, {worst_32:.0e} in float32",
    )


def _rows(warm_up: bool) -> list[tuple[str, str]]:
    import torch

    import lossmith
    from lossmith.engine.argmax import dispatch
    from lossmith.engine.runtime import compiling, threads

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the row says so
        folder = lossmith.warm_up() if warm_up else compiling.cache_folder()
    cuda, triton = torch.cuda.is_available(), _version("triton")
    samples = [torch.zeros(1, 3, device=device) for device in ("cpu", *(["cuda"] if cuda else []))]
    kernels = [
        kernel.name
        for kernel in dispatch.KERNELS
        if any(not kernel.refusal(dispatch.OPERATION, scores, "normal") for scores in samples)
    ]
    return [
        ("lossmith", lossmith.__version__),
        ("Python", platform.python_version()),
        ("torch", torch.__version__),
        ("numba", _version("numba") or "not installed"),
        ("Triton", triton or "not installed"),
        ("CUDA", torch.cuda.get_device_name() if cuda else "not available"),
        ("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"),
        ("OpenMP", threads.openmp_path() or "none found; Python's threads serve"),
        ("kernels", ", ".join(kernels)),
        ("kernel cache", NO_FOLDER if folder is None else str(folder)),
        ("warmed up", "yes" if warm_up else "not asked for; kernels are compiled at their first use (--warm-up)"),
    ]


def _version(package: str) -> str:
    """The installed version; empty if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
