"""A run: its folder, its stages, and the verbs that make or use one."""
