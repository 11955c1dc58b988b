"""Every argument and option of the command line, once: what it is called, takes and says in --help.

A command's signature says which it has, and their defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# --- what a command works on

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A Hugging Face folder, a .gguf file, an exported .onnx or a torch.export .pt2.",
    ),
]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")]
BundleOrGraph = Annotated[
    Path, typer.Argument(metavar="BUNDLE|GRAPH", help="A bundle folder, or an .onnx file.")
]
Prompt = Annotated[
    str | None, typer.Argument(metavar="[PROMPT]", help="The prompt; - reads it from stdin.")
]

# --- what `optimize` builds

NewBundle = Annotated[Path, typer.Option("-o", "--out", help="The bundle folder to write.")]
BuildRecipe = Annotated[
    str | None,
    typer.Option(
        help="Recipe to build for; `graftline recipes` lists them. A decoder's default: "
        "prompt-lookup."
    ),
]
Passes = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help='Passes in place of the recipe\'s: "kv-cache | tap{layers=3}". '
        "`graftline passes` lists them.",
    ),
]
Target = Annotated[
    str,
    typer.Option(
        help="ort-cpu, ort-cuda, or TensorRT for the GPUs named: trt-rtx:sm89+sm120, trt:sm90."
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="ort-cpu: fp32, or int8 or int4 weights; ort-cuda: also fp16 or bf16; TensorRT: "
        "fp32, fp16 or bf16."
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        help="link: share the checkpoint's files where possible; copy: self-contained, with a "
        "copy of the tensors that are needed."
    ),
]
Quantizer = Annotated[
    str | None, typer.Option(help="Quantization algorithm for --dtype int8 or int4.")
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="DRAFT",
        help="Add a draft engine: int4 or int8 (the same weights, quantized), or a smaller "
        "checkpoint with the same vocabulary: PATH or PATH:int4.",
    ),
]
DraftHead = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Add a draft head that was published for this very model: the folder or the file (.pt "
        "or .safetensors) of Medusa, Hydra, EAGLE, P-EAGLE, DFlash, JetSpec or DSpark heads; in "
        "another precision: PATH:int8. The recipe follows from it.",
    ),
]
DraftDepths = Annotated[
    str,
    typer.Option(
        metavar="BLOCKS",
        help="Add the draft's first blocks as smaller drafts over the same weights: 12,20.",
    ),
]
Skip = Annotated[
    str | None,
    typer.Option(
        metavar="BLOCKS",
        help="Add a route, the target without these blocks over the same weights and caches, which "
        "drafts for it: 10-20, or attention=8-15+20,mlp=12 for parts of blocks; with --draft int8 "
        "it is in that precision. Default for recipes with a route: middle, which is every fourth "
        "block of the middle half.",
    ),
]
Exit = Annotated[
    str | None,
    typer.Option(
        metavar="BLOCKS",
        help="Let the target draft after its first blocks, so many of them, and verify with the "
        "others alone, over the same weights and caches: 8, or 6,12,18 for recipes that choose.",
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        metavar="TIMES",
        help="How many times as fast unified-layer-skip or skipdecode decodes, by skipping blocks, "
        "or ffn-skip, by skipping MLPs: lossy. Default: what the recipe says.",
    ),
]
AnswerPrefix = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="How every answer begins, read with the prompt in one go: latent tokens that the "
        "model was taught to think at.",
    ),
]
SpecFile = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        metavar="FILE",
        help="TOML file that says of a denoiser what its graph cannot: its scheduler, what it "
        "predicts, its decoder, and which input is which where types do not tell.",
    ),
]
LoopSteps = Annotated[
    str,
    typer.Option(
        "--steps",
        metavar="NUMBERS",
        help="Steps of a denoiser's sampling loop in the graph: 1,2,4 builds three over the same "
        "weights, the first as the engine. Default: as many as the spec says.",
    ),
]
EngineOptions = Annotated[
    str,
    typer.Option(
        metavar="OPTIONS",
        help="TensorRT options: rows=1+64 (tree nodes of the decode profiles), chunk=512, "
        "batch=1, capacity=2048, version-compatible, refittable, strip-weights. Of hosts that run "
        "once: batch=1, and size.H=64 or size.H=32..128 for dimensions that inputs leave open.",
    ),
]
BuildStep = Annotated[
    str,
    typer.Option(
        help="host: draft and verify between engine calls; fused: add a second graph over the "
        "same weights that does both within the call."
    ),
]
FullExport = Annotated[
    bool, typer.Option("--full-export", help="Export every layer instead of one of each kind.")
]

# --- how a bundle is opened

Recipe = Annotated[
    str | None, typer.Option(help="Recipe to decode with, in place of the bundle's own.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: one per processor.")]
Capacity = Annotated[
    int | None, typer.Option(min=1, help="Maximum tokens of prompt and answer together.")
]
Corpus = Annotated[
    Path | None,
    typer.Option(help="File or folder of texts, for recipes that retrieve from a corpus."),
]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="One kernel family for every step: exact at int8 and int4 too."),
]
RunStep = Annotated[
    str | None, typer.Option(help="host, or fused if the bundle was built with --step fused.")
]

# --- how text is generated

Raw = Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")]
NewTokens = Annotated[
    int | None,
    typer.Option(help="Maximum tokens to generate; default: the checkpoint's own, else 128."),
]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
OwnTemperature = Annotated[
    float | None,
    typer.Option(help="Sampling temperature; 0 is greedy. Default: the checkpoint's own, else 0."),
]
TopK = Annotated[int | None, typer.Option(help="Sample from the k most likely tokens; 0: all.")]
TopP = Annotated[
    float | None, typer.Option(help="Sample from the fewest tokens with this total probability.")
]
MinP = Annotated[
    float | None, typer.Option(help="Drop tokens below this fraction of the top probability.")
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Penalty on tokens that occurred before; 1 is off.")
]
NoDefaults = Annotated[
    bool,
    typer.Option(
        "--no-defaults",
        help="Ignore the checkpoint's own generation_config.json: greedy unless said otherwise.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Random seed: the same text again, whatever is drafted; but not with recipes that "
        "draw their drafts (the README lists them), where it depends on how many are drafted."
    ),
]
Tools = Annotated[
    Path | None,
    typer.Option(help="JSON file with a list of tools (JSON schemas) for the chat template."),
]
Thinking = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking", help="enable_thinking for a chat template that knows it."
    ),
]
TemplateArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Another argument of the chat template, VALUE as JSON or text; may be given more "
        "than once.",
    ),
]
PresencePenalty = Annotated[
    float, typer.Option(help="Taken from the score of every token the answer has used already.")
]
FrequencyPenalty = Annotated[
    float, typer.Option(help="Taken as often as the answer has used the token already.")
]
NoRepeat = Annotated[
    int, typer.Option(help="Never write so many tokens in a row twice, prompt included; 0: off.")
]
Biases = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID=BIAS",
        help="Add to the score of a token id; -inf bars it. May be given more than once.",
    ),
]
LeastTokens = Annotated[int, typer.Option(help="Do not end before so many tokens.")]
JsonSchema = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Answer in JSON that this JSON schema allows."),
]
Regex = Annotated[
    str | None, typer.Option(metavar="REGEX", help="Answer in a text that matches as a whole.")
]
LarkGrammar = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Answer in a text of this Lark grammar, llguidance's kind."),
]
Answers = Annotated[
    int, typer.Option("--n", help="Answers to write; more than 1 needs --temperature above 0.")
]
Stop = Annotated[
    list[str] | None, typer.Option(help="Stop before this text; may be given more than once.")
]
StopIds = Annotated[
    list[int] | None,
    typer.Option("--stop-token-id", help="Stop at this token id; may be given more than once."),
]
KeepStop = Annotated[bool, typer.Option("--include-stop", help="Keep the stop text.")]
Logprobs = Annotated[
    int | None,
    typer.Option(
        help="With --json: log-probabilities of the answer's tokens, before temperature and "
        "penalties, and of so many likeliest tokens in each place."
    ),
]
PromptLogprobs = Annotated[
    int | None, typer.Option(help="With --json: the same of the prompt's tokens.")
]
PastEnd = Annotated[bool, typer.Option("--ignore-eos", help="Continue past the end-of-text token.")]
Stats = Annotated[bool, typer.Option("--stats", help="Print statistics to stderr.")]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Tell of every step, on stderr: the tree that was scored, what was accepted, what was "
        "expected and what it took, and why it had that size.",
    ),
]
Timeline = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the same as a page: one file, without network."),
]

# --- how a benchmark is run

QUESTIONS = 'JSON Lines file of questions: Spec-Bench fields, or {"prompt": …}.'
Prompts = Annotated[
    Path | None, typer.Option(help=f"{QUESTIONS} Decoders of text need one.")
]
PerGroup = Annotated[
    int | None, typer.Option(min=1, help="Questions per group, spread evenly; default: all.")
]
BenchRecipes = Annotated[
    str, typer.Option(help="Recipes, separated by commas; plain is always included.")
]
AnswerTokens = Annotated[int, typer.Option(help="Maximum tokens per answer.")]
Turns = Annotated[int, typer.Option(min=1, help="Maximum turns per conversation.")]
Repeat = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Runs per prompt, or of a bundle that runs once; times are medians. Default: 1 per "
        "prompt, else 5.",
    ),
]
FullLength = Annotated[
    bool, typer.Option("--ignore-eos", help="Always generate --max-new-tokens tokens.")
]
BenchSeed = Annotated[
    int,
    typer.Option(help="Random seed, for --temperature above 0 and for inputs that are drawn."),
]
BenchLatents = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.npy",
        help="Input of a bundle that runs once: latents, noise or a signal. Default: drawn.",
    ),
]
BenchLength = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Places along each free axis of an input that is drawn. Default: 64, or 4 windows.",
    ),
]
BenchRange = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="LOW,HIGH",
        help="Numbers that PSNR is taken between, others clipped, as -1,1 for images. Default: the "
        "lowest and the highest of the most steps' output.",
    ),
]
BenchStep = Annotated[
    str, typer.Option(help="Step of all recipes but plain: host, or fused where all support it.")
]
Interleaved = Annotated[
    bool,
    typer.Option(
        "--interleaved",
        help="Run all recipes at once, one pass of each in turn, so that a slowdown of the "
        "machine affects all of them alike.",
    ),
]
Oracle = Annotated[
    bool, typer.Option("--oracle", help="Show acceptance beside the bound of any lossless rule.")
]
ForceAcceptance = Annotated[
    str | None,
    typer.Option(
        metavar="RATE,RATE,...",
        help="Time recipes with a draft engine or head as if its drafts were that good: the chance "
        "that a drafted token is accepted at depth 1, 2, ... where those before it are. All calls "
        "are made; drafted tokens are replaced by the target's own, or by others.",
    ),
]
Figures = Annotated[Path | None, typer.Option(help="Write the results to this JSON file.")]

# --- what `tune` measures

TunePrompts = Annotated[Path | None, typer.Option(help=QUESTIONS)]
Precision = Annotated[
    bool,
    typer.Option(
        "--precision", help="Measure speed and perplexity of every precision; keep the best."
    ),
]
MostLoss = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="PERCENT",
        help="With --precision: how far perplexity may rise above that of fp32, at most.",
    ),
]
TuneRecipes = Annotated[
    str,
    typer.Option(
        help="Recipes to tune, separated by commas; default: token-recycling, suffix and "
        "prompt-lookup, and draft-model if the bundle has a draft engine. self-skip, alone, "
        "searches the blocks that its route skips, and makes the bundle again."
    ),
]
TuneTokens = Annotated[int, typer.Option(min=2, help="Maximum tokens per answer.")]

# --- what `train` makes

HeadKind = Annotated[
    str,
    typer.Argument(
        metavar="KIND",
        help="medusa, hydra, markov (bigrams for the Medusa heads --head, from counts alone), "
        "eagle, eagle3 (EAGLE-3.1: drafts the tokens that the model uses), fspad (eagle's with "
        "sampled features), dflash (fills a block of masks at once), dspark (dflash's, each token "
        "scored by the one before it too), ppd (prompt tokens, a few embeddings), hidden-transfer "
        "(maps of a middle state to those of tokens to come), "
        "exit-adapter (Kangaroo's, behind --exit blocks), lora-drop (low-rank corrections for "
        "blocks that most tokens pass by; lossy), or router (FiRST's, which say by the prompt what "
        "blocks its text skips; lossy).",
    ),
]
CheckpointOrBundle = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT|BUNDLE",
        help="The host: a Hugging Face folder or a .gguf file, or a bundle built from one, which "
        "then answers the prompts.",
    ),
]
TrainPrompts = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="The prompts: .jsonl with turns, prompt, text or messages in each line, or .txt with "
        "a prompt in each line.",
    ),
]
HeadFolder = Annotated[Path, typer.Option("-o", "--out", help="The folder of the head to write.")]
PlainText = Annotated[
    bool,
    typer.Option(
        "--text", help="FILE holds texts to learn as they are: nothing is answered. .txt: one text."
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Time for all of it, data included; default: 20, or no limit with --steps."),
]
TrainSteps = Annotated[
    int | None,
    typer.Option(help="Steps of training: the same bytes again, on the same number of threads."),
]
TrainSeed = Annotated[int, typer.Option(min=0, help="Random seed of data and training.")]
Heads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=16,
        help="Heads of Medusa or Hydra, prompt tokens of PPD, or states of Hidden Transfer: tokens "
        "drafted. Default: 3.",
    ),
]
MedusaForm = Annotated[
    str | None,
    typer.Option(
        metavar="v1|v2",
        help="Medusa: v2 shares the host's lm_head (small, the default); v1 has one for each head.",
    ),
]
TrainEnter = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="BLOCKS",
        help="Hidden Transfer: behind how many of the model's blocks the states of tokens to come "
        "enter. Default: half of them.",
    ),
]
TrainExit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="BLOCKS",
        help="An exit's adapter: after how many of the model's blocks it stands. Default: 2.",
    ),
]
TrainLayers = Annotated[
    str | None,
    typer.Option(
        metavar="BLOCKS",
        help="LoRA-Drop: the blocks that corrections stand in for, as --skip takes them. Default: "
        "every other one from the third on. FiRST: those that may be skipped; default: all but the "
        "first and the last.",
    ),
]
TrainRank = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="LoRA-Drop: the rank of each correction, by default 8. Bigrams, and DSpark's Markov "
        "head: that of their matrix, by default 32.",
    ),
]
TrainBlock = Annotated[
    int | None,
    typer.Option(
        min=2,
        max=16,
        metavar="ROWS",
        help="DFlash and DSpark: rows of a block, whose first is the token before the draft; "
        "DSpark's drafts too. Default: 4.",
    ),
]
TrainHead = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Bigrams: the Medusa heads that they are added to."),
]
TrainShare = Annotated[
    float | None,
    typer.Option(help="FiRST: the share of all blocks that texts are to skip. Default: 0.25."),
]
AnswerDtype = Annotated[
    str,
    typer.Option(help="Precision of the engine that answers, where none is given as a bundle."),
]
TrainTokens = Annotated[int, typer.Option(min=2, help="Maximum tokens per answer.")]
TrainAnswers = Annotated[
    int, typer.Option(min=1, help="Answers to each prompt; from the second on all are sampled.")
]
LearningRate = Annotated[float, typer.Option(help="The highest learning rate.")]
Optimizer = Annotated[
    str, typer.Option(help="adamw, or muon: Muon for the layers' matrices and AdamW for the rest.")
]
TrainPrecision = Annotated[
    str,
    typer.Option(
        metavar="fp32|bf16", help="bf16: products in bfloat16, where the processor has it: faster."
    ),
]

# --- what `distill` is given

StudentKind = Annotated[str, typer.Argument(metavar="one-step", help="What the student becomes.")]
TeacherOrBundle = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT|BUNDLE",
        help="The teacher: a denoiser's .onnx file with --spec, a folder of diffusers, or a bundle "
        "made with collapse-loop.",
    ),
]
StudentFolder = Annotated[
    Path, typer.Option("-o", "--out", help="The folder of the student to write.")
]
SampleSize = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Height and width of a sample, where the graph takes any."),
]
Pairs = Annotated[
    int, typer.Option(min=2, help="Samples that the teacher draws, for the conditions in turn.")
]
StudentBatch = Annotated[int, typer.Option(min=1, help="Samples that a step of training learns.")]
Perceptual = Annotated[
    float,
    typer.Option(help="Weight of 1 - SSIM beside the squared error over the samples' variance."),
]

# --- what `inspect` shows and `pack` writes

ShownStage = Annotated[
    str | None, typer.Option(help="Graph of the bundle to show; default: the target's.")
]
Picture = Annotated[bool, typer.Option("--graph", help="Show the graph, one line per block.")]
Nodes = Annotated[
    str | None,
    typer.Option(metavar="LAYER", help="Show the nodes of a block: 0, 1, …, embedding, head."),
]
ShownPass = Annotated[
    str | None,
    typer.Option("--pass", metavar="PASS", help="Show what a pass made, where, and its laws."),
]
Page = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a page that draws the graphs, pass by pass, with laws, costs and weights: one "
        "file, without network. With --stage: the way to that stage alone.",
    ),
]
ModelExplorer = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Write graphs, passes and costs for Google's Model Explorer."
    ),
]
Before = Annotated[
    Path, typer.Argument(metavar="BEFORE", help="A bundle folder, or an .onnx file.")
]
After = Annotated[Path, typer.Argument(metavar="AFTER", help="Another of the same kind.")]
ComparedStage = Annotated[
    str | None, typer.Option(help="Graph of the bundles to compare; default: every one.")
]
DiffPage = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write a page that draws the difference: one file."),
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")]
PackedOut = Annotated[
    Path,
    typer.Option("-o", "--out", metavar="DIR|FILE.tar", help="The folder or archive to write."),
]

# --- what decoders of latents take and make

Graph = Annotated[Path, typer.Argument(metavar="GRAPH", help="An .onnx file.")]
SplitFolder = Annotated[
    Path, typer.Option("-o", "--out", metavar="DIR", help="The folder of both files.")
]

Latents = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.npy",
        help="Decode these latents with a bundle that makes waveforms or images, recognise this "
        "signal with one that writes texts, or fill this canvas.",
    ),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FILE.npy", help="What the decoder is conditioned on; repeatable."),
]
Made = Annotated[
    Path | None,
    typer.Option("-o", "--out", metavar="FILE", help="The .npy, .wav or .png to write."),
]
RunSteps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Steps of a sampling loop, of those that the bundle was built with, or of filling a "
        "canvas.",
    ),
]
SampleRate = Annotated[
    int | None, typer.Option(min=1, help="Samples per second of a .wav; no graph says it.")
]
ValueRange = Annotated[
    str,
    typer.Option(
        "--range",
        metavar="LOW,HIGH",
        help="Numbers that are black and white in a .png, and the range of a .wav.",
    ),
]

# --- what is printed

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Do not show progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
JsonManifest = Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")]
JsonResult = Annotated[
    bool, typer.Option("--json", help="Print JSON at the end: text, tokens and statistics.")
]
