"""LoRAs and similar adapters, added to a model for one job."""
