"""The verbs fit, validate, test and predict: configuration, checkpoints and Lightning runs."""
