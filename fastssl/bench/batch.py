"""Which batch is measured where the recipe's is more than this machine can do in the time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .. import config as configuration
from ..config import Config
from ..engine.build import shown_images, validate_share
from ..errors import UserError
from ..methods import DataFacts

MEMORY_SHARE = 0.6
"""Of the memory that is free, which a step may take: the estimate is a straight line through one small batch."""


def with_batch(config: Config, batch_size: int) -> Config:
    return replace(config, train=replace(config.train, batch_size=batch_size))


def check(config: Config, facts: DataFacts, world: int) -> None:
    """Raise `UserError` where the configuration cannot be trained on such data by so many processes."""
    configuration.validate(config)
    validate_share(config, world)
    config.method.validate_data(facts, shown_images(config, facts))


def _fits(config: Config, facts: DataFacts, world: int) -> bool:
    try:
        check(config, facts, world)
    except UserError:
        return False
    return True


def smallest(config: Config, facts: DataFacts, world: int) -> int:
    """The smallest batch that can be measured of such data.

    Raises:
        UserError: there is none.
    """
    for batch_size in _candidates(config, facts, world):
        return batch_size
    check(config, facts, world)
    raise UserError(
        f"--data {config.data} has {facts.images} images, too few for a batch of {config.method_name}: give it more, "
        "or choose --train.batch-size"
    )


def choose(
    config: Config,
    facts: DataFacts,
    world: int,
    *,
    seconds: float,
    most: float,
    image_bytes: float,
    free: float | None,
) -> int:
    """The largest batch, up to the configuration's, that is within the time and the memory; else the smallest.

    Args:
        seconds: a round of measurements takes for each image of the global batch.
        most: seconds for a round.
        image_bytes: of memory for each image of one rank.
        free: bytes of memory, or None where unknown.
    """
    found = smallest(config, facts, world)
    for batch_size in _candidates(config, facts, world):
        within = free is None or batch_size / world * image_bytes <= MEMORY_SHARE * free
        if batch_size * seconds <= most and within:
            found = batch_size
    return found


def _candidates(config: Config, facts: DataFacts, world: int) -> Iterator[int]:
    """Batches that the method takes, ascending: the configuration's, powers of two below it, and three times those."""
    most = config.train.batch_size
    some = {world * n for k in range(1, 24) for n in (1 << k, 3 << k)} | {most}
    for batch_size in sorted(some):
        if batch_size <= min(most, facts.images) and _fits(with_batch(config, batch_size), facts, world):
            yield batch_size
