"""The only user of DVC: what it is asked, what it is told, and why stages run."""
