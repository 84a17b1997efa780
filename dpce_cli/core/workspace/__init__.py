"""The folder of artefacts: what is prepared, trained and embedded, and what belongs together."""
