"""Machine code of a plugin's kernel, made without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.errors import BackendError
from graftline.plugins.launch import kernel, plan_for, triton
from graftline.plugins.spec import Plan, Plugin, Values

CAPABILITIES = (80, 89, 90, 100, 120)
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory a program may take (CUDA programming guide, compute capabilities)."""
PTX_VERSION = 87
"""The oldest that knows sm_120: drivers from CUDA 12.8 on can finish its compilation."""
_POINTERS = {
    "float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int64": "*i64", "int32": "*i32",
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """`ptx` takes exactly the plugin's inputs, scalars and outputs. `threads` per program;
    `shared` bytes per program; `registers` and `stack` bytes (spills) per thread, of `cubin`."""

    name: str
    ptx: str
    cubin: bytes
    threads: int
    shared: int
    registers: int
    stack: int


def compile_kernel(
    plugin: Plugin,
    shapes: Sequence[Sequence[int]],
    dtype: str,
    given: Values | None,
    capability: int,
) -> Compiled:
    """The kernel for inputs of these shapes; `dtype` is the plugin's float type, by numpy's name.

    Raises BackendError for a type or a capability that Triton does not compile.
    """
    plan, _ = plan_for(plugin, shapes, plugin.values(given))
    return compile_planned(plugin, plan, dtype, capability)


def compile_planned(plugin: Plugin, plan: Plan, dtype: str, capability: int) -> Compiled:
    """The kernel with the constants of `plan`; see `compile_kernel`."""
    if capability not in SHARED_LIMIT:
        raise BackendError(f"{plugin.name}: sm_{capability} is not one of {_known(CAPABILITIES)}")
    made = triton_compile(plugin, plan, dtype, capability)
    shared, limit = made.metadata.shared, SHARED_LIMIT[capability]
    if shared > limit:
        raise BackendError(
            f"{plugin.name} needs {shared} bytes of shared memory for {dtype} inputs of these "
            f"shapes, and sm_{capability} has {limit}; use a half-precision type"
        )
    return Compiled(
        name=made.metadata.name,
        ptx=without_scratch(made.asm["ptx"], made.metadata),
        cubin=made.asm["cubin"],
        threads=made.metadata.num_warps * 32,
        shared=shared,
        **usage(made.asm["cubin"]),
    )


def triton_compile(plugin: Plugin, plan: Plan, dtype: str, capability: int) -> Any:
    """Triton's own result: `asm` and `metadata`."""
    library = triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tensors = [*plugin.inputs, *plugin.outputs]
    kinds = [dtype if t.type == "T" else t.type for t in tensors]
    unknown = sorted(set(kinds) - set(_POINTERS))
    if unknown:
        raise BackendError(f"{plugin.name}: no kernel for {unknown[0]}; use {_known(_POINTERS)}")
    pointers = [_POINTERS[k] for k in kinds]
    count = len(plugin.inputs)
    types = [*pointers[:count], *["i32"] * len(plugin.scalars), *pointers[count:]]
    function = kernel(plugin)
    names: list[str] = function.arg_names
    signature = dict(zip(names, [*types, *["constexpr"] * len(plan.constants)], strict=True))
    # every tensor begins at a multiple of 256 bytes
    aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types) if t.startswith("*")}
    source = ASTSource(function, signature, constexprs=dict(plan.constants), attrs=aligned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target = GPUTarget("cuda", capability, 32)
            options = {
                "num_warps": plan.warps, "ptx_version": PTX_VERSION, "enable_fp_fusion": True,
            }  # fmt: skip
            return library.compile(source, target=target, options=options)
        except Exception as error:
            line = str(error).strip().splitlines()[-1]
            raise BackendError(
                f"{plugin.name}: Triton cannot compile for sm_{capability}: {line}"
            ) from error


def without_scratch(ptx: str, metadata: Any) -> str:
    """`ptx` without the two scratch pointers that Triton appends to a kernel's parameters.

    TensorRT passes inputs, scalars and outputs only. Raises BackendError when they are in use.
    """
    name = metadata.name
    declared = re.findall(rf"^\t\.param .*\b({name}_param_\d+),?$", ptx, re.M)
    if metadata.global_scratch_size or metadata.profile_scratch_size or len(declared) < 2:
        raise BackendError(f"the kernel {name} needs scratch memory, which TensorRT does not pass")
    for parameter in declared[-2:]:
        if len(re.findall(rf"\b{parameter}\b", ptx)) != 1:
            raise BackendError(f"the kernel {name} reads its scratch pointer {parameter}")
        ptx = re.sub(rf",?\n\t\.param .*\b{parameter}\b,?(?=\n)", "", ptx)
    return ptx


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes per thread, as cuobjdump reads them from machine code."""
    triton()
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = _run(knobs.nvidia.cuobjdump.path, "-res-usage", str(path))
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise BackendError(f"cuobjdump reports no registers: {text[:200]!r}")
    return {"registers": int(found[1]), "stack": int(found[2])}


def assemble(ptx: str, capability: int) -> bytes:
    """The cubin of `ptx`, by the assembler that comes with Triton."""
    triton()
    from triton.backends.nvidia.compiler import get_ptxas

    arch = re.search(r"^\.target (sm_\w+)", ptx, re.M)
    assert arch is not None
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        tool = get_ptxas(capability).path
        _run(tool, f"--gpu-name={arch[1]}", str(source), "-o", str(made))
        return made.read_bytes()


def _known(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
