"""The job folders: inbox, queue, claims, publishing, retention."""
