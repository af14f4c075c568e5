"""The Ray cluster: connection, node checks, placement, runtime environment."""
