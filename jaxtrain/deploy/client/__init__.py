"""A bundle in a browser: a page, and the JavaScript module that it and others run a bundle with."""
