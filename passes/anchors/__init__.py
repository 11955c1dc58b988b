"""The structure of a host: blocks, roles, residual stream; and hosts of a few of its blocks."""
