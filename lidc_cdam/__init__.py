"""lidc-cdam: signed, per-target maps that explain what a vision transformer predicts from lung nodules on CT."""
