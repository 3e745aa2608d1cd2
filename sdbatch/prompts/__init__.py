"""What a prompt says to a web UI: weights, chunks, changes from step to step, LoRAs and embeddings by name."""
