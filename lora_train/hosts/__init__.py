"""What the page lives in: a WebUI, or a page of its own."""
