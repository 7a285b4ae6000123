"""The job queue: a durable store, the spool folder, and the verbs over them. Free of torch."""
