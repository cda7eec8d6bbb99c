"""A website as the incident had it: Django, and threads that keep their connections to the database for good.

One process is one deployment, named in PGAPPNAME. It is told what to do on standard input, a word and a number in each line, and answers
each with one line:

    start N   N more threads serve requests, one after the other; answered when each has served one
    rest N    no requests come any more, and N threads hang in the middle of one; the process lives on
    count     requests served, requests failed, connections made so far, and the last failure
"""

import io
import logging
import os
import sys
import threading
import time
import wsgiref.util

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpResponse
from django.urls import path

# What fails is counted, and told when it is asked for.
logging.disable(logging.CRITICAL)

settings.configure(
    SECRET_KEY="only for tests",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    LOGGING_CONFIG=None,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ["PGHOST"],
            "PORT": os.environ["PGPORT"],
            "USER": os.environ["PGUSER"],
            "NAME": os.environ["PGDATABASE"],
            "CONN_MAX_AGE": None,
            "ATOMIC_REQUESTS": True,
            "OPTIONS": {"application_name": os.environ["PGAPPNAME"]},
        }
    },
)

# Between two requests of one thread.
PAUSE = 0.2


def page(request):
    with connection.cursor() as cursor:
        cursor.execute("select %s::int + count(*) from pg_class where relname = 'pg_class'", [41])
        return HttpResponse(str(cursor.fetchone()[0]))


def slow_page(request):
    """One that waits for something else than the database, with its transaction open."""
    page(request)
    hanging.release()
    threading.Event().wait()


urlpatterns = [path("page", page), path("slow", slow_page)]

lock = threading.Lock()
counts = {"served": 0, "failed": 0, "connections": 0}
last_failure = ""
quiet = threading.Event()
hanging = threading.Semaphore(0)
to_hang = threading.Semaphore(0)


def count(what):
    with lock:
        counts[what] += 1


connection_created.connect(lambda **_: count("connections"), weak=False)


def request(application, url):
    """Whether the page came; the rest is what any WSGI server does."""
    global last_failure
    environ = {"PATH_INFO": url, "wsgi.errors": io.StringIO()}
    wsgiref.util.setup_testing_defaults(environ)
    status = []
    response = application(environ, lambda line, headers: status.append(line))
    body = b"".join(response)
    response.close()
    good = status[0].startswith("200") and body == b"42"
    if not good:
        last_failure = f"{status[0]}: {environ['wsgi.errors'].getvalue()}"
    return good


def serve(application, first):
    while True:
        count("served" if request(application, "/page") else "failed")
        if first:
            first.release()
            first = None
        if quiet.wait(PAUSE):
            break
    if to_hang.acquire(blocking=False):
        request(application, "/slow")
        # That came to an end: it had no connection.
        hanging.release()
    # Alive, and its connection with it.
    threading.Event().wait()


def main():
    django.setup()
    application = get_wsgi_application()
    for line in sys.stdin:
        word, number = line.split()
        if word == "start":
            first = threading.Semaphore(0)
            for _ in range(int(number)):
                threading.Thread(target=serve, args=(application, first), daemon=True).start()
            for _ in range(int(number)):
                first.acquire()
            print("started", flush=True)
        elif word == "rest":
            for _ in range(int(number)):
                to_hang.release()
            quiet.set()
            for _ in range(int(number)):
                hanging.acquire()
            print("rests", flush=True)
        elif word == "count":
            with lock:
                print(counts["served"], counts["failed"], counts["connections"], last_failure.replace("\n", " "), flush=True)
    # Nobody listens any more.
    os._exit(0)


main()
