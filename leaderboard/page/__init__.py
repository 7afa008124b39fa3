"""A workspace as a page: a folder of files that a browser opens without a server. `build.write_page` is the way in."""
