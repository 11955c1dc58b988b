"""Draft heads trained by self-distillation: the host answers prompts, and a head learns to foresee
its answers. The host never changes."""
