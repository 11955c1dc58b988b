"""Hosts that run once, opened: latents in, waveforms and images out."""
