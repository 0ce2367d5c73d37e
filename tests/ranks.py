"""Processes of a test that are ranks of one group."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

# Imported once, by the process that ranks are forked from: it has no other threads.
PRELOADED = ["torch", "torch._dynamo", "fastssl", "fastssl_kernels"]
multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def on_ranks(work: Callable[..., None], world: int, *arguments: Any) -> None:
    """`work(rank, world, *arguments)` in `world` processes with one thread each and torchrun's variables."""
    mp.start_processes(_rank, (work, world, free_port(), arguments), nprocs=world, start_method="forkserver")


def _rank(rank: int, work: Callable[..., None], world: int, port: int, arguments: tuple[Any, ...]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    work(rank, world, *arguments)
