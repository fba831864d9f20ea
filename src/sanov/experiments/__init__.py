"""One file a system: its claim, arms and presets."""
