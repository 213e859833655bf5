"""Figures of SCIENCE.md that tests of several rooms must reproduce."""

PUBLISHED = {
    "subtlety": (0.38, 0.73, 0.301),
    "calcification": (0.70, 0.27, 0.104),
    "sphericity": (0.26, 0.87, 0.429),
    "margin": (0.42, 0.79, 0.271),
    "lobulation": (0.35, 0.85, 0.334),
    "spiculation": (0.45, 0.72, 0.245),
    "texture": (0.54, 0.39, 0.184),
    "diameter": (0.94, 1.60, 0.017),
    "malignancy": (0.55, 0.95, 0.179),
}
"""SCIENCE.md, human ceiling: ICC(1), mean absolute difference, noise floor, on the 869 nodules of preset `all`."""
