"""How gunicorn serves the application. Nothing here is for the bus's sake."""

# Two, since one process proves little; and a thread for each of the load's clients.
workers = 2
threads = 8

keepalive = 60

# Newer versions would put a socket beside the user's files.
control_socket_disable = True
