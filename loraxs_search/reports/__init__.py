"""Tables and figures from recorded trials; reads, never runs."""
