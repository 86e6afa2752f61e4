"""From a problem to losses along lines and over planes."""
