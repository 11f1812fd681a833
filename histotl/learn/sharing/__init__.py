"""Ways in which tasks share what they learn; one file each, see :mod:`histotl.learn.sharing.base`."""
