"""Trainings as others show them while they run: TensorBoard, Weights & Biases, MLflow."""
