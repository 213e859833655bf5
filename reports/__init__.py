"""Documents from artefacts alone; never loads a model."""
