"""The engines: what the supervisor sees of renderers, and the renderer itself.

Only renderer.py and what it imports (draw, sampler, models, checkpoint, pictures) may import torch;
protocol.py and local.py run in the supervisor and must not.
"""
