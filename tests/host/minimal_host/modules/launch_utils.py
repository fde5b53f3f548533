def git_tag() -> str:
    return "v0.1-minimal"
