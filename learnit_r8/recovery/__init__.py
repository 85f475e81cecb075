"""Recovery: backups of the model, and what is restored and tried after a refused loss."""
