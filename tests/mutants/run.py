"""`make mutants`: every fault on purpose, and the law that catches it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from faults.hosts import Hosts
from faults.table import BEYOND, MUTANTS
from faults.trial import Outcome, sound, tried


def main(words: list[str]) -> int:
    """Print the table; 1 where a mutant survives that a law should see, or was not tried."""
    loud, words = "-v" in words, [w for w in words if w != "-v"]
    chosen = [m for m in MUTANTS if not words or any(w in m.name for w in words)]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        hosts = Hosts(Path(folder))
        for mutant in chosen:
            try:
                got = tried(mutant, hosts)
            except Exception as error:  # a traceback is no law: the user would see it
                got = Outcome("", f"{type(error).__name__}: {error}", -1)
            if got.touched < 0:
                verdict, bad = f"CRASHED: {got.said}", True
            elif not got.touched:
                verdict, bad = "NOT TRIED: the fault changed nothing", True
            elif got.law:
                verdict, bad = f"caught by {got.law}", mutant.name in BEYOND
            else:
                verdict = f"beyond: {BEYOND[mutant.name]}" if mutant.name in BEYOND else "SURVIVED"
                bad = mutant.name not in BEYOND
            wrong += bad
            expected = "" if got.law in ("", *mutant.laws) else f" (listed: {mutant.law})"
            print(f"{mutant.name:42} {mutant.host:9} {verdict}{expected}", flush=True)
            if loud or not got.touched:
                print(f"    {mutant.where}: {mutant.wrong}\n    {got.said}")
        pairs = {(m.host, str(m.options)): m for m in chosen}
        for mutant in pairs.values():
            whole = sound(mutant.host, mutant.options, hosts)
            if whole.law:
                wrong += 1
                print(f"{mutant.host} {dict(mutant.options)} without a fault: {whole.said}")
    print(f"{len(chosen)} mutants, {wrong} not as they should be")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
