"""Worker processes in a gloo group, which do what a test sends them."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

TIMEOUT = 60.0  # seconds; a hang fails


def work(rank: int, connection: Connection, store: str, world: int, parts: Sequence[tuple[int, ...]]) -> None:
    """A rank: does what comes through the pipe, and sends back the result, or the error as (type, message)."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    groups = {part: dist.new_group(list(part)) for part in parts}
    groups[tuple(range(world))] = dist.group.WORLD
    while True:
        task = pickle.loads(connection.recv_bytes())
        if task is None:
            dist.destroy_process_group()
            return
        function, ranks, arguments = task
        try:
            result = function(groups[ranks], *arguments)
        except Exception as error:
            result = (type(error).__name__, str(error))
        connection.send_bytes(pickle.dumps(result))


class Ranks:
    """Worker processes, one a rank, which live as long as the context.

    Args:
        store: a file that does not exist.
        world: how many.
        parts: the ranks of each group beside that of all.
    """

    def __init__(self, store: Path, world: int, parts: Sequence[tuple[int, ...]] = ()) -> None:
        context = multiprocessing.get_context("forkserver")
        # torch._dynamo, which DistributedDataParallel imports, takes a second, and DTensors half of one.
        context.set_forkserver_preload(["lossmith.engine.argmax.sharded.cpu", "torch._dynamo", "torch.distributed.tensor"])
        self.connections, self.processes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            self.processes.append(context.Process(target=work, args=(rank, there, str(store), world, parts), daemon=True))
            self.connections.append(here)
        for process in self.processes:
            process.start()

    def __call__(self, ranks: tuple[int, ...], function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function gives on each rank of the group."""
        chosen = [self.connections[rank] for rank in ranks]
        for connection in chosen:
            connection.send_bytes(pickle.dumps((function, ranks, arguments)))
        results = []
        for connection in chosen:
            if not connection.poll(TIMEOUT):
                self.kill()
                pytest.fail(f"a rank did not answer within {TIMEOUT} s")
            results.append(pickle.loads(connection.recv_bytes()))
        return results

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *raised: object) -> None:
        for connection in self.connections:
            try:
                connection.send_bytes(pickle.dumps(None))
            except OSError:
                self.kill()
        for process in self.processes:
            process.join(10)
        self.kill()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
