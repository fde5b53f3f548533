"""What the person sees: the tab and its panels, the live parts of the page, and what they are made of."""
