"""The bundle in the browser: the page that `edgecifar page` writes and the server shows."""
