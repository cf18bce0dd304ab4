"""What every room needs: errors, numbers, names, files, randomness. It knows nothing of training."""
