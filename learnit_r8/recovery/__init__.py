"""Recovery: backups of the model, where to go back to, and what to try after a refused loss."""
