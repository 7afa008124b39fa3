"""What is done to a teacher before anybody learns from it: repairs, registers, planted artifacts."""
