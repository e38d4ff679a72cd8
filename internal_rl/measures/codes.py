"""What the latent encodes: codes by segment, decoded by nearest neighbour; plain NumPy."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from internal_rl.measures.switching import subgoal_changes


@dataclass(frozen=True)
class Codes:
    """One latent per true segment.

    latent: [N, Z], at the segment's last step.
    subgoal: int [N], the abstract subgoal.
    place: int [N], the cell where the subgoal lies.
    ordinal: int [N], number of the segment in its episode, from 0.
    episode: int [N].
    """

    latent: Float[np.ndarray, "N Z"]
    subgoal: Int[np.ndarray, "N"]
    place: Int[np.ndarray, "N"]
    ordinal: Int[np.ndarray, "N"]
    episode: Int[np.ndarray, "N"]

    def of_first_segments(self) -> "Codes":
        """The codes of the first subgoals of episodes.

        Nothing of the episode had been seen that they could lean on.
        """
        first = self.ordinal == 0
        return Codes(*(getattr(self, field.name)[first] for field in fields(self)))


def segment_codes(
    latent: Float[np.ndarray, "B T Z"],
    subgoal: Int[np.ndarray, "B T"],
    place: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
) -> Codes:
    """Codes of the segments that were completed (their end is seen).

    place: the cell of each step's subgoal.
    """
    ordinal = np.cumsum(subgoal_changes(subgoal, mask), 1)
    ends = np.zeros_like(mask)
    ends[:, :-1] = subgoal_changes(subgoal, mask)[:, 1:]
    episode, time = np.nonzero(ends)
    return Codes(
        latent=latent[episode, time],
        subgoal=subgoal[episode, time],
        place=place[episode, time],
        ordinal=ordinal[episode, time],
        episode=episode,
    )


def nearest_neighbour_accuracy(codes: Codes, label: str) -> dict[str, float]:
    """Share of codes whose nearest code from other episodes has the same `label`.

    label: "subgoal" or "place". The codes of odd episodes are looked up among those of even ones.
    Keys: "all" and each segment's ordinal; "chance" is the share of the most frequent label.
    """
    values = getattr(codes, label)
    reference = codes.episode % 2 == 0
    query = codes.episode % 2 == 1
    if not reference.any() or not query.any():
        return {}

    # Squared distances of all pairs, multiplied out so that no array of differences is formed.
    squared = (
        np.square(codes.latent[query]).sum(1)[:, None]
        - 2 * codes.latent[query] @ codes.latent[reference].T
        + np.square(codes.latent[reference]).sum(1)
    )

    right = values[reference][squared.argmin(1)] == values[query]
    ordinals = codes.ordinal[query]
    _, counts = np.unique(values, return_counts=True)
    scores = {"all": float(right.mean()), "chance": float(counts.max() / counts.sum())}
    scores |= {str(k): float(right[ordinals == k].mean()) for k in np.unique(ordinals)}
    return scores


def same_subgoal_latents(
    codes: Codes,
    subgoal: Int[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "B T Z"]:
    """For each true segment a code of the same subgoal from another episode, held throughout.

    Steps whose subgoal has no code elsewhere get zeros.
    """
    latents = np.zeros((*subgoal.shape, codes.latent.shape[-1]), np.float32)
    ordinal = np.cumsum(subgoal_changes(subgoal, mask), 1)
    by_subgoal = {k: np.flatnonzero(codes.subgoal == k) for k in np.unique(codes.subgoal)}
    for episode in range(len(subgoal)):
        for segment in range(ordinal[episode].max() + 1):
            here = (ordinal[episode] == segment) & mask[episode]
            if not here.any():
                continue
            pool = by_subgoal.get(subgoal[episode][here][0], np.array([], int))
            pool = pool[codes.episode[pool] != episode]
            if len(pool):
                latents[episode][here] = codes.latent[rng.choice(pool)]
    return latents
