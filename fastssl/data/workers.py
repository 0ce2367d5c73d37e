"""Worker threads that compute with one core each.

Several Python threads, each with torch's own threading off, beat one thread with OpenMP here: the operations on small
views are too short for a barrier after each of them (measured on two cores beside another busy process: 3,200 against
500 images/s).
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def worker_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool of `threads` started threads in which torch operations are single-threaded."""
    # torch keeps the number for each thread, but also as the default of threads that come later: that is put back.
    threads_here = torch.get_num_threads()
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first question is what makes its number its own
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=start)
    for _ in range(threads):
        pool.submit(lambda: None)
    started.wait()
    torch.set_num_threads(threads_here)
    return pool
