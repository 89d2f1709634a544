"""Going ahead of the tracer: steps of long loops that need no tracing."""
