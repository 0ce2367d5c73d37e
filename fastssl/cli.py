"""The command line: finds the command, and turns what goes wrong into one sentence and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from .errors import UserError

COMMANDS = {
    "pretrain": "pretrain",
    "eval": "evaluate",
    "recipes": "recipes",
    "views": "data",
    "check-data": "data",
    "pack": "data",
    "saliency": "saliency",
    "bench": "bench",
    "plan": "plan",
    "report": "evaluate",
    "doctor": "doctor",
}
"""Commands and the modules of `fastssl.commands` that hold them; loaded when called, as some need extra packages."""

USAGE = """\
usage: fastssl COMMAND ...

  pretrain METHOD     pre-train a backbone; --requeue starts or continues it, --resume RUN_DIR continues a run
  eval knn|linear     accuracy of a trained backbone on labelled images
  recipes [METHOD]    the constants that ship, and their sources
  views METHOD        draw the views that a recipe makes of some images
  check-data DATA     decode every image once and list what is bad
  pack DATA OUT       transcode a data set to small JPEG files in tar shards, which decode faster
  saliency            make masks of the images' foreground without labels, for relicv2
  bench METHOD        images/s of training here, the parts of a step, what bounds it, and what to try
  bench data DATA     images/s of your files as a recipe's views, what bounds it, and where the time goes
  plan METHOD         what a run will take on 8 to 4,096 GPUs, predicted; `plan published` shows how well
  report RUN_DIR      write the report of a run again and print its table
  doctor              versions, devices and back ends on this machine

`fastssl COMMAND --help` lists the options with types and defaults. Methods: simclr,
simclrv2, mocov1, mocov2, byol, swav, deepclusterv2, selav2, nnclr, relic, relicv2,
and supervised as the baseline.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 not all is well, 2 bad input, 128 + n signal n."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    try:
        if args[0] == "--version":
            from . import __version__

            print(f"fastssl {__version__}")
            return 0
        if args[0] not in COMMANDS:
            raise UserError(f"unknown command {args[0]!r}: choose one of {', '.join(COMMANDS)}")
        module = importlib.import_module(f"fastssl.commands.{COMMANDS[args[0]]}")
        command: Callable[[list[str]], int] = module.COMMANDS[args[0]]
        code = command(args[1:])
        sys.stdout.flush()  # what is left in the buffer, while a reader that is gone can still be told apart
        return code
    except UserError as error:
        print(f"fastssl: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "fastssl":
            raise
        message = f"this command needs the package {error.name}: install fastssl with its `train` extra"
        print(f"fastssl: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads has enough, as in `fastssl recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 141
