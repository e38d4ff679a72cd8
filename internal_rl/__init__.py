"""Internal reinforcement learning: steer a frozen autoregressive policy through a learned latent."""
