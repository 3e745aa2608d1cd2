"""The web page. It works on the folders, as the commands do; it needs the extra `sdbatch[web]`."""
