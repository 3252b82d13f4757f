"""Hard negatives: background blocks drawn in proportion to the false positives in them.

A training step knows how much of each of its patches it took for nodule and should not have, so a
score costs no pass of the network: a block has that of its patch seen last, as experience has in
prioritised replay (Schaul et al. 2016, arXiv 1511.05952). Blocks that are drawn often are scored
anew as often; a share of the draws stays uniform, so that every block is.

Draws follow the scores of the last refresh alone, so they are a function of seed and position.
"""

import numpy as np
from ml_collections import ConfigDict

from lung_unet.errors import InputError

UNSEEN = -1.0


class Mining:
    """The scores of background blocks, numbered as the training split has them, and draws by them.

    With `every` = 0 nothing is mined.

    Raises:
      InputError: `every` or `fraction` cannot be.
    """

    def __init__(self, settings: ConfigDict, blocks: int):
        if settings.every < 0:
            raise InputError(
                f"config.data.mining.every = {settings.every}: choose a number of steps, or 0 for "
                "no mining"
            )
        if not 0 <= settings.fraction <= 1:
            raise InputError(f"config.data.mining.fraction = {settings.fraction}: choose 0 to 1")
        self.fraction = settings.fraction if settings.every else 0.0
        self._every = settings.every
        self._scores = np.full(blocks, UNSEEN, np.float32)
        self._weights = np.ones(blocks)
        self._ends = np.cumsum(self._weights)

    def draw(self, _: int, rng: np.random.Generator) -> int:
        """The number of a block, drawn in proportion to its weight."""
        return int(np.searchsorted(self._ends, rng.random() * self._ends[-1], side="right"))

    def record(self, blocks: np.ndarray, false_positives: np.ndarray) -> None:
        """Keeps the scores of the patches of a batch; `blocks` are their numbers, −1 at nodules."""
        background = blocks >= 0
        self._scores[blocks[background]] = false_positives[background]

    def due(self, step: int) -> bool:
        """Whether draws are to follow the scores anew after a step."""
        return step > 0 and self._every > 0 and step % self._every == 0

    def refresh(self) -> None:
        """Makes weights of the scores. A block that was not seen yet counts as the mean of those
        that were; where there are no false positives, all count the same.

        Whoever reads ahead has to begin again where it is.
        """
        seen = self._scores != UNSEEN
        scores = self._scores.astype(np.float64)
        mean = scores[seen].mean() if seen.any() else 0.0
        self._weigh(np.where(seen, scores, mean) if mean > 0 else np.ones(len(scores)))

    def _weigh(self, weights: np.ndarray) -> None:
        self._weights, self._ends = weights, np.cumsum(weights)

    def get_state(self) -> dict:
        """Scores and weights in JSON's types, exactly."""
        if not self._every:
            return {}
        return {"scores": self._scores.tolist(), "weights": self._weights.tolist()}

    def set_state(self, state: dict) -> None:
        if self._every:
            self._scores = np.array(state["scores"], np.float32)
            self._weigh(np.array(state["weights"]))
