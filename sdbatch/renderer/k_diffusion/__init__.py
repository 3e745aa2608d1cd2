"""The samplers of k-diffusion, which the web UIs draw with, and their noise levels."""
