"""A trained FSPAD head's file is the module that learned: tensor for tensor, under its keys."""

from __future__ import annotations

from pathlib import Path

import torch

import graftline.models.export.host_model  # noqa: F401  registers the attention of the module
from graftline.models.heads import open_head
from graftline.models.heads.eagle_shapes import eagle_shape, module_tensors, our_name
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.fspad import Fspad
from graftline.models.training.head_folder import Story, write_head
from tests.models.heads.test_fspad import PUBLISHED


def test_the_file_holds_the_module(host_folder: Path, tmp_path: Path) -> None:
    host = FrozenHost(host_folder)
    head = Fspad(host)
    published = head.published()
    assert set(published.tensors) == PUBLISHED.keys() - {"embed_tokens.weight"}
    write_head(
        tmp_path / "head", published, Story("run", "host", "train", "data", 0, 1, "", 0.0, None)
    )
    again = open_head(tmp_path / "head")
    shape = eagle_shape(again)
    assert shape == head.shape
    tensors = module_tensors(again, shape)
    learned = {n: p for n, p in head.module.named_parameters() if p.requires_grad}
    assert {our_name(name) for name in learned} == tensors.keys()
    for name, parameter in learned.items():
        got = torch.from_numpy(tensors[our_name(name)].numpy().copy())
        torch.testing.assert_close(got, parameter.detach().half().float(), rtol=0, atol=0)
