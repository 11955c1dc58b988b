"""A UNet's loop with its encoder at every step, at the published key steps, and at every second.

    python tests/bench/encoder_reuse.py [CHANNELS] [STEPS]
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from graftline import load_decoder, optimize
from graftline.bundle.store import load_graph
from graftline.commands import once
from tests.kinds.samplers import write_sampler
from tests.kinds.unet import UNET

SPEC = """
[sampling]
prediction = "epsilon"
scheduler = "ddim"
spacing = "trailing"
"""


def main(channels: int, steps: int) -> None:
    text = re.sub(r"float\[8,8,3,3\]", f"float[{channels},{channels},3,3]", UNET)
    text = text.replace("float[8,4,3,3]", f"float[{channels},4,3,3]")
    text = text.replace("float[8,16,3,3]", f"float[{channels},{2 * channels},3,3]")
    text = text.replace("float[4,8,3,3]", f"float[4,{channels},3,3]")
    text = text.replace("float[8,8] time2", f"float[8,{channels}] time2")
    text = text.replace("float[6,8] told", f"float[6,{channels}] told")
    half = "+".join(str(step) for step in range(0, steps, 2))
    ways = {
        "every step": "collapse-loop",
        "published keys": "encoder-reuse",
        "every second": f"encoder-reuse{{keys={half}}}",
    }
    with tempfile.TemporaryDirectory() as folder:
        graph, spec = write_sampler(Path(folder), text, f"{SPEC}steps = {steps}\n")
        for name, passes in ways.items():
            place = Path(folder) / f"{name}.graft"
            bundle = optimize(graph, place, passes=passes, spec=spec)
            kinds = [n.op_type for n in load_graph(bundle.graph("ort-cpu")).graph]
            engine = load_decoder(place, threads=1)
            feed = once.feed_for(engine, None, {}, 64, 0)
            (way,) = once.measured(engine, feed, 5, 0, 1, None, lambda line: None).ways
            apart = [f"{r.value:.3f}" for r in bundle.manifest.laws if r.law == "reuse"]
            print(
                f"{name}: {kinds.count('Conv')} convolutions of {len(kinds)} nodes, "
                f"{way.whole * 1e3:.0f} ms, samples apart {apart or 0}"
            )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:3] or (48, 20)))
