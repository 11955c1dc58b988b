"""GGUF files in parts: all of them found from any one, and joined into one file to convert."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftline.errors import CheckpointError
from graftline.optional import require

PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
COUNT = "split.count"


def parts(file: Path) -> list[Path]:
    """The file itself, or all parts of the model it is a part of, in order.

    Raises CheckpointError for a part that is missing, and for parts under other names.
    """
    name = PART.match(file.name)
    if name is None:
        return [file]
    count = int(name["count"])
    found = [
        file.with_name(f"{name['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)
    ]
    missing = [p.name for p in found if not p.is_file()]
    if missing:
        raise CheckpointError(
            f"{file}: part of a model in {count} files, {len(missing)} of them missing, first "
            f"{missing[0]}; put all parts into one folder"
        )
    return found


def check_parts(files: Sequence[Path], readers: Sequence[Any]) -> None:
    """Raise CheckpointError unless the files are as many parts as they say themselves."""
    for file, reader in zip(files, readers, strict=True):
        field = reader.get_field(COUNT)
        count = 1 if field is None else max(1, int(field.contents()))
        if count != len(files):
            raise CheckpointError(
                f"{file}: its {COUNT} says that it is one of {count} parts; restore the names of "
                f"the parts (NAME-00001-of-{count:05}.gguf), or join them: llama-gguf-split --merge"
            )


def join(readers: Sequence[Any], to: Path) -> None:
    """Write one GGUF file of all parts: the first one's metadata, everyone's tensors, unchanged."""
    gguf = require("gguf")
    first = readers[0]
    writer = gguf.GGUFWriter(to, first.get_field("general.architecture").contents())
    for name, field in first.fields.items():
        if name == "general.architecture" or name.startswith(("GGUF.", "split.")):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    tensors = [t for reader in readers for t in reader.tensors]
    for t in tensors:
        data = t.data
        writer.add_tensor_info(t.name, data.shape, data.dtype, data.nbytes, t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for t in tensors:
        writer.write_tensor_data(t.data)
    writer.close()
