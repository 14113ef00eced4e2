"""What a query looks at, and which changes of rows could change its result."""
