"""Custom operators, one file each. See plugins/README.md."""

from __future__ import annotations

from graftline.plugins.candidate_update import CANDIDATE_UPDATE
from graftline.plugins.draft_tree import DRAFT_TREE
from graftline.plugins.head_tree import HEAD_TREE
from graftline.plugins.kv_commit import KV_COMMIT
from graftline.plugins.spec import Plugin
from graftline.plugins.tree_attention import TREE_ATTENTION
from graftline.plugins.tree_attention_parts import TREE_ATTENTION_MERGE, TREE_ATTENTION_PARTS
from graftline.plugins.tree_growth import TREE_GROW, TREE_PRUNE
from graftline.plugins.tree_sample import TREE_SAMPLE
from graftline.plugins.tree_verify import TREE_VERIFY
from graftline.plugins.uniforms import UNIFORMS

PLUGINS: dict[str, Plugin] = {
    plugin.name: plugin
    for plugin in (
        CANDIDATE_UPDATE, DRAFT_TREE, HEAD_TREE, KV_COMMIT, TREE_ATTENTION, TREE_ATTENTION_MERGE,
        TREE_ATTENTION_PARTS, TREE_GROW, TREE_PRUNE, TREE_SAMPLE, TREE_VERIFY, UNIFORMS,
    )
}  # fmt: skip
"""Every plugin by the name of its operator."""
