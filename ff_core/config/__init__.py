"""The one schema of all settings, and where they come from. No torch."""
