"""Presets: architecture specs as data, one TOML file each."""
