"""Settings, folders, jobs, events and file headers: the standard library and msgspec only."""
