"""Django's defaults. With DJANGO_PREPARES=yes it prepares statements, too, and keeps its connections; then it had better do
without cursors on the server, because one that is opened outside a transaction keeps a server connection as long."""

import os

SECRET_KEY = "only for tests"
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "library",
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ["PGPORT"],
        "USER": os.environ["PGUSER"],
        "PASSWORD": os.environ["PGPASSWORD"],
        "NAME": os.environ["PGDATABASE"],
    }
}
if os.environ.get("DJANGO_PREPARES") == "yes":
    DATABASES["default"] |= {
        "CONN_MAX_AGE": 60,
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "CONN_HEALTH_CHECKS": True,
        "TIME_ZONE": "Asia/Tokyo",
        "OPTIONS": {"server_side_binding": True, "prepare_threshold": 0, "application_name": "a site"},
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
