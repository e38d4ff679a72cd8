"""ant-pinpad (App. A): the pin-pad task walked by the MuJoCo ant; two physics backends behind one world."""
