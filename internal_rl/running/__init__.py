"""How a run is composed, started, resumed and reused."""
