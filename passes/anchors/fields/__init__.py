"""Receptive fields: what of its input each element of a value along one axis depends on."""
