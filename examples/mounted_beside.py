"""A gateway mounted at /v1 beside an app, by werkzeug's dispatcher.

Neither knows of the other, so either can be any WSGI application. Run it from the folder above
this one, make a key, and ask both:

    export OPENAI_API_KEY=sk-...
    gunicorn examples.mounted_beside:application --bind 127.0.0.1:8000 --threads 16
    aigw keys create --name web
    curl http://127.0.0.1:8000/
    curl http://127.0.0.1:8000/v1/models -H 'Authorization: Bearer aigw-...'

The gateway is the ready one: it serves every provider whose SDK's variable holds a key and reads
`AIGW_STORE` and `AIGW_COUNTERS`.
"""

from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.wrappers import Request, Response

from aigw_middleware.wsgi import application as gateway


@Request.application
def app(request):
    """Answer every path that is not the gateway's."""
    return Response("The app beside the gateway.\n")


application = DispatcherMiddleware(app, {"/v1": gateway})
