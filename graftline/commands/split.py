"""`graftline split`: a graph in two files, the second of which decodes in windows."""

from __future__ import annotations

from graftline.commands import libraries
from graftline.commands.options.arguments import Graph
from graftline.commands.options.showing import SplitFolder


def split(graph: Graph, out: SplitFolder) -> None:
    """Split an ONNX file where its receptive field becomes finite: what runs once, and a decoder.

    `before.onnx` gives the `latents` that `decoder.onnx` takes, for `optimize --passes window`.

    Examples:

    `graftline split voice.onnx -o voice`

    `graftline optimize voice/decoder.onnx -o voice.graft --passes window`
    """
    libraries.silence_onnxruntime()
    from graftline.build.split import split as split_graph

    made = split_graph(graph, out)
    shape = ", ".join(map(str, made.shape))
    print(f"split behind {made.value}: latents [{shape}]")
    for field in made.fields:
        print(
            f"axis {field.axis}: {field.ratio} elements for each latent, which depend on "
            f"{field.before} in front and {field.behind} behind it"
        )
    print(f"{made.before}\n{made.decoder}")
