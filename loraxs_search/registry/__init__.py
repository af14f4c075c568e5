"""The registry: which adapter is a task's champion, why, and how to get it."""
