"""What `train` makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from graftline.commands.options.arguments import CheckpointOrBundle
from graftline.commands.options.opening import Threads

Minutes = Annotated[
    float | None,
    typer.Option(help="Time for all of it, data included; default: 20, or no limit with --steps."),
]
TrainSteps = Annotated[
    int | None,
    typer.Option(help="Steps of training: the same bytes again, on the same number of threads."),
]
TrainSeed = Annotated[int, typer.Option(min=0, help="Random seed of data and training.")]
LearningRate = Annotated[float, typer.Option(help="The highest learning rate.")]
Optimizer = Annotated[
    str, typer.Option(help="adamw, or muon: Muon for the layers' matrices and AdamW for the rest.")
]


@dataclass(frozen=True)
class TrainOptions:
    """A head, its host, and its training."""

    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="medusa, hydra, markov (bigrams for the Medusa heads --head, from counts alone), "
            "eagle, eagle3 (EAGLE-3.1: drafts the tokens that the model uses), fspad (eagle's "
            "with sampled features), dflash (fills a block of masks at once), dspark (dflash's, "
            "each token scored by the one before it too), ppd (prompt tokens, a few embeddings), "
            "hidden-transfer (maps of a middle state to those of tokens to come), exit-adapter "
            "(Kangaroo's, behind --exit blocks), accelerator (of a stream beside that of the first "
            "--exit blocks, after M2R2), lora-drop (low-rank corrections for blocks that most "
            "tokens pass by; lossy), or router (FiRST's, which say by the prompt what blocks its "
            "text skips; lossy).",
        ),
    ]
    checkpoint: CheckpointOrBundle
    prompts: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The prompts: .jsonl with turns, prompt, text or messages in each line, or .txt "
            "with a prompt in each line.",
        ),
    ]
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of the head to write.")]
    text: Annotated[
        bool,
        typer.Option(
            "--text",
            help="FILE holds texts to learn as they are: nothing is answered. .txt: one text.",
        ),
    ] = False
    minutes: Minutes = None
    steps: TrainSteps = None
    seed: TrainSeed = 0
    heads: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=16,
            help="Heads of Medusa or Hydra, prompt tokens of PPD, or states of Hidden Transfer: "
            "tokens drafted. Default: 3.",
        ),
    ] = None
    form: Annotated[
        str | None,
        typer.Option(
            metavar="v1|v2",
            help="Medusa: v2 shares the host's lm_head (small, the default); v1 has one for each "
            "head.",
        ),
    ] = None
    enter: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="BLOCKS",
            help="Hidden Transfer: behind how many of the model's blocks the states of tokens to "
            "come enter. Default: half of them.",
        ),
    ] = None
    exit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="BLOCKS",
            help="An exit's adapter, or accelerators: after how many of the model's blocks the "
            "exit is. Default: 2, of accelerators 8.",
        ),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCKS",
            help="LoRA-Drop: the blocks that corrections stand in for, as --skip takes them. "
            "Default: every other one from the third on. FiRST: those that may be skipped; "
            "default: all but the first and the last.",
        ),
    ] = None
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="LoRA-Drop: the rank of each correction, by default 8. Accelerators: that of "
            "each, by default 64. Bigrams, and DSpark's Markov head: that of their matrix, by "
            "default 32.",
        ),
    ] = None
    share: Annotated[
        float | None,
        typer.Option(help="FiRST: the share of all blocks that texts are to skip. Default: 0.25."),
    ] = None
    head: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Bigrams: the Medusa heads that they are added to."),
    ] = None
    block: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=16,
            metavar="ROWS",
            help="DFlash and DSpark: rows of a block, whose first is the token before the draft; "
            "DSpark's drafts too. Default: 4.",
        ),
    ] = None
    verifier_lm_head: Annotated[
        bool,
        typer.Option(
            "--verifier-lm-head",
            help="EAGLE-3, DFlash and DSpark: leave the model's own lm_head rows out of the file, "
            "which is then half as large and for graftline alone; its config says so.",
        ),
    ] = False
    dtype: Annotated[
        str,
        typer.Option(help="Precision of the engine that answers, where none is given as a bundle."),
    ] = "int8"
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Maximum tokens per answer.")] = 256
    answers: Annotated[
        int, typer.Option(min=1, help="Answers to each prompt; from the second on all are sampled.")
    ] = 1
    learning_rate: LearningRate = 1e-3
    optimizer: Optimizer = "adamw"
    precision: Annotated[
        str,
        typer.Option(
            metavar="fp32|bf16",
            help="bf16: products in bfloat16, where the processor or the GPU has it: faster.",
        ),
    ] = "fp32"
    device: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|cuda",
            help="What the head is trained on, and the model reads on. Default: the GPU, where "
            "PyTorch finds one. The engine that answers is not part of it.",
        ),
    ] = None
    threads: Threads = None
