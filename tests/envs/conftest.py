import pytest

from envs.gridworld import GridWorld


@pytest.fixture(scope="session")
def paper_world():
    """The paper's settings (App. A)."""
    return GridWorld()


@pytest.fixture(scope="session")
def crowded_world():
    """Small, with half of the cells taken, so that many layouts have to be redrawn."""
    return GridWorld(size=4, num_colours=4, num_walls=4, horizon=60, tasks="ring:3")


@pytest.fixture(scope="session")
def hand_world():
    """The world of the layouts solved by hand."""
    return GridWorld(size=3, num_colours=2, num_walls=1, horizon=8, tasks="0-1")
