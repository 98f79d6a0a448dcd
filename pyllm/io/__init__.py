"""Files: atomic writing, JSON, TOML, safetensors."""
