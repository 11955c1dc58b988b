"""graftline: grafts parallel decoding onto models that are already exported.

graftline.optimize("CHECKPOINT", out="model.graft", recipe="prompt-lookup")
engine = graftline.load("model.graft")
engine.generate("Explain speculative decoding.").text
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftline.build.optimize import optimize as optimize
    from graftline.runtimes.load import load as load
    from graftline.runtimes.one_pass.engine import load_decoder as load_decoder

__all__ = ["__version__", "load", "load_decoder", "optimize"]

try:
    __version__ = metadata.version("graftline")
except metadata.PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"


def __getattr__(name: str) -> Any:
    """What is named here imports its room only when used, so that `import graftline` is quick."""
    if name == "optimize":
        from graftline.build.optimize import optimize

        return optimize
    if name == "load":
        from graftline.runtimes.load import load

        return load
    if name == "load_decoder":
        from graftline.runtimes.one_pass.engine import load_decoder

        return load_decoder
    raise AttributeError(f"module 'graftline' has no attribute '{name}'")
