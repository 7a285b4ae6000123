"""What an attacker would hand in, and the proof that it is refused."""
