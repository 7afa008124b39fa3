"""Published data sets: what must be there, whether it is, and conversion of what cannot be read as it comes."""
