"""A Django project in one file, whose API asks for a key.

Run it from the folder above this one with two secrets, Django's and the one of a client:

    export SECRET_KEY=$(python -c 'import secrets; print(secrets.token_hex())')
    export REPORTS_KEY=$(python -c 'import secrets; print(secrets.token_hex())')
    gunicorn examples.django_project:application --bind 127.0.0.1:8000 --threads 16
    curl http://127.0.0.1:8000/
    curl http://127.0.0.1:8000/api/whoami -H "Authorization: Bearer $REPORTS_KEY"

The home page is exempt; every other path needs a key, one that is added later too.
"""

import os
from functools import partial

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse
from django.urls import path

from aigw_middleware import KeyAuth, RateLimiter, StaticKeys, stack

settings.configure(
    SECRET_KEY=os.environ["SECRET_KEY"],
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
)
django.setup()


def home(request):
    return HttpResponse("Welcome.\n")


def whoami(request):
    """Say whose key it was; the key itself was taken out before Django saw the request."""
    return JsonResponse({"key": request.environ["aigw.key"].name})


urlpatterns = [path("", home), path("api/whoami", whoami)]

application = stack(
    get_wsgi_application(),
    partial(KeyAuth, keys=StaticKeys({"reports": os.environ["REPORTS_KEY"]}), exempt=["/"]),
    partial(RateLimiter, limits="100/min"),
)
