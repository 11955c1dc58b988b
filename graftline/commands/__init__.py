"""The commands of the CLI, one file each. Heavy imports happen inside them: `--help` is instant."""
