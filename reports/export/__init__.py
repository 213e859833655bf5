"""A run's nodules in the formats of other programs: volumes for 3D Slicer, DICOM objects for archives and viewers."""
