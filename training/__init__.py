"""Training, folds and prediction; the only room that knows Lightning."""
