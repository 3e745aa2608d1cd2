"""The folders of jobs: how they arrive, wait, are claimed, published, steered and cleared."""
