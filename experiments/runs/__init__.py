"""What the scripts of `experiments` are made of: settings, folders, logs, reports."""
