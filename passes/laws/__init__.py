"""The laws that passes are held to, and how two runs of a graph are compared."""
