"""Stable Diffusion: loading, noise schedules, objectives and sampling. The built-in model's weights lie in `tiny/`."""
