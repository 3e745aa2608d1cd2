"""For the admin: doctor, install, bundle, and the models that lie in a root."""
