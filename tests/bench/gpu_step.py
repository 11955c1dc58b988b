"""On a GPU: kernels against the copy bandwidth, and ort-cuda sessions against the memory floor.

    python -m tests.bench.gpu_step [--quick] [--out FILE.md] [--part kernels|sessions]
                                   [--smollm2 CHECKPOINT [--head PATH ...]] [--minutes 9]
                                   [--dry-run]

Kernels need a CUDA machine with PyTorch and Triton; sessions onnxruntime-gpu, and transformers for
the shapes. Rows are printed as they are measured, and a row that fails says why. --dry-run goes the
same ways on the CPU, in Triton's interpreter, on tiny shapes, and times nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.gpu_timing import Table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--part", choices=("kernels", "sessions"), help="default: both")
    parser.add_argument("--smollm2", type=Path, help="checkpoint of SmolLM2")
    parser.add_argument("--head", type=Path, action="append", help="a draft head of SmolLM2")
    parser.add_argument("--minutes", type=float, default=9, help="begin no row after so many")
    parser.add_argument("--out", type=Path, help="write the tables there too")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, nothing timed")
    return parser.parse_args()


def refusal(dry: bool) -> str:
    """Why nothing can be run here, or ""."""
    for name in ("torch", "triton"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed; pip install torch 'graftline[kernels]'"
    import torch

    if not dry and not torch.cuda.is_available():
        return "no CUDA GPU here; run it on a machine with one, or with --dry-run"
    return ""


def main() -> int:
    given = arguments()
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    if given.head and given.smollm2 is None:
        print("gpu_step: --head is of SmolLM2; give --smollm2 CHECKPOINT too", file=sys.stderr)
        return 2
    if why := refusal(given.dry_run):
        print(f"gpu_step: {why}", file=sys.stderr)
        return 2
    tables, head = run(given)
    text = "\n".join([f"# One step on a GPU\n\n{head}", *(t.text for t in tables)])
    failed = sum(t.failed for t in tables)
    print(f"\n{failed} rows not measured" if failed else "\nevery row measured", flush=True)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 1 if failed and given.dry_run else 0


def run(given: argparse.Namespace) -> tuple[list[Table], str]:
    """All tables that were asked for, and the line about the machine."""
    from tests.bench.gpu_timing import Budget, Timer, copy_bandwidth, machine

    device = "cpu" if given.dry_run else "cuda"
    timer = Timer(device)
    bandwidth = copy_bandwidth(timer)
    speed = f"{bandwidth / 1e9:.0f} GB/s copied, reads and writes counted" if bandwidth else "-"
    head = f"{machine(device)}; {speed}; medians of 5 rounds, variants in turn."
    print(head, flush=True)
    budget = Budget(given.minutes * 60)
    tables: list[Table] = []
    if given.part != "sessions":
        from tests.bench import gpu_kernels as kernels
        from tests.bench.gpu_attention import attention

        if given.dry_run:
            from tests.plugins.interpreter import mend_bfloat16_dot

            mend_bfloat16_dot()
        sizes = kernels.DRY if given.dry_run else kernels.QUICK if given.quick else kernels.FULL
        own = budget if given.part else Budget(budget.left * 0.55)
        tables.append(kernels.meanings(timer, own))
        tables.append(kernels.verifies(sizes, timer, own))
        tables.append(kernels.commits(sizes, timer, bandwidth, own))
        tables.append(attention(sizes, timer, bandwidth, own))
    if given.part != "kernels":
        from tests.bench import gpu_sessions as sessions

        quick = sessions.Scale((1024,), (1, 64), 64) if given.quick else sessions.Scale()
        scale = sessions.DRY_SCALE if given.dry_run else quick
        tables += sessions.sessions(device, given.smollm2, scale, bandwidth, budget)
        if given.head:
            from tests.bench.gpu_heads import heads

            tables.append(heads(given.smollm2, given.head, scale, budget))
    return tables, head


if __name__ == "__main__":
    sys.exit(main())
