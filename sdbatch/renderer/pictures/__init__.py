"""Pictures in and out of a model."""
