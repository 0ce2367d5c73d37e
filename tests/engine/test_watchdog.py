"""The watchdog speaks once a stall, says where, and ends nothing."""

import time

from fastssl.engine.watchdog import Watchdog


def slow_part(seconds: float) -> None:
    time.sleep(seconds)


def test_a_stall_is_told_once_with_its_part_and_all_stacks(capfd):
    with Watchdog(0.2 / 60) as watchdog:
        watchdog.at("step")
        slow_part(1.5)
        watchdog.at("loader")
        slow_part(1.5)
    told = capfd.readouterr().err
    assert told.count("no step has ended") == 2
    assert told.index("the step is being waited for") < told.index("the loader is being waited for")
    assert "slow_part" in told
    assert "test_watchdog.py" in told


def test_steps_that_end_in_time_are_silent(capfd):
    with Watchdog(30 / 60) as watchdog:
        for _ in range(5):
            watchdog.at("step")
            watchdog.at("loader")
            time.sleep(0.01)
    assert capfd.readouterr().err == ""


def test_zero_minutes_never_speak(capfd):
    with Watchdog(0.0) as watchdog:
        watchdog.at("step")
        time.sleep(0.1)
    assert capfd.readouterr().err == ""
