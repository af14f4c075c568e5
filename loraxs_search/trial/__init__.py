"""What one trial means: its loop, its optimizer, its scores and its state. The lone trial is the reference."""
