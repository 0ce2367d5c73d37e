"""`fastssl doctor`."""

from __future__ import annotations

from ..errors import UserError


def doctor_command(args: list[str]) -> int:
    if args:
        if args[0] in ("-h", "--help"):
            print("usage: fastssl doctor\n\nVersions, devices and back ends on this machine, and what to install.")
            return 0
        raise UserError(f"fastssl doctor takes no options, got {args[0]!r}")
    from ..doctor import print_report

    print_report()
    return 0


COMMANDS = {"doctor": doctor_command}
