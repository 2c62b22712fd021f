"""The explorer as a web application: the server, and the page that it serves."""
