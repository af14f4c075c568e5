"""A first space for your rows: which columns, what kind of task, how long a search."""
