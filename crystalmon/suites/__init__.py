"""Tasks, choices, prompts: parsed, validated, hashed; and the bundled YAML files."""
