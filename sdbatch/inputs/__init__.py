"""What a claimed job names, as it was when the job was read first: copies, the images of a folder, decisions."""
