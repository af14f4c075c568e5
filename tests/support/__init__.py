"""What several folders of tests, and the benchmarks, are made with; each file says what it is for."""
