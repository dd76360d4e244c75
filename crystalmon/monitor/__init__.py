"""A probe (`probe.Monitor`), and when to make one (`callback.CrystalCallback`)."""
