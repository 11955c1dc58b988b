"""Published draft heads: a path goes in, a `Head` under one naming comes out."""

from graftline.models.heads.detect import open_head
from graftline.models.heads.head import Head, HostSize, Tap

__all__ = ["Head", "HostSize", "Tap", "open_head"]
