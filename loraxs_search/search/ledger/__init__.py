"""Records the events of trials, and what follows from them."""
