"""The images that tests/bench/one_step.py learns from: scikit-learn's digits, and patches of the
two photographs that it ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits, load_sample_images

HELD_DIGITS = 397
PATCH, STRIDE = 16, 8
HELD_FROM = 480
"""The column of a photograph of 640 from which on it is held out."""


@dataclass(frozen=True)
class Data:
    """Images [N, C, S, S] from -1 to 1 and their classes, to learn from and held out. `latents` are
    the channels of their latents [N, latents, S / 4, S / 4], `deviation` that of SSIM's window,
    `words` what the classes are."""

    images: torch.Tensor
    classes: torch.Tensor
    held_out: torch.Tensor
    held_classes: torch.Tensor
    latents: int
    deviation: float
    words: str

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def side(self) -> int:
        return self.images.shape[2]

    def some(self, count: int) -> torch.Tensor:
        """Places of that many images, drawn at random."""
        return torch.randint(len(self.images), (count,))


def digits() -> Data:
    """8 x 8 grey pixels; SSIM's window is 7 of the 8."""
    read: Any = load_digits()
    images = torch.tensor(read.images[:, None] / 8 - 1, dtype=torch.float32)
    classes = torch.tensor(read.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    kept, out = order[HELD_DIGITS:], order[:HELD_DIGITS]
    return Data(images[kept], classes[kept], images[out], classes[out], 2, 0.86, "digits")


def photographs() -> Data:
    """Patches of 16 x 16 pixels in colors, overlapping by half; held out are those of the right
    quarter of each photograph, which do not overlap. A class is the photograph and by how many
    right angles a patch is rotated (Gidaris et al., 1803.07728)."""
    read: Any = load_sample_images()
    learned: list[torch.Tensor] = []
    held: list[torch.Tensor] = []
    for photo in read.images:
        pixels = torch.tensor(photo, dtype=torch.float32).permute(2, 0, 1) / 127.5 - 1
        learned.append(patches(pixels[:, :, :HELD_FROM], STRIDE))
        held.append(patches(pixels[:, :, HELD_FROM:], PATCH))
    kept, out = (_rotated(parts) for parts in (learned, held))
    return Data(*kept, *out, 4, 1.5, "photographs and rotations of patches")


def patches(image: torch.Tensor, stride: int) -> torch.Tensor:
    """All [N, C, PATCH, PATCH] of an image [C, H, W]."""
    cut = image.unfold(1, PATCH, stride).unfold(2, PATCH, stride)
    return cut.permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()


def _rotated(photos: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of some photographs in a random order, each in one of four rotations, and their
    classes."""
    seeded = torch.Generator().manual_seed(0)
    source = torch.cat([torch.full((len(p),), number) for number, p in enumerate(photos)])
    order = torch.randperm(len(source), generator=seeded)
    turns = torch.randint(4, (len(source),), generator=seeded)
    pairs = zip(torch.cat(photos)[order], turns, strict=True)
    rotated = torch.stack([torch.rot90(image, int(turn), (1, 2)) for image, turn in pairs])
    return rotated, 4 * source[order] + turns


IMAGES: Mapping[str, Callable[[], Data]] = {"digits": digits, "photographs": photographs}
