"""Results for others: packed with checksums, verified, merged. Records, and what is made of them; no code is run."""
