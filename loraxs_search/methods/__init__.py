"""Methods: what is trained on a frozen base."""
