"""The explorer as a web page: the server and what it draws."""
