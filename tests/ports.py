"""A port for the processes of a test."""

import socket


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
