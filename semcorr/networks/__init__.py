"""Networks: building, loading, running on images, and training them."""
