"""LoRAs and their relatives, put on a model for a job and off again."""
