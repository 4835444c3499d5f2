"""What each route does: read the call, ask the store, return a view."""
