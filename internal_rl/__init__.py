"""Internal reinforcement learning: a learned latent steers a frozen autoregressive policy."""
