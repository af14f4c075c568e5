"""The frozen model under every adapter: find it, know its layers, load it."""
