"""Django's defaults, but for cursors on the server: outside a transaction they need a server connection of their own, and
Django opens one for each `iterator()`. With DJANGO_PREPARES=yes it prepares statements, too, and keeps its connections."""

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
        "DISABLE_SERVER_SIDE_CURSORS": os.environ["PGWEIR_MODE"] == "transaction",
    }
}
if os.environ.get("DJANGO_PREPARES") == "yes":
    DATABASES["default"] |= {
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
        "TIME_ZONE": "Asia/Tokyo",
        "OPTIONS": {"server_side_binding": True, "prepare_threshold": 0, "application_name": "a site"},
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
