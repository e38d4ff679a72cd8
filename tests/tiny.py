"""The settings of a tiny world and tiny models."""

from internal_rl.config import EnvConfig, MetacontrollerConfig, ModelConfig

ENV = EnvConfig(
    size=3,
    num_colours=2,
    num_walls=0,
    horizon=10,
    tasks="0-1,1-0",
    post_tasks="0-1",
    num_maps=1,
)
# scale_last = 1 where the recipe has 0.1: with small outputs a wrong term could hide below the
# tolerance.
MODEL = ModelConfig(
    depth=2, width=8, mlp_width=16, num_heads=2, head_width=4, control_layer=1, scale_last=1.0
)
METACONTROLLER = MetacontrollerConfig(
    history_width=4,
    embedding_width=5,
    latent=3,
    encoder_width=8,
    switch_width=16,
    hypernetwork_width=7,
    rank=2,
)
