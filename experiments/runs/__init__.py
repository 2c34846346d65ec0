"""Parts of the scripts in `experiments`: settings, folders, training, logs, reports."""
