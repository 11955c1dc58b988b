"""The original file in ONNX Runtime: greedy tokens and logits, whole sequences, its own inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from tests.generated.builder import Array
from tests.generated.decoder import Generated
from tests.generated.settings import Settings


class GeneratorDefect(Exception):
    """The generator wrote a file that ONNX Runtime does not run: a fault of these tests."""


@dataclass
class Reference:
    """A generated file on disk, opened in ONNX Runtime."""

    host: Generated
    session: onnxruntime.InferenceSession

    @classmethod
    def write(cls, host: Generated, file: Path) -> Reference:
        """Write the file and open it. Raises GeneratorDefect with ONNX Runtime's reason."""
        onnx.save(host.model, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # the file as it is written: no fusion of ONNX Runtime's own
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        try:
            session = onnxruntime.InferenceSession(str(file), options)
        except Exception as error:
            raise GeneratorDefect(f"{file.name} does not open: {error}") from error
        return cls(host, session)

    def logits(self, ids: Array) -> Array:
        """Logits of whole sequences [B, N]."""
        try:
            out = self.session.run([self.host.logits], self.host.feed(ids))[0]
        except Exception as error:
            raise GeneratorDefect(f"does not run: {error}") from error
        if not np.isfinite(out).all():
            raise GeneratorDefect("its logits are not finite")
        return np.asarray(out, np.float64)

    def greedy(self, prompt: Array, count: int) -> tuple[list[int], list[Array]]:
        """`count` tokens after a prompt, and the logits [V] that chose each."""
        ids, tokens, rows = np.asarray(prompt)[None], list[int](), list[Array]()
        for _ in range(count):
            row = self.logits(ids)[0, -1]
            tokens.append(int(row.argmax()))
            rows.append(row)
            ids = np.concatenate([ids, [[tokens[-1]]]], axis=1)
        return tokens, rows


def prompts(s: Settings, seed: int) -> list[Array]:
    """Token ids: one longer than every constant, one around it, one short; all hold copied
    stretches and the special ids."""
    rng = np.random.default_rng([seed, 7])
    known = s.constants_of_positions
    lengths = (min(2 * known + 1, 110), known + 1, 5)
    made: list[Array] = []
    for length in lengths:
        stretch = rng.integers(0, s.vocabulary, max(3, length // 4))
        ids = np.tile(stretch, length // len(stretch) + 1)[:length]
        for special in s.special[: 1 if length < 8 else 3]:
            ids[rng.integers(0, length, 1 + length // 20)] = special
        made.append(ids.astype(np.int64))
    return made
