"""ant-pinpad (App. A): the pin-pad task for the MuJoCo ant, one world with two physics backends."""
