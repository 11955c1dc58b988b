"""The bundle: the folder that leaves the compiler and that every runtime opens."""
