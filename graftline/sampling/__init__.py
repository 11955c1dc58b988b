"""How samples are drawn with a denoiser: schedulers, their time steps, and the loop itself."""
