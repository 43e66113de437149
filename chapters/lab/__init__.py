"""What the chapters share: the microworld, experiments over seeds, statistics and figures."""
