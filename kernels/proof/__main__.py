"""`python kernels/proof`: rewrite the ledger, or compare it.

python kernels/proof                              every operation and target, into ledger.json and LEDGER.md
python kernels/proof --op nt_xent --target sm_90  only these rows
python kernels/proof --check                      compare with the checked-in ledger; exit code 1 if they differ
python kernels/proof --peers FOLDER               public kernels that pip put into FOLDER, into peers.json and LEDGER.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from proof import ledger, peers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python kernels/proof", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--op", action="append", choices=ledger.operations(), help="only this operation (repeatable)")
    parser.add_argument("--target", action="append", choices=ledger.TARGETS, help="only this target (repeatable)")
    parser.add_argument("--only", default="", help="with --check: only rows whose description contains this")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile side by side")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="compile the public kernels in FOLDER instead")
    options = parser.parse_args()
    if options.peers:
        return _peers(options.peers)
    ops, targets = options.op or ledger.operations(), options.target or list(ledger.TARGETS)
    if options.only and not options.check:
        parser.error("--only goes with --check: the ledger is rewritten an operation and a target at a time")
    stored = ledger.load()
    if options.check and stored["compiler"] != ledger.compiler():
        print(f"nothing compared: the ledger was written with {stored['compiler']}, this is {ledger.compiler()}")
        return 0
    rows = ledger.regenerate(ops, targets, options.jobs, options.only)
    bad = [f"{' '.join(ledger.key(row))}: {fault}" for row in rows for fault in ledger.faults(row)]
    if options.check:
        by_key = {ledger.key(row): row for row in stored["rows"]}
        bad += [difference for row in rows for difference in _differences(by_key.get(ledger.key(row)), row)]
    else:
        ledger.save(rows, (ops, targets))
    print(*bad, f"{len(rows)} rows, {len(bad)} faults", sep="\n")
    return 1 if bad else 0


def _peers(folder: Path) -> int:
    content, skipped = peers.regenerate(folder, peers.load(), ledger.compiler())
    if len(skipped) < len(peers.PACKAGES):
        peers.save(content)
        ledger.write_table(ledger.load()["rows"])
    print(*skipped, f"{len(content['rows'])} rows of public kernels", sep="\n")
    return 0


def _differences(stored: ledger.Row | None, row: ledger.Row) -> list[str]:
    name = " ".join(ledger.key(row))
    if stored is None:
        return [f"{name}: not in the ledger; run `python kernels/proof --op {row['op']} --target {row['target']}`"]
    return [f"{name}: {k} is {row[k]}, the ledger says {stored[k]}" for k in row if row[k] != stored[k]]


if __name__ == "__main__":
    sys.exit(main())
