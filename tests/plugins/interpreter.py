"""A process that runs kernels in Triton's interpreter: requests and answers are pickles.

Its own process, because TRITON_INTERPRET must be set before triton is imported, and compiling
needs it unset.
"""

from __future__ import annotations

import os
import pickle
import sys

os.environ["TRITON_INTERPRET"] = "1"


def mend_bfloat16_dot() -> None:
    """Triton 3.9's interpreter keeps bfloat16 as uint16 and `dot` multiplies those integers."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(x: TensorHandle) -> TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(
        self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: object
    ) -> TensorHandle:
        return dot(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = create_dot


def main() -> None:
    from graftline.plugins import PLUGINS
    from tests.plugins.tensors import run_kernel

    mend_bfloat16_dot()
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr
    while True:
        try:
            name, inputs, values = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: object = run_kernel(PLUGINS[name], inputs, values, "cpu")
        except Exception as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
