"""Where a trial's fate is recorded, and what follows from it."""
