"""Hosts: checkpoints become graphs."""

from graftline.models.checkpoint import open_checkpoint
from graftline.models.export.fake import fake_host
from graftline.models.host import Checkpoint, Host
from graftline.models.weights import WeightSource, external_files

__all__ = ["Checkpoint", "Host", "WeightSource", "external_files", "fake_host", "open_checkpoint"]
