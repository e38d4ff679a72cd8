"""How long tests wait for other programs."""

HANG = 3_600  # seconds: only what hangs takes longer, however busy the machine is
