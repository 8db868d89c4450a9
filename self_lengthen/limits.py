"""What the system lets one process do."""

import resource

MOST_FILES = 65_536  # a request in flight holds one connection, in an API server two


def allow_many_connections() -> None:
    """Raise this process's limit of open files from the usual 1,024 as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
