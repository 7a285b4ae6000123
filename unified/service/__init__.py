"""The service: the supervisor that trains what is queued, and its doors: command line, HTTP, client, page."""
