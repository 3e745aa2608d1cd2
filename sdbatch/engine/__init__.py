"""Who draws, as the service sees it: the protocol, a renderer process, and a fake."""
