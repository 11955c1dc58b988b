"""Peak memory of one run, in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.errors import BackendError

STATUS = Path("/proc/self/status")
"""Where Linux says how much memory a process had at most."""


@dataclass(frozen=True)
class Peak:
    """The most memory that a process had resident, in bytes: when the bundle was open, and after a
    run."""

    opened: int
    run: int


def peak_of(
    bundle: Path,
    threads: int | None,
    texts: bool,
    main: npt.NDArray[Any],
    conditions: Mapping[str, npt.NDArray[Any]],
    options: Mapping[str, int],
) -> Peak | None:
    """Of a process that opens a bundle and makes one output, or writes `texts`; None on a system
    that does not say. Raises BackendError with the process's own reason."""
    if not STATUS.is_file():
        return None
    asked = {"bundle": str(bundle), "threads": threads, "texts": texts, "options": dict(options)}
    with tempfile.TemporaryDirectory() as folder:
        feed: dict[str, Any] = {f"condition.{name}": v for name, v in conditions.items()}
        np.savez(Path(folder) / "feed.npz", main=main, **feed)
        command = [sys.executable, "-m", "graftline.commands.peak", folder, json.dumps(asked)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BackendError(f"{bundle}: the process that measures memory failed: {last}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def highest() -> int:
    """The most memory that this process had resident so far, in bytes."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return int(next(ln for ln in lines if ln.startswith("VmHWM")).split()[1]) << 10


def _measured(folder: Path, asked: Mapping[str, Any]) -> dict[str, int]:
    from graftline.runtimes.one_pass.engine import load_decoder

    with np.load(folder / "feed.npz", allow_pickle=False) as feed:
        main = feed["main"]
        told = {n.removeprefix("condition."): feed[n] for n in feed.files if n != "main"}
    options = dict(asked["options"])
    how = {"threads": asked["threads"], "verify": False, "steps": options.pop("steps", None)}
    engine = load_decoder(asked["bundle"], **how)
    opened = highest()
    if asked["texts"]:
        engine.recognise(main, **told)
    else:
        engine.make(main, **options, **told)
    return {"opened": opened, "run": highest()}


if __name__ == "__main__":
    print(json.dumps(_measured(Path(sys.argv[1]), json.loads(sys.argv[2]))))
