"""What every training needs: loop, optimiser, checkpoints, metrics, parallel processes."""
