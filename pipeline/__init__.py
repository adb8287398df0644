"""The pipeline around the models: configuration, result folders, runs, reports and pictures."""
