"""Image files: their headers, and pixels as the rest of the package expects them."""
