"""One self-contained page about a job."""
