"""The one list of metric names, their x-axes and meanings."""

_ENDINGS = {  # of the ant
    f"ending_{name}": f"share of the episodes that ended so: {name}"
    for name in ("not_finite", "wall", "height", "wrong_colour", "success", "horizon")
}
_RL_METRICS = {
    "success": "share of the batch's episodes that end in success",
    "return_mean": "mean undiscounted return per episode",
    "episode_length": "mean primitive steps per episode",
    "num_switches": "mean switches (decisions of the policy) per episode",
    "approx_kl": (
        "approximate KL from the policy that collected the batch to that of the last pass over it, "
        "nats"
    ),
    "clip_fraction": "share of decisions whose probability ratio is clipped",
    "policy_std": (
        "mean standard deviation of the policy's Gaussian, where it starts from no proposal"
    ),
    "component_std": (
        "mean standard deviation of the mixture's components, where the policy starts from a "
        "proposal"
    ),
    "grad_norm": "global gradient norm before clipping",
    "episodes_per_second": "episodes collected and learnt from, per second of wall time",
    "updated": "1 if the batch gave an update, 0 if all its returns were equal",
    **_ENDINGS,
}

_EXPERT_METRICS = {
    **{name: _RL_METRICS[name] for name in ("approx_kl", "clip_fraction")},
    "entropy": "mean entropy of the policy, nats",
    "velocity": "mean velocity along the arrows, m/s",
    "value_loss": "mean squared error of the critic, halved",
    "std": "mean standard deviation of the torques",
    "episode_length": "control steps per episode that ended",
    "steps_per_second": "control steps played and learnt from, per second of wall time",
    **_ENDINGS,
}

# The one list of what may be logged: "stage/metric" -> (x axis, meaning). A stage has one x axis.
METRICS: dict[str, tuple[str, str]] = {
    "pretrain/loss": ("step", "total training loss"),
    "pretrain/nll": ("step", "negative log-likelihood of the action, nats per step"),
    "pretrain/next_observation_loss": (
        "step",
        "loss of the next observation's prediction, nats per step",
    ),
    "pretrain/grad_norm": ("step", "global gradient norm before clipping"),
    "pretrain/valid_nll": ("step", "action NLL on held-out episodes, nats per step"),
    "pretrain/bayes_nll": (
        "step",
        "action NLL of the Bayes filter over tasks on the same episodes",
    ),
    "pretrain/oracle_nll": (
        "step",
        "action NLL of the expert that knows the task on the same episodes",
    ),
    "pretrain/steps_per_second": (
        "step",
        "gradient steps per second of wall time, evaluation included",
    ),
    "controllers/nll": (
        "step",
        "action NLL of the base steered by the supervised controllers, nats per step",
    ),
    "controllers/grad_norm": ("step", "global gradient norm before clipping"),
    "controllers/valid_nll": ("step", "the same on held-out episodes"),
    "controllers/steps_per_second": (
        "step",
        "gradient steps per second of wall time, evaluation included",
    ),
    "discover/loss": ("step", "NLL + alpha KL"),
    "discover/nll": (
        "step",
        "action NLL of the steered base in training (on D*), nats per step",
    ),
    "discover/kl": (
        "step",
        "KL of the posterior of z from the prior, nats per step, over the steps of the NLL",
    ),
    "discover/kl_per_episode": (
        "step",
        "held-out KL summed over an episode, nats: the rate of Fig. 7. Not with "
        "metacontroller.shared_noise, whose steps share one draw, nor with discover.recovery or "
        "splice, which train another likelihood",
    ),
    "discover/alpha": ("step", "weight of the KL"),
    "discover/switch_rate": ("step", "share of steps at which z is replaced"),
    "discover/true_switch_rate": ("step", "share of steps at which the expert's goal changes"),
    "discover/switch_f1": (
        "step",
        "F1 of the switches against the expert's, within discover.tolerance steps",
    ),
    "discover/random_f1": ("step", "F1 of random switches of equal rate"),
    "discover/switch_f1_colours": (
        "step",
        "F1 against the changes of the colour, not of the abstract subgoal",
    ),
    "discover/random_f1_colours": ("step", "the same of random switches of equal rate"),
    "discover/switch_f1_within_1": (
        "step",
        "F1 of the switches within one step, whatever discover.tolerance",
    ),
    "discover/random_f1_within_1": ("step", "the same of random switches of equal rate"),
    "discover/mid_share": ("step", "share of steps whose beta lies in (0.1, 0.9)"),
    "discover/valid_nll": (
        "step",
        "action NLL of the steered base on held-out episodes of D, nats per step",
    ),
    "discover/nll_hard": (
        "step",
        "held-out NLL with the switch open or shut, as internal RL has it, never in between",
    ),
    "discover/nll_zero": ("step", "held-out NLL with z = 0"),
    "discover/nll_permuted": (
        "step",
        "held-out NLL with z taken from another episode, as long as that lasts",
    ),
    "discover/nll_prior": ("step", "held-out NLL with z drawn from the prior"),
    "discover/nll_same_code": (
        "step",
        "held-out NLL with z from another episode's segment of the same subgoal",
    ),
    "discover/nll_first_code": (
        "step",
        "the same with z from the first segment of another episode",
    ),
    "discover/bayes_nll": (
        "step",
        "action NLL of the Bayes filter over tasks on the same episodes",
    ),
    "discover/oracle_nll": (
        "step",
        "action NLL of the expert that knows the task on the same episodes",
    ),
    "discover/base_nll": ("step", "action NLL of the pretrained base alone on the same episodes"),
    "discover/grad_norm": ("step", "global gradient norm before clipping"),
    "discover/steps_per_second": ("step", "gradient steps per second of wall time"),
    **{
        f"{stage}/{name}": ("step", meaning)
        for stage in ("propose", "propose_kept", "propose_supported")
        for name, meaning in {
            "log_prob": "mean log-likelihood of the codes under the proposal, nats",
            "noise": "mean standard deviation of a component",
            "start": "number of the random start",
            "grad_norm": "global gradient norm",
            "steps_per_second": "gradient steps per second of wall time",
        }.items()
    },
    "transitions/expected_successes": (
        "episodes",
        "successes that the budget of an RL seed holds on average before anything is learned: the "
        "product of the rates of the task's legs, times episodes",
    ),
    "transitions/played_successes": (
        "episodes",
        "the same by the untrained policy's share of successes",
    ),
    **{f"expert/{name}": ("control_steps", meaning) for name, meaning in _EXPERT_METRICS.items()},
    **{f"internal_rl/{name}": ("episodes", meaning) for name, meaning in _RL_METRICS.items()},
    **{f"raw_rl/{name}": ("episodes", meaning) for name, meaning in _RL_METRICS.items()},
}
