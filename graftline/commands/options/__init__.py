"""Every argument and option of the command line, once, by topic: what it takes and says in --help.

Options that belong together are a dataclass, whose fields are their names and defaults; those that
commands share are types, and a command's signature says their defaults. `--help` has the order of
the signature, with the fields of a dataclass where it stands.
"""
