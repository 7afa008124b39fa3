"""Training: groups of students that share a teacher's pass, on one device or several ranks, saved and resumed."""
