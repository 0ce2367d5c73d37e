"""Runs of these tests leave their report without its two slowest pictures, unless a test is about what a run leaves."""

import pytest


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr("fastssl.report.html.curves_svg", lambda *_: "<svg ></svg>")
        monkeypatch.setattr("fastssl.engine.report.embedding_picture", lambda *_, **__: None)
