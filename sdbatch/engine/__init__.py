"""The supervisor's side of a renderer: the protocol, a renderer process, and a fake."""
