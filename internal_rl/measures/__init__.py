"""Pure measures of what a run has learned, below the stages that record them."""
