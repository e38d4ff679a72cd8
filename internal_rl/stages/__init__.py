"""One file a stage; each reads only what an earlier stage wrote to the run directory."""
