"""What is learnt: the rows, their tokens and batches, and how an answer is scored."""
