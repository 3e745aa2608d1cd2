"""For the admin: doctor, install, bundle, backup, and the model catalog."""
