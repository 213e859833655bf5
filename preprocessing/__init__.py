"""From DICOM and pylidc to files; the only room that knows pylidc and DICOM input."""
