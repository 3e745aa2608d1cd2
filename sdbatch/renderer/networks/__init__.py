"""The networks: CLIP, and those of the diffusers library; what goes in and what is kept of what comes out."""
