"""Starting, watching and stopping worker processes; no torch."""
