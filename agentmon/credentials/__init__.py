"""Credentials that the proxy puts into requests, so that the job never has them.

settings command | /etc/agentmon/credentials/NAME | $CREDENTIALS_DIRECTORY/NAME ─▶ sources.Store (daemon, root)
─ wire.SetCredentials ─▶ proxy worker ─▶ secret.Secret ─▶ the one header of the route
"""
