"""Images inside archives: an index of the members, and an image source that reads them one by one."""
